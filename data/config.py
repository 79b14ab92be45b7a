"""What can be said about data in an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """Which data set, how it is cut into clients, and what is held out.

    Attributes:
        name: A name of `umbel list data`, or `hub:<owner/name>` through flwr-datasets.
        path: Folder of `image_folder`, or of IDX files for `fashion_mnist`; None looks in the usual places.
        num_clients: Number of clients K; a client is one partition.
        partition: A name of `umbel.data.partition.names()`.
        alpha: Concentration of the Dirichlet partitions; smaller is more skewed.
        classes_per_client: Classes that a client holds under `pathological`.
        shards_per_client: Shards that a client holds under `shards`.
        imbalance: Largest over smallest class under `long_tail` (the field's imbalance factor, at least 1).
        num_tasks: Number of tasks in a sequence under `split_tasks` and `permuted_tasks`.
        rounds_per_task: Rounds that each task of a sequence lasts, one task after the other; 0 trains on all tasks at
            once.
        heads: `shared`: one head for all tasks; `per_task`: under `split_tasks`, training and evaluation see the
            outputs of the example's own task only, as if each task had a head of its own.
        min_examples: Smallest number of examples that any client may have, before it holds any out. A draw
            that leaves a client with less is drawn again, up to ten times, and then refused.
        top_up: In place of refusing, move examples from the largest clients to those below `min_examples`.
            A deviation from the plain distributions, needed when many clients meet a small alpha.
        server_validation: Fraction of the training examples that the server keeps for model selection.
        client_validation: Fraction of each client's examples that it keeps for validation.
        client_test: Fraction of each client's examples that it keeps for its own test.
        max_train: Use only so many training examples, drawn by the seed; 0 uses all.
        max_test: Use only so many test examples, drawn by the seed; 0 uses all.
        augment: Batched augmentation while training: none, flip, crop, or flip_crop.
        encoder: Frozen encoder whose embeddings take the place of images or texts; a name of `umbel list encoders`,
            or none when empty. Embeddings are made once and cached.
        encoder_size: Side in pixels that images are resized to for the encoder; 0 takes the encoder's own.
        text_encoder: What text models read: `bpe` for tokens of a vocabulary that is learned from the public captions,
            or a frozen encoder of texts such as `minilm`; none when empty.
        vocabulary: Number of tokens under `bpe`.
        text_length: Tokens of a text; longer ones are cut.
        public: Fraction of what `server_validation` leaves of the training examples, or of their concepts, that the
            server and all clients have in common (one example of each concept); nobody else trains on them.
        num_shuffled: Clients, drawn by the seed, whose training labels are shuffled among their examples: a fault to
            test detectors and robust strategies with.
        seed: Seed of splits and partitions; None takes `run.seed`.
        options: Further options of the data set, such as `num_examples` of `synthetic`.
    """

    name: str = "digits"
    path: str | None = None
    num_clients: int = 10
    partition: str = "iid"
    alpha: float = 0.5
    classes_per_client: int = 2
    shards_per_client: int = 2
    imbalance: float = 1.0
    num_tasks: int = 5
    rounds_per_task: int = 0
    heads: str = "shared"
    min_examples: int = 1
    top_up: bool = False
    server_validation: float = 0.1
    client_validation: float = 0.0
    client_test: float = 0.2
    max_train: int = 0
    max_test: int = 0
    augment: str = "none"
    encoder: str = ""
    encoder_size: int = 0
    text_encoder: str = ""
    vocabulary: int = 2000
    text_length: int = 32
    public: float = 0.0
    num_shuffled: int = 0
    seed: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

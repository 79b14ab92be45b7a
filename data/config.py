"""What can be said about data in an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval

from umbel.core.ranges import OneOf


@dataclass(frozen=True)
class DataConfig:
    """Which data set, how it is cut into clients, and what is held out.

    Attributes:
        name: A name of `umbel list data`, or `hub:<owner/name>` through flwr-datasets; `sites` where each site has its
            own and the server none.
        path: Folder of `image_folder`, or of IDX files for `fashion_mnist`; null looks in the usual places.
        num_clients: Number of clients K; a client is one partition.
        partition: A name of `umbel.data.partition.names()`.
        alpha: Concentration of the Dirichlet partitions; smaller is more skewed.
        classes_per_client: Classes that a client holds under `pathological`.
        shards_per_client: Shards that a client holds under `shards`.
        imbalance: Largest over smallest class under `long_tail` (the field's imbalance factor).
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
        classes: Under `sites`, the names of the classes in the order of their labels; or `union` or `intersection` of
            those that the sites have, in the order of the alphabet.
        image_size: Under `sites`, pixels on a side that pictures are brought to.
        channels: Under `sites`, 1 for grey and 3 for colour pictures.
        mean: Under `sites`, mean of each channel in units of [0, 1] pixels, by which pictures are normalised; empty
            takes that of all sites' training pictures together.
        std: Under `sites`, the standard deviation of each channel, likewise.
        sites: Under `sites`, data files of the sites to simulate, one site after the other; in a real federation each
            node names its own (`site-data`).
        server: Under `sites`, a folder `<class>/*` of the server's own test pictures; empty where it has none.
        options: Further options of the data set, such as `num_examples` of `synthetic`.
    """

    name: str = "digits"
    path: str | None = None
    num_clients: Annotated[int, Ge(1)] = 10
    partition: str = "iid"
    alpha: Annotated[float, Gt(0)] = 0.5
    classes_per_client: Annotated[int, Ge(1)] = 2
    shards_per_client: Annotated[int, Ge(1)] = 2
    imbalance: Annotated[float, Ge(1)] = 1.0
    num_tasks: Annotated[int, Ge(1)] = 5
    rounds_per_task: Annotated[int, Ge(0)] = 0
    heads: Annotated[str, OneOf("shared", "per_task")] = "shared"
    min_examples: Annotated[int, Ge(1)] = 1
    top_up: bool = False
    server_validation: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    client_validation: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    client_test: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    max_train: Annotated[int, Ge(0)] = 0
    max_test: Annotated[int, Ge(0)] = 0
    augment: str = "none"
    encoder: str = ""
    encoder_size: Annotated[int, Interval(ge=0, le=4096)] = 0
    text_encoder: str = ""
    vocabulary: Annotated[int, Interval(ge=1, le=1_000_000)] = 2000
    text_length: Annotated[int, Interval(ge=1, le=65_536)] = 32
    public: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    num_shuffled: Annotated[int, Ge(0)] = 0
    seed: int | None = None
    classes: list[str] | str = ""
    image_size: Annotated[int, Interval(ge=0, le=4096)] = 0
    channels: Annotated[int, Interval(ge=0, le=3)] = 0
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    server: str = ""
    options: dict[str, Any] = field(default_factory=dict)

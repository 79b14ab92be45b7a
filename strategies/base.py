"""What a strategy is: both halves of a federated method on one page.

A strategy says which phases a round has (`umbel.strategies.phase`), answers the other questions of `Strategy`, and does
nothing else. It imports no transport and no logger; it sees the server as a `ServerContext` and a client as a
`ClientContext`, and runs unchanged wherever those come from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from umbel.core import training
from umbel.core.losses import CrossEntropy
from umbel.core.memory import MemoryRecord
from umbel.core.metrics import Predict
from umbel.core.names import UnknownNameError, nearest
from umbel.core.ranges import check_ranges
from umbel.core.records import Payload
from umbel.core.rng import generator
from umbel.core.schedule import Schedule
from umbel.core.training import LocalConfig, TrainReport
from umbel.core.tree import Tree
from umbel.core.virtual.devices import Devices
from umbel.data.federation import Federation
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.weights import load_state
from umbel.strategies.phase import EVALUATE as EVALUATE
from umbel.strategies.phase import Phase as Phase
from umbel.strategies.phase import by_name as by_name
from umbel.strategies.phase import over as over
from umbel.strategies.setting import Setting as Setting
from umbel.strategies.steps import initial_model as initial_model
from umbel.strategies.steps import server_step as server_step
from umbel.strategies.steps import split_buffers as split_buffers
from umbel.strategies.steps import train_and_subtract as train_and_subtract

S = TypeVar("S")


@dataclass(frozen=True)
class Predictor:
    """Something to evaluate.

    Attributes:
        predict: Maps normalised images [B, ...] to logits [B, C], in evaluation mode.
        family: Which metrics it wants: `classification`, or `retrieval` between the representations [B, D] that
            `predict` gives of images and `texts` gives of tokens.
        groups: Class groups whose accuracy is reported apart, [C] int64: 0 head, 1 middle, 2 tail; None has none.
        reads: What a classification predicts from: `images`, or `tokens`.
        texts: Maps tokens [B, L] to representations [B, D], under `retrieval`.
    """

    predict: Predict
    family: str = "classification"
    groups: Tensor | None = None
    reads: str = "images"
    texts: Predict | None = None


@dataclass(frozen=True)
class ServerContext:
    """What a server-side step may use.

    Attributes:
        seed: The run's seed.
        round: The current round, from 1; 0 before the first.
        num_rounds: Rounds in total.
        num_clients: Clients in total (K).
        local: How clients train.
        build_model: Builds the initialised global model; the same one every time for the same seed.
        shared_names: Names of the model's state that travel and are averaged.
        validation: The server's validation examples.
        device: Where server-side arithmetic runs.
        prepare: Turns examples into (images, labels) on the device, normalised.
        num_sampled: Clients that a `sample` phase of this round selects.
        num_examples: Training examples of all clients together (the sum of all n_k).
        schedule: When the sequence of tasks moves on.
        task_of_class: The task of each class, [C], where each task has a head of its own; else None.
        public: Examples that all clients have as well, or None.
        vocabulary: Number of tokens that texts are made of; 0 where `tokens` are embeddings.
        num_train: Training examples of each client (n_k).
        devices: The clients' devices in virtual time, or None.
    """

    seed: int
    round: int
    num_rounds: int
    num_clients: int
    local: LocalConfig
    build_model: Callable[[], Model]
    shared_names: frozenset[str]
    validation: Examples | None
    device: torch.device
    prepare: Callable[[Examples], tuple[Tensor, Tensor]]
    num_sampled: int = 0
    num_examples: int = 0
    schedule: Schedule = field(default_factory=Schedule)
    task_of_class: Tensor | None = None
    public: Examples | None = None
    vocabulary: int = 0
    num_train: Sequence[int] = ()
    devices: Devices | None = None

    @property
    def task(self) -> int:
        """The task of this round, from 0."""
        return self.schedule.task(self.round)

    def rng(self, purpose: str) -> torch.Generator:
        """Return the server's generator for a purpose in this round."""
        return generator(self.seed, self.round, "server", -1, purpose)

    def model(self, tree: Tree) -> Model:
        """Return a model with this state, in evaluation mode on the server's device."""
        model = self.build_model().to(self.device)
        load_state(model, tree, partial=True)
        return model.eval()


@dataclass(frozen=True)
class ClientContext:
    """One client, as its half of a strategy sees it.

    Attributes:
        id: Partition number.
        seed: The run's seed.
        round: The current round, from 1.
        phase: Name of the phase.
        local: How to train.
        train_data: The client's training examples; in a sequence of tasks those of the current task.
        validation_data: Its validation examples.
        test_data: Its own test examples.
        device: Where it computes.
        load_model: Gives the process's model the state of a tree (and the client's own local parts) in place.
        weights_of: Returns the shared part of a model's state as a tree that owns its tensors, on the CPU.
        prepare: Turns examples into (images, labels) on the device, normalised.
        augment: Augmentation of training batches, or None.
        num_classes: Number of classes C.
        memory: What the client remembered before this phase, or None.
        remember: Replaces the client's memory; takes effect when the reply is good.
        loss: Mean loss of (logits, labels); with a head for each task it sees that task's outputs only.
        task: The current task, from 0.
        keep: Returns what was made under a name for this client before, if this process still has it and the version
            of what it is made of and the task are the same; else makes it in its place. Only to save time.
        public: Examples that the server and all clients have, or None.
        vocabulary: As on the server.
        trainer: Trains, with the arguments of `umbel.core.training.train`.
    """

    id: int
    seed: int
    round: int
    phase: str
    local: LocalConfig
    train_data: Examples
    validation_data: Examples
    test_data: Examples
    device: torch.device
    load_model: Callable[[Tree], Model]
    weights_of: Callable[[Model], dict[str, Tensor]]
    prepare: Callable[[Examples], tuple[Tensor, Tensor]]
    augment: training.Augmentation | None
    num_classes: int
    memory: MemoryRecord | None
    remember: Callable[[MemoryRecord], None]
    loss: training.Loss = field(default_factory=CrossEntropy)
    task: int = 0
    keep: Callable[[str, float, Callable[[], Examples]], Examples] = field(default=lambda name, version, make: make())
    public: Examples | None = None
    vocabulary: int = 0
    trainer: training.Trainer = training.train

    @property
    def num_examples(self) -> int:
        """Number of training examples (n_k)."""
        return len(self.train_data)

    def rng(self, purpose: str) -> torch.Generator:
        """Return this client's generator for a purpose in this round and phase."""
        return generator(self.seed, self.round, self.phase, self.id, purpose)

    def with_data(self, data: Examples) -> ClientContext:
        """Return the same client on other training data."""
        return replace(self, train_data=data)

    def model(self, tree: Tree) -> Model:
        """Return the model with this state."""
        return self.load_model(tree)

    def weights(self, model: Model) -> dict[str, Tensor]:
        """Return the shared part of the model's state."""
        return self.weights_of(model)

    def train(
        self, model: Model, correct: training.Correction | None = None, objective: training.Objective | None = None
    ) -> TrainReport:
        """Train the model in place on this client's data.

        Args:
            model: The model.
            correct: Called with (parameters, gradients) after each backward pass; changes the gradients in place.
            objective: Mean loss [] of (model, images [B, ...], labels [B]), in place of that of the model's logits
                (`training_loss`). What is reported as the loss is then its value.

        An objective, and a correction that is no `AffineCorrection`, may read anything: steps with one are not compiled
        (`client.compile=step`), and such clients train one by one (`client.together`); a notice says so.
        """
        images, labels = self.prepare(self.train_data)
        return self.trainer(
            model,
            images,
            labels,
            self.local,
            batches=self.rng("batches"),
            noise=self.rng("noise"),
            round_=self.round,
            correct=correct,
            augment=self.augment,
            loss=self.training_loss(),
            objective=objective,
        )

    def training_loss(self) -> training.Loss:
        """Return the mean loss of (logits [B, C], labels [B]) that `train` goes by; it may weigh classes."""
        if not isinstance(self.loss, CrossEntropy):
            return self.loss
        return self.loss.of(self.prepare(self.train_data)[1], self.num_classes)

    def full_gradient(self, model: Model) -> dict[str, Tensor]:
        """Return the gradient of the mean loss over the client's training examples, by parameter name."""
        images, labels = self.prepare(self.train_data)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        gradients = training.full_gradient(model, images, labels, batch_size=512, loss=self.training_loss())
        return dict(zip(names, gradients, strict=True))

    def align(self, model: Model, tree: Tree) -> list[Tensor]:
        """Return the tensors of `tree` in the order of the model's trainable parameters, on its device.

        A parameter that is not in the tree (one that stays with the client) gets zeros.
        """
        return [
            tree[name].to(p.device) if name in tree else torch.zeros_like(p)
            for name, p in model.named_parameters()
            if p.requires_grad
        ]


class Strategy(ABC, Generic[S]):
    """A federated method.

    Class attributes:
        config_class: Frozen dataclass of the method's hyper-parameters.
        own_model: Whether `model` gives all of a model that is not the experiment's alone, as a pair of encoders.
        local_parts: Names of the model's modules that stay with each client, in its memory, and begin as initialised;
            `body` is all but the head.
        is_generic: Whether clients train all of the model that the server evaluates. Where it has parts of it as
            initialised, since they stay with clients, what it measures says little, and tables say so.
        is_asynchronous: Whether clients begin and end at times of their own, which the strategy says
            (`Phase.clients`, `Phase.ends`).

    Args:
        config: An instance of `config_class`.

    Raises:
        Refusal: A hyper-parameter is out of the range that its annotation says (`umbel.core.ranges`).
    """

    config_class: ClassVar[type]
    own_model: ClassVar[bool] = False
    local_parts: ClassVar[tuple[str, ...]] = ()
    is_generic: ClassVar[bool] = True
    is_asynchronous: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        check_ranges(config, "strategy")
        self.config = config

    @property
    def plans_rounds(self) -> bool:
        """Whether what a round does depends on how many there are in all, as under a schedule; by default not."""
        return False

    def check(self, setting: Setting) -> None:
        """Raise a `Refusal` when the method does not go with this experiment; asked before anything starts."""

    def check_data(self, federation: Federation) -> None:
        """Raise a `Refusal` when these data lack what the method needs; asked when they are loaded."""

    @abstractmethod
    def initial(self, server: ServerContext) -> S:
        """Return the State before the first round."""

    @abstractmethod
    def every_phase(self) -> tuple[Phase[S], ...]:
        """Return all phases that a round of this method may have, in order; no State decides."""

    def phases(self, state: S) -> tuple[Phase[S], ...]:
        """Return the phases of this round, in order; by default all."""
        return self.every_phase()

    def phase(self, name: str) -> Phase[S]:
        """Return the phase of a name.

        Raises:
            UnknownNameError: No round of this method has one; the message says which there are.
        """
        known = by_name(self.every_phase())
        if name not in known:
            guesses = nearest(name, known)
            raise UnknownNameError(
                f"{type(self).__name__} has no phase {name!r}. Its phases are: {', '.join(known)}.",
                remedy=f"Did you mean {' or '.join(map(repr, guesses))}?" if guesses else "",
            )
        return known[name]

    def send_model(self, state: S, server: ServerContext) -> Payload:
        """Return the model as the tree `model`, which is all that many phases send; by default the generic one."""
        return Payload({"model": self.model(state)})

    def finish(self, state: S, server: ServerContext) -> S:
        """Return the State after the last round.

        Where `run.until` or `run.patience` ends a run, the last evaluation was of the State before: `model` should give
        the same of both.
        """
        return state

    @abstractmethod
    def model(self, state: S) -> dict[str, Tensor]:
        """Return the generic model's shared state: what is evaluated, saved and hashed."""

    def representations(self, state: S) -> dict[str, Tensor]:
        """Return representations that are saved and hashed beside the model; by default none."""
        return {}

    def evaluated(self, state: S, server: ServerContext) -> Payload:
        """Return what clients receive to evaluate; by default the model."""
        return self.send_model(state, server)

    def predictors(self, state: S, server: ServerContext) -> Mapping[str, Predictor]:
        """Return what the server evaluates; by default the generic model."""
        return {"model": Predictor(server.model(self.model(state)))}

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        """Return what a client evaluates on its own data, of what `evaluated` sent; by default the generic model."""
        return {"model": Predictor(client.model(payload.trees["model"]).eval())}

"""What a strategy is: both halves of a federated method on one page.

A strategy answers the questions of `Strategy` and does nothing else. It imports no transport and no logger; it
sees the server as a `ServerContext` and a client as a `ClientContext`, and runs unchanged wherever those come
from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from umbel.core import training
from umbel.core.folds import Folded, Product
from umbel.core.memory import MemoryRecord
from umbel.core.metrics import Predict
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.core.schedule import Schedule
from umbel.core.training import LocalConfig, TrainReport
from umbel.core.tree import Tree, subtract
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.weights import load_state, parameter_names, shared_state

S = TypeVar("S")


@dataclass(frozen=True)
class Phase:
    """One exchange of a round.

    Attributes:
        name: Travels in the message; unique within the round.
        who: `sample` (the round's cohort), `everyone`, `same:<phase>` (the clients of an earlier phase of this
            round), or `server` (nobody: a step of the server alone).
        groups: The group of each client: a sample then takes from each group in proportion, at least one while there
            are enough; empty draws from all alike.
    """

    name: str
    who: str = "sample"
    groups: tuple[int, ...] = ()


TRAIN = Phase("train")
EVALUATE = Phase("evaluate")


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
    loss: training.Loss = F.cross_entropy
    task: int = 0
    keep: Callable[[str, float, Callable[[], Examples]], Examples] = field(default=lambda name, version, make: make())
    public: Examples | None = None
    vocabulary: int = 0

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

    def train(self, model: Model, correct: training.Correction | None = None) -> TrainReport:
        """Train the model in place on this client's data."""
        images, labels = self.prepare(self.train_data)
        return training.train(
            model,
            images,
            labels,
            self.local,
            batches=self.rng("batches"),
            noise=self.rng("noise"),
            round_=self.round,
            correct=correct,
            augment=self.augment,
            loss=self.loss,
        )

    def full_gradient(self, model: Model) -> dict[str, Tensor]:
        """Return the gradient of the mean loss over the client's training examples, by parameter name."""
        images, labels = self.prepare(self.train_data)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        gradients = training.full_gradient(model, images, labels, batch_size=512, loss=self.loss)
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

    Args:
        config: An instance of `Config`.
    """

    config_class: ClassVar[type]
    own_model: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, local: LocalConfig) -> None:
        """Raise `ValueError` when the method does not go with this local training."""

    @abstractmethod
    def initial(self, server: ServerContext) -> S:
        """Return the State before the first round."""

    def phases(self, state: S) -> tuple[Phase, ...]:
        """Return the exchanges of this round, in order."""
        return (TRAIN,)

    def broadcast(self, phase: Phase, state: S, server: ServerContext) -> Payload:
        """Return what every selected client receives, also for the loop's own phase `evaluate`.

        By default the generic model, as the tree `model`.
        """
        return Payload({"model": self.model(state)})

    @abstractmethod
    def local(self, phase: Phase, payload: Payload, client: ClientContext) -> Reply:
        """Do a client's part of a phase."""

    @abstractmethod
    def fold(self, phase: Phase) -> Product:
        """Return how the replies of a phase combine."""

    @abstractmethod
    def update(self, phase: Phase, state: S, folded: Folded, server: ServerContext) -> S:
        """Return the State after a phase."""

    def measured(self, phase: Phase, state: S) -> Mapping[str, float]:
        """Return numbers to report that `update` found in a phase, by name; they become rows of the metrics."""
        return {}

    def finish(self, state: S, server: ServerContext) -> S:
        """Return the State after the last round."""
        return state

    @abstractmethod
    def model(self, state: S) -> dict[str, Tensor]:
        """Return the generic model's shared state: what is evaluated, saved and hashed."""

    def representations(self, state: S) -> dict[str, Tensor]:
        """Return representations that are saved and hashed beside the model; by default none."""
        return {}

    def predictors(self, state: S, server: ServerContext) -> Mapping[str, Predictor]:
        """Return what the server evaluates; by default the generic model."""
        return {"model": Predictor(server.model(self.model(state)))}

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        """Return what a client evaluates on its own data; by default the generic model."""
        return {"model": Predictor(client.model(payload.trees["model"]).eval())}


def train_and_subtract(payload: Payload, client: ClientContext, correct: training.Correction | None = None) -> Reply:
    """Train from the payload's `model` and reply with the change as the tree `delta`, and the mean loss.

    Args:
        payload: Has the tree `model`, the global model's shared state.
        client: The client.
        correct: Changes the gradients of each step, if given.
    """
    model = client.model(payload.trees["model"])
    report = client.train(model, correct)
    delta = subtract(client.weights(model), payload.trees["model"])
    return Reply({"delta": delta}, {"loss": report.loss}, client.num_examples)


def server_step(model: Tree, delta: Tree, lr: float = 1.0) -> dict[str, Tensor]:
    """Return w + lr * delta, the mean change cast to the parameter's dtype once and then added.

    Args:
        model: w, shared state of the global model.
        delta: Mean change of the clients in float64, same names and shapes.
        lr: Server learning rate (eta_g).
    """
    return {
        name: torch.add(weight, delta[name].to(weight.dtype).to(weight.device), alpha=lr)
        for name, weight in model.items()
    }


def initial_model(server: ServerContext) -> dict[str, Tensor]:
    """Return the shared state of the freshly initialised global model, on the CPU."""
    state = shared_state(server.build_model())
    return {name: tensor.cpu() for name, tensor in state.items() if name in server.shared_names}


def split_buffers(model: Model, tree: Tree) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a model's shared state into parameters and floating-point buffers."""
    names = parameter_names(model)
    parameters = {name: tensor for name, tensor in tree.items() if name in names}
    return parameters, {name: tensor for name, tensor in tree.items() if name not in names}

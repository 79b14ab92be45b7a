"""Several clients' local training at once: one model's computation over stacked parameters, by `torch.func.vmap`.

Small models leave most of a GPU idle, and an operation over K clients costs little more than over one. What comes of it
is what `umbel.core.training.train` makes of each client by itself, but for rounding.

Legend: K clients, N examples, B batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umbel.core.training import compiled
from umbel.core.training.config import LocalConfig, learning_rate
from umbel.core.training.corrections import AffineCorrection, Correction
from umbel.core.training.loop import (
    Augmentation,
    Constrained,
    Objective,
    TrainReport,
    augmentation_source,
    batch_order,
    make_ready,
)
from umbel.core.training.steps import (
    Loss,
    Step,
    UnfitError,
    form_of_loss,
    form_of_model,
    rates_of,
    state_of,
    tensors_of_loss,
    trained_names,
    training_only,
)
from umbel.core.tree import Tree, clone

_OF_PROCESS = ("allocate memory", "out of memory", "CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS")  # no model's doing


@dataclass(frozen=True)
class Job:
    """A local run that is to be done: what `train` was called with.

    Attributes:
        model: The model.
        state: Its parameters and buffers when it was called, by name; in memory of their own.
        images: [N, ...], on the model's device.
        labels: [N].
        config: How to train.
        batches: State of the generator of the examples' order.
        noise: State of the generator of augmentation.
        round: Round number.
        correct: Correction of gradients, or None.
        augment: Augmentation of batches, or None.
        loss: Mean loss of (logits, labels).
        objective: What takes the place of the loss of the model's logits, or None.
        trained: Names of the parameters that were to be trained.
        made: What the model computed then, besides its state; None where that may depend on anything.
        unfit: Why it may.
    """

    model: nn.Module
    state: Tree
    images: Tensor
    labels: Tensor
    config: LocalConfig
    batches: Tensor
    noise: Tensor
    round: int
    correct: Correction | None
    augment: Augmentation | None
    loss: Loss
    objective: Objective | None = None
    trained: tuple[str, ...] = ()
    made: Hashable = None
    unfit: str = ""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        config: LocalConfig,
        *,
        batches: torch.Generator,
        noise: torch.Generator,
        round_: int = 1,
        correct: Correction | None = None,
        augment: Augmentation | None = None,
        loss: Loss,
        objective: Objective | None = None,
    ) -> Job:
        """Return the job of a call of `train` with these arguments, none of which it changes."""
        state, sources, trained = clone(state_of(model)), (batches.get_state(), noise.get_state()), trained_names(model)
        made, unfit = None, ""
        try:
            made = _made_of(model)
        except UnfitError as error:
            unfit = str(error)
        given = (model, state, images, labels, config, *sources, round_, correct, augment, loss, objective)
        return cls(*given, trained, made, unfit)

    def is_same(self, other: Job) -> bool:
        """Say whether another job would end alike: all that it reads is the same, to the bit."""
        try:
            alike = (
                self.model is other.model and self.state.keys() == other.state.keys() and self.form() == other.form()
            )
        except UnfitError:
            return False
        return alike and _equal(self._tensors(), other._tensors())

    def form(self) -> Hashable:
        """Return what jobs have in common that can be done at once.

        Raises:
            UnfitError: It cannot be done with others.
        """
        if self.objective is not None:
            raise UnfitError("its objective is a function that may read anything")
        if self.correct is not None and not isinstance(self.correct, AffineCorrection):
            raise UnfitError("its gradients are corrected by a function that may read anything")
        if self.config.precision == "fp16" and self.images.device.type == "cuda":
            raise UnfitError("fp16 scales its loss by what the steps before came to")
        if self.unfit:
            raise UnfitError(self.unfit)
        correction = None if self.correct is None else self.correct.form
        shapes = (self.images.shape, self.images.dtype, self.labels.shape, self.labels.dtype)
        loss = form_of_loss(self.loss)
        return shapes, self.config, self.round, loss, correction, self.augment is None, self.trained, self.made

    def _tensors(self) -> list[Tensor]:
        reads = self.correct.tensors if isinstance(self.correct, AffineCorrection) else []
        data = [self.images, self.labels, self.batches, self.noise]
        return [*self.state.values(), *data, *reads, *tensors_of_loss(self.loss)]


@dataclass(frozen=True)
class Done:
    """What came of a job.

    Attributes:
        state: The model's parameters and buffers afterwards, by name.
        report: As `train` reports.
    """

    state: Tree
    report: TrainReport


def train_together(jobs: Sequence[Job], slots: Sequence[int] = (), width: int = 0) -> list[Done]:
    """Do jobs of one form at once; each comes to what `train` makes of it, but for rounding.

    Kernels round by where in memory numbers lie: what a job comes to depends on its slot, and not on who else is there.

    Args:
        jobs: One or more, of one model and one form.
        slots: Place of each among K, ascending; from the first on if they are not given.
        width: K; slots without a job are filled with the first one. 0 takes as many as there are.

    Raises:
        UnfitError: They cannot be done at once: they differ in form, or what the model does is different for each
            client, such as dropout's noise.
        RuntimeError: It failed in this process, of whose memory they take more than each by itself, say.
    """
    first, slots = jobs[0], slots or range(len(jobs))
    if any(job.form() != first.form() or job.model is not first.model for job in jobs):
        raise UnfitError("its clients differ in more than their numbers")
    if _made_of(first.model) != first.made:  # a half has let go of it, and put back what it had done to it
        raise UnfitError("its clients change what it computes around their training")
    if any(isinstance(module, Constrained) for module in first.model.modules()):
        raise UnfitError("its parameters are put back within bounds after each step")
    of_slot = dict(zip(slots, jobs, strict=True))
    stacked = [of_slot.get(slot, first) for slot in range(max(width, slots[-1] + 1))]
    done = _Stacked(stacked, first.model).train()
    return [done[slot] for slot in slots]


def _made_of(model: nn.Module) -> Hashable:
    """Return what a model computes besides the values of its state; modes are those in which it will train.

    Raises:
        UnfitError: It may depend on anything.
    """
    places = tuple((name, tensor.shape, tensor.dtype) for name, tensor in state_of(model).items())
    return form_of_model(model, modes=False), places


class _Stacked:
    """Jobs of one form, with what each has stacked to tensors whose first axis is K."""

    def __init__(self, jobs: Sequence[Job], model: nn.Module) -> None:
        self._jobs, self._config = jobs, jobs[0].config
        self._num_examples = len(jobs[0].labels)
        self._leave_out = make_ready(model, self._num_examples, self._config)
        self._step = Step(model, self._config, jobs[0].loss, _affine(jobs[0]), num_models=len(jobs))
        with training_only(model, jobs[0].trained):  # who noted the job has let go of the model
            names = [*self._step.names[0], *self._step.names[1]]
        self._state = {name: torch.stack([job.state[name] for job in jobs]) for name in names}
        moments = [torch.zeros_like(self._state[name]) for _ in self._step.kinds for name in self._step.names[0]]
        reads = [correction.tensors if (correction := _affine(job)) else [] for job in jobs]
        of_loss = [tensors_of_loss(job.loss) for job in jobs]
        self._held = [*self._state.values(), *moments, *_stacked(reads), *_stacked(of_loss)]
        compiles = self._config.compile == "step"
        self._graphs = compiled.Graphs(self._step, compiled.form_of(self._step)) if compiles else None

    def train(self) -> list[Done]:
        """Do all steps."""
        config, device = self._config, self._jobs[0].images.device
        lr = learning_rate(config, self._jobs[0].round)
        orders = [
            batch_order(self._num_examples, config, _generator(job.batches), self._leave_out) for job in self._jobs
        ]
        augmentations = [augmentation_source(_generator(job.noise)) for job in self._jobs]
        dtype = torch.float64 if device.type != "mps" else torch.float32
        totals = torch.zeros(len(self._jobs), dtype=dtype, device=device)
        seen = steps = 0
        for indices in zip(*orders, strict=True):
            x, y = self._batch([index.to(device) for index in indices], augmentations)
            steps += 1
            totals += self._do(rates_of(config, lr, steps, device), x, y) * y.shape[1]
            seen += y.shape[1]
        reports = [TrainReport(total / max(seen, 1), steps, lr, seen) for total in totals.tolist()]
        return [
            Done({name: tensor[k].clone() for name, tensor in self._state.items()}, report)
            for k, report in enumerate(reports)
        ]

    def _batch(self, indices: Sequence[Tensor], sources: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Return the next batch of each job: [K, B, ...] and [K, B]."""
        images = []
        for job, index, source in zip(self._jobs, indices, sources, strict=True):
            x = job.images[index]
            images.append(x if job.augment is None else job.augment(x, source))
        labels = [job.labels[index] for job, index in zip(self._jobs, indices, strict=True)]
        return torch.stack(images), torch.stack(labels)

    def _do(self, rates: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Do a step; return the losses [K] before it."""
        tensors = [*self._held, rates, x, y]
        is_full = y.shape[1] == self._config.batch_size
        graph = self._graphs.of(tensors) if self._graphs and is_full else None
        try:
            with torch.no_grad():
                return self._step(*tensors) if graph is None else graph(*tensors)
        except RuntimeError as error:
            if any(word in str(error) for word in _OF_PROCESS):
                raise
            raise UnfitError(f"torch.func.vmap refuses it ({str(error).partition(chr(10))[0]})") from error


def _affine(job: Job) -> AffineCorrection | None:
    return job.correct if isinstance(job.correct, AffineCorrection) else None


def _stacked(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [torch.stack(list(each)) for each in zip(*lists, strict=True)]


def _generator(state: Tensor) -> torch.Generator:
    source = torch.Generator()
    source.set_state(state)
    return source


def _equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(a is b or torch.equal(a, b) for a, b in zip(left, right, strict=True))

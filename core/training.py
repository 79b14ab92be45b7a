"""The local training loop: every strategy's client half runs through it.

Legend: B batch, N examples, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from umbel.core import device as devices
from umbel.core.losses import CLASS_WEIGHTS, CrossEntropy
from umbel.core.ranges import OneOf
from umbel.core.rng import forked

Loss = Callable[[Tensor, Tensor], Tensor]
Correction = Callable[[Sequence[Tensor], Sequence[Tensor]], None]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("exponential", "step", "cosine")


@dataclass(frozen=True)
class LocalConfig:
    """How a client trains.

    Attributes:
        epochs: Passes over the client's training examples in a round (E); 0 goes on until `max_steps`.
        max_steps: Stop a round's training after so many steps; 0 sets no limit.
        batch_size: Examples in a batch (B); 0 takes all of the client's examples as one batch.
        optimizer: sgd, adam or adamw; made anew in every round, as the papers do.
        lr: Learning rate.
        lr_schedule: How the learning rate goes on from round to round (`learning_rate` has the formulas): exponential,
            step or cosine. It is constant where lr_decay is 1.
        lr_decay: Factor of a round (exponential) or of a step.
        lr_step: Rounds from one step to the next.
        lr_rounds: The round after which a cosine would be at 0; 0 takes `run.rounds`.
        lr_warmup: Rounds in which the learning rate rises in equal steps to `lr`; the schedule begins after them.
        momentum: Momentum of sgd.
        nesterov: Nesterov's form of it.
        weight_decay: L2 penalty (decoupled for adamw).
        clip_norm: Largest gradient norm; 0 does not clip.
        label_smoothing: Share of each label that is spread evenly over all classes.
        class_weights: none, or balanced: in a client's loss each of the classes that it has counts the same.
        device: auto, cpu, cuda or mps.
        precision: fp64, fp32, or bf16 / fp16 by autocast over float32 parameters.
        channels_last: Keep images and convolutions' weights in the memory order [B, H, W, C], which low precision on a
            GPU likes.
        compile: Compile the model by `torch.compile`, which needs a C++ compiler and Python's headers on a CPU. Neither
            this nor `channels_last` gives the same bits as without.
    """

    epochs: Annotated[int, Ge(0)] = 1
    max_steps: Annotated[int, Ge(0)] = 0
    batch_size: Annotated[int, Ge(0)] = 32
    optimizer: Annotated[str, OneOf(*OPTIMIZERS)] = "sgd"
    lr: Annotated[float, Ge(0)] = 0.05
    lr_schedule: Annotated[str, OneOf(*SCHEDULES)] = "exponential"
    lr_decay: Annotated[float, Ge(0)] = 1.0
    lr_step: Annotated[int, Ge(1)] = 1
    lr_rounds: Annotated[int, Ge(0)] = 0
    lr_warmup: Annotated[int, Ge(0)] = 0
    momentum: Annotated[float, Ge(0)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Ge(0)] = 0.0
    clip_norm: Annotated[float, Ge(0)] = 0.0
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    class_weights: Annotated[str, OneOf(*CLASS_WEIGHTS)] = "none"
    device: str = "auto"
    precision: Annotated[str, OneOf(*devices.PRECISIONS)] = "fp32"
    channels_last: bool = False
    compile: bool = False


class Constrained(nn.Module):
    """A module with parameters that have to stay within bounds: `train` calls `constrain_` after each step."""

    def constrain_(self) -> None:
        """Put the parameters back within their bounds, in place; gradients are off."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its bounds are")


@dataclass(frozen=True)
class TrainReport:
    """What one local run did.

    Attributes:
        loss: Mean loss over the examples seen, each before its step.
        num_steps: Optimiser steps taken.
        lr: The learning rate that was used.
        moments: What the optimiser remembers, by parameter and kind, for another run to go on from.
    """

    loss: float
    num_steps: int
    lr: float
    moments: Mapping[str, Tensor] = field(default_factory=dict)


def learning_rate(config: LocalConfig, round_: int) -> float:
    """Return the learning rate of a round.

    With W = lr_warmup it is lr r / W in the rounds r = 1 .. W. Then, with t = r - 1 - W: lr lr_decay^t (exponential),
    lr lr_decay^floor(t / lr_step) (step), or lr (1 + cos(pi t / (lr_rounds - W))) / 2 (cosine; Loshchilov and Hutter
    2017, without restarts), which is 0 from the round after lr_rounds on.

    Args:
        config: With `lr_rounds` above W for a cosine.
        round_: Round, from 1.
    """
    if round_ <= config.lr_warmup:
        return config.lr * round_ / config.lr_warmup
    after = max(round_ - 1 - config.lr_warmup, 0)
    if config.lr_schedule == "cosine":
        length = max(config.lr_rounds - config.lr_warmup, 1)
        return config.lr * (1 + math.cos(math.pi * min(after / length, 1))) / 2
    return float(config.lr * config.lr_decay ** (after // config.lr_step if config.lr_schedule == "step" else after))


def make_optimizer(config: LocalConfig, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
    """Make the client's optimiser."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            foreach=True,
        )
    kind: type[torch.optim.Adam] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(parameters, lr=lr, weight_decay=config.weight_decay, foreach=True)


def train(
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
    loss: Loss = F.cross_entropy,
    moments: Mapping[str, Tensor] | None = None,
) -> TrainReport:
    """Train `model` in place.

    Args:
        model: On its device, in the parameter dtype of `config.precision`.
        images: [N, ...] on the model's device, normalised.
        labels: [N] on the model's device.
        config: Epochs, batch size, optimiser.
        batches: Order of the examples.
        noise: Seeds dropout, stochastic depth and augmentation.
        round_: Round number, for the learning rate's decay.
        correct: Called with (parameters, gradients) after each backward pass; changes the gradients in place.
        augment: Applied to each batch with a generator of its own.
        loss: Mean loss of (logits [B, C], labels [B]).
        moments: The optimiser's from an earlier run over the same parameters; None begins anew.

    Returns:
        Mean loss, number of steps, learning rate, and the optimiser's moments where some were given.
    """
    num_examples, device = len(labels), images.device
    batch_size = config.batch_size or num_examples
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr = learning_rate(config, round_)
    optimizer = make_optimizer(config, parameters, lr)
    if moments:
        _restore(optimizer, moments)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and device.type == "cuda")
    augmentation = torch.Generator().manual_seed(int(torch.randint(0, 2**62, (), generator=noise).item()))
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    seen = steps = 0
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
    constrained = [module for module in model.modules() if isinstance(module, Constrained)]
    with forked(noise, device):
        model.train()
        single = num_examples == 1 or batch_size == 1
        if has_batch_norm and single:
            _freeze_batch_norm(model)
        for _ in range(config.epochs) if config.epochs or not config.max_steps else itertools.count():
            order = torch.randperm(num_examples, generator=batches).to(device)
            for start in range(0, num_examples, batch_size):
                index = order[start : start + batch_size]
                if has_batch_norm and len(index) == 1 and not single:
                    continue  # statistics over one example would be that example
                x, y = images[index], labels[index]
                if augment is not None:
                    x = augment(x, augmentation)
                optimizer.zero_grad(set_to_none=True)
                with devices.autocast(device, config.precision):
                    value = loss(model(x), y)
                scaler.scale(value).backward()  # type: ignore[no-untyped-call]
                _adjust(parameters, optimizer, scaler, config, correct)
                scaler.step(optimizer)
                scaler.update()
                with torch.no_grad():
                    for module in constrained:
                        module.constrain_()
                total += value.detach() * len(index)
                seen += len(index)
                steps += 1
                if config.max_steps and steps >= config.max_steps:
                    break
            if config.max_steps and steps >= config.max_steps:
                break
    kept = {} if moments is None else _moments(optimizer)
    return TrainReport(float(total.item()) / max(seen, 1), steps, lr, kept)


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's tensors as `<parameter's number>.<kind>`, on the CPU."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{kind}": torch.as_tensor(value).detach().cpu().clone()
        for number, kinds in state.items()
        for kind, value in kinds.items()
        if value is not None
    }


def _restore(optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in moments.items():
        number, _, kind = name.partition(".")
        state.setdefault(int(number), {})[kind] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _adjust(
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: LocalConfig,
    correct: Correction | None,
) -> None:
    """Correct and clip the gradients of one step."""
    if correct is None and not config.clip_norm:
        return
    scaler.unscale_(optimizer)
    if correct is not None:
        for parameter in parameters:
            if parameter.grad is None:  # unused in this pass, but the correction still moves it
                parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            correct(parameters, [p.grad for p in parameters if p.grad is not None])
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm)


def _freeze_batch_norm(model: nn.Module) -> None:
    """Let batch norm use its running statistics: a batch of a single example has no variance."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def full_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 0, loss: Loss = F.cross_entropy
) -> list[Tensor]:
    """Return the gradient of the mean loss over all examples, one tensor a parameter, without changing `model`.

    Batch norm uses its running statistics, so that the gradient belongs to the model as it stands.
    """
    was_training = model.training
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    size, whole = batch_size or len(labels), _weight(loss, labels)
    for start in range(0, len(labels), size):
        x, y = images[start : start + size], labels[start : start + size]
        grads = torch.autograd.grad(loss(model(x), y), parameters, allow_unused=True)
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad * (_weight(loss, y) / whole)
    model.train(was_training)
    return sums


def _weight(loss: Loss, labels: Tensor) -> float:
    """Return what some examples count in a mean: their number, or the sum of their classes' weights."""
    if isinstance(loss, CrossEntropy) and loss.weight_C is not None:
        return float(loss.weight_C[labels].sum())
    return float(len(labels))

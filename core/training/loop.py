"""The local training loop: every strategy's client half runs through it.

Legend: B batch, N examples, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from umbel.core import device as devices
from umbel.core.losses import CrossEntropy
from umbel.core.rng import drawn_key, forked, torch_generator
from umbel.core.spent import count, count_trained, counted
from umbel.core.training import compiled
from umbel.core.training.config import LocalConfig as LocalConfig
from umbel.core.training.config import learning_rate as learning_rate
from umbel.core.training.corrections import Correction as Correction
from umbel.core.training.fallbacks import tell
from umbel.core.training.optimizers import eager
from umbel.core.training.steps import Loss as Loss
from umbel.core.training.steps import UnfitError, freeze_batch_norm

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
Objective = Callable[[Any, Tensor, Tensor], Tensor]  # of (model, images, labels): the model is whatever trains
Trainer = Callable[..., "TrainReport"]  # `train`, or what stands in for it


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
        num_examples: Examples that went through these steps, each as often as it did.
        moments: What the optimiser remembers, by parameter and kind, for another run to go on from.
    """

    loss: float
    num_steps: int
    lr: float
    num_examples: int = 0
    moments: Mapping[str, Tensor] = field(default_factory=dict)


def make_optimizer(config: LocalConfig, parameters: Sequence[Tensor], lr: float) -> torch.optim.Optimizer:
    """Make the client's optimiser."""
    if config.optimizer == "sgd":
        sgd: torch.optim.Optimizer = eager(torch.optim.SGD)(
            parameters,
            lr=lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            foreach=True,
        )
        return sgd
    kind = eager({"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer])
    adam: torch.optim.Optimizer = kind(parameters, lr=lr, weight_decay=config.weight_decay, foreach=True)
    return adam


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
    objective: Objective | None = None,
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
        objective: Mean loss [] of (model, images [B, ...], labels [B]), in place of `loss(model(images), labels)`; its
            steps are not compiled.

    Returns:
        Mean loss, number of steps, learning rate, and the optimiser's moments where some were given.
    """
    num_examples, device = len(labels), images.device
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr = learning_rate(config, round_)
    optimizer = make_optimizer(config, parameters, lr)
    if moments:
        _restore(optimizer, moments)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and device.type == "cuda")
    vary = None if augment is None else _with_source(augment, augmentation_source(noise))
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    seen = steps = 0
    constrained = [module for module in model.modules() if isinstance(module, Constrained)]
    with forked(noise, device):
        leave_out = make_ready(model, num_examples, config)
        graphs = _compiled(model, config, lr, correct, loss, moments, device, objective)
        for index in batch_order(num_examples, config, batches, leave_out):
            index = index.to(device)
            x, y = images[index], labels[index]
            if vary is not None:
                x = vary(x)
            if graphs is not None:
                with counted():  # what a graph does is not seen, but for the batches that none is made for
                    value = graphs(x, y)
            else:
                optimizer.zero_grad(set_to_none=True)
                with devices.autocast(device, config.precision):
                    value = loss(model(x), y) if objective is None else objective(model, x, y)
                scaler.scale(value).backward()  # type: ignore[no-untyped-call]
                _adjust(parameters, optimizer, scaler, config, correct)
                scaler.step(optimizer)
                scaler.update()
            total += value.detach() * len(index)
            with torch.no_grad():
                for module in constrained:
                    module.constrain_()
            seen += len(index)
            steps += 1
    kept = {} if moments is None else _moments(optimizer)
    count(steps, seen)
    if graphs is not None:
        count_trained(model, seen)
    return TrainReport(float(total.item()) / max(seen, 1), steps, lr, seen, kept)


def _with_source(augment: Augmentation, source: torch.Generator) -> Callable[[Tensor], Tensor]:
    return lambda images: augment(images, source)


def augmentation_source(noise: torch.Generator) -> torch.Generator:
    """Return the generator of a local run's augmentation, whose key is drawn from `noise`."""
    return torch_generator(drawn_key(noise))


def make_ready(model: nn.Module, num_examples: int, config: LocalConfig) -> bool:
    """Put a model into the mode in which it trains on so many examples; say whether batches of one are left out.

    Batch norm over one example would be that example. Where all batches are so, its running statistics are used.
    """
    model.train()
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return False
    single = num_examples == 1 or (config.batch_size or num_examples) == 1
    if single:
        freeze_batch_norm(model)
    return not single


def batch_order(num_examples: int, config: LocalConfig, source: torch.Generator, leave_out: bool) -> Iterator[Tensor]:
    """Yield the indices [B] of each batch of a local run; an epoch's order is drawn when the epoch begins.

    Args:
        num_examples: N.
        config: Epochs, steps, batch size.
        source: Generator of the order.
        leave_out: Leave out batches of one example.
    """
    batch_size, steps = config.batch_size or num_examples, 0
    for _ in range(config.epochs) if config.epochs or not config.max_steps else itertools.count():
        order = torch.randperm(num_examples, generator=source)
        for start in range(0, num_examples, batch_size):
            index = order[start : start + batch_size]
            if leave_out and len(index) == 1:
                continue
            yield index
            steps += 1
            if steps == config.max_steps:
                return


def _compiled(
    model: nn.Module,
    config: LocalConfig,
    lr: float,
    correct: Correction | None,
    loss: Loss,
    moments: Mapping[str, Tensor] | None,
    device: torch.device,
    objective: Objective | None,
) -> compiled.Steps | None:
    """Return the model's steps as one graph each, where that is asked for and can be."""
    if config.compile != "step":
        return None
    try:
        if objective is not None:
            raise UnfitError("its objective is a function that may read anything")
        if moments is not None:
            raise UnfitError("its optimiser goes on from an earlier run")
        if config.precision == "fp16" and device.type == "cuda":
            raise UnfitError("fp16 scales its loss by what the steps before came to")
        return compiled.Steps(model, config, lr, correct, loss, device)
    except UnfitError as error:
        tell(f"client.compile=step: {type(model).__name__} trains without, for {error}.")
        return None


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

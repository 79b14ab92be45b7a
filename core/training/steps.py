"""A step of training as a function of tensors alone, of one model or of several of the same kind at once.

What a step changes (parameters, buffers, the optimiser's moments) it changes in place, so that a compiler makes one
graph of forward, backward, correction and optimiser, and a model's own parameters may be among the tensors.

Legend: B batch, C classes, K models at once.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from umbel.core import device as devices
from umbel.core.losses import CrossEntropy
from umbel.core.training.config import LocalConfig
from umbel.core.training.corrections import AffineCorrection

Loss = Callable[[Tensor, Tensor], Tensor]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # of torch.optim.Adam and AdamW
_CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, enum.Enum, type)
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_NO_ATTRIBUTES = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


class UnfitError(ValueError):
    """A step cannot be a function of tensors alone; the message says why."""


@dataclass(frozen=True)
class Step:
    """A step of a model's training: `step(*tensors)` returns the loss [], or losses [K], before it.

    The tensors, in this order, each with a first axis of K where several models are trained: the trainable parameters,
    the rest of the model's state, the optimiser's moments, what the correction reads, what the loss reads; then
    `rates_of` [3] without that axis, a batch [B, ...] and its labels [B]. All but the last five kinds are changed in
    place.

    Attributes:
        model: Gives the computation, in the mode that it is to have; its own values are not read.
        config: Optimiser, precision, norm of gradients.
        loss: Mean loss of (logits [B, C], labels [B]); its own tensors are not read.
        correction: As above; None corrects nothing.
        num_models: K; 0 is one model without the axis.
    """

    model: nn.Module
    config: LocalConfig
    loss: Loss
    correction: AffineCorrection | None = None
    num_models: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Moments that the optimiser keeps of each parameter; they begin with zeros."""
        if self.config.optimizer == "sgd":
            return ("momentum_buffer",) if self.config.momentum else ()
        return ("exp_avg", "exp_avg_sq")

    def changed(self, tensors: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Return those of a step's tensors that it changes: parameters, moments, statistics; none that has none."""
        trained, others = self.names
        given = iter(tensors)
        parameters, rest = _take(given, len(trained)), _take(given, len(others))
        found = {
            "parameters": parameters,
            "statistics": [tensor for tensor in rest if tensor.is_floating_point()],
            "moments": _take(given, len(self.kinds) * len(trained)),
        }
        return {what: each for what, each in found.items() if each}

    @functools.cached_property
    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the trainable parameters, and of the rest of the state: frozen ones and all buffers."""
        trained = trained_names(self.model)
        frozen = tuple(name for name, p in self.model.named_parameters() if not p.requires_grad)
        return trained, (*frozen, *(name for name, _ in self.model.named_buffers()))

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Do a step."""
        given = iter(tensors)
        trained, others = self.names
        parameters = _take(given, len(trained))
        rest = _take(given, len(others))
        moments = [_take(given, len(trained)) for _ in self.kinds]
        reads = _take(given, len(self.correction.tensors) if self.correction else 0)
        of_loss = _take(given, len(tensors_of_loss(self.loss)))
        rates, x, y = given
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            losses = self._losses(leaves, rest, of_loss, x, y)
            found = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
        with torch.no_grad():
            gradients = self._corrected(parameters, found, reads)
            if self.config.clip_norm:
                gradients = self._clipped(gradients)
            for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                if gradient is not None:  # unused in this pass: it stays
                    self._update(parameter, gradient, [kind[i] for kind in moments], rates)
        return losses.detach()

    def _losses(
        self, leaves: Sequence[Tensor], rest: Sequence[Tensor], of_loss: Sequence[Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        names = [*self.names[0], *self.names[1]]

        def of_one(state: list[Tensor], of_loss: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
            # Casts are not kept: what they were made of is another tensor in each step.
            with devices.autocast(x.device, self.config.precision, kept=False):
                logits = functional_call(self.model, dict(zip(names, state, strict=True)), (x,))
                return with_tensors(self.loss, of_loss)(logits, y)

        state = [*leaves, *rest]
        if not self.num_models:
            return of_one(state, list(of_loss), x, y)
        # This way to attend is made of operations that vmap knows; of others it does one client after the other.
        with sdpa_kernel(SDPBackend.MATH):
            losses: Tensor = vmap(of_one, randomness="error")(state, list(of_loss), x, y)
        return losses

    def _corrected(
        self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], reads: Sequence[Tensor]
    ) -> list[Tensor | None]:
        if self.correction is None:
            return list(gradients)
        full = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        return list(self.correction.reading(reads).corrected(parameters, full))

    def _clipped(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Scale each model's gradients so that their norm is at most `clip_norm`."""
        axes = (self.num_models,) if self.num_models else ()
        norms = [torch.linalg.vector_norm(g.reshape(*axes, -1), dim=-1) for g in gradients if g is not None]
        total = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        factor = (self.config.clip_norm / (total + _CLIP_EPSILON)).clamp(max=1.0)
        ones = [1 if g is None else g.dim() - len(axes) for g in gradients]
        return [
            None if g is None else g * factor.view(*axes, *(1,) * num) for g, num in zip(gradients, ones, strict=True)
        ]

    def _update(self, parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], rates: Tensor) -> None:
        """Move a parameter as torch's optimiser of that name does (`torch.optim.SGD`, `Adam`, `AdamW`)."""
        config, lr = self.config, rates[0]
        if config.weight_decay and config.optimizer == "adamw":
            parameter.mul_(1 - lr * config.weight_decay)
        elif config.weight_decay:
            gradient = gradient + config.weight_decay * parameter
        if config.optimizer == "sgd":
            if config.momentum:
                (velocity,) = moments
                velocity.mul_(config.momentum).add_(gradient)
                gradient = gradient + config.momentum * velocity if config.nesterov else velocity
            parameter.sub_(lr * gradient)
            return
        mean, square = moments
        mean.lerp_(gradient, 1 - _BETAS[0])
        square.mul_(_BETAS[1]).add_((1 - _BETAS[1]) * gradient * gradient)
        parameter.sub_(rates[1] * (mean / (square.sqrt() / rates[2] + _EPSILON)))


def rates_of(config: LocalConfig, lr: float, step: int, device: torch.device) -> Tensor:
    """Return what a step reads of time: learning rate, Adam's step size, the root of its second correction, [3].

    Args:
        config: Names the optimiser.
        lr: Learning rate of the round.
        step: Number of the step, from 1.
        device: Where.
    """
    first, second = (1 - beta**step for beta in _BETAS)
    values = (lr, 0.0, 1.0) if config.optimizer == "sgd" else (lr, lr / first, second**0.5)
    return torch.tensor(values, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)


@contextmanager
def training_only(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """Let the parameters of these names alone be trained meanwhile; the others stay, whatever the optimiser does.

    Args:
        model: The model.
        names: As of `named_parameters`.
    """
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        yield
    finally:
        for parameter, requires_grad in before.items():
            parameter.requires_grad_(requires_grad)


def trained_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that training moves."""
    return tuple(name for name, p in model.named_parameters() if p.requires_grad)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and all buffers by name, a tied one once: the tensors themselves."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def tensors_of_loss(loss: Loss) -> list[Tensor]:
    """Return the tensors that a loss reads besides its arguments."""
    return [getattr(loss, name) for name in _tensor_fields(loss)]


def with_tensors(loss: Loss, tensors: Sequence[Tensor]) -> Loss:
    """Return the same loss with other tensors, in the order of `tensors_of_loss`."""
    if not isinstance(loss, CrossEntropy):
        return loss
    read: dict[str, Any] = dict(zip(_tensor_fields(loss), tensors, strict=True))
    return replace(loss, **read)


def _tensor_fields(loss: Loss) -> list[str]:
    if not isinstance(loss, CrossEntropy):
        return []
    return [each.name for each in fields(loss) if isinstance(getattr(loss, each.name), Tensor)]


def form_of_loss(loss: Loss) -> Hashable:
    """Return what a loss is besides its tensors; losses of one form differ in their numbers alone.

    Raises:
        UnfitError: It is a function that may read anything.
    """
    if isinstance(loss, CrossEntropy):
        return (loss.label_smoothing, *_tensor_fields(loss))
    if isinstance(loss, types.FunctionType) and not loss.__closure__:
        return loss, _form((loss.__defaults__, loss.__kwdefaults__), "default")
    raise UnfitError("its loss is a function that reads more than its arguments")


def form_of_model(model: nn.Module, modes: bool = True) -> Hashable:
    """Return what a model computes besides its state: types, modes and plain attributes of its modules.

    Args:
        model: The model.
        modes: Whether it counts which modules are in training mode; whoever begins to train sets that anew.

    Raises:
        UnfitError: A module has something else, on which its computation may depend.
    """
    left_out = _NO_ATTRIBUTES if modes else {*_NO_ATTRIBUTES, "training"}
    named = model.named_modules(remove_duplicate=False)
    return tuple((name, *_form_of_module(name, module, left_out)) for name, module in named)


def _form_of_module(name: str, module: nn.Module, left_out: Collection[str]) -> Iterator[Any]:
    yield type(module)
    for key, value in vars(module).items():
        if key.endswith("_hooks"):
            if value:
                raise UnfitError(f"its module {name or type(module).__name__!r} has hooks")
        elif key not in left_out:
            yield key, _form(value, f"{name}.{key}" if name else key)


def _form(value: Any, where: str) -> Hashable:
    """Return a value that can be compared, with its type: 1 and True are not the same."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, types.MethodType):
        return value.__func__
    if isinstance(value, _FUNCTIONS):
        return value
    if isinstance(value, functools.partial):
        return _form((value.func, value.args, value.keywords), where)
    if isinstance(value, Mapping):
        return type(value), tuple((_form(key, where), _form(each, where)) for key, each in value.items())
    if isinstance(value, set | frozenset):
        return type(value), frozenset(_form(each, where) for each in value)
    if isinstance(value, list | tuple):
        return type(value), tuple(_form(each, where) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), tuple(_form(getattr(value, each.name), where) for each in fields(value))
    raise UnfitError(f"its attribute {where} is a {type(value).__name__}, which is no part of its state")


def freeze_batch_norm(model: nn.Module) -> None:
    """Let batch norm use its running statistics: a batch of a single example has no variance."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def _take(tensors: Iterator[Tensor], number: int) -> list[Tensor]:
    return [next(tensors) for _ in range(number)]

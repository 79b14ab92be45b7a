"""What training costs, counted where it is done: optimiser steps, examples, and images that went through models.

A scope counts what is done within it and not within a scope inside of it, so that what clients spend and what the
server spends are told apart though both may be in one process.

Legend: B batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Passes:
    """Images that went through a model.

    Attributes:
        forward: All of them, each as often as it did.
        backward: Those of them that the whole model learned from.
        head: Those of them that its head alone learned from.
    """

    forward: int = 0
    backward: int = 0
    head: int = 0

    def add(self, other: Passes) -> None:
        """Count more."""
        self.forward += other.forward
        self.backward += other.backward
        self.head += other.head


@dataclass
class Spent:
    """What training cost.

    Attributes:
        steps: Optimiser steps.
        examples: Examples that went through them, each as often as it did.
        passes: Images that went through models, in training and besides, by the model's `spec`.
    """

    steps: int = 0
    examples: int = 0
    passes: dict[str, Passes] = field(default_factory=dict)

    def add(self, steps: int, examples: int, passes: Mapping[str, Passes] | None = None) -> None:
        """Count more."""
        self.steps += steps
        self.examples += examples
        for spec, more in (passes or {}).items():
            self.passes.setdefault(spec, Passes()).add(more)


_scopes: list[Spent] = []


@contextmanager
def counted() -> Iterator[Spent]:
    """Count what is done within."""
    depth, spent = len(_scopes), Spent()
    _scopes.append(spent)
    try:
        yield spent
    finally:
        del _scopes[depth:]


def count(steps: int, examples: int) -> None:
    """Count a local run that was done."""
    if _scopes:
        _scopes[-1].add(steps, examples)


def count_pass(model: nn.Module, features: Tensor) -> None:
    """Count a batch that went through a model that has a `spec`.

    Args:
        model: The model.
        features: [B, ...] that came of it; with a gradient to follow if it requires one.
    """
    if _scopes and (spec := _spec(model)):
        learns = torch.is_grad_enabled()
        backward = learns and features.requires_grad
        _add(spec, len(features), backward, learns and not backward and _learns(model, of_head=True))


def count_trained(model: nn.Module, num_images: int) -> None:
    """Count images on which a model was trained where it is not seen to be called: in compiled and stacked steps."""
    for module in model.modules() if _scopes else ():
        if spec := _spec(module):
            _add(spec, num_images, backward := _learns(module, of_head=False), not backward)


def _spec(model: nn.Module) -> str:
    return getattr(model, "spec", "")


def _learns(model: nn.Module, of_head: bool) -> bool:
    """Say whether any parameter learns, of the head or of all else."""
    return any(p.requires_grad for name, p in model.named_parameters() if name.startswith("head.") == of_head)


def _add(spec: str, num_images: int, backward: bool, head: bool) -> None:
    _scopes[-1].passes.setdefault(spec, Passes()).add(Passes(num_images, num_images * backward, num_images * head))

"""The loss of classification that clients train with: smoothed labels, weighted classes, heads of tasks.

Legend: B batch, N examples, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy over a batch, a function of (logits [B, C], labels [B]).

    Attributes:
        label_smoothing: Share of each label that is spread evenly over all classes (Szegedy et al. 2016).
        class_weights: `balanced`: each class that the examples have counts as much as any other, however many of them
            it has. `none`: each example counts the same.
        task_of_class: [C] int64: an example sees the outputs of its own task's classes only; None: all.
        weight_C: [C] what an example of a class counts, from `of`; the mean over a batch is by these weights.
    """

    label_smoothing: float = 0.0
    class_weights: str = "none"
    task_of_class: Tensor | None = None
    weight_C: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.task_of_class is not None:
            others = self.task_of_class[labels][:, None] != self.task_of_class[None, :]
            logits = logits.masked_fill(others, -math.inf)
        weight = None if self.weight_C is None else self.weight_C.to(logits.dtype)
        return F.cross_entropy(logits, labels, weight, label_smoothing=self.label_smoothing)

    def of(self, labels: Tensor, num_classes: int) -> CrossEntropy:
        """Return the loss for training on examples with these labels [N] out of so many classes."""
        if self.class_weights == "none":
            return self
        return replace(self, weight_C=balanced_weights(labels, num_classes))


def balanced_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Return w_c = N / (C' n_c), [C] float32, for the n_c > 0 of C' classes that occur, and 0 for the others.

    So every class that occurs has the same sum of weights, and their mean over the examples is 1 (King and Zeng 2001).

    Args:
        labels: [N] int64.
        num_classes: C.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    present = counts > 0
    weights = len(labels) / (present.sum() * counts.clamp(min=1).double())
    return torch.where(present, weights, torch.zeros_like(weights)).float()

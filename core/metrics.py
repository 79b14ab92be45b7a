"""What is measured, as sums that can be added over batches, clients and servers.

Legend: N examples, C classes, K clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ClassCounts:
    """Sufficient counts of a classification.

    Attributes:
        correct_C: [C] float64, examples of each class that were classified right.
        total_C: [C] float64, examples of each class.
        loss_sum: Sum of the cross-entropy over examples, in nats.
    """

    correct_C: Tensor
    total_C: Tensor
    loss_sum: float

    def __add__(self, other: ClassCounts) -> ClassCounts:
        return ClassCounts(
            self.correct_C + other.correct_C, self.total_C + other.total_C, self.loss_sum + other.loss_sum
        )

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return int(self.total_C.sum())


@torch.no_grad()
def classify(predict: Predict, images: Tensor, labels: Tensor, num_classes: int, batch_size: int = 512) -> ClassCounts:
    """Classify examples and count.

    Args:
        predict: Maps images [B, ...] to logits [B, C].
        images: [N, ...], on the device of the predictor.
        labels: [N] int64, same device.
        num_classes: C.
        batch_size: Examples at once.
    """
    correct = torch.zeros(num_classes, dtype=torch.float64)
    total = torch.bincount(labels.cpu(), minlength=num_classes).to(torch.float64)
    loss = 0.0
    for start in range(0, len(labels), batch_size):
        x, y = images[start : start + batch_size], labels[start : start + batch_size]
        logits = predict(x)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss += float(F.cross_entropy(logits, y, reduction="sum").item())
        hits = y[logits.argmax(dim=1) == y]
        correct += torch.bincount(hits.cpu(), minlength=num_classes)
    return ClassCounts(correct, total, loss)


def summarise(counts: ClassCounts) -> dict[str, float]:
    """Return accuracy, balanced accuracy (mean over classes that occur), worst class and loss.

    Accuracies are fractions; all are NaN when there is no example.
    """
    if not counts.num_examples:
        return dict.fromkeys(("accuracy", "balanced_accuracy", "worst_class_accuracy", "loss"), math.nan)
    present = counts.total_C > 0
    per_class = counts.correct_C[present] / counts.total_C[present]
    return {
        "accuracy": float(counts.correct_C.sum() / counts.total_C.sum()),
        "balanced_accuracy": float(per_class.mean()),
        "worst_class_accuracy": float(per_class.min()),
        "loss": counts.loss_sum / counts.num_examples,
    }


def per_class(counts: ClassCounts) -> dict[int, float]:
    """Return the accuracy of each class that occurs."""
    return {
        c: float(counts.correct_C[c] / counts.total_C[c]) for c in range(len(counts.total_C)) if counts.total_C[c] > 0
    }


def over_clients(values: Sequence[float]) -> dict[str, float]:
    """Describe how a metric spreads over clients.

    Args:
        values: One value a client, NaN left out.

    Returns:
        mean (uniform over clients), std (population), min, and worst10: the mean over the worst tenth of the
        clients, at least one of them.
    """
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return dict.fromkeys(("mean", "std", "worst10", "min"), math.nan)
    mean = math.fsum(known) / len(known)
    worst = known[: max(1, len(known) // 10)]
    return {
        "mean": mean,
        "std": math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known)),
        "worst10": math.fsum(worst) / len(worst),
        "min": known[0],
    }


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (n - 1), which is 0 for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def metric_rows(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """Put `prefix/` in front of each name."""
    return {f"{prefix}/{name}": value for name, value in values.items()}

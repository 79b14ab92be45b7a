"""Counts of a classification, which can be added over batches, clients and servers, and what is made of them.

Legend: N examples, C classes, K clients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
Keep = Callable[[Tensor, Tensor, int], None]
_RULED_OUT = -100.0
NO_CLASS = -1  # stands for the prediction where there is none


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
def classify(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    batch_size: int = 512,
    keep: Keep | None = None,
    task: int = 0,
) -> ClassCounts:
    """Classify examples and count.

    Args:
        predict: Maps images [B, ...] to logits [B, C].
        images: [N, ...], on the device of the predictor.
        labels: [N] int64, same device.
        num_classes: C.
        batch_size: Examples at once.
        keep: Called with logits [B, C], labels [B] and `task` for each batch.
        task: Whose examples they are.
    """
    correct = torch.zeros(num_classes, dtype=torch.float64)
    total = torch.bincount(labels.cpu(), minlength=num_classes).to(torch.float64)
    loss = 0.0
    for start in range(0, len(labels), batch_size):
        x, y = images[start : start + batch_size], labels[start : start + batch_size]
        logits = predict(x)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if keep is not None:
            keep(logits, y, task)
        # A class that a predictor rules out (minus infinity) costs 100 nats more than the others, not infinity.
        finite = logits.masked_fill(logits.isneginf(), _RULED_OUT)
        loss += float(F.cross_entropy(finite, y, reduction="sum").item())
        hits = y[predicted(logits) == y]
        correct += torch.bincount(hits.cpu(), minlength=num_classes)
    return ClassCounts(correct, total, loss)


def predicted(logits: Tensor) -> Tensor:
    """Return the class that each example is taken for, [B] int64, and `NO_CLASS` where that is none.

    Args:
        logits: [B, C].
    """
    # Where a logit is NaN or infinite, or all classes are ruled out, argmax would name one all the same.
    is_prediction = (logits < torch.inf).all(dim=1) & logits.isfinite().any(dim=1)
    return logits.argmax(dim=1).masked_fill(~is_prediction, NO_CLASS)


@torch.no_grad()
def classify_tasks(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    tasks: Tensor | None,
    num_classes: int,
    batch_size: int = 512,
    task_of_class: Tensor | None = None,
    keep: Keep | None = None,
) -> dict[int, ClassCounts]:
    """Classify the examples of each task and count.

    Args:
        predict: As in `classify`.
        images: As in `classify`.
        labels: As in `classify`.
        tasks: [N] int64, or None: all are of task 0.
        num_classes: C.
        batch_size: Examples at once.
        task_of_class: [C] int64, when a task is told its own classes' outputs only; None lets it see all.
        keep: As in `classify`.

    Returns:
        The counts of each task that occurs.
    """
    if tasks is None:
        return {0: classify(predict, images, labels, num_classes, batch_size, keep)}
    by_task = {}
    for task in torch.unique(tasks).tolist():
        rows = (tasks == task).to(labels.device)
        told = predict if task_of_class is None else only_task(predict, task_of_class == task)
        by_task[task] = classify(told, images[rows], labels[rows], num_classes, batch_size, keep, task)
    return by_task


def only_task(predict: Predict, classes_C: Tensor) -> Predict:
    """Return a predictor that gives minus infinity to all classes but those where `classes_C` [C] is true."""

    def masked(x: Tensor) -> Tensor:
        logits = predict(x)
        return logits.masked_fill(~classes_C.to(logits.device), -math.inf)

    return masked


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


def total(counts: Iterable[ClassCounts], num_classes: int) -> ClassCounts:
    """Return the sum of counts, which may be none."""
    zero = torch.zeros(num_classes, dtype=torch.float64)
    return sum(counts, ClassCounts(zero, zero, 0.0))


def per_class(counts: ClassCounts) -> dict[int, float]:
    """Return the accuracy of each class that occurs."""
    return {
        c: float(counts.correct_C[c] / counts.total_C[c]) for c in range(len(counts.total_C)) if counts.total_C[c] > 0
    }


GROUPS = ("head", "middle", "tail")  # what the numbers 0, 1 and 2 of a class group mean


def split_at(counts_C: Tensor, shares: tuple[float, float] = (0.75, 0.95)) -> Tensor:
    """Return 0 (head), 1 (middle) or 2 (tail) for each class, [C] int64.

    Classes are taken from the largest on; a class is in the group in which the examples before it end.

    Args:
        counts_C: [C], examples of each class.
        shares: Shares of all examples at which the head and the middle end.
    """
    order = counts_C.argsort(descending=True, stable=True)
    before = counts_C[order].to(torch.float64).cumsum(0) - counts_C[order]
    share = before / counts_C.sum()
    groups = torch.empty_like(order)
    groups[order] = (share >= shares[0]).long() + (share >= shares[1]).long()
    return groups


def by_group(counts: ClassCounts, groups_C: Tensor) -> dict[str, float]:
    """Return the accuracy over the examples of each class group, as the long-tail literature reports it.

    With as many test examples of each class it is the mean of the accuracies of the group's classes.

    Args:
        counts: The counts.
        groups_C: [C] int64, 0 head, 1 middle, 2 tail.

    Returns:
        `accuracy_head`, `accuracy_middle` and `accuracy_tail`, without those of groups that have no example.

    Raises:
        ValueError: There is not a group for each class, or a number stands for none.
    """
    known = groups_C.cpu()
    if known.shape != counts.total_C.shape or bool(((known < 0) | (known >= len(GROUPS))).any()):
        raise ValueError(
            f"Expected a group 0, 1 or 2 for each of {len(counts.total_C)} classes, found {known.tolist()}."
        )
    accuracies = {}
    for number, name in enumerate(GROUPS):
        inside = known == number
        if (examples := float(counts.total_C[inside].sum())) > 0:
            accuracies[f"accuracy_{name}"] = float(counts.correct_C[inside].sum()) / examples
    return accuracies


def by_domain(counts: Mapping[str, ClassCounts]) -> dict[str, float]:
    """Return the accuracy in each domain, their mean (a domain counts once, however large) and the worst.

    Args:
        counts: The counts of each domain by its name; those without examples are left out.

    Returns:
        `domain/<name>/accuracy`, `domains_mean` and `domains_worst`; nothing when no domain has an example.
    """
    accuracies = {name: summarise(each)["accuracy"] for name, each in counts.items() if each.num_examples}
    if not accuracies:
        return {}
    measures = {f"domain/{name}/accuracy": value for name, value in accuracies.items()}
    measures["domains_mean"] = math.fsum(accuracies.values()) / len(accuracies)
    measures["domains_worst"] = min(accuracies.values())
    return measures


def over_clients(values: Sequence[float], less_is_better: bool = False) -> dict[str, float]:
    """Describe how a metric spreads over clients.

    Args:
        values: One value a client, NaN left out.
        less_is_better: Of two values the larger is the worse one, as of an error.

    Returns:
        mean (uniform over clients), std (population), min, worst10: the mean over the worst tenth of the clients, at
        least one of them; and jain: Jain's index of fairness (Jain, Chiu, Hawe 1984), (sum x)^2 / (n sum x^2), which is
        1 where all are equal and 1/n where one has all.
    """
    known = sorted(value for value in values if not math.isnan(value))
    if not known:
        return dict.fromkeys(("mean", "std", "worst10", "min", "jain"), math.nan)
    mean = math.fsum(known) / len(known)
    squares = math.fsum(value**2 for value in known)
    number = max(1, len(known) // 10)
    worst = known[-number:] if less_is_better else known[:number]
    return {
        "mean": mean,
        "std": math.sqrt(math.fsum((value - mean) ** 2 for value in known) / len(known)),
        "worst10": math.fsum(worst) / len(worst),
        "min": known[0],
        "jain": math.fsum(known) ** 2 / (len(known) * squares) if squares else 1.0,
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

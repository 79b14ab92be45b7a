"""What examples are taken for: of each class, how many were taken for each other one.

Legend: N examples, B batch, C classes, P pairs of classes that occur.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field

import torch
from torch import Tensor

from umbel.core.metrics.counts import NO_CLASS, predicted

HEAD = ("label", "predicted", "examples")


@dataclass
class Confusion:
    """Keeps what a predictor took examples for, while they are counted.

    Attributes:
        batches: Labels [B], predictions [B] and task of each batch, on the CPU.
    """

    batches: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor, task: int = 0) -> None:
        """Take a batch.

        Args:
            logits: [B, C].
            labels: [B] int64.
            task: Whose examples they are.
        """
        self.batches.append((labels.cpu(), predicted(logits).cpu(), task))

    def counts(self, last_task: int | None = None) -> Tensor:
        """Return [P, 3] int64: a class, what it was taken for (`NO_CLASS` for nothing), how often; sorted.

        The counts are torchmetrics' `multiclass_confusion_matrix`, of which only what is not 0 is kept: with 1000
        classes most of it is.

        Args:
            last_task: Only over the tasks up to this one.
        """
        known = [each for each in self.batches if last_task is None or each[2] <= last_task]
        if not known:
            return torch.empty(0, 3, dtype=torch.int64)
        pairs_N2 = torch.stack([torch.cat([each[0] for each in known]), torch.cat([each[1] for each in known])], dim=1)
        pairs_P2, counts_P = torch.unique(pairs_N2, dim=0, return_counts=True)
        return torch.cat([pairs_P2, counts_P[:, None]], dim=1)


def as_csv(counts_P3: Tensor) -> str:
    """Return counts as a table, classes by number; nothing where there are none."""
    if not len(counts_P3):
        return ""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEAD, *counts_P3.tolist()])
    return text.getvalue()


def from_csv(text: str) -> Tensor:
    """Return the counts that `as_csv` was given, [P, 3] int64.

    Raises:
        ValueError: It is no such table.
    """
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or tuple(rows[0]) != HEAD or any(len(row) != len(HEAD) for row in rows):
        raise ValueError(f"it should be a table with the columns {', '.join(HEAD)}")
    counts = torch.tensor([[int(cell) for cell in row] for row in rows[1:]], dtype=torch.int64).reshape(-1, len(HEAD))
    if bool((counts[:, 0] < 0).any() or (counts[:, 1] < NO_CLASS).any() or (counts[:, 2] < 1).any()):
        raise ValueError("it has a number that is no class or no count")
    return counts

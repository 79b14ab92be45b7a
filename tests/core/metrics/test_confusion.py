"""What examples are taken for: counts of pairs of classes."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

from umbel.core.metrics.confusion import Confusion, as_csv, from_csv
from umbel.core.metrics.counts import NO_CLASS


def test_it_is_that_of_torchmetrics() -> None:
    random = torch.Generator().manual_seed(5)
    logits, labels = torch.randn(300, 7, generator=random), torch.randint(7, (300,), generator=random)
    confusion = Confusion()
    for start in range(0, 300, 64):
        confusion.add(logits[start : start + 64], labels[start : start + 64])
    counts = confusion.counts()
    dense = torch.zeros(7, 7, dtype=torch.int64)
    dense[counts[:, 0], counts[:, 1]] = counts[:, 2]
    assert torch.equal(dense, multiclass_confusion_matrix(logits, labels, num_classes=7))


def test_scores_that_are_not_finite_are_no_class_and_later_tasks_do_not_count() -> None:
    confusion = Confusion()
    ruled_out, nan = [-torch.inf, -torch.inf], [torch.nan, 1.0]
    confusion.add(torch.tensor([[0.0, 1.0], ruled_out, nan, [-torch.inf, 1.0]]), torch.tensor([0, 0, 1, 1]), task=0)
    confusion.add(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), task=1)
    assert confusion.counts(0).tolist() == [[0, NO_CLASS, 1], [0, 1, 1], [1, NO_CLASS, 1], [1, 1, 1]]
    assert confusion.counts().tolist() == [*confusion.counts(0)[:3].tolist(), [1, 0, 1], [1, 1, 1]]


def test_its_table_is_read_again() -> None:
    counts = torch.tensor([[0, 0, 12], [0, 999, 1], [999, NO_CLASS, 3]])
    assert as_csv(counts) == "label,predicted,examples\n0,0,12\n0,999,1\n999,-1,3\n"
    assert torch.equal(from_csv(as_csv(counts)), counts)
    assert as_csv(Confusion().counts()) == ""


@pytest.mark.parametrize("rows", ["", "0,0,1", "label,predicted,examples\n0,0", *map(
    "label,predicted,examples\n{}".format, ("0,0,x", "-1,0,1", "0,-2,1", "0,0,0")
)])  # fmt: skip
def test_what_is_no_such_table_is_refused(rows: str) -> None:
    with pytest.raises(ValueError):
        from_csv(rows)

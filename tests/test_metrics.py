"""Metrics by hand."""

from __future__ import annotations

import math

import pytest
import torch

from core import metrics
from core.metrics import ClassCounts


def logits_for(predicted, num_classes=3):
    return torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float() * 4


def counts(batch_size=2):
    # Classes 0 0 0 1 2; guesses 0 0 1 1 0: class 0 has 2 of 3, class 1 has 1 of 1, class 2 has 0 of 1.
    table = logits_for([0, 0, 1, 1, 0])
    images = torch.arange(5.0)
    labels = torch.tensor([0, 0, 0, 1, 2])
    return metrics.classify(lambda x: table[x.long()], images, labels, 3, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_classify(batch_size):
    found = counts(batch_size)
    assert found.correct_C.tolist() == [2, 1, 0] and found.total_C.tolist() == [3, 1, 1]
    right, wrong = -4 + math.log(math.exp(4) + 2), math.log(math.exp(4) + 2)
    assert found.loss_sum == pytest.approx(3 * right + 2 * wrong, rel=1e-6)
    assert found.num_examples == 5


def test_summarise():
    found = metrics.summarise(counts())
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["worst_class_accuracy"] == 0.0
    assert found["loss"] == pytest.approx(counts().loss_sum / 5)
    assert metrics.per_class(counts()) == pytest.approx({0: 2 / 3, 1: 1.0, 2: 0.0})


def test_classes_that_do_not_occur_do_not_count():
    found = ClassCounts(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([2.0, 0.0, 2.0]), 4.0)
    assert metrics.summarise(found) == {
        "accuracy": 0.75,
        "balanced_accuracy": 0.75,  # (1/2 + 1) / 2
        "worst_class_accuracy": 0.5,
        "loss": 1.0,
    }
    assert metrics.per_class(found) == {0: 0.5, 2: 1.0}
    empty = ClassCounts(torch.zeros(2), torch.zeros(2), 0.0)
    assert all(math.isnan(value) for value in metrics.summarise(empty).values())


def test_counts_add():
    both = counts() + counts()
    assert both.correct_C.tolist() == [4, 2, 0] and both.num_examples == 10
    assert metrics.summarise(both) == pytest.approx(metrics.summarise(counts()))


def test_over_clients():
    found = metrics.over_clients([0.75, 0.25, math.nan])
    assert found == {"mean": 0.5, "std": 0.25, "worst10": 0.25, "min": 0.25}
    # Of 20 clients the worst two: (0 + 1) / 2.
    assert metrics.over_clients([float(i) for i in range(20)])["worst10"] == 0.5
    assert all(math.isnan(value) for value in metrics.over_clients([math.nan]).values())


def test_mean_and_deviation():
    assert metrics.mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))  # (1 + 1) / (2 - 1)
    assert metrics.mean_and_deviation([7.0]) == (7.0, 0.0)

"""The loss of classification: smoothing, weights of classes, heads of tasks, by their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from umbel.core.losses import CrossEntropy, balanced_weights
from umbel.core.training import full_gradient

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [1.0, -2.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 0, 0])


def test_plain_is_torchs_cross_entropy_to_the_bit() -> None:
    logits = LOGITS.float()
    assert torch.equal(CrossEntropy()(logits, LABELS), F.cross_entropy(logits, LABELS))
    assert CrossEntropy().of(LABELS, 3) == CrossEntropy()


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    log_p = LOGITS.log_softmax(1)
    target = 0.7 * F.one_hot(LABELS, 3).double() + 0.3 / 3
    by_hand = -(target * log_p).sum(1).mean()
    assert CrossEntropy(label_smoothing=0.3)(LOGITS, LABELS) == pytest.approx(float(by_hand), abs=1e-12)


def test_balanced_weights_sum_to_the_same_for_each_class_that_occurs() -> None:
    weights = balanced_weights(LABELS, 3)
    # Three examples of class 0, none of 1, one of 2: 4 / (2 * 3) and 4 / (2 * 1).
    assert weights.tolist() == pytest.approx([2 / 3, 0.0, 2.0])
    assert float(weights[LABELS].mean()) == pytest.approx(1)


def test_weighted_is_the_mean_over_classes_of_their_means() -> None:
    losses = F.cross_entropy(LOGITS, LABELS, reduction="none")
    by_hand = (losses[[0, 2, 3]].mean() + losses[1]) / 2
    balanced = CrossEntropy(class_weights="balanced").of(LABELS, 3)
    assert float(balanced(LOGITS, LABELS)) == pytest.approx(float(by_hand), abs=1e-7)
    # Where classes are equally frequent nothing changes.
    even = torch.tensor([0, 1, 2, 0, 1, 2])
    logits = torch.cat([LOGITS, LOGITS[:2]])
    assert float(CrossEntropy(class_weights="balanced").of(even, 3)(logits, even)) == pytest.approx(
        float(F.cross_entropy(logits, even)), abs=1e-7
    )


def test_a_gradient_over_all_examples_is_the_same_in_any_batches() -> None:
    model = torch.nn.Linear(3, 3).double()
    images = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 50 + [2] * 10)
    loss = CrossEntropy(class_weights="balanced").of(labels, 3)
    whole = full_gradient(model, images, labels, loss=loss)
    for size in (1, 7, 45):
        for one, other in zip(full_gradient(model, images, labels, batch_size=size, loss=loss), whole, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-7)


def test_an_example_sees_its_own_tasks_outputs() -> None:
    tasks = torch.tensor([0, 1, 0])
    by_hand = F.cross_entropy(LOGITS[:, [0, 2]], torch.tensor([0, 1, 0, 0]))
    assert float(CrossEntropy(task_of_class=tasks)(LOGITS, LABELS)) == pytest.approx(float(by_hand), abs=1e-12)

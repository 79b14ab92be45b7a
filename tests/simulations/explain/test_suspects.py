"""Who is suspect: the association of labels and answers against its definition, and the rule on plain numbers."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from umbel.simulations.explain.suspects import FEWEST, Evidence, evidence, judge

LABELS = torch.tensor([0, 0, 1, 1, 2])
HELD = torch.tensor([0, 0, 1, 1, 2, 2])


def logits(labels: torch.Tensor, seed: int, strength: float = 2.0) -> torch.Tensor:
    """Draw answers that go with labels, and more so the greater `strength`."""
    noise = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed))
    return noise + strength * torch.nn.functional.one_hot(labels, 3)


def of(
    own: torch.Tensor,
    labels: torch.Tensor = LABELS,
    before: torch.Tensor | None = None,
    after: torch.Tensor | None = None,
    held: torch.Tensor = HELD,
) -> Evidence:
    known = evidence(
        own, labels, logits(held, 1) if before is None else before, logits(held, 2) if after is None else after, held
    )
    assert known is not None
    return known


def test_the_deviation_is_that_over_all_orders_of_the_labels() -> None:
    own = logits(LABELS, 0)
    values = torch.tensor([of(own, LABELS[list(order)]).labels for order in permutations(range(5))])
    known = of(own)
    assert float(values.mean()) == pytest.approx(0, abs=1e-6)
    assert known.deviation == pytest.approx(float(values.double().square().mean().sqrt()), rel=1e-5)
    assert 0 < known.deviation < known.labels < 1


def test_answers_that_are_the_labels_go_with_them_and_turned_ones_against_them() -> None:
    truth = torch.nn.functional.one_hot(LABELS, 3).double()
    assert of(truth).labels == pytest.approx(1)
    assert of(-3 * truth).labels == pytest.approx(-1)


def test_what_a_model_says_of_every_image_is_no_matter() -> None:
    own = logits(LABELS, 3)
    leaning = own * 2 + torch.tensor([9.0, -4.0, 0.0]) + torch.arange(5.0)[:, None]
    assert of(leaning).labels == pytest.approx(of(own).labels, rel=1e-5)
    assert of(leaning).deviation == pytest.approx(of(own).deviation, rel=1e-5)


def test_held_out_images_count_as_their_class_does_with_the_client() -> None:
    """Three examples of class 0 and one of class 1: the same as three copies of each held-out image of class 0."""
    labels, held = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 2])
    before, after = logits(held, 4), logits(held, 5)
    copies = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3])
    known = of(logits(labels, 6), labels, before, after, held)
    twin = of(before[copies], held[copies], before, after, held)
    assert known.expected == pytest.approx(twin.labels, rel=1e-6)
    assert known.learned != known.expected
    assert known.gain == pytest.approx(known.learned - known.expected)


def test_classes_that_are_not_held_out_are_left_aside() -> None:
    held = torch.tensor([0, 0, 1, 1])
    before, after, own = logits(held, 7), logits(held, 8), logits(LABELS, 9)
    assert of(own, LABELS, before, after, held) == of(own[:4], LABELS[:4], before, after, held)


@pytest.mark.parametrize(
    ("own", "labels", "held"),
    [
        (torch.eye(3), torch.tensor([1, 1, 1]), HELD),  # one class: any order is the same
        (torch.eye(3), torch.tensor([0, 1, 2]), torch.tensor([1, 1, 1, 1, 1, 1])),
        (torch.ones(3, 3), torch.tensor([0, 1, 2]), HELD),  # the same answer to everything
        (torch.full((3, 3), math.nan), torch.tensor([0, 1, 2]), HELD),
    ],
)
def test_labels_that_say_nothing(own: torch.Tensor, labels: torch.Tensor, held: torch.Tensor) -> None:
    assert evidence(own, labels, logits(held, 1), logits(held, 2), held) is None


HONEST = Evidence(labels=0.6, deviation=0.05, expected=0.7, learned=0.75)


def test_both_signs_accuse() -> None:
    """Half of 0.6 less two deviations is 0.2; the others' models have learned 0.05."""
    clients = dict.fromkeys(range(5), HONEST)
    judged = judge(clients | {5: Evidence(0.19, 0.05, 0.7, 0.74)})
    assert [client for client, each in judged.items() if each.suspect] == [5]
    assert judged[5].ordinary == 0.6 and judged[5].bound == pytest.approx(0.2) and judged[5].gain == pytest.approx(0.05)
    for innocent in (Evidence(0.21, 0.05, 0.7, 0.74), Evidence(0.19, 0.05, 0.7, 0.76), Evidence(0.19, 0.06, 0.7, 0.74)):
        assert not judge(clients | {5: innocent})[5].suspect


def test_where_the_model_knows_little_of_a_clients_classes_little_is_ordinary() -> None:
    clients = dict.fromkeys(range(5), HONEST)
    judged = judge(clients | {5: Evidence(0.05, 0.01, 0.1, 0.0)})
    assert judged[5].ordinary == 0.1 and not judged[5].suspect


def test_two_at_fault_do_not_hide_each_other() -> None:
    fault = Evidence(0.0, 0.05, 0.7, 0.5)
    judged = judge({0: fault, 1: HONEST, 2: HONEST, 3: HONEST, 4: fault})
    assert [client for client, each in judged.items() if each.suspect] == [0, 4]


def test_among_fewer_than_five_nobody_is_accused() -> None:
    clients = {0: Evidence(0.0, 0.01, 0.7, 0.1)} | dict.fromkeys(range(1, FEWEST - 1), HONEST)
    assert len(clients) == 4 and judge(clients) == {} == judge({})
    assert judge(clients | {4: HONEST})[0].suspect

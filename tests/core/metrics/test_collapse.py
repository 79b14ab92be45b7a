"""Neural-collapse metrics: closed forms, and that the sums of parts are those of the whole."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from umbel.core import moments
from umbel.core.metrics import collapse
from umbel.core.metrics.collapse import class_sums
from umbel.core.rng import generator
from umbel.strategies.fedloge.frames import simplex_etf


def collapsed(counts, width=6, length=3.0, shift=2.0):
    """Every example of a class at one vertex of a simplex, as many as `counts` says."""
    means = length * simplex_etf(width, len(counts), generator(0)).T.double() + shift
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return means, means[labels], labels


@pytest.mark.parametrize("counts", [[5, 5, 5, 5], [40, 9, 3, 1]])
def test_collapsed_features_give_nothing_but_zeros_and_one(counts):
    means, features, labels = collapsed(counts)
    sums = class_sums(features, labels, 4)
    head = means - means.mean(0)
    measures = collapse.describe(sums, 7 * head)
    assert measures == pytest.approx({"nc1": 0, "nc2_lengths": 0, "nc2_angles": 0, "nc3": 0}, abs=1e-6)
    logits = (features - means.mean(0)) @ head.T
    present = torch.ones(4, dtype=torch.bool)
    assert collapse.num_agreeing(features, logits, sums.means(), present) == len(labels)
    assert collapse.num_agreeing(features, -logits, sums.means(), present) == 0
    assert collapse.self_duality(-head, means) == pytest.approx(2)


def test_within_over_between_by_hand():
    # Classes at -1 and +1 on a line, each spread by 1/2: Sigma_W = 1/4, Sigma_B = 1, C = 2.
    features = torch.tensor([[-1.5], [-0.5], [0.5], [1.5]])
    assert collapse.variability(class_sums(features, torch.tensor([0, 0, 1, 1]), 2)) == pytest.approx(1 / 8)
    # Class 0 twice as often: Sigma_W is still 1/4 and Sigma_B still 1, as classes count once between.
    often = torch.cat([features[:2], features])
    assert collapse.variability(class_sums(often, torch.tensor([0, 0, 0, 0, 1, 1]), 2)) == pytest.approx(1 / 8)


def test_lengths_and_angles_by_hand():
    means = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    # Lengths 3, 1, 2: deviation sqrt(2/3) over mean 2. Cosines -1, -1, 1 against -1/2.
    assert collapse.equinorm(means + 5) == pytest.approx(math.sqrt(2 / 3) / 2)
    assert collapse.equiangularity(means + 5) == pytest.approx((0.5 + 0.5 + 1.5) / 3)
    # Head and means at right angles are sqrt(2) apart.
    assert collapse.self_duality(means.flip(1), means) == pytest.approx(math.sqrt(2))


def test_against_per_class_scatters():
    labels = torch.arange(200) % 7
    features = torch.randn(200, 5, generator=generator(1), dtype=torch.float64) + labels[:, None]
    sums = class_sums(features, labels, 7)
    means = torch.stack([features[labels == c].mean(0) for c in range(7)])
    within = (features - means[labels]).T @ (features - means[labels]) / 200
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / 7
    expected = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-10)) / 7
    assert collapse.variability(sums) == pytest.approx(float(expected), rel=1e-9)
    nearest = torch.cdist(features, means).argmin(1)
    logits = torch.nn.functional.one_hot(nearest, 7).double()
    logits[:10] = -logits[:10]
    disagree = 200 - collapse.num_agreeing(features, logits, sums.means(), sums.present())
    assert disagree == 10


def test_parts_give_what_the_whole_gives():
    labels = torch.arange(301) % 4
    features = torch.randn(301, 9, generator=generator(2), dtype=torch.float64) * 3 + 50
    cuts = [0, 1, 90, 301]  # the first client has one example, and no client is balanced
    parts = [class_sums(features[a:b], labels[a:b], 5) for a, b in itertools.pairwise(cuts)]
    total = parts[0].total
    for part in parts[1:]:
        total = moments.merge(total, part.total)
    federated = collapse.ClassSums(sum(p.count_C for p in parts), sum(p.sum_CD for p in parts), total)
    pooled = class_sums(features, labels, 5)
    head = torch.randn(5, 9, generator=generator(3), dtype=torch.float64)
    a, b = collapse.describe(federated, head), collapse.describe(pooled, head)
    assert a == pytest.approx(b, rel=1e-10, abs=1e-10) and len(a) == 4


def test_classes_without_examples_are_left_out():
    means, features, labels = collapsed([5, 5, 5])
    three = class_sums(features, labels, 3)
    more = class_sums(features, labels + 1, 6)
    head = means - means.mean(0)
    wide = torch.full((6, 6), 9.0, dtype=torch.float64)
    wide[1:4] = head
    assert collapse.describe(more, wide) == pytest.approx(collapse.describe(three, head), abs=1e-12)
    logits = torch.full((15, 6), 100.0)
    logits[:, 1:4] = ((features - means.mean(0)) @ head.T).float()
    assert collapse.num_agreeing(features, logits, more.means(), more.present()) == 15
    assert collapse.describe(class_sums(features[:5], labels[:5], 3), head) == {}


def test_measures_of_examples_in_one_place():
    means, features, labels = collapsed([7, 5, 3, 2])
    head = torch.nn.Linear(6, 4).double()
    with torch.no_grad():
        head.weight.copy_(means - means.mean(0))
        head.bias.copy_(-(head.weight @ means.mean(0)))
    measures = collapse.measure(features, labels, head)
    expected = {"nc1": 0, "nc2_lengths": 0, "nc2_angles": 0, "nc3": 0, "nc4": 1}
    assert measures == pytest.approx(expected, abs=1e-6)
    with torch.no_grad():
        head.bias[0] += 1e6  # now everything is class 0
    assert collapse.measure(features, labels, head)["nc4"] == pytest.approx(7 / 17)
    assert collapse.measure(features[:7], labels[:7], head) == {}  # one class has no angle to another
    two = collapse.measure(features[:12], labels[:12], head)
    assert two.keys() == expected.keys() and two["nc1"] == pytest.approx(0, abs=1e-6)


def test_the_server_measures_by_round(tmp_path):
    from umbel import run

    result = run("digits", "evaluate.collapse=true", "run.rounds=2", "evaluate.clients=0", f"run.results={tmp_path}")
    rows = result.metrics[result.metrics["metric"].str.startswith("collapse/")]
    assert set(rows["metric"]) == {f"collapse/{name}" for name in ("nc1", "nc2_lengths", "nc2_angles", "nc3", "nc4")}
    assert set(rows["round"]) == {1, 2} and set(rows["split"]) == {"validation"} and set(rows["side"]) == {"server"}
    alone = run("digits", "run.rounds=2", "evaluate.clients=0", f"run.results={tmp_path}")
    assert alone.summary["weights_sha256"] == result.summary["weights_sha256"]

"""CreamFL's mathematics and the metrics of retrieval."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from umbel.core.metrics import retrieval
from umbel.core.rng import generator
from umbel.strategies.creamfl.contrasts import inter_contrast, intra_contrast
from umbel.strategies.creamfl.ensemble import aggregate, by_variance

K, P, D = 4, 30, 6


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, D, generator=generator(seed), dtype=torch.float64), dim=-1)


def dense(reps: torch.Tensor, other: torch.Tensor, tau: float, exclude: bool) -> tuple[torch.Tensor, torch.Tensor]:
    logits = torch.einsum("kid,jd->kij", reps, other) / tau
    top = torch.diagonal(logits, dim1=1, dim2=2)
    below = logits.exp()
    if exclude:
        below = below * (1 - torch.eye(reps.shape[1]))
    scores = top - below.sum(2).log()
    weights = scores.exp() / scores.exp().sum(0)
    return torch.einsum("ki,kid->id", weights, reps), weights


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("tau", [1.0, 0.1])
@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
def test_aggregation_is_the_dense_formula(exclude, tau, chunk):
    reps, other = unit(K, P), unit(P, seed=1)
    ours = aggregate(reps, other, tau, exclude, chunk)
    for mine, theirs in zip(ours, dense(reps, other, tau, exclude), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours[1].sum(0), torch.ones(P, dtype=torch.float64))


def test_two_samples_by_hand():
    reps = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])  # the second client has them swapped
    combined, weights = aggregate(reps, torch.eye(2), temperature=0.5)
    right = math.exp(2) / (math.exp(2) + 1)  # of the first client; 1 - right of the second
    torch.testing.assert_close(weights, torch.tensor([[right, right], [1 - right, 1 - right]]))
    torch.testing.assert_close(combined, torch.tensor([[right, 1 - right], [1 - right, right]]))


def test_weights_by_variance_by_hand():
    """Rows of the two clients: variances 1 and 4 of the first sample, 0 and 1 of the second, 0 and 0 of the third."""
    reps = torch.tensor([[[1.0, -1.0], [2.0, 2.0], [5.0, 5.0]], [[2.0, -2.0], [3.0, 1.0], [7.0, 7.0]]])
    combined, weights = by_variance(reps)
    torch.testing.assert_close(weights, torch.tensor([[0.2, 0.0, 0.5], [0.8, 1.0, 0.5]]))
    torch.testing.assert_close(combined, torch.tensor([[1.8, -1.8], [3.0, 1.0], [6.0, 6.0]]))


def test_weights_by_variance_tell_unit_vectors_apart_by_their_mean_alone():
    reps = unit(K, P)
    _, weights = by_variance(reps)
    spread = 1 / D - reps.mean(-1) ** 2
    torch.testing.assert_close(weights, spread / spread.sum(0))


def test_invariants_of_aggregation():
    reps, other = unit(K, P), unit(P, seed=1)
    combined, weights = aggregate(reps, other, 0.3)
    alone, ones = aggregate(reps[:1], other)
    assert torch.equal(alone, reps[0]) and torch.equal(ones, torch.ones(1, P, dtype=torch.float64))
    same, _ = aggregate(reps[:1].expand(3, -1, -1), other)
    torch.testing.assert_close(same, reps[0])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(aggregate(reps[order], other, 0.3)[0], combined)
    shuffle = torch.randperm(P, generator=generator(2))
    torch.testing.assert_close(aggregate(reps[:, shuffle], other[shuffle], 0.3)[0], combined[shuffle])
    q, _ = torch.linalg.qr(torch.randn(D, D, generator=generator(3), dtype=torch.float64))
    turned = aggregate(reps @ q, other @ q, 0.3)
    torch.testing.assert_close(turned[1], weights)
    torch.testing.assert_close(turned[0], combined @ q)
    told = torch.cat([reps, other[None]])  # a client that says what the global pair says
    assert aggregate(told, other)[1].mean(1).argmax() == K


def test_pairing_by_position_would_be_caught():
    reps, other = unit(K, P), unit(P, seed=1)
    shuffle = torch.randperm(P, generator=generator(2))
    assert not torch.allclose(aggregate(reps[:, shuffle], other, 0.3)[0], aggregate(reps, other, 0.3)[0][shuffle])


def test_large_logits_do_not_overflow():
    reps, other = 1000 * unit(K, P).float(), unit(P, seed=1).float()
    combined, weights = aggregate(reps, other, 0.01)
    assert combined.isfinite().all() and weights.isfinite().all()


def test_bad_input_of_aggregation():
    with pytest.raises(ValueError, match=r"\[K, P, D\] and \[P, D\]"):
        aggregate(unit(K, P), unit(P - 1))
    with pytest.raises(ValueError, match="temperature"):
        aggregate(unit(K, P), unit(P), 0.0)
    with pytest.raises(ValueError, match="nothing to be told from"):
        aggregate(unit(K, 1), unit(1), exclude_self=True)


def test_contrasts():
    local, other = unit(5), unit(P, seed=1)
    index = torch.tensor([3, 0, 7, 7, 29])
    inter = inter_contrast(local, other, index, 0.2)
    expected = -torch.stack([F.log_softmax(local[b] @ other.T / 0.2, 0)[index[b]] for b in range(5)]).mean()
    torch.testing.assert_close(inter, expected)
    assert float(inter_contrast(local, other, index, 0.5)) <= math.log(P) + 2 / 0.5
    same, previous = unit(5, seed=4), unit(5, seed=5)
    a, b = (local * same).sum(1) / 0.7, (local * previous).sum(1) / 0.7
    torch.testing.assert_close(
        intra_contrast(local, same, previous, 0.7), -(a.exp() / (a.exp() + b.exp())).log().mean()
    )
    assert float(intra_contrast(local, same, same)) == pytest.approx(math.log(2))


# Retrieval ------------------------------------------------------------------------------------------------


def test_recall_by_hand():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0, 0.6, 0.8], [0.0, 0.9, 0.1]])
    recalls = retrieval(images, texts, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    # image 1: text 2 is nearer than text 1; image 2: text 1 is nearer than text 2; texts likewise
    assert recalls["i2t_recall@1"] == pytest.approx(100 / 3) and recalls["t2i_recall@1"] == pytest.approx(100 / 3)
    assert recalls["i2t_recall@5"] == 100 and recalls["i2t_median_rank"] == 2
    assert recalls["rsum"] == pytest.approx(2 * (100 / 3 + 200))


def test_several_captions_and_ties():
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 1.0]])
    recalls = retrieval(images, texts, torch.tensor([5, 9]), torch.tensor([5, 5, 9]), chunk=1)
    assert recalls["i2t_recall@1"] == 50  # image 9's own caption is beaten by image 5's first
    constant = retrieval(torch.ones(20, 2), torch.ones(20, 2), torch.arange(20), torch.arange(20))
    assert constant["rsum"] == 0 and constant["i2t_median_rank"] == 20  # saying the same of all wins nothing


def test_a_model_that_diverged_finds_nothing():
    nothing = torch.full((20, 3), torch.nan)
    assert retrieval(nothing, nothing, torch.arange(20), torch.arange(20))["rsum"] == 0


def test_bad_input_of_retrieval():
    with pytest.raises(ValueError, match="no partner"):
        retrieval(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ValueError, match="with an id each"):
        retrieval(torch.ones(1, 2), torch.ones(1, 3), torch.tensor([0]), torch.tensor([0]))

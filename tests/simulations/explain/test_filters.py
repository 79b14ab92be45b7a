"""Filter statistics against numpy, scipy and scikit-learn, and what they do not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from umbel import models
from umbel.core.rng import generator
from umbel.simulations.explain import filters
from umbel.simulations.explain.filters import drift, drifts, layer_filters, layer_statistics, robust_z, stacked

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def state(seed: int = 0, mixing: float = 0.3) -> dict[str, Tensor]:
    """A network's tensors: two convolutions of correlated weights, one depthwise, and what is no 3 x 3 kernel."""
    mix = torch.eye(9, dtype=F64) + mixing * normal(9, 9, seed=seed + 50)
    return {
        "stem.weight": (normal(8, 3, 9, seed=seed) @ mix).view(8, 3, 3, 3).float(),
        "stem.bias": normal(8, seed=seed),
        "depthwise.weight": 1e-3 * (normal(20, 1, 9, seed=seed + 1) @ mix).view(20, 1, 3, 3),
        "wide.weight": normal(4, 4, 5, 5),
        "flat.weight": normal(4, 4, 3, 1),
        "clip.weight": normal(4, 4, 3, 3, 3),
        "conv.weight": 30 * (normal(16, 8, 9, seed=seed + 2) @ mix).view(16, 8, 3, 3),
        "count.weight": torch.zeros(2, 2, 3, 3, dtype=torch.int64),
        "head.weight": normal(10, 16),
    }


# Which filters --------------------------------------------------------------------------------------------


def test_filters_are_those_of_3_x_3_kernels():
    by_layer = layer_filters(state())
    assert {name: len(each) for name, each in by_layer.items()} == {
        "stem.weight": 24, "depthwise.weight": 20, "conv.weight": 128
    }  # fmt: skip
    kernel = state()["conv.weight"][5, 3]
    assert torch.equal(by_layer["conv.weight"][5 * 8 + 3].view(3, 3), kernel)
    assert all(each.dtype == F64 for each in by_layer.values())


def test_scales():
    one, given = torch.zeros(2, 1, 3, 3), normal(4, 1, 3, 3)
    one[1, 0, 2, 0] = -4.0
    one[1, 0, 1, 1] = 1.0
    by_filter = stacked({"a": one, "b": given})
    assert not by_filter[0].any() and by_filter[1].tolist() == [0, 0, 0, 0, 0.25, 0, -1, 0, 0]
    assert torch.equal(by_filter[2:].abs().amax(dim=1), torch.ones(4, dtype=F64))
    by_layer = stacked({"a": one, "b": given}, scale="layer")
    torch.testing.assert_close(by_layer[2:], given.reshape(4, 9) / given.abs().max())
    assert torch.equal(by_layer[:2], by_filter[:2])
    with pytest.raises(ValueError, match="filter, layer"):
        stacked({"a": given}, scale="model")


def test_a_state_without_any_is_refused_with_models_that_have_some():
    with pytest.raises(ValueError, match=r"3 x 3 kernels.*model\.name.*cnn, resnet18"):
        drift({"head.weight": normal(3, 3)}, {"head.weight": normal(3, 3)})
    for name in ("cnn", "resnet18", "cvt_tiny32", "maxvit_tiny32"):
        assert layer_filters(models.build(name, 3, 32, 1).state_dict())
    for name in ("linear", "mlp", "convit_tiny32", "raftmlp_tiny32"):
        with pytest.raises(ValueError, match="found none"):
            layer_statistics(models.build(name, 3, 32, 1).state_dict())


def test_weights_that_are_not_finite_are_refused_by_name():
    bad = state()
    bad["conv.weight"][3, 1, 0, 2] = math.inf
    with pytest.raises(ValueError, match=r"conv\.weight: expected finite"):
        drift(bad, state())


# Drift ----------------------------------------------------------------------------------------------------


def test_basis_as_scikit_learn_has_it():
    given = stacked(state())
    basis, expected = filters.basis(given), PCA(9).fit(given.numpy())
    torch.testing.assert_close(basis.shares, torch.from_numpy(expected.explained_variance_ratio_))
    torch.testing.assert_close(basis.mean, torch.from_numpy(expected.mean_))
    torch.testing.assert_close(
        (basis.filters * torch.from_numpy(expected.components_)).sum(1).abs(), torch.ones(9).double()
    )
    assert (basis.filters.gather(1, basis.filters.abs().argmax(1, keepdim=True)) > 0).all()
    few = filters.basis(given[:3])
    torch.testing.assert_close(few.filters @ few.filters.T, torch.eye(9, dtype=F64))
    assert (few.shares > 0).sum() == 2 and few.shares.sum() == pytest.approx(1)


@pytest.mark.parametrize("scale", filters.SCALES)
@pytest.mark.parametrize(("bins", "pseudo_count"), [(70, 0.0), (11, 0.0), (23, 0.5)])
def test_drift_as_numpy_and_scipy_have_it(scale, bins, pseudo_count):
    client, model = state(seed=9, mixing=0.5), state()
    pca = PCA(9).fit(stacked(model, scale).numpy())
    expected = 0.0
    for i in range(9):
        along = [pca.transform(stacked(each, scale).numpy())[:, i] for each in (client, model)]
        p, q = (np.histogram(x, bins, (-3, 3), density=not pseudo_count)[0] + pseudo_count for x in along)
        p[p == 0] = q[q == 0] = np.finfo(np.float32).eps
        symmetric = scipy.stats.entropy(p, q) + scipy.stats.entropy(q, p)  # which normalises both
        expected += pca.explained_variance_ratio_[i] * symmetric
    distance = drift(client, model, scale=scale, bins=bins, pseudo_count=pseudo_count)
    assert distance == pytest.approx(expected, rel=1e-9)
    assert expected > 0.01


def test_the_divergence_is_symmetric_and_of_itself_nothing():
    p, q = (filters.histograms(stacked(state(seed)), filters.basis(stacked(state()))) for seed in (0, 7))
    assert torch.equal(filters.divergence(p, q), filters.divergence(q, p))
    assert (filters.divergence(p, q) > 0).all()
    assert not filters.divergence(p, p).any()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(9, dtype=F64))
    by_hand = torch.tensor([0.25, 0.75], dtype=F64), torch.tensor([0.5, 0.5], dtype=F64)
    assert filters.divergence(*by_hand).item() == pytest.approx(0.25 * math.log(3))


@pytest.mark.parametrize("scale", filters.SCALES)
def test_order_and_scale_of_filters_are_no_drift(scale):
    model = state()
    assert drift(model, model, scale=scale) == 0
    assert drift({name: model[name] for name in reversed(model)}, model, scale=scale) == 0
    changed = dict(model)
    changed["conv.weight"] = model["conv.weight"][torch.randperm(16, generator=generator(1))].flip(1) * 0.125
    changed["depthwise.weight"] = model["depthwise.weight"] * 1024
    assert drift(changed, model, scale=scale) == 0
    other = state(seed=3)
    moved = dict(other) | {"conv.weight": other["conv.weight"].roll(5, 0), "head.weight": normal(10, 16, seed=8)}
    assert drift(moved, model, scale=scale) == drift(other, model, scale=scale) > 0


def test_a_filter_s_own_scale_is_drift_by_layer_alone():
    model, changed = state(), dict(state())
    changed["conv.weight"] = model["conv.weight"] * torch.linspace(0.25, 1, 16, dtype=F64)[:, None, None, None].exp2()
    assert drift(changed, model) == pytest.approx(0, abs=1e-9)
    assert drift(changed, model, scale="layer") > 0.01


def test_all_clients_as_each_alone():
    model = state()
    clients = {"0": state(seed=3), "1": state(), "7": state(seed=4, mixing=2.0)}
    distances = drifts(clients, model)
    assert distances == {name: drift(each, model) for name, each in clients.items()}
    assert distances["1"] == 0 and min(distances["0"], distances["7"]) > 0.1
    smaller = {name: tensor for name, tensor in model.items() if name != "stem.weight"}
    with pytest.raises(ValueError, match="client 5: expected the 3 x 3 layers of the global model"):
        drifts({"5": smaller}, model)


def test_filters_of_one_kind_alone():
    """A model that is all zeros, or one filter: there is no direction to drift along."""
    for kernel in (torch.zeros(4, 2, 3, 3), torch.ones(4, 2, 3, 3)):
        assert drift({"w": normal(4, 2, 3, 3)}, {"w": kernel}) == 0
        assert layer_statistics({"w": kernel})["w"].entropy == 0


# Layers ---------------------------------------------------------------------------------------------------


def test_entropy_of_one_direction_and_of_all():
    one = normal(30, 1) * normal(1, 9, seed=1) + 4.0
    assert filters.entropy(one) == pytest.approx(0, abs=1e-12)
    every = torch.cat([torch.eye(9, dtype=F64), -torch.eye(9, dtype=F64)])
    assert filters.entropy(every) == pytest.approx(math.log10(9))
    # Variances 9 and 1 along two directions: shares 0.9 and 0.1.
    two = torch.zeros(4, 9, dtype=F64)
    two[0, 2], two[1, 2], two[2, 7], two[3, 7] = 3, -3, 1, -1
    assert filters.entropy(5e-7 * two) == pytest.approx(-0.9 * math.log10(0.9) + 0.1)


def test_entropy_as_scipy_has_it():
    given = layer_filters(state())["conv.weight"]
    assert filters.entropy(given) == pytest.approx(scipy.stats.entropy(PCA(9).fit(given).explained_variance_, base=10))
    assert filters.entropy(given.flip(0) * 17) == pytest.approx(filters.entropy(given))


@pytest.mark.parametrize("num_filters", [16, 64, 256, 1024, 16384])
def test_random_weights_are_about_the_threshold(num_filters):
    """What the constants are for; they are the authors'."""
    entropies = [filters.entropy(normal(num_filters, 9, seed=seed)) for seed in range(40)]
    threshold = filters.random_threshold(num_filters)
    assert threshold - 0.01 < min(entropies) and min(entropies) < threshold + 0.06
    assert filters.random_threshold(2 * num_filters) > threshold


def test_sparsity_and_verdicts():
    kernel = torch.zeros(10, 1, 3, 3)
    kernel[:, 0, 1, 1] = torch.tensor([1.0, -1.0, 0.5, 0.02, 0.011, 0.01, -0.01, 0.009, 0.0, 0.0])
    kernel[3, 0, 0, 0] = -0.02
    statistics = layer_statistics({"sparse": kernel, "none": torch.zeros(3, 2, 3, 3), "drawn": normal(64, 8, 3, 3)})
    assert [each.sparsity for each in statistics.values()] == [0.5, 1.0, 0.0]
    assert [each.num_filters for each in statistics.values()] == [10, 6, 512]
    assert [each.verdict for each in statistics.values()] == ["uniform", "uniform", "random"]
    assert statistics["drawn"].threshold == filters.random_threshold(512) == pytest.approx(0.947996, abs=1e-6)
    some = normal(512, 9, seed=1) * torch.linspace(0.2, 1, 9, dtype=F64)
    assert layer_statistics({"w": some.view(64, 8, 3, 3)})["w"].verdict == ""


# Outliers -------------------------------------------------------------------------------------------------


def test_scores_as_scipy_s_deviations():
    values = normal(15).tolist()
    scores = robust_z({str(i): value for i, value in enumerate(values)})
    deviation = scipy.stats.median_abs_deviation(values)
    expected = [0.6745 * (value - float(np.median(values))) / deviation for value in values]
    assert list(scores.values()) == pytest.approx(expected)


def test_much_has_a_score_above_0_and_little_one_below():
    drifts_ = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0, "f": -900.0, "g": 900.0, "h": 10.4}
    # Median 3.5, absolute deviations 2.5 1.5 .5 .5 1.5 903.5 896.5 6.9, MAD 2: h has a score of 2.33.
    assert robust_z(drifts_)["h"] == pytest.approx(0.6745 * 6.9 / 2)
    assert robust_z(drifts_)["f"] == pytest.approx(-0.6745 * 903.5 / 2)
    assert robust_z(drifts_ | {"h": math.inf})["h"] == math.inf


def test_where_most_are_the_same_the_mean_deviation_decides():
    values = dict.fromkeys("abcdefghi", 2.0) | {"j": 3.0}
    assert robust_z(values)["j"] == pytest.approx(1 / (math.sqrt(math.pi / 2) * 0.1))
    assert robust_z(dict.fromkeys("abc", 2.0)) == dict.fromkeys("abc", 0.0)
    assert robust_z({}) == {}


def test_no_number_has_no_score():
    with pytest.raises(ValueError, match="NaN for b"):
        robust_z({"a": 1.0, "b": math.nan})

"""The Gaussian mechanism on class sums: sensitivity, amount of noise, who adds it, what is refused."""

from __future__ import annotations

import math
import sys
from typing import ClassVar

import pandas as pd
import pytest
import torch

from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core import moments
from umbel.core.records import Reply
from umbel.core.rng import generator
from umbel.strategies.ggeur import noise as privacy
from umbel.strategies.ggeur.method import GGEUR, Config
from umbel.strategies.ggeur.pooling import class_statistics, from_sums, sums_tree
from umbel.strategies.ggeur.shapes import denoise, geometry

D = 6
PRIVATE = ("strategy.release=sums", "strategy.clip=20", "strategy.epsilon=3", "strategy.delta=1e-4")
SMALL = (
    *("data.encoder=pca:8", "model.name=linear", "data.num_clients=4", "data.partition=dirichlet", "data.alpha=0.5"),
    *("data.max_train=400", "run.rounds=1", "evaluate.clients=0", "checkpoint.every=0", "strategy.name=ggeur"),
)


def packed_of(features: torch.Tensor, bound: float) -> torch.Tensor:
    """Return the release without noise of one class, [Z]."""
    clipped = privacy.clip_rows(features, bound)
    statistics = class_statistics(clipped, torch.zeros(len(features)).long(), 1)
    return sums_tree(statistics, 1)["sums"][0]


def exact_delta(epsilon: float, sigma: float) -> float:
    """Return the smallest delta of Gaussian noise at sensitivity 1 (Balle and Wang 2018, theorem 8)."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return phi(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * phi(-0.5 / sigma - epsilon * sigma)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-3])
def test_the_noise_is_as_much_as_is_needed_and_no_more(epsilon, delta):
    sigma = privacy.noise_multiplier(epsilon, delta)
    assert exact_delta(epsilon, sigma) <= delta < exact_delta(epsilon, 0.99 * sigma)


@pytest.mark.parametrize(("bound", "unit"), [(2.0, 1.0), (2.0, 2.0), (7.0, 0.5)])
def test_no_neighbour_is_further_than_the_sensitivity(bound, unit):
    source = generator(1)
    units = privacy.units(D, unit)
    longest = 0.0
    for _ in range(200):
        rows = torch.randn(5, D, generator=source, dtype=torch.float64) * bound
        moved = (packed_of(rows, bound) - packed_of(rows[:-1], bound)) / units
        # The upper triangle stands for the whole matrix: its length is Frobenius' when what is off the diagonal counts
        # twice, which is the same as to divide by the deviation of the noise it gets.
        length = float((moved / privacy.noise_scale(D)).norm())
        last = float(privacy.clip_rows(rows[-1:], bound).norm()) / unit
        assert math.isclose(length, math.sqrt(1 + last**2 + last**4), rel_tol=1e-9)
        longest = max(longest, length)
    assert longest <= privacy.sensitivity(bound / unit) * (1 + 1e-9)
    assert longest > 0.999 * privacy.sensitivity(bound / unit)  # it is met, so nothing smaller would do
    assert math.isclose(privacy.sensitivity(2.0), math.sqrt(21))


def test_rows_are_shortened_to_the_bound_and_no_others():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    clipped = privacy.clip_rows(rows, 2.0)
    torch.testing.assert_close(clipped, torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("secret", [False, True])
def test_noise_has_its_deviation_in_each_part(secret):
    width, sigma, unit = 40, 3.0, 2.0
    zero = torch.zeros(200, moments.packed_size(width))
    noise = privacy.add_noise(zero, sigma, unit, None if secret else generator(0))
    count, total, second = moments.unpack(noise)
    diagonal = second.diagonal(dim1=1, dim2=2)
    off = second[:, *torch.triu_indices(width, width, 1)]
    for part, expected in ((count, 3.0), (total, 6.0), (diagonal, 12.0), (off, 12 / math.sqrt(2))):
        assert abs(float(part.mean())) < 5 * expected / math.sqrt(part.numel())
        assert math.isclose(float(part.std()), expected, rel_tol=5 / math.sqrt(2 * part.numel()))


def test_the_systems_noise_is_normal_and_never_the_same():
    drawn = privacy.secret_normal((200_000,))
    assert bool(torch.isfinite(drawn).all()) and not torch.equal(drawn, privacy.secret_normal((200_000,)))
    assert math.isclose(float((drawn.abs() < 1).double().mean()), 0.6827, abs_tol=0.01)
    assert math.isclose(float(drawn.pow(4).mean()), 3.0, rel_tol=0.05)


def test_what_the_noise_alone_could_have_made_is_taken_away():
    width, sigma, count = 60, 1.0, 500
    nothing = torch.zeros(20, moments.packed_size(width))
    nothing[:, 0] = count
    noised = privacy.add_noise(nothing, sigma, 1.0, generator(0))
    shape = geometry(from_sums(noised))
    assert float(shape.eigenvalues_CR.min()) == 0  # negative ones are gone in any case
    edge = privacy.noise_edge(sigma, 1.0, shape.count_C, width)
    assert bool((shape.eigenvalues_CR[:, 0] < 1.2 * edge).all()) and bool(
        (shape.eigenvalues_CR[:, 0] > 0.7 * edge).all()
    )
    left = denoise(shape, 1.2 * sigma, 1.0)
    assert not left.eigenvalues_CR.any() and torch.equal(left.eigenvectors_CDR, shape.eigenvectors_CDR)


def test_classes_whose_count_is_within_the_noise_are_absent():
    features = torch.randn(50, D, generator=generator(0), dtype=torch.float64) + 3
    packed = torch.stack([packed_of(features, 100.0), packed_of(features[:2], 100.0)])
    statistics = from_sums(packed, least=5.0)
    assert statistics.count_C.tolist() == [50, 0]
    assert statistics.mean_CD[0].any() and not statistics.mean_CD[1].any() and not statistics.covariance_CDD[1].any()


class Overheard(GGEUR):
    """GGEUR that keeps the replies of the phase `statistics`."""

    replies: ClassVar[list[Reply]] = []

    def describe(self, payload, client):
        reply = super().describe(payload, client)
        self.replies.append(reply)
        return reply


def captured(tmp_path, *overrides):
    """Run, and return the summary and the replies of the phase `statistics`."""
    Overheard.replies.clear()
    result = run("digits", *SMALL, *overrides, f"strategy.name={__name__}:Overheard", f"run.results={tmp_path}")
    return result, list(Overheard.replies)


@pytest.mark.parametrize(("noise", "share"), [("local", 1.0), ("distributed", 0.5)])
def test_each_client_adds_all_the_noise_or_its_share(noise, share, tmp_path):
    bare, without = captured(tmp_path, "strategy.release=sums", "strategy.clip=20")
    result, noised = captured(tmp_path, *PRIVATE, f"strategy.noise={noise}")
    sigma = math.sqrt(3) * privacy.noise_multiplier(3, 1e-4)
    scale = privacy.noise_scale(8) * privacy.units(8, 20.0)
    for plain, private in zip(without, noised, strict=True):
        difference = (private.trees["statistics"]["sums"] - plain.trees["statistics"]["sums"]) / scale
        assert math.isclose(float(difference.std()), share * sigma, rel_tol=0.2)
        assert private.num_examples == 1 != plain.num_examples
        assert private.numbers == {"epsilon": 3, "delta": 1e-4, "sigma": pytest.approx(share * sigma)}
    rows = pd.read_parquet(result.path / "metrics.parquet").set_index("metric")["value"]
    assert rows["epsilon"] == 3 and rows["delta"] == 1e-4 and rows["sigma"] == pytest.approx(share * sigma)
    assert bare.summary["bytes_up"]["tensors"] == result.summary["bytes_up"]["tensors"]


def test_the_runs_seed_fixes_the_noise_unless_it_is_secret(tmp_path):
    hashes = []
    for secret in ("false", "false", "true", "true"):
        result = run("digits", *SMALL, *PRIVATE, f"strategy.secret_noise={secret}", f"run.results={tmp_path}")
        hashes.append(result.summary["weights_sha256"])
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld.accountant", None)
    with pytest.raises(ExperimentError, match=r"pip install dp-accounting"):
        load("digits", [*SMALL, *PRIVATE, "run.seed=4711"])  # one that no test has had checked with the library
    load("digits", [*SMALL])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy.release=moments"], "Set strategy.release=sums"),
        (["strategy.clip=0"], "needs strategy.clip"),
        (["strategy.delta=0"], "strategy.delta should be above 0"),
        (["strategy.domains=true"], "prototypes would travel without noise"),
        (["strategy.min_count=2"], "strategy.min_count above 1"),
        (["strategy.refresh=1"], "spent in one release"),
        (["strategy.noise=both"], "strategy.noise should be one of local, distributed"),
        (["strategy.epsilon=-1"], "strategy.epsilon should be at least 0"),
    ],
)
def test_what_would_break_the_promise_is_refused(overrides, message):
    with pytest.raises(ExperimentError, match=message):
        load("digits", [*SMALL, *PRIVATE, *overrides])


def test_sigma_is_for_the_bound_in_the_unit_of_the_features():
    base = {"release": "sums", "clip": 5.0, "epsilon": 2.0}
    multiplier = privacy.noise_multiplier(2.0, 1e-5)
    assert math.isclose(GGEUR(Config(**base)).sigma, math.sqrt(3) * multiplier)
    assert math.isclose(GGEUR(Config(**base, unit=1.0)).sigma, math.sqrt(1 + 25 + 625) * multiplier)
    assert GGEUR(Config()).sigma == 0

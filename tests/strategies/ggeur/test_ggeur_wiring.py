"""GGEUR's own steps between its mathematics and its base: what the server shapes, counts, and clients complete."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.contexts import client_context
from tests.helpers import watch_phases
from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import federation
from umbel.conf.load import load
from umbel.core import moments
from umbel.core.folds import Folded
from umbel.core.memory import MemoryRecord
from umbel.core.rng import generator
from umbel.data.types import Examples
from umbel.strategies import fedavg
from umbel.strategies.base import ClientContext
from umbel.strategies.fot import method as fot
from umbel.strategies.ggeur import method as ggeur
from umbel.strategies.ggeur import noise as privacy
from umbel.strategies.ggeur.method import GGEUR, Config
from umbel.strategies.ggeur.pooling import class_statistics, pool_statistics, sums_tree
from umbel.strategies.ggeur.remembered import complete

D, C, K = 6, 4, 4
SMALL = (
    *("data.encoder=pca:8", "model.name=linear", f"data.num_clients={K}", "data.partition=dirichlet"),
    *("data.alpha=0.1", "data.max_train=400", "run.rounds=2", "evaluate.every=0", "evaluate.clients=0"),
    *("checkpoint.every=0", "strategy.name=ggeur", "strategy.target=20", "run.participation=1"),
)


# ---- noisy sums at the server -----------------------------------------------------------------------------------


def shaped(noise: str) -> tuple[ggeur.State, float]:
    """Shape noisy sums of four classes: one real, three of pure noise with counts of 2, 2.9 and 3.1 deviations.

    The real one has 4,000 examples on a line. Returns the State and the deviation of the noise of the sum.
    """
    pytest.importorskip("dp_accounting")
    strategy = GGEUR(Config(release="sums", clip=1.0, epsilon=2.0, noise=noise, complete="all"))
    total = strategy.sigma * (math.sqrt(K) if noise == "local" else 1.0)
    line = torch.zeros(4000, D, dtype=torch.float64)
    line[:, 2] = torch.linspace(-1, 1, 4000)
    sums = sums_tree(class_statistics(line, torch.zeros(4000).long(), C), 1)["sums"]
    noisy = privacy.add_noise(sums, total, 1.0, generator(0))
    noisy[1:, 0] = total * torch.tensor([2.0, 2.9, 3.1], dtype=torch.float64)
    before = ggeur.State(fedavg.State({"head.weight": torch.zeros(C, D)}), {}, {}, (), {}, 0)
    folded = Folded({"statistics": {"sums": noisy}}, {}, K, K)
    return strategy.after_statistics(before, folded, SimpleNamespace(num_clients=K)), total


@pytest.mark.parametrize("noise", ggeur.NOISES)
def test_a_class_that_noise_alone_could_be_is_absent(noise):
    state, total = shaped(noise)
    assert state.counts[0] == pytest.approx(4000, abs=4 * total)
    assert state.counts[1:3] == (0, 0) and state.counts[3] == pytest.approx(3.1 * total)
    for label in (1, 2):
        assert not state.means["mean"][label].any() and not state.geometry["eigenvalues"][label].any()


@pytest.mark.parametrize("noise", ggeur.NOISES)
def test_directions_that_noise_alone_could_be_are_dropped(noise):
    state, total = shaped(noise)
    values, vectors = state.geometry["eigenvalues"], state.geometry["eigenvectors"]
    edge = math.sqrt(2 * D) * total / state.counts[0]
    assert float(values[0, 0]) == pytest.approx(1 / 3, abs=2 * edge) and float(vectors[0, 2, 0]) > 0.99
    assert not values[0, 1:].any()  # without it those above 0 would stay


def test_sums_without_noise_lose_nothing():
    strategy = GGEUR(Config(release="sums"))
    features = torch.randn(200, D, generator=generator(1), dtype=torch.float64) * 1e-3
    sums = sums_tree(class_statistics(features, torch.arange(200) % 2, C), 1)
    before = ggeur.State(fedavg.State({"head.weight": torch.zeros(C, D)}), {}, {}, (), {}, 0)
    state = strategy.after_statistics(before, Folded({"statistics": sums}, {}, K, K), SimpleNamespace(num_clients=K))
    assert state.counts == (100, 100, 0, 0) and (state.geometry["eigenvalues"][:2] > 0).all()


# ---- what the base is told --------------------------------------------------------------------------------------


def of_the_base(monkeypatch, tmp_path, *overrides) -> list[tuple[str, int, int]]:
    """Run, and return for each step of the base: its name, the number of examples it was told, and that of replies."""
    steps, finish = [], fedavg.FedAvg.finish

    def updating(phase, state, folded, server):
        steps.append((phase.name, server.num_examples, folded.num_examples))
        return phase.update(state, folded, server)

    def finishing(self, state, server):
        steps.append(("finish", server.num_examples, 0))
        return finish(self, state, server)

    watch_phases(monkeypatch, fedavg.FedAvg, update=updating)
    monkeypatch.setattr(fedavg.FedAvg, "finish", finishing)
    run("digits", *SMALL, *overrides, f"run.results={tmp_path}")
    return steps


def test_the_base_is_told_the_number_of_completed_examples(monkeypatch, tmp_path):
    steps = of_the_base(monkeypatch, tmp_path)
    data = federation(load("digits", list(SMALL)))
    counts = torch.stack([torch.bincount(data.client(k).train.labels, minlength=10) for k in range(K)])
    completed = int(torch.where(counts > 0, counts.clamp_min(20), 0).sum())
    assert completed > int(counts.sum())
    assert steps == [("train", completed, completed)] * 2 + [("finish", completed, 0)]


def test_without_augmentation_the_base_is_told_the_number_of_its_examples(monkeypatch, tmp_path):
    plain = len(federation(load("digits", list(SMALL))).client(0).train.labels)
    steps = of_the_base(monkeypatch, tmp_path, "strategy.augment=false")
    assert len({told for _, told, _ in steps}) == 1 and steps[0][1] == steps[0][2] > plain


@pytest.mark.parametrize(("target", "more"), [(20, 40), (0, 4 + 7)])
def test_a_client_may_count_what_completes_its_classes_and_no_more(target, more):
    """T of each class that somebody described; before there is a geometry, and without one, its own."""
    state = ggeur.State(fedavg.State({}), {}, {}, (4.0, 0.0, 7.0), {}, 0)
    phases = {phase.name: phase for phase in GGEUR(Config(target=target, guide=0.5)).every_phase()}
    most = {name: phase.most_examples(state, 10) for name, phase in phases.items()}
    assert most == {"counts": 10, "statistics": 10, "geometry": 10 + more, "train": 10 + more}
    plain = GGEUR(Config(augment=False)).every_phase()
    assert [phase.most_examples(replace(state, counts=()), 10) for phase in plain] == [10]


def test_what_the_base_measures_is_reported(tmp_path):
    over = ("strategy.base=fedloge", "strategy.base_options={frame: none, collapse: 1}", "run.min_replies=1")
    over = (*over, "client.optimizer=sgd")
    rows = run("digits", *SMALL, *over, "data.encoder=pca:12", f"run.results={tmp_path}").metrics
    assert {"collapse/nc1", "collapse/nc4"} <= set(rows.metric)
    strategy = GGEUR(Config(base="fot"))
    bases = fot.State(
        {"a.weight": torch.ones(2, 3)}, {"a.weight": (1, 3)}, {"a.weight": torch.eye(3)[:, :2]}, 1, False, {}
    )
    state = ggeur.State(bases, {}, {}, (), {}, 0)
    assert strategy.phase("sketch").measured(state) == {"rank/a.weight": 2, "columns/a.weight": 2, "protected": 2 / 3}
    assert not strategy.phase("geometry").measured(state)


@pytest.mark.parametrize("base", ["fedavg", "scaffold"])
def test_embeddings_are_as_wide_as_the_encoder_makes_them(base, tmp_path):
    """Below the head of an MLP features are narrower than what comes in; what is completed comes in."""
    over = ("model.name=mlp", "model.sizes={hidden: 5, depth: 2}", f"strategy.base={base}", "strategy.rank=8")
    summary = run("digits", *SMALL, *over, f"run.results={tmp_path}").summary
    assert summary["rounds"] == 2 and summary["num_failures"] == 0


# ---- completion -------------------------------------------------------------------------------------------------


def client_of(round_: int, id_: int = 0, seed: int = 0) -> ClientContext:
    """Return a client that has 3, 5 and no examples of three classes."""
    images = torch.randn(8, D, generator=generator(7))
    train = Examples(images, torch.tensor([0] * 3 + [1] * 5))
    none = Examples(images[:0], train.labels[:0])
    return client_context(train, 3, held_out=none, id=id_, seed=seed, round=round_)


def remembered(counts: tuple[float, float, float], prototypes: bool = False) -> MemoryRecord:
    """Return what a client keeps of a geometry whose classes without examples have no shape, as the server sends it."""
    there = torch.tensor(counts) > 0
    trees = {
        "geometry": {
            "eigenvalues": torch.ones(3, D) * there[:, None],
            "eigenvectors": torch.eye(D).expand(3, D, D).clone(),
        },
        "means": {"mean": torch.ones(3, D) * there[:, None]},
        "prototypes": {f"1/{label}": torch.full((D,), 9.0) for label in range(3)} if prototypes else {},
    }
    numbers = {f"{ggeur.PREFIX}count/{label}": count for label, count in enumerate(counts)}
    return MemoryRecord({f"{ggeur.PREFIX}{name}": tree for name, tree in trees.items()}, numbers)


def same(left: Examples, right: Examples) -> bool:
    return torch.equal(left.images, right.images) and torch.equal(left.labels, right.labels)


def test_draws_are_the_same_in_every_round_and_others_for_others():
    strategy, record = GGEUR(Config(target=12, complete="all")), remembered((30, 30, 30))
    first = complete(strategy.config, client_of(1), record)
    assert torch.bincount(first.labels).tolist() == [12, 12, 12]
    assert torch.equal(first.images[:8], client_of(1).train_data.images)
    assert same(first, complete(strategy.config, client_of(5), record))
    assert same(first, complete(strategy.config, replace(client_of(5), phase="evaluate"), record))
    assert not same(first, complete(strategy.config, client_of(1, id_=1), record))
    assert not same(first, complete(strategy.config, client_of(1, seed=1), record))
    drawn = first.images[8:].split([9, 7, 12])
    assert not torch.equal(drawn[0][:7], drawn[1])


def test_draws_are_new_where_features_are():
    strategy, record = GGEUR(Config(target=12, refresh=1)), remembered((30, 30, 30))
    first = complete(strategy.config, client_of(1), record)
    assert same(first, complete(strategy.config, client_of(1), record))
    assert not same(first, complete(strategy.config, client_of(5), record))


@pytest.mark.parametrize("complete", ["held", "all"])
@pytest.mark.parametrize("prototypes", [False, True])
def test_a_class_that_nobody_could_describe_stays_as_it_is(complete, prototypes):
    strategy = GGEUR(Config(target=12, complete=complete, domains=True))
    completed = ggeur.complete(strategy.config, client_of(1), remembered((30, 0, 0), prototypes))
    own = client_of(1).train_data
    assert torch.bincount(completed.labels, minlength=3).tolist() == [12, 5, 0]
    assert torch.equal(completed.images[completed.labels == 1], own.images[own.labels == 1])


def test_a_class_that_all_clients_withhold_is_not_multiplied(monkeypatch, tmp_path):
    data = federation(load("digits", list(SMALL)))
    counts = torch.stack([torch.bincount(data.client(k).train.labels, minlength=10) for k in range(K)])
    least = int(counts.amax(0).median()) + 1
    withheld = counts.amax(0) < least
    assert 0 < int(withheld.sum()) < 10
    completed = {}

    def listening(config, client, memory):
        completed[client.id] = complete(config, client, memory)
        return completed[client.id]

    monkeypatch.setattr(ggeur, "complete", listening)
    over = (f"strategy.min_count={least}", "strategy.complete=all", "strategy.target=60", f"run.results={tmp_path}")
    run("digits", *SMALL, *over)
    for k in range(K):
        after = torch.bincount(completed[k].labels, minlength=10)
        assert torch.equal(after[withheld], counts[k][withheld])
        assert torch.equal(after[~withheld], counts[k][~withheld].clamp_min(60))


# ---- the pooled covariance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("num", [3, 40])
def test_the_pooled_covariance_is_symmetric_and_has_no_negative_direction(num, offset):
    width = 12  # with 3 examples a client, 4 clients: below full rank
    for seed in range(10):
        source = generator(seed)
        clients = [torch.randn(num - k % 2, width, generator=source, dtype=torch.float64) for k in range(K)]
        stretch = torch.logspace(0, -4, width, dtype=torch.float64)
        moved = [each * stretch + offset * (1 + k) for k, each in enumerate(clients)]
        for dtype in (torch.float64, torch.float32):
            parts = [class_statistics(rows.to(dtype), torch.zeros(len(rows)).long(), 1) for rows in moved]
            for within_only in (False, True):
                covariance = pool_statistics(parts, within_only).covariance_CDD[0]
                values = torch.linalg.eigvalsh(covariance)
                largest = float(values[-1])
                assert covariance.dtype == torch.float64 and largest > 0
                assert (covariance - covariance.T).abs().max() <= 1e-14 * largest
                assert float(values[0]) >= -1e-10 * largest
        pooled = moments.unpack(moments.pack(*pool_statistics(parts).parts))[2][0]
        assert torch.equal(pooled, pooled.T)  # and so it travels


# ---- bases that cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "reason"), [("creamfl", "models of its own"), ("flwr:FedAvg", "Flower's own")])
def test_bases_that_cannot_be_are_refused_before_the_start(base, reason):
    with pytest.raises(ExperimentError, match=rf"strategy\.base={base}.*{reason}"):
        load("digits", [*SMALL, f"strategy.base={base}"])

"""GGEUR's options: what travels, the guided set, ablations by one key, features of a model under training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.contexts import client_context
from tests.helpers import watch_phases
from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import federation
from umbel.conf.load import load
from umbel.core.rng import generator
from umbel.core.training import LocalConfig
from umbel.data.types import Examples
from umbel.models.registry import build
from umbel.strategies.base import ClientContext
from umbel.strategies.ggeur import method as ggeur
from umbel.strategies.ggeur.method import GGEUR, Config
from umbel.strategies.ggeur.pooling import class_statistics, covering_clients
from umbel.strategies.head_on_draws import head_on_draws

D, C, K = 8, 10, 4
SMALL = (
    *("data.encoder=pca:8", "model.name=linear", f"data.num_clients={K}", "data.partition=dirichlet"),
    *("data.alpha=0.1", "data.max_train=400", "run.rounds=1", "evaluate.every=0", "evaluate.clients=0"),
    *("checkpoint.every=0", "strategy.name=ggeur"),
)
DOMAINS = (
    *("data.encoder=pca:8", "model.name=linear", f"data.num_clients={K}", "data.partition=domain", "data.alpha=0.1"),
    *("data.options={num_examples: 400, num_test: 50, num_domains: 2, image_size: 12}", "run.rounds=1"),
    *("evaluate.every=0", "evaluate.clients=0", "checkpoint.every=0", "strategy.name=ggeur", "run.participation=1"),
)


def sha(tmp_path, *overrides, experiment="digits", base=SMALL):
    return run(experiment, *base, *overrides, f"run.results={tmp_path}").summary["weights_sha256"]


# ---- bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wire", "width"), [("float32", 4), ("float64", 8)])
@pytest.mark.parametrize("rank", [0, 3])
def test_moments_travel_in_the_bytes_of_the_formula(wire, width, rank, tmp_path):
    options = (f"strategy.wire={wire}", f"strategy.rank={rank}")
    summary = run("digits", *SMALL, *options, f"run.results={tmp_path}").summary
    data = federation(load("digits", [*SMALL, *options]))
    held = sum(len(torch.unique(data.client(k).train.labels)) for k in range(K))
    model = 4 * (C * D + C)
    assert summary["bytes_up"]["tensors"] == width * held * (1 + D + D * (D + 1) // 2) + K * model
    assert summary["bytes_down"]["tensors"] == K * (4 * C * (rank or D) * (D + 1) + model)
    assert summary["bytes_up"]["framing"] >= 0 and summary["bytes_down"]["framing"] >= 0


def test_sums_means_and_prototypes_travel_in_the_bytes_of_their_formulas(tmp_path):
    model = 4 * (C * D + C)
    sums = run("digits", *SMALL, "strategy.release=sums", "strategy.complete=all", f"run.results={tmp_path}").summary
    assert sums["bytes_up"]["tensors"] == K * (8 * C * (1 + D + D * (D + 1) // 2) + model)
    assert sums["bytes_down"]["tensors"] == K * (4 * C * D * (D + 1) + 4 * C * D + model)
    summary = run("synthetic", *DOMAINS, "strategy.domains=true", f"run.results={tmp_path}").summary
    data = federation(load("synthetic", [*DOMAINS, "strategy.domains=true"]))
    clients = [data.client(k).train for k in range(K)]
    held = sum(len(torch.unique(each.labels)) for each in clients)  # each client in one domain
    pairs = len({pair for each in clients for pair in zip(each.domains.tolist(), each.labels.tolist(), strict=True)})
    up = 4 * held * (1 + D + D * (D + 1) // 2) + 4 * held * (1 + D)
    assert summary["bytes_up"]["tensors"] == up + K * model
    assert pairs == 2 * C
    assert summary["bytes_down"]["tensors"] == K * (4 * C * D * (D + 1) + 4 * pairs * D + model)


def test_moments_in_float64_and_those_in_float32_to_their_precision():
    features = torch.randn(50, D, generator=generator(0), dtype=torch.float64) * 3 + 40
    from umbel.core import moments
    from umbel.strategies.ggeur.pooling import statistics_tree

    statistics = class_statistics(features, torch.zeros(50).long(), 1)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        count, mean, covariance = moments.unpack(statistics_tree(statistics, 1, dtype)["0"].double())
        assert float(count) == 50
        torch.testing.assert_close(mean, statistics.mean_CD[0], rtol=tolerance, atol=0)
        torch.testing.assert_close(covariance, statistics.covariance_CDD[0], rtol=tolerance, atol=10 * tolerance)


# ---- the guided set ---------------------------------------------------------------------------------------------


def states_of(monkeypatch, tmp_path, *overrides, experiment="digits", base=SMALL):
    """Run, and return the State after each phase, by the name of the phase."""
    states = {}

    def listening(phase, state, folded, server):
        states[phase.name] = phase.update(state, folded, server)
        return states[phase.name]

    with monkeypatch.context() as patch:
        watch_phases(patch, GGEUR, update=listening)
        result = run(experiment, *base, *overrides, f"run.results={tmp_path}")
    return states, result


def test_only_the_guided_set_is_asked_for_its_covariance(monkeypatch, tmp_path):
    states, result = states_of(monkeypatch, tmp_path, "strategy.guide=0.8", "strategy.wire=float64")
    data = federation(load("digits", list(SMALL)))
    clients = [data.client(k).train for k in range(K)]
    counts = torch.stack([torch.bincount(each.labels, minlength=C) for each in clients])
    needed = covering_clients(counts, 0.8)
    state = states["geometry"]
    assert {label: who.tolist() for label, who in state.guide.items()} == {
        str(label): needed[:, label].nonzero().flatten().tolist() for label in range(C)
    }
    assert state.counts == tuple(counts.sum(0).tolist())  # of everyone: the target is of them
    assert 0 < int(needed.sum()) < int((counts > 0).sum())
    for label in range(C):
        rows = [
            each.images[each.labels == label].double()
            for each, guides in zip(clients, needed[:, label].tolist(), strict=True)
            if guides
        ]
        covariance = torch.cov(torch.cat(rows).T, correction=0)
        values = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
        torch.testing.assert_close(state.geometry["eigenvalues"][label], values.float(), rtol=1e-5, atol=1e-6)
    up = 8 * int(needed.sum()) * (1 + D + D * (D + 1) // 2) + K * 4 * C + K * 4 * (C * D + C)
    assert result.summary["bytes_up"]["tensors"] == up
    everyone, _ = states_of(monkeypatch, tmp_path, "strategy.guide=1", "strategy.wire=float64")
    plain, _ = states_of(monkeypatch, tmp_path, "strategy.wire=float64")
    assert torch.equal(everyone["geometry"].geometry["eigenvalues"], plain["geometry"].geometry["eigenvalues"])


def test_a_class_of_which_the_guided_set_says_nothing_is_not_completed(monkeypatch, tmp_path):
    data = federation(load("digits", list(SMALL)))
    clients = [data.client(k).train.labels for k in range(K)]
    largest = torch.stack([torch.bincount(each, minlength=C) for each in clients]).amax(0)
    enough = int(largest.median()) + 1
    over = ("strategy.guide=0.1", f"strategy.min_count={enough}", "strategy.complete=all", "strategy.target=50")
    completed, complete = {}, ggeur.complete

    def listening(config, client, memory):
        completed[client.id] = complete(config, client, memory)
        return completed[client.id]

    monkeypatch.setattr(ggeur, "complete", listening)
    states, _ = states_of(monkeypatch, tmp_path, *over)
    state = states["geometry"]
    silent = ~state.means["mean"].any(1)
    assert 0 < int(silent.sum()) < C and all(int(who.numel()) for who in state.guide.values())
    assert [count == 0 for count in state.counts] == silent.tolist()
    for k, own in enumerate(clients):
        before, after = (torch.bincount(each, minlength=C) for each in (own, completed[k].labels))
        assert torch.equal(after[silent], before[silent])  # no copies of its own
        assert torch.equal(after[~silent], before[~silent].clamp_min(50))


# ---- ablations --------------------------------------------------------------------------------------------------

KEYS = (
    *("augment=false", "complete=all", "scale=eig", "draws=500", "target=30", "rank=2", "min_count=5"),
    *("within_only=true", "guide=0.8", "legacy_small_eig_scale=true", "clip=1", "wire=float64"),
)


def test_each_part_is_one_key(tmp_path):
    hashes = {key: sha(tmp_path, f"strategy.{key}") for key in KEYS}
    hashes["default"] = sha(tmp_path)
    assert len(set(hashes.values())) == len(hashes), hashes


def test_the_parts_for_domains_are_one_key_each(tmp_path):
    keys = ("domains=false", "draws_per_prototype=3", "within_only=true", "complete=held")
    over = ("strategy.domains=true", "strategy.complete=all", "strategy.target=60")
    hashes = {key: sha(tmp_path, *over, f"strategy.{key}", experiment="synthetic", base=DOMAINS) for key in keys}
    hashes["all"] = sha(tmp_path, *over, experiment="synthetic", base=DOMAINS)
    # Every class is in every domain here: with prototypes of the other domain nothing is left for the class's mean.
    assert hashes.pop("complete=held") == hashes["all"]
    assert len(set(hashes.values())) == len(hashes), hashes


def test_more_options_that_cannot_be():
    wrong = [
        {"wire": "float16"},
        {"guide": 1.5},
        {"guide": 0.8, "release": "sums"},
        {"wire": "float64", "release": "sums"},
        {"legacy_small_eig_scale": True, "rank": 3},
        {"refresh": -1},
        {"refresh": 1, "base": "scaffold"},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match=r"strategy\."):
            GGEUR(Config(**options))


# ---- features of a model under training -------------------------------------------------------------------------

TRAINED = (
    *("model.name=cnn", f"data.num_clients={K}", "data.partition=dirichlet", "data.alpha=0.1", "data.max_train=300"),
    *("run.rounds=4", "evaluate.every=0", "evaluate.clients=0", "checkpoint.every=0", "model.sizes.width=4"),
    *("strategy.name=ggeur", "strategy.refresh=2", "strategy.target=20", "strategy.rank=4"),
)


def test_statistics_are_taken_again_every_so_many_rounds(monkeypatch, tmp_path):
    seen = []

    def listening(phase, state, folded, server):
        seen.append((server.round, phase.name))
        return phase.update(state, folded, server)

    watch_phases(monkeypatch, GGEUR, update=listening)
    run("digits", *TRAINED, f"run.results={tmp_path}")
    first = [(r, name) for r in (1, 3) for name in ("statistics", "geometry", "train")]
    assert seen == sorted([*first, (2, "train"), (4, "train")], key=lambda item: item[0])


@pytest.mark.parametrize("base", ["fedavg", "fedprox", "fedopt"])
def test_a_model_under_training_can_be_completed(base, tmp_path):
    over = (f"strategy.base={base}", "run.rounds=2")
    once = sha(tmp_path, *over, base=TRAINED)
    assert once == sha(tmp_path, *over, base=TRAINED)
    assert once != sha(tmp_path, *over, "strategy.augment=false", base=TRAINED)
    assert once != sha(tmp_path, *over, "strategy.complete=all", base=TRAINED)


def test_the_statistics_are_of_the_global_models_features(monkeypatch, tmp_path):
    over = ("strategy.wire=float64", "run.rounds=1", "strategy.rank=0")
    states, _ = states_of(monkeypatch, tmp_path, *over, base=TRAINED)
    experiment = load("digits", [*TRAINED, *over])
    data = federation(experiment)
    from umbel.conf.federation import build_model

    model = build_model(experiment, data).eval()
    from umbel.data.transforms import normalize

    images = [normalize(data.client(k).train.images, data.mean, data.std, torch.float32) for k in range(K)]
    with torch.no_grad():
        features = torch.cat([model.features(each) for each in images])
    statistics = class_statistics(features, torch.cat([data.client(k).train.labels for k in range(K)]), C)
    values = torch.linalg.eigvalsh(statistics.covariance_CDD).flip(1).clamp_min(0)
    torch.testing.assert_close(states["geometry"].geometry["eigenvalues"], values.float(), rtol=1e-4, atol=1e-5)
    model_bytes = sum(p.numel() * 4 for p in model.state_dict().values() if p.is_floating_point())
    width = model.num_features
    assert model_bytes > 4 * (C * width + C)  # there is a trunk


def context(model, images, labels, **local) -> ClientContext:
    train, none = Examples(images, labels), Examples(images[:0], labels[:0])
    return client_context(train, 3, model, none, local=LocalConfig(device="cpu", **local))


def test_the_head_moves_by_the_draws_and_the_trunk_by_the_images():
    def fresh():
        torch.manual_seed(0)
        return build("mlp", num_classes=3, image_size=4, in_channels=1, hidden=5, depth=1)

    source = generator(0)
    images, labels = torch.rand(6, 1, 4, 4, generator=source), torch.tensor([0, 0, 0, 0, 0, 1])
    draws, of = torch.randn(40, 5, generator=source), torch.arange(40) % 3
    plain, mixed = fresh(), fresh()
    client = context(plain, images, labels, lr=0.5, batch_size=0, epochs=1)
    client.train(plain)
    head_on_draws(client, Examples(draws, of)).train(mixed)
    for (name, a), (_, b) in zip(plain.named_parameters(), mixed.named_parameters(), strict=True):
        assert torch.equal(a, b) == (not name.startswith("head")), name
    start = fresh()
    index = torch.randint(40, (40,), generator=client.rng("completed batches"))
    F.cross_entropy(start.head(draws[index]), of[index]).backward()
    torch.testing.assert_close(mixed.head.weight, start.head.weight - 0.5 * start.head.weight.grad)
    torch.testing.assert_close(mixed.head.bias, start.head.bias - 0.5 * start.head.bias.grad)


def test_a_correction_of_the_base_comes_after_the_draws():
    torch.manual_seed(0)
    model = build("mlp", num_classes=3, image_size=4, in_channels=1, hidden=5, depth=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    images, labels = torch.rand(4, 1, 4, 4, generator=generator(0)), torch.tensor([0, 1, 2, 0])
    client = context(model, images, labels, lr=0.5, batch_size=0)

    def stop(parameters, gradients):
        for gradient in gradients:
            gradient.zero_()

    head_on_draws(client, Examples(torch.randn(6, 5, generator=generator(1)), torch.arange(6) % 3)).train(model, stop)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_refresh_is_refused_where_it_cannot_be():
    with pytest.raises(ExperimentError, match=r"strategy\.refresh=2 .*strategy\.base=fedavg, fedprox, fedopt"):
        load("digits", [*TRAINED, "strategy.base=scaffold", "client.momentum=0"])
    with pytest.raises(ExperimentError, match=r"data\.encoder, or strategy\.refresh"):
        load("digits", [*TRAINED, "strategy.refresh=0"])


# ---- the paper's settings ---------------------------------------------------------------------------------------


def test_the_presets_have_the_papers_numbers():
    single = {"cifar10": (0.05, 5000, 500), "cifar100": (0.01, 500, 50), "tiny_imagenet": (0.05, 500, 50)}
    for name, (alpha, target, draws) in single.items():
        preset = load(f"ggeur_{name}_paper")
        options = preset.strategy.options
        assert (preset.data.name, preset.data.num_clients, preset.data.alpha) == (name, 10, alpha)
        assert (preset.run.rounds, preset.client.epochs, preset.client.batch_size) == (100, 10, 64)
        assert (options["target"], options["draws"], options["complete"]) == (target, draws, "all")
    several = {
        "digits": ("digits4", 4, 10, 64, 2000, 12, 500),
        "office_home": ("office_home", 8, 1, 16, 50, 50, 50),
    }
    for name, (data, clients, epochs, batch, target, draws, around) in several.items():
        preset = load(f"ggeur_{name}_paper")
        options = preset.strategy.options
        assert (preset.data.name, preset.data.num_clients, preset.run.rounds) == (data, clients, 50)
        assert (preset.client.epochs, preset.client.batch_size) == (epochs, batch)
        assert (options["target"], options["draws"], options["draws_per_prototype"]) == (target, draws, around)
        assert options["domains"]
    for name in (*single, *several):
        preset = load(f"ggeur_{name}_paper")
        assert (preset.client.optimizer, preset.client.lr) == ("adam", 1e-3)
        assert preset.strategy.options["base_options"] == {"weighting": "uniform"} and preset.model.name == "linear"
        assert preset.data.encoder == "clip:openai/clip-vit-base-patch32"


@pytest.mark.parametrize("name", ["tiny_imagenet", "digits"])
def test_the_presets_in_small(name, tmp_path):
    over = (
        *("data.name=synthetic", "data.encoder=pca:8", "data.max_train=0", "client.max_steps=2", "client.device=cpu"),
        "data.options={num_examples: 300, num_test: 50, num_domains: 4, image_size: 8, num_classes: 4}",
        *("strategy.target=40", "strategy.draws_per_prototype=5", "run.rounds=2", "checkpoint.every=0"),
    )
    summary = run(f"ggeur_{name}_paper", *over, f"run.results={tmp_path}").summary
    assert summary["rounds"] == 2 and summary["num_failures"] == 0

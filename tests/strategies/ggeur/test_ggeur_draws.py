"""What GGEUR draws: how much, in which mixture, how often."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import torch

from umbel import run
from umbel.client.host import Clients, Host
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.memory import MemoryStore
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.data.types import Examples
from umbel.strategies.ggeur import method as ggeur
from umbel.strategies.ggeur.completion import completion, num_drawn
from umbel.strategies.ggeur.method import GGEUR, Config
from umbel.strategies.ggeur.shapes import Geometry

D, K = 3, 4
STILL = Geometry(torch.zeros(1, D), torch.eye(D)[None], torch.zeros(1, D), torch.ones(1))  # draws are their anchors
SMALL = (
    *("data.encoder=pca:8", "model.name=linear", f"data.num_clients={K}", "data.partition=dirichlet"),
    *("data.alpha=0.1", "data.max_train=400", "run.rounds=3", "evaluate.every=0", "evaluate.clients=0"),
    *("checkpoint.every=0", "strategy.name=ggeur", "strategy.target=20", "run.participation=1"),
)


# ---- the mixture of algorithm 2 ---------------------------------------------------------------------------------


def own_share(num_own: int, target: int, keep_own: int, num_foreign: int, per_prototype: int, draws: int) -> float:
    """Return the share of draws around own embeddings, which lie at 0, among all that are made."""
    own, foreign = torch.zeros(num_own, D), torch.full((num_foreign, D), 9.0)
    more = {"foreign_AD": foreign, "per_prototype": per_prototype, "keep_own": keep_own, "draws": draws}
    made = completion(STILL, 0, own, target, generator(1), **more)
    assert len(made) == min(keep_own + num_foreign * per_prototype, target - num_own)
    return float((made[:, 0] == 0).double().mean())


def test_the_authors_mixture_of_digits():
    """500 own draws and 500 around each of three prototypes: a quarter is own, whatever the client has."""
    for num_own in (50, 150, 700):
        assert own_share(num_own, 2000, 500, 3, 500, 12) == pytest.approx(0.25, abs=0.03)
    assert own_share(500, 2500, 500, 3, 500, 12) == 0.25  # all of the pool is needed
    assert own_share(1900, 2000, 500, 3, 500, 12) == pytest.approx(0.25, abs=0.12)  # few are needed: the same mixture


def test_the_authors_mixture_of_office_home():
    assert own_share(10, 210, 50, 3, 50, 50) == 0.25
    assert own_share(10, 110, 50, 1, 50, 50) == 0.5


def test_own_draws_are_of_different_embeddings():
    own = torch.arange(1.0, 11)[:, None].expand(10, D).contiguous()
    foreign = torch.full((1, D), -9.0)
    made = completion(STILL, 0, own, 40, generator(1), foreign_AD=foreign, per_prototype=10, keep_own=20, draws=2)
    assert Counter(made[:, 0].tolist()) == {**dict.fromkeys(range(1, 11), 2), -9.0: 10}  # all 20 draws are kept


def test_without_prototypes_it_changes_nothing():
    own = torch.randn(5, D, generator=generator(0))
    plain = completion(STILL, 0, own, 30, generator(1), draws=7)
    assert torch.equal(plain, completion(STILL, 0, own, 30, generator(1), draws=7, keep_own=3))


def test_it_goes_with_domains_only():
    with pytest.raises(ValueError, match=r"strategy\.keep_own.*Set strategy\.domains=true"):
        GGEUR(Config(keep_own=5))
    GGEUR(Config(keep_own=5, domains=True))


def test_the_papers_settings_of_several_domains_have_it():
    kept = {name: load(f"ggeur_{name}_paper").strategy.options["keep_own"] for name in ("digits", "office_home")}
    assert kept == {"digits": 500, "office_home": 50}
    assert load("ggeur_emoji").strategy.options["keep_own"] == 0


# ---- how much is drawn ------------------------------------------------------------------------------------------


def test_what_will_be_drawn_is_known_without_drawing():
    means, foreigners = (None, torch.ones(D)), (None, torch.ones(1, D), torch.ones(3, D))
    for num_own, target, draws, per, keep in product((0, 1, 7), (0, 5, 7, 12, 40), (0, 3), (0, 4), (0, 2, 50)):
        for mean, foreign in product(means, foreigners):
            more = {"foreign_AD": foreign, "per_prototype": per, "keep_own": keep, "mean_D": mean}
            made = completion(STILL, 0, torch.zeros(num_own, D), target, generator(0), draws=draws, **more)
            assert len(made) == num_drawn(num_own, target, **more), (num_own, target, draws, more)


# ---- how often --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["fedavg", "scaffold"])
def test_a_client_is_completed_once_where_it_trains(base, monkeypatch, tmp_path):
    """Neither to count the draws when the geometry comes, nor again because the base's memory has changed."""
    calls, complete = Counter(), ggeur.complete

    def counting(config, client, memory):
        calls[client.phase, client.id] += 1
        return complete(config, client, memory)

    monkeypatch.setattr(ggeur, "complete", counting)
    run("digits", *SMALL, f"strategy.base={base}", f"run.results={tmp_path}")
    assert calls == {("train", k): 1 for k in range(K)}


def test_what_is_kept_is_of_the_version_that_is_asked_for(tmp_path):
    clients = Clients(Host(load("digits", list(SMALL))), MemoryStore(tmp_path))

    def keep(client: int, version: float, value: float) -> float:
        context = clients.context(client, 1, "train", None, lambda record: None)
        made = Examples(torch.full((2, D), value), torch.zeros(2, dtype=torch.int64))
        return float(context.keep("drawn", version, lambda: made).images[0, 0])

    assert keep(0, 1.0, 5.0) == 5 and keep(0, 1.0, 6.0) == 5
    assert keep(1, 1.0, 7.0) == 7
    assert keep(0, 2.0, 8.0) == 8 and keep(0, 2.0, 9.0) == 8
    assert keep(1, 1.0, 6.0) == 7
    assert keep(0, 1.0, 4.0) == 4  # nothing of the old version was left


# ---- values that cannot be --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("key", ["clip", "epsilon", "unit", "guide", "delta"])
def test_numbers_that_are_none_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"strategy\.{key} "):
        GGEUR(Config(**{key: value}))


def test_counts_that_cannot_be_are_refused():
    for key, value in (("min_count", -3), ("min_count", 0), ("keep_own", -1), ("draws_per_prototype", -1)):
        with pytest.raises(ExperimentError, match=rf"strategy\.{key} should be"):
            load("digits", [*SMALL, f"strategy.{key}={value}"])


@pytest.mark.parametrize("over", [(), ("data.encoder=", "model.name=cnn", "strategy.refresh=1")])
def test_more_directions_than_there_are_are_refused_before_the_first_round(over, tmp_path):
    with pytest.raises(ValueError, match=r"strategy\.rank=100000 is more than the (8|64) directions"):
        run("digits", *SMALL, *over, "strategy.rank=100000", f"run.results={tmp_path}")
    assert not list(tmp_path.glob("*/checkpoints/*"))


def test_domains_without_domains_are_refused_before_the_first_round(tmp_path):
    with pytest.raises(Refusal, match=r"strategy\.domains=true .*data\.name"):
        run("digits", *SMALL, "strategy.domains=true", f"run.results={tmp_path}")
    off = ("strategy.domains=true", "strategy.augment=false", "run.rounds=1")
    assert run("digits", *SMALL, *off, f"run.results={tmp_path}").summary["rounds"] == 1  # asks for nothing

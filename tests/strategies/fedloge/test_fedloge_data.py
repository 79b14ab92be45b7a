"""FedLoGe's frame for the sizes there are, and which examples its counts, masks and measures come from."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from tests.helpers import watch_phases
from tests.strategies.fedloge.test_fedloge_keys import SMALL
from tests.strategies.fedloge.test_fedloge_personal import OTHERS, Client, shared
from tests.strategies.fedloge.test_fedloge_runs import gradients, heads
from umbel import run
from umbel.conf.load import load
from umbel.core import moments
from umbel.core.folds import Folded
from umbel.core.metrics import collapse
from umbel.core.records import Payload
from umbel.core.rng import generator
from umbel.data.types import Examples
from umbel.server.session import Session
from umbel.strategies.fedloge.frames import cosine_error, make_frame, simplex_etf
from umbel.strategies.fedloge.method import Config, FedLoGe, State

# ---- the frame ---------------------------------------------------------------------------------------------------


def test_the_frame_is_the_seeds():
    def frame(seed: int) -> torch.Tensor:
        session = Session(load("digits", [*SMALL, f"run.seed={seed}"]))
        return session.strategy.initial(session.context(0)).frame["weight"]

    assert torch.equal(frame(1), frame(1)) and not torch.equal(frame(1), frame(2))


@pytest.mark.parametrize("frame", ["sparse", "etf"])
def test_fewer_features_than_classes_are_refused_before_anything_is_sent(tmp_path, monkeypatch, frame):
    watch_phases(monkeypatch, FedLoGe, local=lambda *_: pytest.fail("a client was asked"))
    narrow = ("model.sizes={width: 4, hidden: 9}", f"strategy.frame={frame}", f"run.results={tmp_path}")
    with pytest.raises(ValueError, match=r"9 features for 10 classes.*model\.sizes.*strategy\.frame=none"):
        run("digits", *SMALL, *narrow)
    assert make_frame(Config(frame="none"), 9, 10, generator(0)) == {}


def test_a_mask_that_cannot_bear_the_cosines_is_refused():
    for seed in range(3):
        with pytest.raises(ValueError, match=r"strategy\.sparsity=0\.9 .*12 features.*model\.sizes"):
            make_frame(Config(sparsity=0.9), 12, 10, generator(seed))


@pytest.mark.parametrize(
    ("preset", "features", "classes"),
    [
        ("fedloge_fashion", 64, 10),
        pytest.param("fedloge_emoji", 128, 9, marks=pytest.mark.exhaustive),
        pytest.param("fedloge_cifar10_paper", 512, 10, marks=pytest.mark.exhaustive),
        pytest.param("fedloge_cifar100_paper", 512, 100, marks=pytest.mark.exhaustive),
    ],
)
def test_the_presets_frames_reach_their_cosines(preset, features, classes):
    config = Config(**load(preset).strategy.options)
    for seed in (0, 1):
        frame = make_frame(config, features, classes, generator(seed, 0, "server", -1, "frame"))
        assert cosine_error(frame["weight"]) < 1e-4


def test_the_error_of_the_cosines_is_the_largest():
    assert cosine_error(simplex_etf(9, 4, generator(0)).T) < 1e-6
    # Of three vectors the ideal is -1/2; two at a right angle miss it by 1/2, two alike by 3/2.
    assert cosine_error(torch.eye(3)) == pytest.approx(0.5)
    assert cosine_error(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 3.0]])) == pytest.approx(1.5)


def test_a_personal_head_leaves_the_trunk_alone_without_a_frame_too():
    torch.manual_seed(3)
    personal = torch.nn.Linear(6, 5)
    plain, more = gradients(heads(None, None)), gradients(heads(None, personal))
    assert all(torch.equal(plain[name], more[name]) for name in plain)


# ---- whose labels ------------------------------------------------------------------------------------------------

ABSENT = Examples(OTHERS, torch.full((len(OTHERS),), 2))  # only what training lacks


def test_absent_classes_are_those_of_the_training_labels():
    client = replace(Client().context(), test_data=ABSENT, validation_data=ABSENT)
    predictors = FedLoGe(Config()).personal(Payload({"model": shared()}), client)
    for name in ("model", "phi"):
        assert predictors[name].predict(OTHERS).isneginf().any(0).tolist() == [False, False, True, False]


def test_counts_are_of_training_labels():
    client = replace(Client().context(), test_data=ABSENT, validation_data=ABSENT)
    reply = FedLoGe(Config()).count(Payload({"frame": {}}), client)
    assert reply.trees["counts"]["examples"].tolist() == [3, 2, 0, 2]


def test_counts_of_fewer_clients_replace_nothing():
    state = State({}, {}, {"examples": torch.tensor([5.0, 2.0])}, num_told=3)
    folded = Folded({"counts": {"examples": torch.tensor([1.0, 0.0])}}, {}, 1, 2)
    assert FedLoGe(Config()).after_classes(state, folded, SimpleNamespace(num_clients=4)) is state


# ---- what the server evaluates -----------------------------------------------------------------------------------


def test_what_the_server_evaluates_by_its_formulas():
    session = Session(load("digits", SMALL))
    server, built = session.context(1), []

    def build_model():
        built.append(session.build_model())
        return built[-1]

    state = session.strategy.initial(session.context(0))
    model = server.model(state.model)
    x = torch.randn(5, 1, 8, 8, generator=generator(1))
    predictors = session.strategy.predictors(state, replace(server, build_model=build_model))
    assert len(built) == 1  # one trunk under three heads
    f = model.features(x)
    torch.testing.assert_close(predictors["frame"].predict(x), f @ state.frame["weight"].T)
    assert torch.equal(predictors["psi"].predict(x), model(x))
    aligned = server.model(session.strategy.model(state))
    assert torch.equal(predictors["model"].predict(x), aligned(x)) and not torch.equal(aligned(x), model(x))


def test_collapse_is_measured_of_psi_and_of_the_frame():
    session = Session(load("digits", SMALL))
    state = session.strategy.initial(session.context(0))
    rows = torch.randn(20, 16, generator=generator(2), dtype=torch.float64)
    sums = collapse.class_sums(rows, torch.arange(20) % 10, 10)
    total = moments.pack(*(part[0] for part in sums.total))
    trees = {"classes": {"count": sums.count_C, "sum": sums.sum_CD}, "total": {"0": total}}
    folded = Folded(trees, {}, num_examples=20, num_replies=4)
    measured = session.strategy.phase("features").update(state, folded, session.context(1)).collapse
    for name, weight in (("psi", state.model["head.weight"]), ("frame", state.frame["weight"])):
        assert measured[f"{name}/nc3"] == collapse.describe(sums, weight)["nc3"]


class Asked(FedLoGe):
    """FedLoGe that notes in which rounds it is asked for its predictors."""

    rounds: ClassVar[list[int]] = []

    def predictors(self, state, server):
        self.rounds.append(server.round)
        return super().predictors(state, server)


@pytest.mark.parametrize("server", ["true", "false"])
def test_an_evaluation_asks_for_predictors_once(tmp_path, server):
    Asked.rounds.clear()
    options = (f"strategy.name={__name__}:Asked", "data.partition=long_tail", "data.imbalance=5")
    options = (*options, f"evaluate.server={server}", f"run.results={tmp_path}")
    result = run("digits", *SMALL, *options)
    assert Asked.rounds == [1, 2, 2]  # two evaluations, and once to describe the model that is saved
    assert "clients/test/accuracy_head" in result.summary["metrics"]  # groups of the predictor that was asked for

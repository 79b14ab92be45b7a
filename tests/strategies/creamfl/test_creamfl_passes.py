"""What CreamFL's passes over the data are given: epochs, rates, losses, moments, noise, and memory."""

from __future__ import annotations

import math
import weakref
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.strategies.creamfl.test_creamfl_runs import PUBLIC
from tests.strategies.creamfl.test_creamfl_wiring import MODALITIES, NOISY, Halves, read, unit
from umbel.core import training
from umbel.core.records import Payload, Reply
from umbel.models.pair import class_logits, margin_loss, pair_contrast
from umbel.strategies.creamfl import ensemble as ensembles
from umbel.strategies.creamfl import method as creamfl
from umbel.strategies.creamfl.architectures import client_model, server_model
from umbel.strategies.creamfl.contrasts import pair_loss
from umbel.strategies.creamfl.ensemble import aggregate, combine
from umbel.strategies.creamfl.method import Config, CreamFL
from umbel.strategies.creamfl.representations import from_wire, to_wire


@pytest.fixture
def passes(monkeypatch):
    """What each call of the training loop was given and left."""
    calls, train = [], training.train

    def watched(model, numbers, targets, local, **options):
        given = dict(options.get("moments") or {})
        report = train(model, numbers, targets, local, **options)
        kept, round_ = dict(report.moments), options.get("round_", 1)
        calls.append(SimpleNamespace(model=model, local=local, given=given, kept=kept, round=round_))
        return report

    monkeypatch.setattr(training, "train", watched)
    return calls


def handed_on(before: SimpleNamespace, after: SimpleNamespace) -> bool:
    """Whether an optimiser's moments went from one pass to the next."""
    known = bool(before.kept) and before.kept.keys() <= after.given.keys()
    return known and all(torch.equal(value, after.given[name]) for name, value in before.kept.items())


def test_the_servers_passes(tmp_path, passes):
    options = ("server_epochs=2", "distil_epochs=5", "server_batch_size=16", "server_weight_decay=0.1")
    halves = Halves(tmp_path, *(f"strategy.{key}" for key in (*options, "server_clip_norm=0.7")), "run.rounds=4")
    state = halves.strategy.initial(halves.session.context(0))
    for round_ in (1, 2):
        server = halves.session.context(round_)
        state = halves.strategy.after_learn(state, server)
        sent = {name: unit(PUBLIC, 7 + round_) for name in MODALITIES}
        folded = halves.fold({4: Reply({"representations": sent}, {"loss": 1.0}, 5)})
        state = halves.phase.update(state, folded, server)
    assert [each.local.epochs for each in passes] == [2, 5, 2, 5]
    second = 0.003 * (1 + math.cos(math.pi / 4)) / 2
    assert [each.local.lr for each in passes] == pytest.approx([0.003, 0.003, second, second])
    for each in passes:
        found = each.local
        assert (found.optimizer, found.batch_size, found.weight_decay, found.clip_norm) == ("adamw", 16, 0.1, 0.7)
    assert not passes[0].given and all(handed_on(*two) for two in pairwise(passes))


def test_a_clients_passes(tmp_path, passes):
    halves = Halves(tmp_path, "strategy.public_per_round=40", "client.epochs=2", "client.batch_size=16")
    halves.phase.local(halves.payload(halves.said(), 3), halves.client(4, 3))
    assert [each.model._rows is not None for each in passes] == [False, True, False, True]  # private, public, ...
    assert all(each.round == 3 and each.local.epochs == 1 and each.local.batch_size == 16 for each in passes)
    assert not passes[0].given and all(handed_on(*two) for two in pairwise(passes))


def test_noise_is_the_same_in_each_round_and_of_each_client(tmp_path):
    halves = Halves(tmp_path, "strategy.noise_clients=[0, 1]")

    def sent(number: int, round_: int) -> torch.Tensor:
        payload, client = halves.payload(halves.said(), round_), halves.client(number, round_)
        return halves.phase.local(payload, client).trees["representations"]["image"]

    first = sent(0, 1)
    assert torch.equal(first, sent(0, 2)) and not torch.allclose(first, sent(1, 1), atol=0.1)
    torch.testing.assert_close(torch.linalg.norm(first, dim=1), torch.ones(PUBLIC))
    said = read(client_model(halves.strategy.config, halves.client(0, 3)), halves.tables())["image"]
    assert not torch.allclose(first, said, atol=0.1) and 0 in halves.remembered


def test_without_stratify_anyone_is_drawn(tmp_path):
    assert Halves(tmp_path, "strategy.stratify=false").phase.groups == ()


# ---- losses ------------------------------------------------------------------------------------------------------


def test_the_pair_loss_has_its_temperature_and_its_identities(tmp_path, monkeypatch):
    halves = Halves(tmp_path, "strategy.pair_temperature=0.3")
    strategy, server, client = halves.strategy, halves.session.context(1), halves.client(4)
    model, ids, index = client_model(strategy.config, client), torch.arange(PUBLIC) // 2, torch.arange(9)
    image, text = unit(9), unit(9, 1)
    own = ids[index]
    expected = pair_contrast(image, text, own[:, None] == own[None], 0.3)
    torch.testing.assert_close(pair_loss(strategy.config, model, ids)(torch.stack([image, text]), index), expected)
    asked, made = [], pair_loss

    def watched(config, model, ids):
        asked.append(ids)
        return made(config, model, ids)

    monkeypatch.setattr(creamfl, "pair_loss", watched)
    strategy._private(model, client)
    strategy._learn(server_model(strategy.config, server), {}, server)
    for ids, data in zip(asked, (client.train_data, halves.session.data.public), strict=True):
        assert torch.equal(ids, data.identities())
    assert not torch.equal(asked[0], torch.arange(len(client.train_data)))


@pytest.mark.parametrize("kind", ["margin", "plain"])
def test_the_class_loss_and_its_sharpness(tmp_path, kind):
    halves = Halves(tmp_path, *NOISY, f"strategy.class_loss={kind}", "strategy.class_sharpness=7")
    client = halves.client(0)
    model = client_model(halves.strategy.config, client)
    z, y = unit(4), torch.tensor([0, 1, 2, 3])
    found = halves.strategy._private(model, client)[2](z[None], y)
    plain = F.cross_entropy(class_logits(z, model.classes, 7.0), y)
    torch.testing.assert_close(found, margin_loss(z, model.classes, y, 7.0) if kind == "margin" else plain)
    x = halves.tables()["image"][:5]
    said = halves.strategy.personal(Payload({}), client)["image"].predict(x)
    torch.testing.assert_close(said, class_logits(model.eval().encode_image(x), model.classes, 7.0))


def test_the_server_is_evaluated_in_evaluation_mode(tmp_path):
    halves = Halves(tmp_path, *NOISY)
    state, server = halves.said(), halves.session.context(1)
    predictor = halves.strategy.predictors(state, server)["model"]
    expected = read(halves.strategy._load(state, server), halves.tables())
    torch.testing.assert_close(predictor.predict(halves.tables()["image"]), expected["image"])
    torch.testing.assert_close(predictor.texts(halves.tables()["text"]), expected["text"])


# ---- the ensemble of many replies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", ["float32", "int8"])
@pytest.mark.parametrize("ensemble", ["contrast", "mean"])
def test_replies_are_read_one_by_one_into_one_table(monkeypatch, ensemble, wire):
    """With the bits of a stack of all of them, which takes their bytes twice; above 16, a running sum has others."""
    sent = torch.stack([to_wire(unit(50, seed), wire) for seed in range(20)])
    across = unit(50, 99)
    stacked = torch.stack([from_wire(each) for each in sent])
    expected = stacked.mean(0) if ensemble == "mean" else aggregate(stacked, across, 0.2)[0]
    alive, most = [], []

    def watched(each: torch.Tensor) -> torch.Tensor:
        most.append(sum(one() is not None for one in alive))
        made = from_wire(each)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(ensembles, "from_wire", watched)
    found = combine(Config(ensemble=ensemble, ensemble_temperature=0.2), sent, across)
    assert torch.equal(found, expected)
    assert len(most) == 20 and max(most) == 0


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
@pytest.mark.parametrize(
    "key", ["class_sharpness", "ensemble_temperature", "temperature", "pair_temperature", "server_lr", "dimension"]
)
def test_values_that_cannot_be_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"strategy\.{key}\b"):
        CreamFL(Config(**{key: value}))

"""How CreamFL's strategy calls its mathematics: which public rows, which modality, which weights, which moment."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.strategies.creamfl.halves import MODALITIES, NOISY, Halves, read, unit
from tests.strategies.creamfl.pairs import DIMENSION, PUBLIC
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.models import registry
from umbel.models.pair import Encoders, Reader
from umbel.models.text import TextShape, build_text
from umbel.strategies.creamfl.architectures import client_model, fresh_encoders
from umbel.strategies.creamfl.ensemble import aggregate
from umbel.strategies.creamfl.representations import from_wire, to_wire


def test_sizes_in_a_list_are_taken_by_turns(tmp_path):
    turns = "[{hidden: 3, depth: 1}, {hidden: 5, depth: 1}, {hidden: 7, depth: 1}]"
    halves = Halves(
        tmp_path,
        *("strategy.image_models=[mlp]", f"strategy.image_sizes={{mlp: {turns}}}"),
        *("strategy.text_models=[gru]", "strategy.text_sizes={gru: [{width: 4}, {width: 6}]}"),
    )
    halves.said()  # each is tried
    models = [client_model(halves.strategy.config, halves.client(number)) for number in range(6)]
    assert [each.image and each.image.num_features for each in models] == [3, 5, None, None, 5, 7]
    assert [each.text and each.text.num_features for each in models] == [None, None, 4, 6, 4, 6]


def test_the_rows_of_a_round_are_drawn_and_what_is_sent_is_theirs(tmp_path):
    halves = Halves(tmp_path, "strategy.public_per_round=40")
    state, drawn = halves.said(), []
    for round_ in (1, 2):
        sent = halves.payload(state, round_).trees
        rows = sent["index"]["rows"].long()
        assert len(rows) == 40 and (rows.diff() > 0).all() and int(rows[0]) >= 0 and int(rows[-1]) < PUBLIC
        for name in MODALITIES:
            assert torch.equal(sent["representations"][name], state.representations[name][rows])
        drawn.append(rows)
    assert not torch.equal(drawn[0], drawn[1])
    assert all(int(rows[-1]) > 40 for rows in drawn)


def test_all_rows_are_sent_where_a_round_uses_all(tmp_path):
    halves = Halves(tmp_path)
    state = halves.said()
    sent = halves.payload(state).trees
    assert sent["index"]["rows"].tolist() == list(range(PUBLIC))
    assert torch.equal(sent["representations"]["text"], state.representations["text"])


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_each_modality_is_scored_against_the_other_on_the_rounds_rows(tmp_path, exclude, wire):
    options = ("strategy.ensemble_temperature=0.2", f"strategy.exclude_self={exclude}", f"strategy.wire={wire}")
    halves = Halves(tmp_path, *options, "strategy.public_per_round=40")
    state = halves.said()
    rows = halves.payload(state).trees["index"]["rows"].long()
    own = {0: ("image",), 1: ("image",), 2: ("text",), 4: MODALITIES, 5: MODALITIES}
    sent = {
        client: {name: to_wire(unit(40, 100 + 10 * client + n), wire) for n, name in enumerate(names)}
        for client, names in own.items()
    }
    folded = halves.fold({k: Reply({"representations": tree}, {"loss": 1.0}, 5) for k, tree in sent.items()})
    ensembles = halves.strategy.ensembles(folded, state, halves.session.context(1))
    assert set(ensembles) == set(MODALITIES)
    for name, other in (("image", "text"), ("text", "image")):
        stacked = torch.stack([from_wire(tree[name]) for tree in sent.values() if name in tree])
        across = from_wire(to_wire(state.representations[other][rows], wire))
        expected, weights = aggregate(stacked, across, 0.2, exclude)
        assert float((weights - 1 / len(stacked)).abs().max()) > 0.1  # or any weights would do
        torch.testing.assert_close(ensembles[name], expected)


def test_the_mean_asks_nobody(tmp_path):
    halves = Halves(tmp_path, "strategy.ensemble=mean", "strategy.public_per_round=40")
    sent = {client: unit(40, client) for client in (2, 3, 4)}
    replies = {k: Reply({"representations": {"text": each}}, {"loss": 1.0}, k) for k, each in sent.items()}
    ensembles = halves.strategy.ensembles(halves.fold(replies), halves.said(), halves.session.context(1))
    assert set(ensembles) == {"text"}
    torch.testing.assert_close(ensembles["text"], torch.stack(list(sent.values())).mean(0))


@pytest.mark.parametrize("part", [0, 40])
@pytest.mark.parametrize("number", [0, 2, 3, 4], ids=["image", "gru", "transformer", "both"])
def test_a_client_sends_what_its_trained_encoders_say_of_the_rows_that_came(tmp_path, number, part):
    halves = Halves(tmp_path, *NOISY, f"strategy.public_per_round={part}")
    payload = halves.payload(halves.said())
    client = halves.client(number)
    start = read(client_model(halves.strategy.config, client), halves.tables())
    reply = halves.phase.local(payload, client)
    model = fresh_encoders(halves.strategy.config, number, client.public, client.vocabulary, client.num_classes)
    model.load_state_dict(dict(halves.remembered[number].trees["encoders"]))
    rows = payload.trees["index"]["rows"].long()
    sent = reply.trees["representations"]
    assert set(sent) == set(model.modalities)
    for name, expected in read(model, {n: table[rows] for n, table in halves.tables().items()}).items():
        torch.testing.assert_close(sent[name], expected)
        assert not torch.allclose(expected, start[name][rows], atol=1e-4)  # it was trained


@pytest.mark.parametrize("number", range(6))
def test_a_client_goes_on_from_what_it_remembers(tmp_path, number):
    halves = Halves(tmp_path, *NOISY)
    fresh = client_model(halves.strategy.config, halves.client(number)).state_dict()
    halves.phase.local(halves.payload(halves.said()), halves.client(number))
    kept = halves.remembered[number].trees["encoders"]
    loaded = client_model(halves.strategy.config, halves.client(number, 2)).state_dict()
    assert loaded.keys() == kept.keys() == fresh.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, kept[name])
    assert any(not torch.equal(tensor, fresh[name]) for name, tensor in loaded.items())
    (predictor,) = halves.strategy.personal(Payload({}), halves.client(number, 2)).values()
    (blank,) = halves.strategy.personal(Payload({}), replace(halves.client(number, 2), memory=None)).values()
    x = halves.tables()["text" if predictor.reads == "tokens" else "image"]
    assert not torch.allclose(predictor.predict(x), blank.predict(x))


def test_all_is_read_in_evaluation_mode(tmp_path):
    image, shape = registry.build("cnn", DIMENSION, 8, 1, width=2, hidden=8, norm="batch"), TextShape(20, 5)
    text = build_text("transformer", shape, key="strategy.text_sizes", width=8, depth=1, heads=2, dropout=0.5)
    model = Encoders(image, text, DIMENSION)
    tables = {"image": torch.rand(30, 1, 8, 8, generator=generator(1)), "text": torch.arange(150).view(30, 5) % 19 + 1}
    rows = torch.tensor([4, 9, 2, 29, 17])
    reader = Reader(model, tables, rows)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = []
    for size in (512, 2):
        reader.train()
        said.append(reader.all(size))
        assert not any(module.training for module in reader.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, expected in read(model, {name: table[rows] for name, table in tables.items()}).items():
        torch.testing.assert_close(said[0][name], expected)
        torch.testing.assert_close(said[1][name], expected)
        assert not said[0][name].requires_grad
    reader.train()
    with torch.no_grad():
        noisy = reader(torch.arange(5))
    assert not any(torch.allclose(each, said[0][name]) for each, name in zip(noisy, MODALITIES, strict=True))

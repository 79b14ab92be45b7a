"""How CreamFL's strategy calls its mathematics: which public rows, which modality, which weights, which moment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.strategies.creamfl.test_creamfl_runs import DIMENSION, PAIRS, PUBLIC
from umbel.client.host import Clients, Host
from umbel.conf.load import load
from umbel.core.folds import Folded
from umbel.core.memory import MemoryRecord, MemoryStore
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.models import registry
from umbel.models.pair import Encoders, Reader
from umbel.models.text import TextShape, build_text
from umbel.server.session import Session
from umbel.strategies.creamfl import method as creamfl
from umbel.strategies.creamfl.architectures import client_model, fresh_encoders, server_model
from umbel.strategies.creamfl.contrasts import contrast_loss
from umbel.strategies.creamfl.ensemble import aggregate
from umbel.strategies.creamfl.method import State
from umbel.strategies.creamfl.representations import from_wire, to_wire

MODALITIES = ("image", "text")
NOISY = (  # what tells training from evaluation: batch norm, dropout
    "strategy.image_models=[cnn]",
    "strategy.image_sizes={cnn: {width: 2, hidden: 8, norm: batch}}",
    "strategy.text_sizes={gru: {width: 8, dropout: 0.5}, transformer: {width: 8, depth: 1, heads: 2, dropout: 0.5}}",
    "strategy.server_text_sizes={width: 16, depth: 1, heads: 2, dropout: 0.5}",
    "model.sizes={width: 4, hidden: 16, norm: batch}",
)


def unit(rows: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, DIMENSION, generator=generator(seed)), dim=1)


def read(model: Encoders, tables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the representations of whole tables in evaluation mode, without a `Reader`; leave the mode as it was."""
    was, made = model.training, {}
    model.eval()
    with torch.no_grad():
        for name in model.modalities:
            encode = model.encode_image if name == "image" else model.encode_text
            made[name] = encode(tables[name])
    model.train(was)
    return made


class Halves:
    """The server and the clients of one small experiment, driven by hand."""

    def __init__(self, folder: Path, *options: str) -> None:
        experiment = load("digits", [*PAIRS, *options])
        self.session = Session(experiment)
        self.strategy = self.session.strategy
        self.phase = self.strategy.phase("contrast")
        self._clients = Clients(Host(experiment), MemoryStore(folder))
        self.remembered: dict[int, MemoryRecord] = {}

    def client(self, number: int, round_: int = 1):
        """A client with what it remembers."""

        def remember(record: MemoryRecord) -> None:
            self.remembered[number] = record

        return self._clients.context(number, round_, self.phase.name, self.remembered.get(number), remember)

    def tables(self) -> dict[str, torch.Tensor]:
        """The public images and texts, as models read them."""
        public = self.session.data.public
        return {"image": self.session.prepare(public)[0], "text": public.tokens}

    def said(self, seed: int = 50) -> State:
        """A server as initialised that says anything of the public set."""
        said = {name: unit(PUBLIC, seed + number) for number, name in enumerate(MODALITIES)}
        return replace(self.strategy.initial(self.session.context(0)), representations=said)

    def payload(self, state: State, round_: int = 1) -> Payload:
        return self.phase.broadcast(state, self.session.context(round_))

    def fold(self, replies: dict[int, Reply]):
        fold = self.phase.fold()
        total = fold.zero()
        for client, reply in replies.items():
            total = fold.add(total, client, reply)
        return fold.finish(total)


# ---- models --------------------------------------------------------------------------------------------------


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


# ---- rows ----------------------------------------------------------------------------------------------------


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
    found = halves.strategy.ensembles(folded, state, halves.session.context(1))
    assert set(found) == set(MODALITIES)
    for name, other in (("image", "text"), ("text", "image")):
        stacked = torch.stack([from_wire(tree[name]) for tree in sent.values() if name in tree])
        across = from_wire(to_wire(state.representations[other][rows], wire))
        expected, weights = aggregate(stacked, across, 0.2, exclude)
        assert float((weights - 1 / len(stacked)).abs().max()) > 0.1  # or any weights would do
        torch.testing.assert_close(found[name], expected)


def test_the_mean_asks_nobody(tmp_path):
    halves = Halves(tmp_path, "strategy.ensemble=mean", "strategy.public_per_round=40")
    sent = {client: unit(40, client) for client in (2, 3, 4)}
    replies = {k: Reply({"representations": {"text": each}}, {"loss": 1.0}, k) for k, each in sent.items()}
    found = halves.strategy.ensembles(halves.fold(replies), halves.said(), halves.session.context(1))
    assert set(found) == {"text"}
    torch.testing.assert_close(found["text"], torch.stack(list(sent.values())).mean(0))


# ---- a client ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("number", [0, 2, 4], ids=["image", "text", "both"])
def test_a_client_is_held_to_what_came_and_to_what_it_said_at_the_start(tmp_path, monkeypatch, number):
    """And at the start of its second round it says what it remembers of the first."""
    halves = Halves(tmp_path, *NOISY, "strategy.public_per_round=40", "client.epochs=2")
    strategy, tables, calls = halves.strategy, halves.tables(), []
    made = contrast_loss

    def watched(config, model, before, shared):
        calls.append(({**before}, {**shared}))
        return made(config, model, before, shared)

    monkeypatch.setattr(creamfl, "contrast_loss", watched)
    starts = []
    for round_ in (1, 2):
        payload = halves.payload(halves.said(50 + round_), round_)
        client = halves.client(number, round_)
        model = client_model(strategy.config, replace(client, memory=None))
        if round_ == 2:
            model.load_state_dict(dict(halves.remembered[number].trees["encoders"]))
        starts.append(read(model, tables))
        halves.phase.local(payload, client)
        rows = payload.trees["index"]["rows"].long()
        before, shared = calls[-1]
        assert set(before) == set(model.modalities) and set(shared) == set(MODALITIES)
        for name in before:
            torch.testing.assert_close(before[name], starts[-1][name][rows])
        for name in shared:
            torch.testing.assert_close(shared[name], from_wire(payload.trees["representations"][name]))
    assert len(calls) == 2
    assert not any(torch.allclose(starts[0][name], starts[1][name], atol=1e-4) for name in starts[0])


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


# ---- reading -------------------------------------------------------------------------------------------------


def test_all_is_read_in_evaluation_mode(tmp_path):
    image, shape = registry.build("cnn", DIMENSION, 8, 1, width=2, hidden=8, norm="batch"), TextShape(20, 5)
    text = build_text("transformer", shape, key="strategy.text_sizes", width=8, depth=1, heads=2, dropout=0.5)
    model = Encoders(image, text, DIMENSION)
    tables = {"image": torch.rand(30, 1, 8, 8, generator=generator(1)), "text": torch.arange(150).view(30, 5) % 19 + 1}
    rows = torch.tensor([4, 9, 2, 29, 17])
    reader = Reader(model, tables, rows)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = []
    for size in (512, 2):
        reader.train()
        found.append(reader.all(size))
        assert not any(module.training for module in reader.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, expected in read(model, {name: table[rows] for name, table in tables.items()}).items():
        torch.testing.assert_close(found[0][name], expected)
        torch.testing.assert_close(found[1][name], expected)
        assert not found[0][name].requires_grad
    reader.train()
    with torch.no_grad():
        noisy = reader(torch.arange(5))
    assert not any(torch.allclose(each, found[0][name]) for each, name in zip(noisy, MODALITIES, strict=True))


# ---- the server ----------------------------------------------------------------------------------------------


def test_a_rounds_representations_are_of_one_snapshot_and_the_last_are_read_again(tmp_path):
    halves = Halves(tmp_path, *NOISY, "strategy.public_per_round=40", "strategy.distil=50")
    strategy, server = halves.strategy, halves.session.context(1)
    learned = strategy.phase("learn").update(halves.said(), Folded({}, {}, 0, 0), server)
    check(halves, learned)
    sent = {0: {"image": unit(40, 7)}, 2: {"text": unit(40, 8)}}
    replies = {client: Reply({"representations": tree}, {"loss": 1.0}, 5) for client, tree in sent.items()}
    distilled = halves.phase.update(learned, halves.fold(replies), server)
    for name in MODALITIES:  # what clients were told in this round
        assert torch.equal(distilled.representations[name], learned.representations[name])
    done = strategy.finish(distilled, server)
    assert all(torch.equal(tensor, distilled.model[name]) for name, tensor in done.model.items())
    check(halves, done)
    for name in MODALITIES:
        assert not torch.allclose(done.representations[name], learned.representations[name], atol=1e-3)


def check(halves: Halves, state: State) -> None:
    """The state's representations are what its model says of the whole public set."""
    model = server_model(halves.strategy.config, halves.session.context(1))
    model.load_state_dict(state.model)
    for name, expected in read(model, halves.tables()).items():
        torch.testing.assert_close(state.representations[name], expected)

"""What CreamFL's passes over the data are given: epochs, rates, losses, moments, noise, and memory."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.strategies.creamfl.halves import MODALITIES, NOISY, Halves, descend, read, unit
from tests.strategies.creamfl.pairs import PUBLIC
from umbel.core.records import Payload, Reply
from umbel.models.pair import class_logits, margin_loss, pair_contrast
from umbel.strategies.creamfl import ensemble as ensembles
from umbel.strategies.creamfl.architectures import client_model
from umbel.strategies.creamfl.contrasts import class_loss, contrast_loss, pair_loss
from umbel.strategies.creamfl.ensemble import aggregate, by_variance, combine
from umbel.strategies.creamfl.method import Config
from umbel.strategies.creamfl.passes import by_turns, server_training
from umbel.strategies.creamfl.representations import from_wire, to_wire


def num_steps(moments: dict[str, torch.Tensor]) -> set[int]:
    """How many steps AdamW remembers of each parameter that it moved."""
    return {int(value) for name, value in moments.items() if name.endswith(".step")}


def test_the_servers_passes(tmp_path):
    options = ("server_epochs=2", "distil_epochs=5", "server_batch_size=16", "server_weight_decay=0.1")
    halves = Halves(tmp_path, *(f"strategy.{key}" for key in (*options, "server_clip_norm=0.7")), "run.rounds=4")
    state, total = halves.strategy.initial(halves.session.context(0)), 0
    for round_, lr in ((1, 0.003), (2, 0.003 * (1 + math.cos(math.pi / 4)) / 2)):
        server = halves.session.context(round_)
        local = server_training(halves.strategy.config, server)
        assert (local.optimizer, local.batch_size, local.weight_decay, local.clip_norm) == ("adamw", 16, 0.1, 0.7)
        assert local.lr == pytest.approx(lr)
        state = halves.strategy.after_learn(state, server)
        total += 2 * 6  # 90 rows in batches of 16; the optimiser goes on from pass to pass
        assert num_steps(state.moments) == {total}
        sent = {name: unit(PUBLIC, 7 + round_) for name in MODALITIES}
        folded = halves.fold({4: Reply({"representations": sent}, {"loss": 1.0}, 5)})
        state = halves.phase.update(state, folded, server)
        total += 5 * 6
        # Scale and shift of the pair loss have no part in the distillation.
        assert max(num_steps(state.moments)) == total


class Slope(nn.Module):
    """One weight, said of each row: the gradient of a mean is 1."""

    def __init__(self, weight: nn.Parameter, rows: int) -> None:
        super().__init__()
        self.weight, self.numbers = weight, torch.arange(rows)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(numbers))


@pytest.mark.parametrize(
    ("epochs", "budget", "steps"),
    [(2, 0, 10), (2, 10, 10), (2, 4, 4), (4, 3, 3), (1, 2, 2), (0, 7, 7)],
    ids=str,
)
def test_a_clients_passes_take_turns_with_one_optimiser_and_one_budget(tmp_path, epochs, budget, steps):
    """20 private rows in batches of 16, then 40 public ones, until epochs or steps are over."""
    options = (f"client.epochs={epochs}", f"client.max_steps={budget}", "client.batch_size=16")
    halves = Halves(tmp_path, *options, "client.lr=0.25", "client.lr_decay=0.5")
    weight, batches = nn.Parameter(torch.zeros(())), []

    def loss_of(kind: str, slope: float):
        def loss(said: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            batches.append((kind, len(said)))
            return slope * said.mean()

        return loss

    private, public = Slope(weight, 20), Slope(weight, 40)
    by_turns(halves.client(4, 3), private, private.numbers, loss_of("private", 1), public, loss_of("public", -2))
    turn = [("private", 16), ("private", 4), ("public", 16), ("public", 16), ("public", 8)]
    assert batches == (turn * 2)[:steps]
    expected = nn.Parameter(torch.zeros(()))
    adam = torch.optim.Adam([expected], lr=0.25 / 4)  # in round 3
    for kind, _ in batches:
        expected.grad = torch.tensor(1.0 if kind == "private" else -2.0)
        adam.step()
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("number", [0, 2, 4], ids=["image", "text", "both"])
def test_a_clients_round_by_hand(tmp_path, number):
    """A step on its own data, then one towards what came, row by row, and away from what it said at the start.

    What it says at the start is read in evaluation mode, and in its second round of what it remembers of the first.
    """
    halves = Halves(
        tmp_path,
        *("client.optimizer=sgd", "client.momentum=0", "client.lr=0.1", "client.batch_size=0"),
        *("strategy.contrast=0.7", "strategy.temperature=0.3", "strategy.public_per_round=40"),
        *("strategy.image_models=[cnn]", "strategy.image_sizes={cnn: {width: 2, hidden: 8, norm: batch}}"),
        "strategy.class_sharpness=7",
    )
    config, tables = halves.strategy.config, halves.tables()
    for round_ in (1, 2):
        payload, client = halves.payload(halves.said(50 + round_), round_), halves.client(number, round_)
        model = client_model(config, client)
        data, rows = client.train_data, payload.trees["index"]["rows"].long()
        data = replace(data, concepts=data.identities() // 100)  # so that some belong together
        own = {"image": client.prepare(data)[0], "text": data.tokens}
        before = {name: said[rows] for name, said in read(model, tables).items()}
        shared = {name: from_wire(sent) for name, sent in payload.trees["representations"].items()}
        if model.classes is None:
            private, targets = pair_loss(config, model, data.identities()), torch.arange(len(data))
        else:
            private, targets = class_loss(config, model.classes), data.labels
        contrast = contrast_loss(config, model, before, shared)

        def said(of: dict[str, torch.Tensor], model=model) -> torch.Tensor:
            encode = {"image": model.encode_image, "text": model.encode_text}
            return torch.stack([encode[name](of[name]) for name in model.modalities])

        loss = private(said(own), targets)
        descend(model, loss, 0.1)
        descend(model, contrast(said({name: table[rows] for name, table in tables.items()}), torch.arange(40)), 0.1)
        reply = halves.phase.local(payload, client.with_data(data))
        assert reply.numbers["loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, tensor in halves.remembered[number].trees["encoders"].items():
            torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-4, atol=1e-6)


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


def test_the_pair_loss_has_its_temperature_and_its_identities(tmp_path):
    halves = Halves(tmp_path, "strategy.pair_temperature=0.3")
    config, client = halves.strategy.config, halves.client(4)
    model, ids, index = client_model(config, client), torch.arange(PUBLIC) // 2, torch.arange(9)
    image, text = unit(9), unit(9, 1)
    own = ids[index]
    expected = pair_contrast(image, text, own[:, None] == own[None], 0.3)
    torch.testing.assert_close(pair_loss(config, model, ids)(torch.stack([image, text]), index), expected)


@pytest.mark.parametrize("kind", ["margin", "plain"])
def test_the_class_loss_and_its_sharpness(tmp_path, kind):
    halves = Halves(tmp_path, *NOISY, f"strategy.class_loss={kind}", "strategy.class_sharpness=7")
    client = halves.client(0)
    model = client_model(halves.strategy.config, client)
    z, y = unit(4), torch.tensor([0, 1, 2, 3])
    loss = class_loss(halves.strategy.config, model.classes)(z[None], y)
    plain = F.cross_entropy(class_logits(z, model.classes, 7.0), y)
    torch.testing.assert_close(loss, margin_loss(z, model.classes, y, 7.0) if kind == "margin" else plain)
    x = halves.tables()["image"][:5]
    said = halves.strategy.personal(Payload({}), client)["image"].predict(x)
    torch.testing.assert_close(said, class_logits(model.eval().encode_image(x), model.classes, 7.0))


def test_the_server_is_evaluated_in_evaluation_mode(tmp_path):
    halves = Halves(tmp_path, *NOISY)
    state, server = halves.said(), halves.session.context(1)
    predictor = halves.strategy.predictors(state, server)["model"]
    expected = read(halves.encoders(state), halves.tables())
    torch.testing.assert_close(predictor.predict(halves.tables()["image"]), expected["image"])
    torch.testing.assert_close(predictor.texts(halves.tables()["text"]), expected["text"])


@pytest.mark.parametrize("wire", ["float32", "int8"])
@pytest.mark.parametrize("ensemble", ["contrast", "mean", "variance"])
def test_replies_are_read_one_by_one_into_one_table(monkeypatch, ensemble, wire):
    """With the bits of a stack of all of them, which takes their bytes twice; above 16, a running sum has others."""
    sent = torch.stack([to_wire(unit(50, seed), wire) for seed in range(20)])
    across = unit(50, 99)
    stacked = torch.stack([from_wire(each) for each in sent])
    ways = {"contrast": lambda: aggregate(stacked, across, 0.2)[0], "variance": lambda: by_variance(stacked)[0]}
    expected = ways.get(ensemble, lambda: stacked.mean(0))()
    alive, most = [], []

    def watched(each: torch.Tensor) -> torch.Tensor:
        most.append(sum(one() is not None for one in alive))
        made = from_wire(each)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(ensembles, "from_wire", watched)
    combined = combine(Config(ensemble=ensemble, ensemble_temperature=0.2), sent, across)
    assert torch.equal(combined, expected)
    assert len(most) == 20 and max(most) == 0

"""What CreamFL's server and clients minimise, on real models and public rows, against the formulas written out."""

from __future__ import annotations

import math

import pytest
import torch

from tests.strategies.creamfl.test_creamfl_wiring import DIMENSION, MODALITIES, PUBLIC, Halves, read, unit
from umbel.core import training
from umbel.strategies.creamfl import method as creamfl
from umbel.strategies.creamfl.architectures import client_model
from umbel.strategies.creamfl.contrasts import contrast_loss

GAMMA, TAU = 0.7, 0.3
SHARP = (f"strategy.contrast={GAMMA}", f"strategy.temperature={TAU}")
OTHER = {"image": "text", "text": "image"}
INDEX = torch.tensor([3, 0, 7, 7, 29])
SERVER_STEP = ("strategy.server_batch_size=1000", "strategy.distil=0.6", "strategy.server_cosine=false")


def inter_by_hand(local: torch.Tensor, other: torch.Tensor) -> float:
    """-log exp(z_b . g_i / tau) / sum_j exp(z_b . g_j / tau), i the public sample that b is; mean over b."""
    found = []
    for z, i in zip(local.tolist(), INDEX.tolist(), strict=True):
        near = [math.exp(sum(a * b for a, b in zip(z, g, strict=True)) / TAU) for g in other.tolist()]
        found.append(-math.log(near[i] / sum(near)))
    return sum(found) / len(found)


def intra_by_hand(local: torch.Tensor, same: torch.Tensor, before: torch.Tensor) -> float:
    """-log exp(z_b . g_i / tau) / (exp(z_b . g_i / tau) + exp(z_b . zhat_i / tau)); mean over b."""
    found = []
    for z, i in zip(local.tolist(), INDEX.tolist(), strict=True):
        near, past = (
            math.exp(sum(a * b for a, b in zip(z, row, strict=True)) / TAU)
            for row in (same[i].tolist(), before[i].tolist())
        )
        found.append(-math.log(near / (near + past)))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("client", "kinds"), [(0, ("image",)), (2, ("text",)), (4, ("image", "text"))], ids=["image", "text", "both"]
)
@pytest.mark.parametrize(("inter", "intra"), [(True, True), (True, False), (False, True)])
def test_the_contrast_of_each_kind_of_client(tmp_path, client, kinds, inter, intra):
    halves = Halves(tmp_path, *SHARP, f"strategy.inter={inter}", f"strategy.intra={intra}")
    model = client_model(halves.strategy.config, halves.client(client))
    assert model.modalities == kinds
    shared = {name: unit(PUBLIC, seed) for seed, name in enumerate(MODALITIES)}
    before = {name: unit(PUBLIC, 10 + seed) for seed, name in enumerate(kinds)}
    local = {name: unit(len(INDEX), 20 + seed) for seed, name in enumerate(kinds)}
    expected = 0.0
    if inter:
        expected += sum(inter_by_hand(local[name], shared[OTHER[name]]) for name in kinds)
    if intra:
        expected += sum(intra_by_hand(local[name], shared[name], before[name]) for name in kinds) / len(kinds)
    loss = contrast_loss(halves.strategy.config, model, before, shared)
    assert float(loss(torch.stack(list(local.values())), INDEX)) == pytest.approx(GAMMA * expected, rel=1e-5)


@pytest.mark.parametrize("options", [("strategy.contrast=0",), ("strategy.inter=false", "strategy.intra=false")])
def test_without_weight_or_parts_there_is_no_contrast(tmp_path, options):
    halves = Halves(tmp_path, *options)
    model = client_model(halves.strategy.config, halves.client(4))
    assert contrast_loss(halves.strategy.config, model, {}, {}) is None


# ---- distillation --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch) -> list[training.TrainReport]:
    """The reports of what is trained from here on."""
    reports: list[training.TrainReport] = []
    train = training.train

    def watched(*arguments, **options):
        reports.append(train(*arguments, **options))
        return reports[-1]

    monkeypatch.setattr(training, "train", watched)
    return reports


@pytest.mark.parametrize("part", [0, 40])
@pytest.mark.parametrize("names", [("image", "text"), ("text",)])
def test_distillation_is_the_mean_square_over_the_rounds_rows(tmp_path, trained, monkeypatch, part, names):
    halves = Halves(tmp_path, *SERVER_STEP, f"strategy.public_per_round={part}")
    strategy, server = halves.strategy, halves.session.context(1)
    model = strategy._load(strategy.initial(halves.session.context(0)), server)
    rows = halves.payload(halves.said()).trees["index"]["rows"].long()
    assert len(rows) == (part or PUBLIC)
    own = {name: found[rows] for name, found in read(model, halves.tables()).items()}
    targets = {name: unit(len(rows), 30 + seed) for seed, name in enumerate(names)}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in MODALITIES}
    for name in MODALITIES:
        encode = getattr(model, f"encode_{name}")

        def watched(x, name=name, encode=encode):
            seen[name].append(x)
            return encode(x)

        monkeypatch.setattr(model, f"encode_{name}", watched)
    strategy._distil(model, targets, {}, server)
    for name in MODALITIES:
        assert len(seen[name]) == (name in names)  # one batch of all rows, or nothing at all
        if name == "image":
            for images in seen[name]:
                assert torch.equal(which(images, halves.tables()[name]).sort().values, rows)
        elif seen[name]:
            # Captions of a vocabulary of 80 may be the same; the sorted ones are compared as they are.
            assert sorted(seen[name][0].tolist()) == sorted(halves.tables()[name][rows].tolist())
    squares = {name: (own[name] - targets[name]).square().sum() / (len(rows) * DIMENSION) for name in names}
    assert trained[-1].num_steps == 1
    assert trained[-1].loss == pytest.approx(0.6 * float(sum(squares.values())), rel=1e-5)


def which(images: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the row of each image in a table of images that are all different."""
    same = (images[:, None] == table[None]).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    return same.int().argmax(1)


def test_a_row_is_distilled_towards_its_own_ensemble(tmp_path):
    """Where the ensemble of the round's rows is what the server says of them, nothing moves; in another order it does.

    Batches are small and shuffled: a target is found by the number of its row.
    """
    options = ("strategy.public_per_round=40", "strategy.server_optimizer=sgd", "strategy.server_lr=1.0")
    halves = Halves(tmp_path, *options, "strategy.server_batch_size=16")
    strategy, server = halves.strategy, halves.session.context(1)
    start = strategy.initial(halves.session.context(0))
    model = strategy._load(start, server)
    rows = halves.payload(halves.said()).trees["index"]["rows"].long()
    own = {name: found[rows] for name, found in read(model, halves.tables()).items()}
    strategy._distil(model, own, {}, server)
    for name, tensor in model.state_dict().items():
        # Rounding alone: batches of another size are multiplied in another order, more so on some processors.
        torch.testing.assert_close(tensor, start.model[name], rtol=0, atol=1e-5)
    strategy._distil(model, {name: found.flip(0) for name, found in own.items()}, {}, server)
    moved = [name for name, tensor in model.state_dict().items() if not torch.allclose(tensor, start.model[name])]
    assert any(name.startswith("image") for name in moved) and any(name.startswith("text") for name in moved)


def test_what_a_client_trains_on_is_its_own_row(tmp_path, monkeypatch):
    """In training, row i of the round is compared with row i of what came and of what the client said before."""
    halves = Halves(tmp_path, "strategy.public_per_round=40", "client.lr=1e-12", "client.batch_size=16")
    made, seen = contrast_loss, []

    def watched(config, model, before, shared):
        inner = made(config, model, before, shared)

        def loss(found_MBD, index_B):
            seen.append((found_MBD.detach(), index_B, before))
            return inner(found_MBD, index_B)

        return loss

    monkeypatch.setattr(creamfl, "contrast_loss", watched)
    halves.phase.local(halves.payload(halves.said()), halves.client(4))
    assert seen
    for found_MBD, index_B, before in seen:
        for name, found in zip(MODALITIES, found_MBD, strict=True):
            torch.testing.assert_close(found, before[name][index_B])
    assert sorted(torch.cat([index for _, index, _ in seen]).unique().tolist()) == list(range(40))

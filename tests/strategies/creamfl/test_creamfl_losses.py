"""What CreamFL's server and clients minimise, on real models and public rows, against the formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.strategies.creamfl.halves import MODALITIES, Halves, unit
from tests.strategies.creamfl.pairs import PUBLIC
from umbel.models.pair import Encoders, class_logits, margin_loss, pair_contrast, soft_contrast
from umbel.strategies.creamfl.architectures import client_model, server_model
from umbel.strategies.creamfl.contrasts import contrast_loss, pair_loss

GAMMA, TAU = 0.7, 0.3
SHARP = (f"strategy.contrast={GAMMA}", f"strategy.temperature={TAU}")
OTHER = {"image": "text", "text": "image"}
INDEX = torch.tensor([3, 0, 7, 7, 29])


def test_soft_contrast_is_the_likelihood_of_all_pairs():
    distance = torch.tensor([[0.5, 1.0], [2.0, 0.0]], dtype=torch.float64)
    value = soft_contrast(distance, torch.eye(2, dtype=torch.bool), torch.tensor(3.0), torch.tensor(2.0))
    logits = [2 * (2 - 3 * d) for d in (0.5, 1.0, 2.0, 0.0)]
    p = [1 / (1 + math.exp(-x)) for x in logits]
    assert float(value) == pytest.approx(
        -(math.log(p[0]) + math.log(1 - p[1]) + math.log(1 - p[2]) + math.log(p[3])) / 2
    )


def test_pair_contrast_shares_between_partners():
    image = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64), dim=1)
    text = F.normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), dim=1)
    logits = (image @ text.T / 0.5).tolist()
    rows = [[x - math.log(sum(map(math.exp, row))) for x in row] for row in logits]
    columns = [[x - math.log(sum(map(math.exp, column))) for x in column] for column in zip(*logits, strict=True)]
    alone = pair_contrast(image, text, torch.eye(2, dtype=torch.bool), 0.5)
    assert float(alone) == pytest.approx(-(rows[0][0] + rows[1][1] + columns[0][0] + columns[1][1]) / 4)
    shared = pair_contrast(image, text, torch.ones(2, 2, dtype=torch.bool), 0.5)
    assert float(shared) == pytest.approx(-(sum(map(sum, rows)) + sum(map(sum, columns))) / 8)


def test_margin_loss_subtracts_four_from_the_true_class_and_keeps_centres_apart():
    unit = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([[0.05, 0.3], [-1.0, 0.2]], dtype=torch.float64)
    logits = [128 * 0.05 - 4, 0.0]  # the negative weight counts as 0
    own = -logits[0] + math.log(math.exp(logits[0]) + 1)
    gram = [[0.05**2 + 0.09, 0.06], [0.06, 0.04]]
    centre = sum(-row[i] + math.log(sum(map(math.exp, row))) for i, row in enumerate(gram)) / 2
    assert float(margin_loss(unit, weight, torch.tensor([0]))) == pytest.approx(own + centre / 2)
    assert class_logits(unit, weight).tolist() == [[pytest.approx(6.4), 0.0]]


def test_losses_are_not_rounded_under_autocast(tmp_path):
    halves = Halves(tmp_path, "client.precision=bf16")
    model = server_model(halves.strategy.config, halves.session.context(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = pair_loss(halves.strategy.config, model, torch.arange(PUBLIC))
        value = loss(torch.stack([unit(9), unit(9, 1)]), torch.arange(9))
        image = model.encode_image(torch.rand(2, 1, 8, 8))
    assert value.dtype == torch.float32
    torch.testing.assert_close(torch.linalg.norm(image, dim=1), torch.ones(2), rtol=0, atol=1e-6)


def test_encoders_need_a_modality():
    with pytest.raises(ValueError, match="found neither"):
        Encoders(None, None, 4)


def inter_by_hand(local: torch.Tensor, other: torch.Tensor) -> float:
    """-log exp(z_b . g_i / tau) / sum_j exp(z_b . g_j / tau), i the public sample that b is; mean over b."""
    losses = []
    for z, i in zip(local.tolist(), INDEX.tolist(), strict=True):
        near = [math.exp(sum(a * b for a, b in zip(z, g, strict=True)) / TAU) for g in other.tolist()]
        losses.append(-math.log(near[i] / sum(near)))
    return sum(losses) / len(losses)


def intra_by_hand(local: torch.Tensor, same: torch.Tensor, before: torch.Tensor) -> float:
    """-log exp(z_b . g_i / tau) / (exp(z_b . g_i / tau) + exp(z_b . zhat_i / tau)); mean over b."""
    losses = []
    for z, i in zip(local.tolist(), INDEX.tolist(), strict=True):
        near, past = (
            math.exp(sum(a * b for a, b in zip(z, row, strict=True)) / TAU)
            for row in (same[i].tolist(), before[i].tolist())
        )
        losses.append(-math.log(near / (near + past)))
    return sum(losses) / len(losses)


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

"""FedETF: the frame, the loss by hand, what a client sends, and that the saved head predicts alike."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from tests.contexts import client_context
from tests.helpers import small_run
from umbel.core.records import Payload
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.base import Model
from umbel.models.weights import shared_state
from umbel.strategies.long_tail.fedetf import Config, FedETF, Framed, frame

IMAGES = torch.rand(6, 1, 3, 3, generator=generator(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 3, 0, 0, 3])
COUNTS = torch.tensor([3, 1, 0, 2])


def model_of(seed: int) -> Model:
    return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), seed, torch.float64)


@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_the_frame_is_a_simplex(num_classes):
    """V^T V = C / (C - 1) (I - 1 1^T / C): ones, and cosines of -1 / (C - 1)."""
    v = frame(num_classes)
    expected = torch.full((num_classes, num_classes), -1 / (num_classes - 1), dtype=torch.float64)
    expected.fill_diagonal_(1.0)
    torch.testing.assert_close(v.T @ v, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(v.sum(1), torch.zeros(num_classes, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_round_by_hand():
    local = LocalConfig(epochs=2, batch_size=0, lr=0.5, device="cpu", precision="fp64")
    client = client_context(Examples(IMAGES, LABELS), 4, model_of(7), local=local)
    beta = torch.tensor(4.0, dtype=torch.float64)
    payload = Payload({"model": shared_state(model_of(0)), "scale": {"scale": beta}})
    reply = FedETF(Config()).local(payload, client)
    ours, scale, losses = model_of(0), beta.clone().requires_grad_(True), []
    for _ in range(2):
        z = ours(IMAGES)
        # v_c^T z / |z| = sqrt(C / (C - 1)) (z_c - mean z) / |z|
        s = scale * math.sqrt(4 / 3) * (z - z.mean(1, keepdim=True)) / z.norm(dim=1, keepdim=True)
        weighed = torch.exp(s) * COUNTS
        loss = -(weighed[range(6), LABELS] / weighed.sum(1)).log().mean()
        losses.append(loss.item())
        parameters = [*ours.parameters(), scale]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= 0.5 * gradient
    start = shared_state(model_of(0))
    for name, tensor in shared_state(ours).items():
        torch.testing.assert_close(start[name] + reply.trees["delta"][name], tensor, rtol=0, atol=1e-12)
    assert reply.trees["scale"]["scale"].item() == pytest.approx(scale.item() - 4.0, abs=1e-12)
    assert reply.numbers["loss"] == pytest.approx(sum(losses) / 2, rel=1e-12)


def test_the_models_own_head_predicts_alike():
    framed = Framed(model_of(0), torch.tensor(3.0)).eval()
    s, z = framed(IMAGES), framed.model(IMAGES)
    assert torch.equal(s.argsort(1), z.argsort(1))
    assert (s / 3).abs().max() <= 1.0  # cosines


def test_a_run_learns_its_scale_and_saves_a_model_like_any_other(tmp_path):
    result = small_run(tmp_path, "strategy.name=fedetf", "run.rounds=6", "client.lr=0.1", "client.epochs=4")
    scales = result.metrics.query("metric == 'scale'").value.tolist()
    assert len(scales) == 6 and scales[0] != scales[-1]
    metrics = result.metrics.query("side == 'server' and split == 'test' and metric == 'accuracy'").value.tolist()
    assert metrics[-1] > 0.3 > 0.1  # chance
    average = small_run(tmp_path / "a", "strategy.name=fedavg")
    assert load_file(result.path / "model.safetensors").keys() == load_file(average.path / "model.safetensors").keys()


@pytest.mark.parametrize(
    "override", ["client.label_smoothing=0.1", "client.class_weights=balanced", "evaluate.collapse=true"]
)
def test_what_has_no_part_in_it_is_refused(tmp_path, override):
    with pytest.raises(Refusal) as refused:
        small_run(tmp_path, "strategy.name=fedetf", override)
    assert refused.value.key == override.partition("=")[0]

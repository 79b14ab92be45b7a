"""MOON: the contrast by hand, what is contrasted with what, and what it is without."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contexts import client_context
from tests.helpers import bits, small_run
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig
from umbel.core.tree import subtract
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.base import Model
from umbel.models.weights import shared_state
from umbel.strategies.moon import MOON, Config, contrast
from umbel.strategies.steps import frozen

NOISY = ("model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}")
IMAGES = torch.rand(6, 1, 3, 3, generator=generator(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 3, 0, 2, 3])


def model_of(seed: int) -> Model:
    return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), seed, torch.float64)


def reply_of(config: Config, memory: MemoryRecord | None) -> tuple[Reply, MemoryRecord]:
    """One client's round from the model of seed 0: two steps of lr 1/2 on all that it has."""
    kept: list[MemoryRecord] = []
    local = LocalConfig(epochs=2, batch_size=0, lr=0.5, device="cpu", precision="fp64")
    client = client_context(Examples(IMAGES, LABELS), 4, model_of(7), local=local, memory=memory, remember=kept.append)
    reply = MOON(config).local(Payload({"model": shared_state(model_of(0))}), client)
    return reply, kept[-1]


def test_the_contrast_by_hand():
    # Cosines 1 and 0 at tau = 1/2: -log(e^2 / (e^2 + e^0)).
    along, across = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    first = math.log(1 + math.exp(-2))
    assert contrast(along, 5 * along, across, 0.5).item() == pytest.approx(first, rel=1e-6)
    # Cosines 24/25 and -1 at tau = 1/2; the mean of both.
    z, near = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    second = math.log(1 + math.exp((-1 - 0.96) / 0.5))
    both = contrast(torch.cat([along, z]), torch.cat([along, near]), torch.cat([across, -z]), 0.5)
    assert both.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert contrast(z, near, near, 0.1).item() == pytest.approx(math.log(2), rel=1e-6)  # nothing to tell apart


def test_what_is_contrasted_is_the_model_that_came_and_the_one_of_last_time():
    config = Config(mu=2.0, temperature=0.25)
    reply, remembered = reply_of(config, MemoryRecord({"model": shared_state(model_of(1))}))
    ours, common, previous = model_of(0), model_of(0), model_of(1)
    losses = []
    for _ in range(2):
        z = ours.features(IMAGES)
        near, away = (
            torch.exp(F.cosine_similarity(z, other.features(IMAGES).detach()) / 0.25) for other in (common, previous)
        )
        loss = F.cross_entropy(ours.head(z), LABELS) - 2.0 * torch.log(near / (near + away)).mean()
        losses.append(loss.item())
        for parameter, gradient in zip(
            ours.parameters(), torch.autograd.grad(loss, list(ours.parameters())), strict=True
        ):
            parameter.data -= 0.5 * gradient
    expected = subtract(shared_state(ours), shared_state(common))
    for name, change in expected.items():
        torch.testing.assert_close(reply.trees["delta"][name], change, rtol=0, atol=1e-12)
    assert reply.numbers["loss"] == pytest.approx(sum(losses) / 2, rel=1e-12)
    for name, weight in shared_state(ours).items():
        torch.testing.assert_close(remembered.trees["model"][name], weight, rtol=0, atol=1e-12)


def test_a_client_without_a_previous_model_trains_as_in_fedavg():
    first, _ = reply_of(Config(mu=5.0), None)
    plain, _ = reply_of(Config(mu=0.0), MemoryRecord({"model": shared_state(model_of(1))}))
    assert all(torch.equal(change, plain.trees["delta"][name]) for name, change in first.trees["delta"].items())


def test_mu_0_is_fedavg_bit_for_bit(tmp_path):
    """With dropout, which shows that the models that do not learn draw nothing."""
    names = ("fedavg", "moon(mu=0)", "moon(mu=1)")
    options = (("strategy.name=fedavg",), ("strategy.name=moon", "strategy.mu=0"), ("strategy.name=moon",))
    average, without, with_it = (
        bits(small_run(tmp_path / name, *NOISY, *option)) for name, option in zip(names, options, strict=True)
    )
    assert without == average != with_it


def test_a_frozen_copy_computes_with_weights_of_its_own():
    """Also where the model's `features` were compiled, as `client.compile=model` does: they belong to the model."""
    model, other = model_of(0), model_of(1)
    own = model.features

    def compiled(x: Tensor) -> Tensor:
        return own(x)

    model.features = compiled  # type: ignore[method-assign]
    still = frozen(model.train(), shared_state(other))
    assert torch.equal(still(IMAGES), other.eval()(IMAGES)) and not torch.equal(still(IMAGES), model(IMAGES))
    assert not still.training and not any(parameter.requires_grad for parameter in still.parameters())
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())

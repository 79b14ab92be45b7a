"""Ditto: the personal step by hand, its two limits, and the global model that knows nothing of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.contexts import client_context
from tests.helpers import bits, small_run
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig
from umbel.core.tree import Tree
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.base import Model
from umbel.models.weights import shared_state
from umbel.strategies.ditto import Config, Ditto

IMAGES = torch.rand(6, 1, 3, 3, generator=generator(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 3, 0, 2, 3])


def model_of(seed: int) -> Model:
    return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), seed, torch.float64)


def one_round(pull: float, memory: MemoryRecord | None, steps: int = 2, lr: float = 0.5) -> tuple[Reply, Tree]:
    """One client's round from the model of seed 0, on all that it has in each step: its reply, and v after it."""
    kept: list[MemoryRecord] = []
    local = LocalConfig(epochs=steps, batch_size=0, lr=lr, device="cpu", precision="fp64")
    client = client_context(Examples(IMAGES, LABELS), 4, model_of(7), local=local, memory=memory, remember=kept.append)
    reply = Ditto(Config(pull=pull)).local(Payload({"model": shared_state(model_of(0))}), client)
    return reply, kept[-1].trees["model"]


def descend(model: Model, pull: float = 0.0, steps: int = 2, lr: float = 0.5) -> Tree:
    """v <- v - lr (grad F(v) + pull (v - w)), w the model of seed 0."""
    anchors = list(model_of(0).parameters())
    for _ in range(steps):
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(F.cross_entropy(model(IMAGES), LABELS), parameters)
        for parameter, gradient, anchor in zip(parameters, gradients, anchors, strict=True):
            parameter.data -= lr * (gradient + pull * (parameter.data - anchor.data))
    return shared_state(model)


def check(found: Tree, expected: Tree, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance)


def test_both_models_by_hand():
    before = shared_state(model_of(1))
    reply, after = one_round(0.75, MemoryRecord({"model": before}))
    check(after, descend(model_of(1), 0.75))
    start = shared_state(model_of(0))
    check({name: start[name] + change for name, change in reply.trees["delta"].items()}, descend(model_of(0)))
    check(shared_state(model_of(1)), before)  # what it remembered is as it was


def test_a_personal_model_begins_as_the_one_that_came():
    _, after = one_round(0.75, None)
    check(after, descend(model_of(0), 0.75))


def test_without_a_pull_it_is_trained_at_home_and_with_a_strong_one_it_is_the_global_model():
    _, alone = one_round(0.0, MemoryRecord({"model": shared_state(model_of(1))}))
    check(alone, descend(model_of(1)))
    # v* of F + lambda/2 |v - w|^2 is within |grad F| / lambda of w; steps of 1/lambda get there at once.
    pull = 1e6
    _, tied = one_round(pull, MemoryRecord({"model": shared_state(model_of(1))}), steps=3, lr=1 / pull)
    check(tied, shared_state(model_of(0)), 1e-5)


def test_the_global_model_is_fedavgs_bit_for_bit(tmp_path):
    average, ditto = (small_run(tmp_path / name, f"strategy.name={name}") for name in ("fedavg", "ditto"))
    assert bits(average) == bits(ditto)
    assert ditto.summary["spent"]["clients"]["steps"] == 2 * average.summary["spent"]["clients"]["steps"]


def test_without_a_pull_clients_are_as_good_as_alone(tmp_path):
    """To the last digit: both pass over the same batches with the same noise."""
    options = ("evaluate.clients=-1", "data.client_test=0.3", "model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}")
    home = small_run(tmp_path / "home", "strategy={name: umbel.strategies.local:Local}", *options)
    ditto = small_run(tmp_path / "ditto", "strategy.name=ditto", "strategy.pull=0", *options)
    drawn = small_run(tmp_path / "drawn", "strategy.name=ditto", *options)
    losses = [run.summary["metrics"]["clients/test/loss_mean"] for run in (home, ditto, drawn)]
    assert losses[0] == losses[1] != losses[2]


def test_one_batch_norm_for_two_models_is_refused(tmp_path):
    with pytest.raises(Refusal) as refused:
        small_run(tmp_path, "strategy.name=ditto", "model.name=mlp", "model.sizes={hidden: 8}", "model.norm=local")
    assert refused.value.key == "model.norm"

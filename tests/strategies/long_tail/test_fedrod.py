"""FedRoD: the balanced loss by hand, what each part learns from, and what stays with a client."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

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
from umbel.strategies.base import ClientContext
from umbel.strategies.long_tail.fedrod import BothHeads, Config, FedRoD, balanced_softmax, personal_head

IMAGES = torch.rand(6, 1, 3, 3, generator=generator(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 3, 0, 0, 3])  # three of class 0, one of 1, none of 2, two of 3
COUNTS = torch.tensor([3, 1, 0, 2])


def model_of(seed: int) -> Model:
    return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), seed, torch.float64)


def client_of(memory: MemoryRecord | None, kept: list[MemoryRecord]) -> ClientContext:
    local = LocalConfig(epochs=2, batch_size=0, lr=0.5, device="cpu", precision="fp64")
    return client_context(Examples(IMAGES, LABELS), 4, model_of(7), local=local, memory=memory, remember=kept.append)


def one_round(gamma: float, memory: MemoryRecord | None) -> tuple[Reply, Tree]:
    kept: list[MemoryRecord] = []
    reply = FedRoD(Config(gamma=gamma)).local(Payload({"model": shared_state(model_of(0))}), client_of(memory, kept))
    return reply, kept[-1].trees["head"]


def test_the_balanced_loss_by_hand():
    """Logits log 1, log 2, log 3 and counts 3, 1, 2: the softmax is of 3, 2, 6 out of 11."""
    logits = torch.tensor([[1.0, 2.0, 3.0]]).log()
    counts = torch.tensor([3, 1, 2])
    for label, share in ((0, 3 / 11), (1, 2 / 11), (2, 6 / 11)):
        loss = balanced_softmax(logits, torch.tensor([label]), counts)
        assert loss.item() == pytest.approx(-math.log(share), rel=1e-6)
    # gamma = 1/2: sqrt 3, 2, 3 sqrt 2.
    half = balanced_softmax(logits, torch.tensor([1]), counts, 0.5)
    assert half.item() == pytest.approx(-math.log(2 / (3**0.5 + 2 + 3 * 2**0.5)), rel=1e-6)
    assert balanced_softmax(logits, torch.tensor([0]), counts, 0.0).item() == pytest.approx(math.log(6), rel=1e-6)
    # A class without examples is not there.
    assert balanced_softmax(logits, torch.tensor([0]), torch.tensor([3, 1, 0])).item() == pytest.approx(math.log(5 / 3))
    # Equal counts change nothing.
    assert torch.equal(
        balanced_softmax(logits, torch.tensor([0]), torch.ones(3)), F.cross_entropy(logits, torch.tensor([0]))
    )


def test_the_loss_of_a_lacking_class_has_gradients():
    logits = torch.zeros(2, 3, requires_grad=True)
    balanced_softmax(logits, torch.tensor([0, 1]), torch.tensor([2, 2, 0])).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and not logits.grad[:, 2].any()


def test_both_parts_by_hand():
    head = {"weight": torch.full((4, 5), 0.1, dtype=torch.float64), "bias": torch.arange(4.0, dtype=torch.float64)}
    reply, after = one_round(1.0, MemoryRecord({"head": head}))
    ours, weight, bias = model_of(0), head["weight"].clone(), head["bias"].clone()
    losses = []
    for _ in range(2):
        f = ours.features(IMAGES)
        generic = ours.head(f)
        shifted = torch.exp(generic) * COUNTS
        balanced = -(shifted[range(6), LABELS] / shifted.sum(1)).log().mean()
        weight.requires_grad_(True)
        bias.requires_grad_(True)
        personal = F.cross_entropy(generic.detach() + f.detach() @ weight.T + bias, LABELS)
        losses.append((balanced + personal).item())
        parameters = list(ours.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(balanced, parameters), strict=True):
            parameter.data -= 0.5 * gradient
        to_weight, to_bias = torch.autograd.grad(personal, [weight, bias])
        weight, bias = weight.detach() - 0.5 * to_weight, bias.detach() - 0.5 * to_bias
    start = shared_state(model_of(0))
    for name, tensor in shared_state(ours).items():
        torch.testing.assert_close(start[name] + reply.trees["delta"][name], tensor, rtol=0, atol=1e-12)
    torch.testing.assert_close(after["weight"], weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(after["bias"], bias, rtol=0, atol=1e-12)
    assert reply.numbers["loss"] == pytest.approx(sum(losses) / 2, rel=1e-12)


def test_a_client_begins_with_the_generic_predictions():
    client = client_of(None, [])
    model = model_of(0).eval()
    both = BothHeads(model, personal_head(model, client))
    generic, personal = both(IMAGES)
    assert torch.equal(generic, personal) and torch.equal(generic, model(IMAGES))


def test_without_counts_the_common_model_is_fedavgs_bit_for_bit(tmp_path):
    """With dropout: the personal head draws nothing."""
    noisy = ("model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}")
    average = small_run(tmp_path / "a", "strategy.name=fedavg", *noisy)
    without = small_run(tmp_path / "b", "strategy.name=fedrod", "strategy.gamma=0", *noisy)
    balanced = small_run(tmp_path / "c", "strategy.name=fedrod", *noisy)
    assert bits(average) == bits(without) != bits(balanced)


def test_the_head_stays_and_serves_its_client(tmp_path):
    result = small_run(tmp_path, "strategy.name=fedrod", "evaluate.clients=-1", "data.client_test=0.3")
    metrics = result.summary["metrics"]
    assert {"clients/test/accuracy_mean", "clients/test/generic/accuracy_mean"} < metrics.keys()
    kept = load_file(next((result.path / "memory").rglob("*.safetensors")))
    assert len(kept) == 2 and all("head" in name for name in kept) and all(tensor.any() for tensor in kept.values())
    assert not any("personal" in name for name in load_file(result.path / "model.safetensors"))


@pytest.mark.parametrize(
    "override", ["client.label_smoothing=0.1", "client.class_weights=balanced", "client.clip_norm=1.0"]
)
def test_other_losses_are_refused(tmp_path, override):
    with pytest.raises(Refusal) as refused:
        small_run(tmp_path, "strategy.name=fedrod", override)
    assert refused.value.key == override.partition("=")[0]


def test_the_personal_predictor_is_the_sum_of_both(tmp_path):
    head = {"weight": torch.full((4, 5), 0.1, dtype=torch.float64), "bias": torch.arange(4.0, dtype=torch.float64)}
    client = replace(client_of(MemoryRecord({"head": head}), []), num_classes=4)
    predictors = FedRoD(Config()).personal(Payload({"model": shared_state(model_of(0))}), client)
    model = model_of(0).eval()
    expected = model(IMAGES) + model.features(IMAGES) @ head["weight"].T + head["bias"]
    with torch.no_grad():
        torch.testing.assert_close(predictors["model"].predict(IMAGES), expected, rtol=0, atol=1e-12)
        assert torch.equal(predictors["generic"].predict(IMAGES), model(IMAGES))

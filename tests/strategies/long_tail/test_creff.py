"""CReFF: gradients against autograd, features that come to match, a classifier re-trained by hand, what travels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contexts import client_context
from tests.helpers import small_run
from umbel.core.records import Payload
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded, generator
from umbel.core.spent import counted
from umbel.core.training import LocalConfig
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.base import Model
from umbel.models.weights import shared_state
from umbel.strategies.long_tail.creff import Config, CReFF, class_gradients, distance, gradients_of, match, retrain

LONG = ("data.partition=long_tail", "data.imbalance=5", "data.max_train=600")


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def model_of(seed: int) -> Model:
    return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), seed, torch.float64)


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradients_of_classes_are_those_of_autograd(with_bias):
    features, weight, labels = drawn(7, 5), drawn(4, 5, seed=2), torch.tensor([0, 1, 3, 0, 0, 3, 1])
    bias = drawn(4, seed=3) if with_bias else None
    found = class_gradients(features, labels, weight, bias)
    for label in range(4):
        if not (labels == label).any():
            assert not found[label].any()
            continue
        leaf = weight.clone().requires_grad_(True)
        inputs = features[labels == label]
        loss = F.cross_entropy(F.linear(inputs, leaf, bias), torch.full((len(inputs),), label))
        torch.testing.assert_close(found[label], torch.autograd.grad(loss, leaf)[0], rtol=0, atol=1e-12)
    # Equally many of each class: the same function of features by class.
    by_class = drawn(4, 3, 5, seed=4)
    expected = class_gradients(by_class.flatten(0, 1), torch.arange(4).repeat_interleave(3), weight, bias)
    torch.testing.assert_close(gradients_of(by_class, weight, bias), expected, rtol=0, atol=1e-12)


def test_the_distance_is_of_angles_alone():
    ours = drawn(2, 3, 4)
    assert distance(ours, 7 * ours).abs().max() < 1e-12  # longer is as near
    torch.testing.assert_close(distance(ours, -ours), torch.full((2,), 6.0, dtype=torch.float64), rtol=0, atol=1e-12)


def test_features_come_to_have_the_gradients_and_those_of_other_classes_stay():
    weight, features = drawn(3, 6), drawn(3, 4, 6, seed=2)
    targets = gradients_of(drawn(3, 9, 6, seed=5), weight, None)
    has = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    before = distance(gradients_of(features, weight, None), targets)
    after = match(features, targets, has, weight, None, 400, 0.5)
    moved = distance(gradients_of(after, weight, None), targets)
    assert (moved[[0, 2]] < 0.05 * before[[0, 2]]).all()
    assert torch.equal(after[1], features[1])
    assert torch.equal(match(features, targets, has, weight, None, 0, 0.5), features)


def test_the_classifier_takes_steps_on_the_classes_that_were_seen():
    features, weight, bias = drawn(3, 2, 4), drawn(3, 4, seed=2), drawn(3, seed=3)
    with counted() as spent:
        found = retrain({"head.weight": weight, "head.bias": bias}, features, torch.tensor([1, 0, 1]), 2, 0.3)
    assert (spent.steps, spent.examples) == (2, 8)
    inputs, labels = features[[0, 2]].flatten(0, 1), torch.tensor([0, 0, 2, 2])
    w, b = weight, bias
    for _ in range(2):
        errors = (inputs @ w.T + b).softmax(1) - F.one_hot(labels, 3)
        w, b = w - 0.3 * errors.T @ inputs / 4, b - 0.3 * errors.mean(0)
    torch.testing.assert_close(found["head.weight"], w, rtol=0, atol=1e-12)
    torch.testing.assert_close(found["head.bias"], b, rtol=0, atol=1e-12)
    nobody = retrain({"head.weight": weight}, features, torch.zeros(3), 5, 0.3)
    assert torch.equal(nobody["head.weight"], weight)


def test_a_client_measures_before_it_trains():
    images, labels = (
        torch.rand(6, 1, 3, 3, generator=generator(1), dtype=torch.float64),
        torch.tensor([0, 1, 3, 0, 0, 3]),
    )
    local = LocalConfig(epochs=1, batch_size=0, lr=0.5, device="cpu", precision="fp64")
    client = client_context(Examples(images, labels), 4, model_of(7), local=local)
    classifier = {"head.weight": drawn(4, 5), "head.bias": drawn(4, seed=2)}
    reply = CReFF(Config()).local(Payload({"model": shared_state(model_of(0)), "classifier": classifier}), client)
    model = model_of(0).eval()
    with torch.no_grad():
        expected = class_gradients(model.features(images), labels, classifier["head.weight"], classifier["head.bias"])
    torch.testing.assert_close(reply.trees["gradients"]["weight"], expected, rtol=0, atol=1e-12)
    assert reply.trees["gradients"]["has"].tolist() == [1.0, 1.0, 0.0, 1.0]
    assert all(tensor.any() for tensor in reply.trees["delta"].values())


def test_a_run_predicts_with_the_retrained_classifier(tmp_path):
    """What is aggregated beside it is FedAvg's model, whatever the server does with its features."""
    few = ("strategy.num_features=5", "strategy.match_steps=5", "strategy.retrain_steps=20", "strategy.retrain_lr=0.1")
    average = small_run(tmp_path / "average", "strategy.name=fedavg", *LONG)
    creff = small_run(tmp_path / "creff", "strategy.name=creff", *few, *LONG)
    metrics = creff.summary["metrics"]
    assert metrics["test/aggregated/accuracy"] == average.summary["metrics"]["test/accuracy"]
    assert metrics["test/aggregated/loss"] == average.summary["metrics"]["test/loss"] != metrics["test/loss"]
    assert creff.summary["spent"]["server"]["steps"] == 2 * 20
    assert creff.summary["weights_sha256"] != average.summary["weights_sha256"]


def test_heads_of_tasks_are_refused(tmp_path):
    tasks = ("data.partition=split_tasks", "data.num_tasks=2", "data.heads=per_task")
    with pytest.raises(Refusal) as refused:
        small_run(tmp_path, "strategy.name=creff", *tasks)
    assert refused.value.key == "data.heads"

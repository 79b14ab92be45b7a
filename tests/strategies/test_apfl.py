"""APFL: the gradient of alpha, both models by hand, and its limits: the global model's, and training at home."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.contexts import client_context
from tests.helpers import bits, small_run
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig, num_processed
from umbel.core.tree import Tree
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.base import Model
from umbel.models.weights import load_state, shared_state
from umbel.strategies.apfl import APFL, Config, alpha_gradient, mixture
from umbel.strategies.base import ClientContext

IMAGES = torch.rand(6, 1, 3, 3, generator=generator(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 3, 0, 2, 3])
EVERYWHERE = ("evaluate.clients=-1", "data.client_test=0.3")


def model_of(seed: int) -> Model:
    return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), seed, torch.float64)


def client_of(memory: MemoryRecord | None, kept: list[MemoryRecord], lr: float = 0.5) -> ClientContext:
    local = LocalConfig(epochs=2, batch_size=0, lr=lr, device="cpu", precision="fp64")
    client = client_context(Examples(IMAGES, LABELS), 4, model_of(7), local=local, memory=memory)
    return replace(client, remember=kept.append)


def one_round(config: Config, memory: MemoryRecord | None) -> tuple[Reply, MemoryRecord]:
    """One client's round from the model of seed 0: two steps of lr 1/2 on all that it has."""
    kept: list[MemoryRecord] = []
    reply = APFL(config).local(Payload({"model": shared_state(model_of(0))}), client_of(memory, kept))
    return reply, kept[-1]


def loss_of(tree: Tree) -> torch.Tensor:
    model = model_of(0)
    load_state(model, tree)
    return F.cross_entropy(model(IMAGES), LABELS)


def check(found: Tree, expected: Tree) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12)


def test_a_mixture_is_exact_at_both_ends():
    v, w = {"a": torch.tensor([0.1, 3.0])}, {"a": torch.tensor([0.7, -1.0])}
    assert torch.equal(mixture(v, w, 1.0)["a"], v["a"]) and torch.equal(mixture(v, w, 0.0)["a"], w["a"])
    assert mixture(v, w, 0.25)["a"][1].item() == 0.0  # 3/4 - 3/4


def test_the_gradient_of_alpha_is_that_of_the_loss_along_the_way_from_the_global_model_to_the_local_one():
    """By differences of the loss itself: (f(alpha + h) - f(alpha - h)) / 2h."""
    v, w, alpha, h = shared_state(model_of(1)), shared_state(model_of(0)), 0.3, 1e-5
    at = model_of(0)
    load_state(at, mixture(v, w, alpha))
    names = [name for name, _ in at.named_parameters()]
    gradients = torch.autograd.grad(F.cross_entropy(at(IMAGES), LABELS), list(at.parameters()))
    found = alpha_gradient(v, w, dict(zip(names, gradients, strict=True)))
    sides = [loss_of(mixture(v, w, alpha + side)).item() for side in (h, -h)]
    assert found == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-7) and abs(found) > 1e-3
    # As a client takes it, and steps by it with its learning rate.
    strategy, client = APFL(Config()), client_of(None, [])
    assert strategy.moved(v, w, alpha, client) == pytest.approx(alpha - 0.5 * found, rel=1e-12)
    assert strategy.moved(w, w, alpha, client) == alpha  # one and the same: alpha makes no difference


@pytest.mark.parametrize("lr", [1e4, -1e4])
def test_alpha_stays_a_share(lr):
    v, w, client = shared_state(model_of(1)), shared_state(model_of(0)), client_of(None, [])
    client = replace(client, local=replace(client.local, lr=lr))
    assert APFL(Config()).moved(v, w, 0.5, client) in (0.0, 1.0)


def test_both_models_by_hand():
    before, alpha = shared_state(model_of(1)), 0.25
    reply, after = one_round(Config(adaptive=False), MemoryRecord({"model": before}, {"alpha": alpha}))
    w, v = model_of(0), model_of(1)
    losses = []
    for _ in range(2):
        own, common = list(v.parameters()), list(w.parameters())
        mixed = model_of(0)
        load_state(mixed, mixture(shared_state(v), shared_state(w), alpha))
        at_w, at_mixed = F.cross_entropy(w(IMAGES), LABELS), F.cross_entropy(mixed(IMAGES), LABELS)
        losses.append((at_w + at_mixed).item())
        for_w = torch.autograd.grad(at_w, common)
        for_v = torch.autograd.grad(at_mixed, list(mixed.parameters()))
        for parameter, gradient in zip(common, for_w, strict=True):
            parameter.data -= 0.5 * gradient
        for parameter, gradient in zip(own, for_v, strict=True):
            parameter.data -= 0.5 * alpha * gradient
    check(after.trees["model"], shared_state(v))
    start = shared_state(model_of(0))
    check({name: start[name] + change for name, change in reply.trees["delta"].items()}, shared_state(w))
    assert after.numbers == {"alpha": alpha} and reply.numbers["loss"] == pytest.approx(sum(losses) / 2, rel=1e-12)
    check(before, shared_state(model_of(1)))  # what it remembered is as it was


def test_a_client_begins_at_the_model_that_comes_and_mixes_from_then_on():
    _, first = one_round(Config(alpha=0.75), None)
    assert first.numbers["alpha"] == 0.75  # v is w: nothing to gain
    _, second = one_round(Config(alpha=0.1), first)
    assert 0 <= second.numbers["alpha"] <= 1 and second.numbers["alpha"] != 0.75


def test_the_global_model_is_fedavgs_bit_for_bit(tmp_path):
    average, apfl = (small_run(tmp_path / name, f"strategy.name={name}") for name in ("fedavg", "apfl"))
    assert bits(average) == bits(apfl)


def test_without_a_share_clients_predict_by_the_global_model_and_with_all_of_it_alone(tmp_path):
    """To the last digit."""
    still = ("strategy.name=apfl", "strategy.adaptive=false", *EVERYWHERE)
    runs = {
        "average": small_run(tmp_path / "average", *EVERYWHERE),
        "home": small_run(tmp_path / "home", "strategy={name: umbel.strategies.local:Local}", *EVERYWHERE),
        **{share: small_run(tmp_path / share, *still, f"strategy.alpha={share}") for share in ("0", "1", "0.5")},
        "adaptive": small_run(tmp_path / "adaptive", "strategy.name=apfl", *EVERYWHERE),
    }
    losses = {name: run.summary["metrics"]["clients/test/loss_mean"] for name, run in runs.items()}
    assert losses["0"] == losses["average"] and losses["1"] == losses["home"]
    assert len(set(losses.values())) == 4  # the others are like none of these


def test_virtual_time_counts_both_models_and_the_pass_for_alpha():
    local = LocalConfig(epochs=2, batch_size=8)
    for adaptive, expected in ((True, 100), (False, 80)):
        (phase,) = APFL(Config(adaptive=adaptive)).every_phase()
        assert phase.num_processed(local, 20) == 2 * num_processed(local, 20) + 20 * adaptive == expected


def test_batch_norm_is_each_models_own(tmp_path):
    norm = ("model.sizes={width: 4, hidden: 16, norm: batch}",)
    average, apfl = (small_run(tmp_path / n, f"strategy.name={n}", *norm, *EVERYWHERE) for n in ("fedavg", "apfl"))
    assert bits(average) == bits(apfl) and apfl.summary["num_failures"] == 0


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_mixture_has_the_statistics_that_its_own_passes_moved(alpha):
    """v's, which are those of v bar's passes; without a share of v it is w."""

    def network(seed: int) -> Model:
        model = build_seeded(lambda: build("cnn", 4, 8, 1, width=2, hidden=3, norm="batch"), seed, torch.float64)
        for number, buffer in enumerate(model.buffers(), 1):
            buffer.fill_(seed + number)
        return model

    v, w = shared_state(network(1)), shared_state(network(5))
    client = client_context(
        Examples(IMAGES, LABELS), 4, network(9), memory=MemoryRecord({"model": v}, {"alpha": alpha})
    )
    evaluated = client.load_model(w)
    APFL(Config()).personal(Payload({"model": w}), client)  # loads it into that model
    found, names = shared_state(evaluated), {name for name, _ in evaluated.named_parameters()}
    assert found.keys() - names  # there are statistics
    for name, tensor in found.items():
        expected = alpha * v[name] + (1 - alpha) * w[name] if name in names else (v if alpha else w)[name]
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("key", ["client.clip_norm=1", "model.norm=local"])
def test_what_would_tie_two_models_together_is_refused(key, tmp_path):
    with pytest.raises(Refusal) as refused:
        small_run(tmp_path, "strategy.name=apfl", key)
    assert refused.value.key == key.partition("=")[0]

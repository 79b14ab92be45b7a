"""Bodies that all share under heads that stay, and the other way round: what travels, and who trains it when."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.contexts import client_context
from tests.helpers import SMALL, bits, small_run
from umbel import RunResult
from umbel.client.worker import Worker
from umbel.conf.load import load
from umbel.core.records import Payload
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig, num_processed
from umbel.core.wire.work import Work, share
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.base import Model
from umbel.models.weights import load_state, shared_state
from umbel.server.session import Session
from umbel.strategies.fedbabu import parameters_of
from umbel.strategies.fedrep import Config, FedRep

NAMES = ("fedper", "fedrep", "fedbabu")  # whose head stays; under lgfedavg the body does
EVERYWHERE = ("evaluate.clients=-1", "evaluate.every=1")


def heads(result: RunResult) -> list[Tensor]:
    """The weights of the heads in clients' memory, of the last version of each."""
    files = sorted((result.path / "memory").rglob("*.safetensors"))
    last = {path.parent.name: path for path in files}
    return [load_file(path)["#own/head.weight"] for path in last.values()]


def measured(result: RunResult, metric: str) -> list[float]:
    rows = result.metrics.query(f"side == 'clients' and split == 'test' and metric == '{metric}'")
    return rows.sort_values("round")["value"].tolist()


@pytest.mark.parametrize("name", [*NAMES, "lgfedavg"])
def test_what_stays_never_travels(name, tmp_path):
    worker = Worker(load("digits", [*SMALL, f"strategy.name={name}"]), tmp_path)
    session = Session(worker.experiment)
    strategy, cohort = session.strategy, (0, 1, 2, 3)
    state = strategy.initial(session.context(0))
    (phase,) = session.phases(state)
    sent, evaluated = phase.broadcast(state, session.context(1)), strategy.evaluated(state, session.context(1))
    work = Work("run", "a", 1, 0, phase.name, worker.config_hash, 0, len(cohort))
    outcome = worker.run(share(work, cohort, (0, 3)), sent)
    assert outcome.singles.keys() == {0, 3} and not outcome.failures
    trees: list[Any] = [sent.trees["model"], evaluated.trees["model"]]
    trees += [reply.trees["delta"] for reply in outcome.singles.values()]
    whole = session.build_model().state_dict().keys()
    assert all(tree.keys() == {n for n in whole if n.startswith("head.") == (name == "lgfedavg")} for tree in trees)


def test_from_one_start_body_and_head_are_those_of_fedavg(tmp_path):
    """A first round of all three is the same training, of which the one averages the body and the other the head."""
    average, per, lg = (
        load_file(small_run(tmp_path / n, f"strategy.name={n}", "run.rounds=1").path / "model.safetensors")
        for n in ("fedavg", "fedper", "lgfedavg")
    )
    began = Session(load("digits", [*SMALL])).build_model().state_dict()
    for name, tensor in average.items():
        is_head = name.startswith("head.")
        assert torch.equal(tensor, (lg if is_head else per)[name])
        assert torch.equal(began[name], (per if is_head else lg)[name])


def test_each_client_goes_on_with_its_own_body_under_the_common_head(tmp_path):
    one, two = (small_run(tmp_path / n, "strategy.name=lgfedavg", *EVERYWHERE, f"run.rounds={n}") for n in "12")
    kept = [load_file(path) for path in sorted((two.path / "memory").rglob("*.safetensors"))]
    assert len(kept) >= 4 and not any("head" in name for tree in kept for name in tree)
    assert not any(torch.equal(a["#own/conv1.weight"], b["#own/conv1.weight"]) for a, b in combinations(kept, 2))
    losses = measured(two, "loss_mean")
    assert losses[0] == measured(one, "loss_mean")[0] and losses[1] < losses[0]


def test_each_client_goes_on_with_its_own_head(tmp_path):
    one, two = (small_run(tmp_path / n, "strategy.name=fedper", *EVERYWHERE, f"run.rounds={n}") for n in "12")
    assert len(heads(two)) == 4
    assert not any(torch.equal(a, b) for a, b in combinations([*heads(one), *heads(two)], 2))
    losses = measured(two, "loss_mean")
    assert losses[0] == measured(one, "loss_mean")[0] and losses[1] < losses[0]


def test_without_passes_over_the_head_fedrep_is_fedbabu_bit_for_bit(tmp_path):
    rep = small_run(tmp_path / "rep", "strategy.name=fedrep", "strategy.head_epochs=0")
    babu = small_run(tmp_path / "babu", "strategy.name=fedbabu", "strategy.weighting=uniform")
    other = small_run(tmp_path / "other", "strategy.name=fedrep", "strategy.head_epochs=1")
    assert bits(rep) == bits(babu) != bits(other)


def test_fedbabus_head_is_as_it_began_and_fine_tuning_is_the_evaluations_alone(tmp_path):
    decays = ("client.weight_decay=0.1", "client.momentum=0.9")
    plain, tuned = (
        small_run(tmp_path / n, "strategy.name=fedbabu", f"strategy.finetune_epochs={n}", *EVERYWHERE, *decays)
        for n in "03"
    )
    began = Session(load("digits", [*SMALL, "strategy.name=fedbabu"])).build_model().head.weight
    for result in (plain, tuned):
        assert len(heads(result)) == 4 and all(torch.equal(head, began) for head in heads(result))
        assert torch.equal(load_file(result.path / "model.safetensors")["head.weight"], began)
    assert bits(plain) == bits(tuned)
    assert measured(plain, "loss_mean") == measured(plain, "generic/loss_mean") == measured(tuned, "generic/loss_mean")
    before, after = (measured(result, "loss_mean") for result in (plain, tuned))
    assert all(low < high for low, high in zip(after, before, strict=True))


def test_the_parts_of_a_model():
    model = build("mlp", 4, 3, 1, hidden=5, depth=1)
    head, body = parameters_of(model, "head"), parameters_of(model, "body")
    assert head == ["head.weight", "head.bias"] and body and [*body, *head] == parameters_of(model, "all")


def test_fedrep_fits_the_head_to_the_body_that_came_and_then_the_body():
    images, labels = (
        torch.rand(6, 1, 3, 3, generator=generator(1), dtype=torch.float64),
        torch.tensor([0, 1, 3, 0, 2, 3]),
    )

    def made() -> Model:
        return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), 0, torch.float64)

    ours, own = made(), frozenset({"head.weight", "head.bias"})

    def load_model(tree) -> Model:
        load_state(ours, tree, partial=True)
        return ours

    local = LocalConfig(epochs=1, batch_size=0, lr=0.5, device="cpu", precision="fp64")
    words = {"load_model": load_model, "weights_of": lambda model: shared_state(model, own), "local": local}
    client = replace(client_context(Examples(images, labels), 4), **words)
    reply = FedRep(Config(head_epochs=2)).local(Payload({"model": shared_state(made(), own)}), client)

    expected = made()
    head = list(expected.head.parameters())
    body = [parameter for name, parameter in expected.named_parameters() if name not in own]
    for part in (head, head, body):
        loss = F.cross_entropy(expected(images), labels)
        for parameter, gradient in zip(part, torch.autograd.grad(loss, part), strict=True):
            parameter.data -= 0.5 * gradient
    began = shared_state(made(), own)
    for name, weight in shared_state(expected).items():
        torch.testing.assert_close(shared_state(ours)[name], weight, rtol=0, atol=1e-12)
        if name not in own:
            torch.testing.assert_close(reply.trees["delta"][name], weight - began[name], rtol=0, atol=1e-12)
    assert reply.trees["delta"].keys() == began.keys()
    assert all(parameter.requires_grad for parameter in ours.parameters())


def test_virtual_time_counts_the_passes_over_the_head():
    (phase,) = FedRep(Config(head_epochs=3)).every_phase()
    local = LocalConfig(epochs=4, batch_size=8, max_steps=2)
    assert phase.num_processed(local, 20) == 3 * 20 + num_processed(local, 20) == 76


@pytest.mark.parametrize("name", [*NAMES, "lgfedavg", "fedproto"])
def test_a_model_that_is_nothing_but_a_head_is_refused(name, tmp_path: Path):
    with pytest.raises(Refusal, match="is a head and nothing else") as refused:
        Session(load("digits", [f"strategy.name={name}", "model.name=linear"]))
    assert refused.value.key == "model.name"


def test_batch_norm_of_ones_own_stays_beside_the_head(tmp_path):
    own_norm = ("model.sizes={width: 4, hidden: 16, norm: batch}", "model.norm=local", "run.rounds=1")
    assert small_run(tmp_path / "lg", "strategy.name=lgfedavg", *own_norm).summary["num_failures"] == 0
    result = small_run(tmp_path / "per", "strategy.name=fedper", *own_norm)
    assert result.summary["num_failures"] == 0
    kept = load_file(next((result.path / "memory").rglob("*.safetensors"))).keys()
    assert {"#own/head.weight", "#own/norm1.running_mean", "#own/norm2.weight"} < kept
    assert not any("conv" in name or ".fc" in name for name in kept)


@pytest.mark.parametrize("name", ["feddyn", "fednova", "moon", "fedntd", "fedrep", "fedbabu", "ewc", "replay"])
@pytest.mark.exhaustive
def test_the_other_baselines_go_with_batch_norm_of_ones_own(name, tmp_path):
    own_norm = ("model.sizes={width: 4, hidden: 16, norm: batch}", "model.norm=local", "evaluate.clients=2")
    tasks = ("data.partition=permuted_tasks", "data.num_tasks=2", "data.rounds_per_task=1")
    own_norm += tasks if name in ("ewc", "replay") else ()
    assert small_run(tmp_path, f"strategy.name={name}", *own_norm).summary["num_failures"] == 0

"""How FOT puts its parts together: what is summed and what is averaged, in which order, of which model and of whom."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.contexts import client_context
from umbel import models
from umbel.core.folds import Folded
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.core.schedule import Schedule
from umbel.core.training import LocalConfig
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.inputs import layer_inputs
from umbel.models.weights import load_state, shared_state
from umbel.strategies.base import ClientContext, ServerContext
from umbel.strategies.fot.method import FOT, Config, State
from umbel.strategies.fot.subspace import Sketches

F64 = torch.float64
CPU = torch.device("cpu")
LOCAL = LocalConfig(epochs=2, batch_size=8, lr=0.5, device="cpu", precision="fp64")
CLASSES, SIDE, HIDDEN = 6, 3, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def network() -> Model:
    """Return an MLP 9-5-5-6 with weights of its own, the same every time."""
    model = models.build("mlp", CLASSES, SIDE, 1, hidden=HIDDEN, depth=2).double()
    load_state(model, {n: 0.5 * normal(*w.shape, seed=i) for i, (n, w) in enumerate(shared_state(model).items())})
    return model


def server_of(task: int = 1, task_of_class: Tensor | None = None) -> ServerContext:
    """Return the server in the last of the two rounds of one of three tasks."""
    return ServerContext(
        seed=0,
        round=2 * (task + 1),
        num_rounds=6,
        num_clients=2,
        local=LOCAL,
        build_model=network,
        shared_names=frozenset(shared_state(network())),
        validation=None,
        device=CPU,
        prepare=lambda examples: (examples.images, examples.labels),
        schedule=Schedule(3, 2),
        task_of_class=task_of_class,
    )


def client_of(number: int, phase: str, round_: int = 2) -> ClientContext:
    """Return a client; all of them have the same data."""
    data = Examples(normal(30, 1, SIDE, SIDE, seed=7), torch.arange(30) % CLASSES)
    return client_context(data, CLASSES, network(), id=number, round=round_, phase=phase, local=LOCAL)


# One layer of five inputs by hand, the first of which is protected --------------------------------------------

E = torch.eye(5, dtype=F64)
# Shares .4, .3, .2, .1 of the new energy along the other four: one direction holds .4, two .7, three .9.
SKETCH_DM = E[:, 1:] * torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64).sqrt()


def state_of(**changes) -> State:
    model = {"l.weight": normal(2, 5, seed=1), "norm.weight": normal(3, seed=2)}
    return replace(State(model, {"l.weight": (1, 5)}, {"l.weight": E[:, :1]}, 1, True, {}), **changes)


def sketched(strategy: FOT) -> Folded:
    """Return what two clients give whose inputs differ in size and in what the basis explains of them.

    Three examples with ||A||^2 = 100, ||R||^2 = 1, rho = .1; and one example with ||A||^2 = ||R||^2 = 1, rho = 1. Over
    both rho^2 = 2 / 101 and rho = .141; the mean of the clients' rho is .55, over examples (3 x .1 + 1) / 4 = .325.
    """
    fold = strategy.fold_sketches()
    total = fold.zero()
    for number, (examples, residual, whole, part) in enumerate([(3, 1.0, 100.0, 0.25), (1, 1.0, 1.0, 0.75)]):
        trees = {
            "sketch": {"l.weight": part * SKETCH_DM},
            "energy": {"l.weight": torch.tensor([residual, whole], dtype=F64)},
            "ratio": {"l.weight": torch.tensor(residual / whole, dtype=F64).sqrt()},
        }
        total = fold.add(total, number, Reply(trees, {}, examples))
    return fold.finish(total)


@pytest.mark.parametrize(
    ("power", "threshold", "added"),
    [
        (2, 0.99, 2),  # (.0198 - .01) / .0198 = .495 of the sketch; the mean of rho, squared, would want .905: four
        (1, 0.9, 2),  # (.325 - .1) / .325 = .692; without weights .818: three; the ratio of sums .289: one
    ],
)
def test_rho_is_a_ratio_of_sums_and_only_in_the_authors_form_a_mean_over_examples(power, threshold, added):
    strategy = FOT(Config(ratio_power=power, threshold=threshold, bias="free"))
    state = strategy.after_sketch(state_of(), sketched(strategy), server_of())
    basis = state.bases["l.weight"]
    assert basis.shape == (5, 1 + added)
    torch.testing.assert_close(basis @ basis.T, torch.diag(torch.arange(5) <= added).double(), rtol=0, atol=1e-6)
    assert state.tasks_done == 2


@pytest.mark.parametrize("tasks_done", [0, 1])
def test_a_round_that_ends_a_task_moves_by_the_old_basis_and_then_protects(tasks_done):
    """The change lies along what is protected already, and along what the sketch is about to protect."""
    strategy = FOT(Config(sketched="local", threshold=1.0, bias="free", server_lr=0.5))
    state = state_of(tasks_done=tasks_done, bases={"l.weight": E[:, :1]} if tasks_done else {})
    assert [each.name for each in strategy.phases(state)] == ["train_and_sketch"]
    change = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.0], [-1.0, 4.0, 0.0, 0.0, 0.0]], dtype=F64)
    delta = {"l.weight": change, "norm.weight": torch.ones(3, dtype=F64)}
    energy = {"l.weight": torch.tensor([1.0, 1.0], dtype=F64)}
    trees = {"delta": delta, "sketch": {"l.weight": E[:, 1:3]}, "energy": energy, "ratio": {"l.weight": energy}}
    after = strategy.after_both(state, Folded(trees, {"loss": 1.0}, 4, 2), server_of())
    moved = after.model["l.weight"] - state.model["l.weight"]
    kept = change * (torch.arange(5) > 0) if tasks_done else change
    torch.testing.assert_close(moved, 0.5 * kept)
    assert after.bases["l.weight"].shape == (5, tasks_done + 2) and after.tasks_done == tasks_done + 1
    # From now on it is protected; what is no layer has stopped in either case.
    again = strategy.after_train(replace(after, sketch_next=False), Folded({"delta": delta}, {}, 4, 2), server_of())
    still = change * ((torch.arange(5) < 1) * (not tasks_done))
    moved = again.model["l.weight"] - after.model["l.weight"]
    torch.testing.assert_close(moved, 0.5 * still, rtol=0, atol=1e-6)
    assert torch.equal(again.model["norm.weight"], after.model["norm.weight"])
    assert torch.equal(after.model["norm.weight"], state.model["norm.weight"]) == bool(tasks_done)


def test_what_is_skipped_moves_by_the_plain_change_when_all_else_is_frozen_or_projected():
    strategy = FOT(Config(skip=("layers.0", "head.bias"), bias="freeze", server_lr=0.5))
    state = strategy.initial(server_of())
    assert set(state.layers) == {"layers.3.weight", "head.weight"}
    bases = {name: torch.eye(inputs, 2, dtype=F64) for name, (_, inputs) in state.layers.items()}
    state = replace(state, bases=bases, tasks_done=1)
    delta = {name: normal(*w.shape, seed=20) for name, w in state.model.items()}
    end = strategy.after_train(state, Folded({"delta": delta}, {}, 4, 2), server_of()).model
    for name, start in state.model.items():
        moved = end[name] - start
        if name.startswith("layers.0") or name == "head.bias":
            torch.testing.assert_close(moved, 0.5 * delta[name])
        elif name.endswith("weight"):
            torch.testing.assert_close(moved, 0.5 * delta[name] * (torch.arange(HIDDEN) >= 2))
        else:
            assert name == "layers.3.bias" and torch.equal(end[name], start)


@pytest.mark.parametrize("skip", [(), ("head",)])
def test_of_the_heads_only_the_rows_of_the_current_task_move(skip):
    """Weight decay changes rows on every client that its loss does not see."""
    strategy, server = FOT(Config(server_lr=0.5, skip=skip)), server_of(1, torch.tensor([0, 0, 1, 1, 2, 1]))
    state = replace(strategy.initial(server), tasks_done=1)
    assert set(state.layers) == {"layers.0.weight", "layers.3.weight"}
    delta = {name: normal(*w.shape, seed=20) for name, w in state.model.items()}
    end = strategy.after_train(state, Folded({"delta": delta}, {}, 4, 2), server).model
    own = torch.tensor([0, 0, 1, 1, 0, 1], dtype=F64)
    for name, rows in (("head.weight", own[:, None]), ("head.bias", own)):
        torch.testing.assert_close(end[name] - state.model[name], 0.5 * delta[name] * rows)
        assert torch.equal(end[name][[0, 1, 4]], state.model[name][[0, 1, 4]])


# What a client sketches -------------------------------------------------------------------------------------


def payload_of(strategy: FOT) -> Payload:
    server = server_of()
    return strategy.send_bases(strategy.initial(server), server)


def grams(model: Model, client: ClientContext) -> dict[str, Tensor]:
    """Return A A' of each layer's inputs [a; 1] on a client's data."""
    images, _ = client.prepare(client.train_data)
    inputs = layer_inputs(model, images)
    whole = {name: torch.cat([columns, torch.ones_like(columns[:1])]) for name, columns in inputs.items()}
    return {name: columns @ columns.T for name, columns in whole.items()}


@pytest.mark.parametrize("sketched", ["global", "local"])
def test_the_model_that_is_sketched(sketched):
    """Of the received model and the one that the client made of it; the images themselves are the same for both."""
    strategy = FOT(Config(sketched=sketched, width=0.0))
    phase = strategy.phase("train_and_sketch" if sketched == "local" else "sketch")
    payload, client = payload_of(strategy), client_of(0, phase.name)
    reply = phase.local(payload, client)
    phase.fold().check(reply, payload)
    received, trained = network(), network()
    if sketched == "local":
        load_state(trained, {n: w + reply.trees["delta"][n] for n, w in payload.trees["model"].items()})
    else:
        plain = strategy.phase("train").local(payload, client_of(0, "train"))
        load_state(trained, {n: w + plain.trees["delta"][n] for n, w in payload.trees["model"].items()})
    right, wrong = (trained, received) if sketched == "local" else (received, trained)
    expected, other = grams(right, client), grams(wrong, client)
    assert set(reply.trees["sketch"]) == {"layers.0.weight", "layers.3.weight", "head.weight"}
    for name, gram in reply.trees["sketch"].items():
        torch.testing.assert_close(gram, expected[name].float())
        assert reply.trees["energy"][name][1].item() == pytest.approx(expected[name].trace().item())
        assert torch.allclose(gram, other[name].float(), rtol=0.05) == (name == "layers.0.weight")


def test_every_client_layer_and_round_has_random_numbers_of_its_own():
    """Clients with one Omega would let the server, and each other, take it away."""
    strategy = FOT(Config())
    payload = payload_of(strategy)

    def sketch(number: int, round_: int = 2) -> dict[str, Tensor]:
        return strategy.sketch(payload, client_of(number, "sketch", round_)).trees["sketch"]

    first = sketch(0)
    for name, own in first.items():
        assert torch.equal(sketch(0)[name], own)
        for other in (sketch(1)[name], sketch(0, round_=4)[name]):  # of the same inputs
            assert not torch.allclose(own, other, rtol=0.1)
    columns = normal(4, 12, seed=3)
    sketches = Sketches({}, {"a": (1, 4), "b": (1, 4)}, 1.0, partial(generator, 0, 1, "sketch", 0))
    sketches.take("a", columns)
    alone = sketches.sketch["a"].clone()
    sketches.take("b", columns)
    assert not torch.allclose(sketches.sketch["b"], alone, rtol=0.1)
    sketches.take("a", columns)  # the next part of the data goes on where the first stopped
    assert not torch.allclose(sketches.sketch["a"], 2 * alone, rtol=0.1)

"""EWC: the Fisher information against its closed form, the penalty by hand, and what it is without."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import bits, tree
from tests.strategies.continual.sequences import (
    CLASSES,
    F64,
    TASK_OF_CLASS,
    client_of,
    images_of,
    model_bytes,
    network,
    normal,
    sequence_run,
    server_of,
)
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.folds import Folded
from umbel.core.records import BadReplyError, Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.models.weights import shared_state
from umbel.strategies.continual.ewc import EWC, Config, Consolidation, consolidated, diagonal_fisher

IMAGES = images_of(1, 7)
X = IMAGES.images.flatten(1)


def closed_form(own: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The diagonal of logistic regression: E_x p_c (1 - p_c) x_j^2 of the weights, E_x p_c (1 - p_c) of the biases."""
    logits = network()(IMAGES.images).detach()
    p = (logits if own is None else logits.masked_fill(~own, -torch.inf)).softmax(1)
    variance = p * (1 - p)
    return variance.T @ X.square() / len(X), variance.mean(0)


@pytest.mark.parametrize("own", [None, TASK_OF_CLASS == 1], ids=["all classes", "a task's"])
def test_the_expected_fisher_of_logistic_regression(own):
    found = diagonal_fisher(network().eval(), IMAGES.images, IMAGES.labels, "expected", own, generator(0))
    weight, bias = closed_form(own)
    torch.testing.assert_close(found["head.weight"], weight, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found["head.bias"], bias, rtol=1e-12, atol=1e-15)
    assert own is None or (found["head.weight"][~own].eq(0).all() and found["head.weight"][own].gt(0).all())


def test_drawn_labels_come_to_the_expectation():
    """Draws of seven examples, each 40 times: within five deviations of the mean of (1[y = c] - p_c)^2."""
    again = 40
    images = IMAGES.images.repeat(again, 1, 1, 1)
    labels = IMAGES.labels.repeat(again)
    found = diagonal_fisher(network().eval(), images, labels, "drawn", None, generator(1))
    _, bias = closed_form(None)
    assert (found["head.bias"] - bias).abs().max() < 5 * 0.5 / (again * len(X)) ** 0.5
    other = diagonal_fisher(network().eval(), images, (labels + 1) % CLASSES, "drawn", None, generator(1))
    assert torch.equal(found["head.bias"], other["head.bias"])  # the data's labels are not looked at


def test_with_the_datas_labels_it_is_the_mean_of_squared_gradients_of_single_examples():
    model = network("mlp", hidden=5, depth=1).eval()
    found = diagonal_fisher(model, IMAGES.images, IMAGES.labels, "true", None, generator(0))
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in zip(IMAGES.images, IMAGES.labels, strict=True):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(image[None]), label[None]).backward()
        for name, p in model.named_parameters():
            expected[name] += p.grad.square() / len(X)
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=1e-12, atol=1e-18)


def test_the_penaltys_gradient_is_that_of_all_past_tasks():
    """lambda / 2 sum_t F_t (theta - theta*_t)^2 differentiated, against one quadratic about c."""
    fishers = [{"w": normal(4, 3, seed=t).square()} for t in range(3)]
    ends = [{"w": normal(4, 3, seed=10 + t)} for t in range(3)]
    fishers[0]["w"][0], fishers[1]["w"][0] = 0, 0  # a row that no task but the last needs
    importance, centre = {}, {}
    for fisher, end in zip(fishers, ends, strict=True):
        importance, centre = consolidated(importance, centre, fisher, end, "separate", 1.0)
    theta = normal(4, 3, seed=20).requires_grad_()
    penalty = sum(3.0 / 2 * (f["w"] * (theta - end["w"]) ** 2).sum() for f, end in zip(fishers, ends, strict=True))
    (expected,) = torch.autograd.grad(penalty, theta)
    gradient = torch.ones(4, 3, dtype=F64)
    Consolidation(3.0, [importance["w"]], [centre["w"]])([theta.detach()], [gradient])
    torch.testing.assert_close(gradient - 1, expected, rtol=1e-12, atol=1e-14)


def test_the_online_form_forgets_and_pulls_to_the_last_end():
    first = consolidated({}, {}, tree(w=[4.0, 2.0]), tree(w=[1.0, 1.0]), "online", 0.5)
    importance, centre = consolidated(*first, tree(w=[1.0, 0.0]), tree(w=[3.0, -1.0]), "online", 0.5)
    assert importance["w"].tolist() == [3.0, 1.0] and centre["w"].tolist() == [3.0, -1.0]
    importance, centre = consolidated(*first, tree(w=[1.0, 0.0]), tree(w=[3.5, -1.0]), "separate", 1.0)
    assert importance["w"].tolist() == [5.0, 2.0] and centre["w"].tolist() == [1.5, 1.0]


def test_a_round_of_the_end_of_a_task_and_the_next():
    """theta*_0 is the model after the server's step; the next task's first step is F's and the loss's gradient."""
    model = network()
    strategy = EWC(Config(strength=3.0, labels="expected", sample_limit=4))
    state = strategy.initial(server_of(0, model))
    assert [phase.name for phase in strategy.phases(state)] == ["train"] and not state.fisher_next
    still = Folded({"delta": {name: torch.full_like(w, 0.25) for name, w in state.model.items()}}, {}, 1, 1)
    state = strategy.after_train(state, still, server_of(1, model))
    assert [phase.name for phase in strategy.phases(state)] == ["train", "fisher"]
    state = strategy.after_train(state, still, server_of(2, model))
    payload = strategy.ask(state, server_of(2, model))
    reply = strategy.fisher(payload, client_of(model, task=0))
    strategy.fold_fishers().check(reply, payload)
    some = images_of(0)
    expected = diagonal_fisher(
        model.eval(), some.images[:4], some.labels[:4], "expected", TASK_OF_CLASS == 0, generator(0)
    )
    assert all(torch.equal(reply.trees["fisher"][name], each) for name, each in expected.items())
    state = strategy.after_fisher(state, Folded(reply.trees, {}, 5, 1), server_of(2, model))
    assert [phase.name for phase in strategy.phases(state)] == ["train"]
    assert all(torch.equal(state.centre[name], state.model[name]) for name in state.model)
    largest = max(float(each.max()) for each in expected.values())
    assert strategy.held(state)["importance/largest"] == largest

    moved = {name: w + 0.5 for name, w in state.model.items()}
    payload = Payload({**strategy.send(state, server_of(3, model)).trees, "model": moved})
    held = strategy.local(payload, client_of(model)).trees["delta"]
    plain = strategy.local(Payload({"model": moved}), client_of(model)).trees["delta"]
    for name, each in expected.items():  # one full-batch step with lr .5: -lr lambda F (theta - theta*)
        torch.testing.assert_close(held[name] - plain[name], -0.5 * 3.0 * each * 0.5, rtol=1e-9, atol=1e-14)


def test_no_fisher_is_asked_for_after_the_last_task_or_without_a_strength():
    model = network()
    states = {}
    for strength in (0.0, 1.0):
        strategy = EWC(Config(strength=strength))
        folded = Folded({"delta": {name: w * 0 for name, w in shared_state(model).items()}}, {}, 1, 1)
        state = strategy.initial(server_of(0, model))
        states[strength] = [
            strategy.after_train(state, folded, server_of(round_, model)).fisher_next for round_ in range(1, 6)
        ]
    assert states == {0.0: [False] * 5, 1.0: [True, False, True, False, False]}


def test_squares_below_0_are_refused():
    strategy, model = EWC(Config()), network()
    payload = strategy.ask(strategy.initial(server_of(0, model)), server_of(2, model))
    fold = strategy.fold_fishers()
    squares = {name: w.square() for name, w in shared_state(model).items()}
    fold.check(Reply({"fisher": squares}, {}, 3), payload)
    wrong = Reply({"fisher": squares | {"head.bias": -squares["head.bias"]}}, {}, 3)
    with pytest.raises(BadReplyError, match=r"'head\.bias' should be squares"):
        fold.check(wrong, payload)
    with pytest.raises(BadReplyError, match="should be squares"):
        fold.check_partial(fold.lift(0, wrong), payload, [0])


def test_strength_0_is_fedavg_bit_for_bit(tmp_path):
    """With dropout, which shows that nothing is drawn besides."""
    options = (("strategy.name=fedavg",), ("strategy.name=ewc", "strategy.strength=0"), ("strategy.name=ewc",))
    average, without, held = (sequence_run(tmp_path / str(i), *each) for i, each in enumerate(options))
    assert bits(without) == bits(average) != bits(held)
    assert without.summary["bytes_up"] == average.summary["bytes_up"]
    assert held.summary["num_failures"] == 0


def test_what_travels(tmp_path):
    """P up and down; 2P more down after the first task; P both ways for F after all but the last."""
    run = sequence_run(tmp_path, "strategy.name=ewc")
    size = model_bytes(run)
    assert run.summary["bytes_up"]["tensors"] == 3 * size * (3 + 2)
    assert run.summary["bytes_down"]["tensors"] == 3 * size * (1 + 3 + 3 + 2)


def test_a_decay_without_the_online_form_is_refused():
    with pytest.raises(Refusal, match=r"strategy\.decay=0\.5 is of the online form") as refused:
        EWC(Config(decay=0.5))
    assert refused.value.key == "strategy.decay"
    EWC(Config(decay=0.5, form="online"))


def test_without_a_sequence_it_is_refused():
    with pytest.raises(ExperimentError, match="makes no sequence of tasks") as refused:
        load("digits", ["strategy.name=ewc"])
    assert refused.value.key == "data.rounds_per_task"
    load("digits", ["strategy.name=ewc", "strategy.strength=0"])

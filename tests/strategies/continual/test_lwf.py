"""LwF: the distillation by hand, which heads it is of, whose outputs it keeps, and what it is without."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import bits
from tests.strategies.continual.sequences import (
    CLASSES,
    TASK_OF_CLASS,
    THREE_TASKS,
    client_of,
    model_bytes,
    network,
    normal,
    sequence_run,
    server_of,
)
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.folds import Folded
from umbel.core.records import Payload
from umbel.strategies.continual.lwf import Config, LwF, distillation, old_heads


def test_the_distillation_by_hand():
    # T = 2: the old model says (1/4, 3/4), the new one (1/2, 1/2), so that L_old is log 2. The third class is another
    # head's, in which both say (1).
    old, now = torch.tensor([[0.0, 2 * math.log(3), 5.0]]), torch.tensor([[1.0, 1.0, -9.0]])
    two, one = torch.tensor([0, 1]), torch.tensor([2])
    assert distillation(now, old, [two], 2.0).item() == pytest.approx(math.log(2), rel=1e-6)
    assert distillation(now, old, [two, one], 2.0).item() == pytest.approx(math.log(2), rel=1e-6)
    assert distillation(now, old, [], 2.0).item() == 0.0
    # The same of a model that says the same: the entropy of (1/4, 3/4).
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert distillation(old, old, [two], 2.0).item() == pytest.approx(entropy, rel=1e-6)


def test_its_gradient_is_the_difference_of_what_both_say_in_old_heads_alone():
    now, old = normal(4, CLASSES, seed=1).requires_grad_(), normal(4, CLASSES, seed=2)
    heads = old_heads(TASK_OF_CLASS, 2, CLASSES)
    (gradient,) = torch.autograd.grad(distillation(now, old, heads, 0.7), now)
    for head in heads:
        p, q = ((z[:, head] / 0.7).softmax(1) for z in (now.detach(), old))
        torch.testing.assert_close(gradient[:, head], (p - q) / 0.7 / 4, rtol=1e-12, atol=1e-15)
    assert (gradient[:, 4:] == 0).all() and (gradient[:, :4] != 0).all()


def test_the_heads_of_earlier_tasks():
    assert [head.tolist() for head in old_heads(TASK_OF_CLASS, 2, CLASSES)] == [[0, 1], [2, 3]]
    assert old_heads(TASK_OF_CLASS, 0, CLASSES) == []
    assert [head.tolist() for head in old_heads(None, 1, 3)] == [[0, 1, 2]]


@pytest.mark.parametrize("heads", [True, False], ids=["heads", "one head"])
def test_a_step_of_a_client(heads):
    """One full-batch step with lr .5 on L_new + lambda L_old."""
    model = network("mlp", hidden=5, depth=1)
    received = {name: w.clone() for name, w in model.state_dict().items()}
    teacher = {name: w + 0.3 * normal(*w.shape, seed=30) for name, w in received.items()}
    strategy = LwF(Config(strength=2.0, temperature=3.0))
    client = client_of(model, task=1, heads=heads)
    delta = strategy.local(Payload({"model": received, "teacher": teacher}), client).trees["delta"]

    x, y = client.train_data.images, client.train_data.labels
    model.load_state_dict(teacher)
    old = model(x).detach()
    model.load_state_dict(received)
    logits = model(x)
    seen = logits.masked_fill(TASK_OF_CLASS != 1, -torch.inf) if heads else logits
    known = slice(0, 2) if heads else slice(None)
    q, log_p = (old[:, known] / 3).softmax(1), (logits[:, known] / 3).log_softmax(1)
    loss = F.cross_entropy(seen, y) - 2.0 * (q * log_p).sum(1).mean()
    for (name, p), gradient in zip(
        model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(delta[name], -0.5 * gradient, rtol=1e-10, atol=1e-14)
        assert p.requires_grad


def test_the_teacher_is_the_global_model_at_the_end_of_the_task_before():
    model = network()
    strategy = LwF(Config())
    state = strategy.initial(server_of(0, model))
    folded = Folded({"delta": {name: torch.full_like(w, 0.25) for name, w in state.model.items()}}, {}, 1, 1)
    teachers, models = [], []
    for round_ in range(1, 7):
        state = strategy.update(state, folded, server_of(round_, model))
        teachers.append(state.teacher)
        models.append(state.model)
    assert teachers[0] == {} and teachers[1] == models[1] and teachers[2] is teachers[1]
    assert all(teachers[i] is models[3] for i in (3, 4, 5))  # the last task has none after it
    assert not torch.equal(models[3]["head.weight"], models[1]["head.weight"])


def test_strength_0_is_fedavg_bit_for_bit(tmp_path):
    """With dropout, which shows that the old model draws nothing."""
    options = (("strategy.name=fedavg",), ("strategy.name=lwf", "strategy.strength=0"), ("strategy.name=lwf",))
    average, without, taught = (sequence_run(tmp_path / str(i), *each) for i, each in enumerate(options))
    assert bits(without) == bits(average) != bits(taught)
    size = model_bytes(taught)
    assert taught.summary["num_failures"] == 0 and taught.summary["bytes_up"]["tensors"] == 3 * 3 * size
    assert taught.summary["bytes_down"]["tensors"] == 3 * size * (1 + 2 + 2)
    assert without.summary["bytes_down"]["tensors"] == 3 * 3 * size


def test_without_a_sequence_and_with_batch_norm_of_clients_own_it_is_refused():
    with pytest.raises(ExperimentError, match="makes no sequence of tasks") as refused:
        load("digits", ["strategy.name=lwf"])
    assert refused.value.key == "data.rounds_per_task"
    local = (*THREE_TASKS, "model.sizes={}", "model.name=cnn", "strategy.name=lwf", "model.norm=local")
    with pytest.raises(ExperimentError, match="model of the task before") as refused:
        load("digits", list(local))
    assert refused.value.key == "model.norm"
    load("digits", [*local, "strategy.strength=0"])
    load("digits", ["strategy.name=lwf", "strategy.strength=0"])

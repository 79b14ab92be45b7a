"""FedNTD: the distillation by hand, what it leaves alone, and what it is without."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import bits, small_run
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.server.session import Session
from umbel.strategies.fedntd import distillation, not_true

NOISY = ("model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}", "client.batch_size=8")
LABELS = torch.tensor([2, 0, 1, 2])
LOCAL, GLOBAL = (torch.randn(4, 5, generator=generator(seed), dtype=torch.float64) for seed in (1, 2))


def test_the_classes_that_are_not_true_keep_their_order():
    logits = torch.arange(8.0).view(2, 4)
    assert not_true(logits, torch.tensor([2, 0])).tolist() == [[0.0, 1.0, 3.0], [5.0, 6.0, 7.0]]


def test_the_distillation_by_hand():
    # tau = 2. The true class is 1. The global model says (1/2, 1/2) of the others, the client (1/4, 3/4):
    # 1/2 log(2) + 1/2 log(2/3). In the second example both say the same.
    local = torch.tensor([[0.0, 9.0, 2 * math.log(3)], [1.0, 2.0, 3.0]])
    theirs = torch.tensor([[4.0, -7.0, 4.0], [1.0, 2.0, -5.0]])
    labels = torch.tensor([1, 2])
    expected = 0.5 * math.log(4 / 3) / 2
    assert distillation(local, theirs, labels, 2.0).item() == pytest.approx(expected, rel=1e-6)
    assert distillation(local[1:], theirs[1:], labels[1:], 2.0).item() == 0.0


def test_the_true_class_learns_from_the_cross_entropy_alone():
    local = LOCAL.clone().requires_grad_()
    (alone,) = torch.autograd.grad(F.cross_entropy(local, LABELS), local)
    loss = F.cross_entropy(local, LABELS) + 3.0 * distillation(local, GLOBAL, LABELS, 0.7)
    (both,) = torch.autograd.grad(loss, local)
    assert torch.equal(both.gather(1, LABELS[:, None]), alone.gather(1, LABELS[:, None]))
    rest = not_true(both - alone, LABELS)
    assert (rest != 0).all() and torch.allclose(rest.sum(1), torch.zeros(4, dtype=torch.float64), atol=1e-14)
    # 3 / tau (q~_l - q~_g) over the examples.
    q_l, q_g = (torch.softmax(not_true(z, LABELS) / 0.7, dim=1) for z in (LOCAL, GLOBAL))
    torch.testing.assert_close(rest, 3.0 / 0.7 * (q_l - q_g) / 4, rtol=1e-12, atol=0)


def test_nothing_is_learned_of_what_the_global_model_says_of_the_true_class():
    other = GLOBAL.scatter(1, LABELS[:, None], 100.0)
    assert distillation(LOCAL, other, LABELS, 1.0) == distillation(LOCAL, GLOBAL, LABELS, 1.0) > 0


def test_beta_0_is_fedavg_bit_for_bit(tmp_path):
    """With dropout, which shows that the model that does not learn draws nothing."""
    options = (("strategy.name=fedavg",), ("strategy.name=fedntd", "strategy.beta=0"), ("strategy.name=fedntd",))
    average, without, with_it = (
        bits(small_run(tmp_path / str(i), *NOISY, *option)) for i, option in enumerate(options)
    )
    assert without == average != with_it


def test_two_classes_are_refused():
    options = "data.options={num_classes: 2, num_examples: 60, num_test: 20, image_size: 8}"
    two = ("data.name=synthetic", options, "data.partition=iid", "data.num_clients=2")
    with pytest.raises(Refusal, match="2 classes in all") as refused:
        Session(load("digits", [*two, "strategy.name=fedntd"]))
    assert refused.value.key == "strategy.name"

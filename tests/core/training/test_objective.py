"""A loss of one's own in place of that of a model's logits: what is minimised, and that it is all that changes."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from umbel.core.losses import CrossEntropy
from umbel.core.rng import generator
from umbel.core.training import LocalConfig, TrainReport, fallbacks, train

CONFIG = LocalConfig(epochs=2, batch_size=4, lr=0.1, momentum=0.9, clip_norm=1.0, device="cpu")


def classifier() -> nn.Module:
    """A model with all that a batch leaves a trace in: dropout's draws, batch norm's statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.4), nn.Linear(6, 3))


def trained(config: LocalConfig = CONFIG, **words) -> tuple[dict[str, torch.Tensor], TrainReport]:
    model = classifier()
    x, y = torch.randn(10, 3, generator=generator(1)), torch.arange(10) % 3
    report = train(model, x, y, config, batches=generator(0), noise=generator(2), **words)
    return model.state_dict(), report


def assert_same_bits(left, right) -> None:
    assert left[1] == right[1]
    assert all(torch.equal(tensor, right[0][name]) for name, tensor in left[0].items())


def test_the_cross_entropy_of_the_logits_is_what_training_does_without():
    loss = CrossEntropy(label_smoothing=0.2)
    assert_same_bits(trained(loss=loss), trained(objective=lambda model, x, y: loss(model(x), y)))


def test_an_objective_is_what_is_minimised_and_reported():
    # On w alone, 3/2 w^2 from w = 2: gradient 6, w = 2 - 6/4 = 1/2; then 1/2 - 3/8 = 1/8. Losses 6 and 3/8.
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(2.0)
    config = LocalConfig(epochs=2, batch_size=0, lr=0.25, device="cpu")
    x, y = torch.ones(5, 1, dtype=torch.float64), torch.zeros(5).long()
    words = {"batches": generator(0), "noise": generator(0), "loss": lambda logits, labels: 1 / 0}
    report = train(model, x, y, config, objective=lambda line, *_: 1.5 * line.weight.square().sum(), **words)
    assert model.weight.item() == 1 / 8 and report.loss == (6 + 3 / 8) / 2


def test_corrections_come_after_it():
    def stop(parameters, gradients) -> None:
        for gradient in gradients:
            gradient.zero_()

    config = replace(CONFIG, momentum=0.0)
    state, _ = trained(config, objective=lambda model, x, y: F.cross_entropy(model(x), y), correct=stop)
    before = classifier().state_dict()
    assert all(torch.equal(state[name], before[name]) for name in ("0.weight", "3.bias"))


def test_its_steps_are_not_compiled_which_is_said_once(caplog):
    fallbacks.log_once.cache_clear()

    def objective(model, x, y):
        return F.cross_entropy(model(x), y)

    with caplog.at_level(logging.WARNING, logger="umbel.client"):
        ends = [trained(replace(CONFIG, compile="step"), objective=objective) for _ in range(2)]
    assert_same_bits(ends[0], trained(objective=objective))
    assert_same_bits(ends[1], ends[0])
    (said,) = caplog.messages
    assert said == (
        "client.compile=step: Sequential trains without, for its objective is a function that may read anything."
    )

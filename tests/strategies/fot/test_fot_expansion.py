"""How FOT's bases grow: by which threshold, by which examples, and group by group."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.strategies.fot.test_fot_wiring import (
    E,
    client_of,
    grams,
    network,
    normal,
    payload_of,
    server_of,
    sketched,
    state_of,
)
from umbel.core.rng import generator
from umbel.data.types import Examples
from umbel.strategies.fot.layers import grow
from umbel.strategies.fot.method import FOT, Config
from umbel.strategies.fot.subspace import Sketches, expand_basis, residual_sketch


def test_epsilon_grows_from_the_second_task_on_up_to_one():
    """Of four directions with .4, .3, .2 and .1 of the energy, of which the basis explains nothing (rho = 1)."""
    strategy = FOT(Config(threshold=0.35, increment=0.25, bias="free"))
    folded = sketched(strategy)
    folded = replace(folded, trees={**folded.trees, "energy": {"l.weight": torch.ones(2, dtype=torch.float64)}})
    grown = [strategy.after_sketch(state_of(tasks_done=done), folded, server_of()).bases for done in (0, 1, 2, 9)]
    assert [bases["l.weight"].shape[1] - 1 for bases in grown] == [1, 2, 3, 4]  # for .35, .6, .85 and 1 at most


def test_the_threshold_is_to_be_exceeded():
    """Of two equal directions the first captures half, which is not above a half."""
    assert expand_basis(None, torch.eye(2, dtype=torch.float64), 1.0, 0.5).shape[1] == 2


@pytest.mark.parametrize("limit", [0, 5, 290])
def test_all_examples_are_sketched_or_the_first(limit):
    """300 examples, more than are read at once."""
    strategy, client = FOT(Config(width=0.0, sample_limit=limit)), client_of(0, "sketch")
    many = Examples(normal(300, *client.train_data.images.shape[1:], seed=8), torch.zeros(300, dtype=torch.int64))
    reply = strategy.sketch(payload_of(strategy), client.with_data(many))
    part = client.with_data(many.take(torch.arange(limit or 300)))
    for name, gram in grams(network(), part).items():
        torch.testing.assert_close(reply.trees["sketch"][name], gram.float())


def test_each_group_has_its_own_basis_and_its_own_rho():
    bases = torch.stack([E[:4, :1], E[:4, 2:3]])
    columns = normal(2, 4, 12, seed=3) * torch.tensor([1.0, 5.0])[:, None, None]
    sketches = Sketches({"a": bases}, {"a": (2, 4)}, 0.0, lambda purpose: generator(0))
    sketches.take("a", columns)
    for g in range(2):
        residual, _ = residual_sketch(columns[g], bases[g], None, generator(0))
        torch.testing.assert_close(sketches.sketch["a"][g], (residual @ residual.T).float())
    config, rho = Config(width=0.0), torch.tensor([0.2, 1.0])
    grown = grow(bases, sketches.sketch["a"], rho, config, 0.95)
    widths = []
    for g in range(2):
        alone = grow(bases[g], sketches.sketch["a"][g], rho[g], config, 0.95)
        widths.append(alone.shape[1])
        torch.testing.assert_close(grown[g, :, : alone.shape[1]], alone)
        assert not grown[g, :, alone.shape[1] :].any()
    assert widths[0] < widths[1]  # the smaller rho wants fewer

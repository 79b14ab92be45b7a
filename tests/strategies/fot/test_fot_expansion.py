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
from umbel.strategies.fot import method as fot
from umbel.strategies.fot.layers import grow
from umbel.strategies.fot.method import FOT, Config
from umbel.strategies.fot.subspace import Sketches, expand_basis, residual_sketch


def test_epsilon_grows_from_the_second_task_on_up_to_one(monkeypatch):
    seen, made = [], fot.grow

    def watched(*given):
        seen.append(given[-1])
        return made(*given)

    monkeypatch.setattr(fot, "grow", watched)
    strategy = FOT(Config(threshold=0.9, increment=0.04, bias="free"))
    for done in (0, 1, 2, 9):
        strategy.after_sketch(state_of(tasks_done=done), sketched(strategy), server_of())
    assert seen == pytest.approx([0.9, 0.94, 0.98, 1.0])


def test_the_threshold_is_to_be_exceeded():
    """Of two equal directions the first captures half, which is not above a half."""
    assert expand_basis(None, torch.eye(2, dtype=torch.float64), 1.0, 0.5).shape[1] == 2


@pytest.mark.parametrize("limit", [0, 5])
def test_all_examples_are_sketched_or_the_first(limit, monkeypatch):
    monkeypatch.setattr(fot, "_BATCH", 7)
    strategy, client = FOT(Config(width=0.0, sample_limit=limit)), client_of(0, "sketch")
    reply = strategy.sketch(payload_of(strategy), client)
    part = replace(client, train_data=client.train_data.take(torch.arange(limit or 30)))
    for name, gram in grams(network(), part).items():
        torch.testing.assert_close(reply.trees["sketch"][name], gram.float())


def test_each_group_has_its_own_basis_and_its_own_rho():
    bases = torch.stack([E[:4, :1], E[:4, 2:3]])
    columns = normal(2, 4, 12, seed=3) * torch.tensor([1.0, 5.0])[:, None, None]
    found = Sketches({"a": bases}, {"a": (2, 4)}, 0.0, lambda purpose: generator(0))
    found.take("a", columns)
    for g in range(2):
        residual, _ = residual_sketch(columns[g], bases[g], None, generator(0))
        torch.testing.assert_close(found.sketch["a"][g], (residual @ residual.T).float())
    config, rho = Config(width=0.0), torch.tensor([0.2, 1.0])
    grown = grow(bases, found.sketch["a"], rho, config, 0.95)
    widths = []
    for g in range(2):
        alone = grow(bases[g], found.sketch["a"][g], rho[g], config, 0.95)
        widths.append(alone.shape[1])
        torch.testing.assert_close(grown[g, :, : alone.shape[1]], alone)
        assert not grown[g, :, alone.shape[1] :].any()
    assert widths[0] < widths[1]  # the smaller rho wants fewer

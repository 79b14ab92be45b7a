"""Replies whose keys and shapes the payload leaves open: what does not go together costs those who sent it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import tree as T
from tests.server.fakes import HELD, change_nodes, exchange, nodes_trees, same, single, without
from umbel.core.collecting import Collect, Moments
from umbel.core.evaluation import evaluation_fold
from umbel.core.folds import product
from umbel.core.moments import pack
from umbel.core.records import Reply

OPEN = product({"delta": Collect(optional=["w", "v"])}, ["loss"])


def sent_beside(tensor, owners):
    """A node's partial sums with rows of `v`, which its clients did not send."""
    numbers = torch.tensor(owners, dtype=torch.int64)
    rows = {"v": tensor, "#client:v": numbers, "#num_examples:v": numbers + 1}
    return lambda o: [change_nodes(o, trees=lambda p: {"delta": {**p.trees["delta"], **rows}})]


@pytest.mark.parametrize(
    "behave",
    [
        sent_beside(torch.zeros(0, 3, 7), []),  # honest rows of `v` would not fit beside them
        sent_beside(torch.zeros(0), []),
        sent_beside(torch.zeros(1, 2), [0]),
        sent_beside(torch.full((1, 2), math.nan), [4]),
    ],
    ids=range(4),
)
def test_rows_that_nobody_sent(behave):
    folded, report, _ = exchange(OPEN, {2: behave})
    assert same(folded, without(OPEN, {4, 5, 6, 7})) and report.failures.keys() == {4, 5, 6, 7}


OTHER_SHAPES = {
    "rows": (nodes_trees(lambda t: t.repeat(1, 2) if t.ndim == 2 else t), {4, 5, 6, 7}),
    "a single reply": (single(3, lambda r: replace(r, trees={"delta": T(w=[1.0, 2.0, 3.0])})), {3}),
}


@pytest.mark.parametrize("fault", OTHER_SHAPES)
def test_shapes_that_cannot_be_merged_cost_those_who_come_with_them(fault):
    """The payload leaves the shapes open: the first answer, here of node 3, sets them for all."""
    behave, lost = OTHER_SHAPES[fault]
    folded, report, _ = exchange(OPEN, {2: behave})
    assert same(folded, without(OPEN, lost)) and report.failures.keys() == lost
    assert all("another client's has" in text for _, text in report.failures.values())


def test_moments_of_another_width_cost_those_who_send_them():
    def moments_of(width):
        return {"delta": {"1": pack(torch.tensor(2.0), torch.zeros(width), torch.eye(width))}}

    def answer(client):
        return Reply(moments_of(2), {"loss": 0.0}, 2)

    fold = product({"delta": Moments()}, ["loss"])
    folded, report, _ = exchange(fold, {2: single(3, lambda r: replace(r, trees=moments_of(3)))}, answer)
    assert report.failures.keys() == {3} and "should have shape (6,)" in report.failures[3][1]
    assert same(folded, without(fold, {3}, answer))


# Evaluation -------------------------------------------------------------------------------------------------

HONEST = T(**{"test/retrieval": [[1.0] * 6, [2.0] * 6], "test/retrieval/loss": 0.0})


@pytest.mark.parametrize("width", [0, 1, 5, 7])
@pytest.mark.parametrize("liar", [0, 3, 6])
def test_a_lie_about_retrieval_costs_the_liar(liar, width):
    lie = T(**{"test/retrieval": [[1.0] * width, [2.0] * width], "test/retrieval/loss": 0.0})

    def answer(client):
        return Reply({"counts": HONEST})

    fold, node = evaluation_fold(5), 1 if liar < 3 else 2

    def apart(outcome):  # one by one, so that it is the server who looks
        outcome.nodes, outcome.singles = [], {client: answer(client) for client in HELD[node]}
        outcome.singles[liar] = Reply({"counts": lie})
        return [outcome]

    folded, report, _ = exchange(fold, {node: apart}, answer)
    assert same(folded, without(fold, {liar}, answer)) and report.failures.keys() == {liar}
    assert "6 of retrieval" in report.failures[liar][1]

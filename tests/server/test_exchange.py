"""Nodes that lie, fail, are silent or shout: left out, named, and of no influence on the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import tree as T
from tests.server.fakes import COHORT, FOLDS, HELD, change_nodes, exchange, nodes_trees, same, single, without
from umbel.core.messages import encode_json
from umbel.core.records import Reply
from umbel.core.work import Outcome


@pytest.fixture(params=list(FOLDS))
def fold(request):
    return FOLDS[request.param]


def test_honest_nodes(fold):
    found, report, done = exchange(fold, {})
    assert same(found, without(fold, ())) and not report.failures
    assert report.bytes_down == report.bytes_up == 9 * 16 and report.framing_down > 0
    assert done == [1, 6, 9]


# What a whole node does wrong ------------------------------------------------------------------------------


def moved(place):
    def behave(outcome):
        outcome.nodes = [(*place(level, index), partial) for level, index, partial in outcome.nodes]
        return [outcome]

    return behave


NODE_FAULTS = {
    "silent": (lambda _: [], "no answer within 5 s"),
    "raises": (lambda _: [ValueError("no memory left")], "ValueError: no memory left"),
    "sends something else": (lambda _: [encode_json({"hello": 1})], "cannot be read: 'nodes'"),
    "sends nothing": (lambda _: [Outcome()], "its node's answer leaves it out"),
    "says it at length": (
        lambda _: [Outcome(failures=dict.fromkeys(HELD[2], "\x1b" + "x" * 10**6))],
        "x... (1,000,001 letters in all)",
    ),
    "says all failed": (
        lambda _: [Outcome(failures=dict.fromkeys(HELD[2], "out of data"))],
        "out of data",
    ),
}


@pytest.mark.parametrize("fault", NODE_FAULTS)
def test_a_node_that_answers_nothing(fold, fault):
    behave, reason = NODE_FAULTS[fault]
    found, report, _ = exchange(fold, {2: behave})
    assert same(found, without(fold, HELD[2]))
    assert report.failures.keys() == set(HELD[2])
    for node, text in report.failures.values():
        assert node == 2 and reason in text and len(text) < 1100 and text.isprintable()
    assert report.bytes_up == 4 * 16


PARTIAL_FAULTS = {
    "NaN": nodes_trees(lambda t: t * math.nan if t.is_floating_point() else t),
    "shapes": nodes_trees(lambda t: t.reshape(1, -1)),
    "scalars": nodes_trees(lambda t: t.sum()),
    "empty": nodes_trees(lambda t: t[:0] if t.ndim else t),
    "no trees": lambda o: [change_nodes(o, trees=lambda _: {})],
    "wrong tree": lambda o: [change_nodes(o, trees=lambda p: {"gradient": p.trees["delta"]})],
    "wrong keys": lambda o: [
        change_nodes(o, trees=lambda p: {"delta": {f"x{k}": t for k, t in p.trees["delta"].items()}})
    ],
    "numbers": lambda o: [change_nodes(o, numbers=lambda _: {"loss": math.nan})],
    "no numbers": lambda o: [change_nodes(o, numbers=lambda _: {})],
    "too many replies": lambda o: [change_nodes(o, num_replies=lambda p: p.num_replies + 1)],
    "no examples": lambda o: [change_nodes(o, num_examples=lambda _: 0)],
    "too many examples": lambda o: [change_nodes(o, num_examples=lambda _: 10**400)],
    "numbers without a sum": lambda o: [change_nodes(o, numbers=lambda _: {"loss": 1e308})],
    "values without a sum": nodes_trees(lambda t: torch.full_like(t, 1e308) if t.is_floating_point() else t),
    "level too high": moved(lambda level, index: (level + 7, 0)),
    "level for ever": moved(lambda level, index: (2**40, 0)),
    "level below": moved(lambda level, index: (-1, index)),
    "index below": moved(lambda level, index: (level, -1)),
    "index beyond": moved(lambda level, index: (level, 2**70)),
    "another's block": moved(lambda level, index: (0, 0)),
    "everything": moved(lambda level, index: (3, 0)),
}


@pytest.mark.parametrize("fault", PARTIAL_FAULTS)
def test_partial_sums_that_lie(fold, fault):
    found, report, _ = exchange(fold, {2: PARTIAL_FAULTS[fault]})
    lost = {4, 5, 6, 7}  # client 3 came singly and is good
    assert same(found, without(fold, lost))
    assert report.failures.keys() == lost and {node for node, _ in report.failures.values()} == {2}
    assert all(reason for _, reason in report.failures.values())


SINGLE_FAULTS = {
    "NaN": (lambda r: replace(r, trees={"delta": T(w=[math.nan, 0.0])}), "'w' holds NaN"),
    "shape": (lambda r: replace(r, trees={"delta": T(w=[0.0] * 3)}), r"should have shape (2,), found (3,)"),
    "scalar": (lambda r: replace(r, trees={"delta": T(w=0.0)}), "should have shape (2,), found ()"),
    "keys": (lambda r: replace(r, trees={"delta": T(v=[0.0, 0.0])}), "missing ['w'], unexpected ['v']"),
    "nothing": (lambda r: replace(r, trees={}), "expected the trees ['delta'], found []"),
    "number": (lambda r: replace(r, numbers={"loss": math.inf}), "the number 'loss' is inf"),
    "examples": (lambda r: replace(r, num_examples=0), "num_examples should be at least 1, found 0"),
    "too many examples": (lambda r: replace(r, num_examples=10**400), "at most 2^53, found 1000"),
    "a number without a sum": (lambda r: replace(r, numbers={"loss": -1e308}), "the number 'loss' is -1e+308"),
    "no sum": (lambda r: replace(r, trees={"delta": T(w=[0.0, -1e308])}), "values up to 1e+308; more than 1e+100"),
}


@pytest.mark.parametrize("fault", SINGLE_FAULTS)
def test_single_replies_that_lie(fold, fault):
    change, reason = SINGLE_FAULTS[fault]
    found, report, _ = exchange(fold, {2: single(3, change)})
    assert same(found, without(fold, {3}))
    ((client, (node, text)),) = report.failures.items()
    assert (client, node) == (3, 2) and reason in text


def test_integers_are_not_averaged():
    change = single(3, lambda r: replace(r, trees={"delta": {"w": torch.tensor([1, 2])}}))
    found, report, _ = exchange(FOLDS["mean"], {2: change})
    assert same(found, without(FOLDS["mean"], {3})) and "'w' is torch.int64" in report.failures[3][1]


def test_a_node_speaks_for_no_other(fold):
    def behave(outcome):
        lie = Reply({"delta": T(w=[1e9, 1e9])}, {"loss": 0.0}, 10**6)
        outcome.singles |= {0: lie, 8: lie, 77: lie}
        outcome.failures |= {1: "slandered"}
        outcome.seconds |= {0: 1e9, 3: 0.5}
        return [outcome]

    found, report, _ = exchange(fold, {2: behave})
    assert same(found, without(fold, ())) and not report.failures
    assert report.seconds == {3: 0.5}


def test_a_node_that_repeats_itself(fold):
    def behave(outcome):
        again = Outcome(list(outcome.nodes), dict(outcome.singles), bytes_up=outcome.bytes_up)
        return [outcome, again, ValueError("and fails")]

    found, report, _ = exchange(fold, {1: behave, 2: behave, 3: behave})
    assert same(found, without(fold, ())) and not report.failures
    assert report.bytes_up == 9 * 16


def test_nobody_answers(fold):
    found, report, _ = exchange(fold, dict.fromkeys(HELD, lambda _: []))
    assert found is None and report.failures.keys() == set(COHORT)

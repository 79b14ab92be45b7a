"""Nodes that lie, fail, are silent or shout: left out, named, and of no influence on the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import tree as T
from tests.server.fakes import (
    COHORT,
    FOLDS,
    HELD,
    change_nodes,
    exchange,
    make_reply,
    nodes_trees,
    same,
    single,
    without,
)
from umbel.core.records import Reply
from umbel.core.wire.messages import encode_json
from umbel.core.wire.work import Outcome


@pytest.fixture(params=list(FOLDS))
def fold(request):
    return FOLDS[request.param]


def test_honest_nodes(fold):
    folded, report, done = exchange(fold, {})
    assert same(folded, without(fold, ())) and not report.failures
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
        "of which at most 147,456 are read",
    ),
    "says it in many words": (
        lambda _: [Outcome(failures=dict.fromkeys(HELD[2], "\x1b" + "x\n\u202e" * 700))],
        "... (2,101 letters in all)",
    ),
    "says nothing": (lambda _: [Outcome(failures=dict.fromkeys(HELD[2], ""))], "it gave no reason"),
    "index of 22 digits": (moved(lambda level, index: (level, 2**70)), "index should be a whole number"),
    "says all failed": (
        lambda _: [Outcome(failures=dict.fromkeys(HELD[2], "out of data"))],
        "out of data",
    ),
}


@pytest.mark.parametrize("fault", NODE_FAULTS)
def test_a_node_that_answers_nothing(fold, fault):
    behave, reason = NODE_FAULTS[fault]
    folded, report, _ = exchange(fold, {2: behave})
    assert same(folded, without(fold, HELD[2]))
    assert report.failures.keys() == set(HELD[2])
    for node, text in report.failures.values():
        assert node == 2 and reason in text and len(text) <= 500 and text.isprintable()
    assert report.bytes_up == 4 * 16


def weight(change):
    """A node that gives its sums another weight; where they have none, it adds one, which is a fault too."""

    def changed(partial):
        def tree(each):
            return {
                **each,
                "#weight": torch.as_tensor(change(each.get("#weight", torch.tensor(1.0))), dtype=torch.float64),
            }

        return {name: tree(each) for name, each in partial.trees.items()}

    return lambda outcome: [change_nodes(outcome, trees=changed)]


def sizes(change):
    """A node that says of its rows, or of the whole, that more examples are behind them."""

    def behave(outcome):
        for _, _, partial in outcome.nodes:
            for tree in partial.trees.values():
                for name in tree:
                    if name.startswith(("#num_examples", "#weight")):
                        tree[name] = change(tree[name])
        return [outcome]

    return behave


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
    "index beyond": moved(lambda level, index: (level, 2**60)),
    "a weight of its own": weight(lambda w: w * 1e12),
    "next to no weight": weight(lambda _: 1e-300),
    "weight NaN": weight(lambda _: math.nan),
    "weight infinite": weight(lambda _: math.inf),
    "rows of more examples": sizes(lambda n: n * 2),
    "values that overflow when squared": nodes_trees(lambda t: t.sign() * 1e160 if t.ndim else t),
    "2.5 examples": lambda o: [change_nodes(o, num_examples=lambda _: 2.5)],
    "true examples": lambda o: [change_nodes(o, num_examples=lambda _: True)],
    "negative examples": lambda o: [change_nodes(o, num_examples=lambda _: -22)],
    "10^308 examples": lambda o: [change_nodes(o, num_examples=lambda _: 10**308)],
    "fewer examples": lambda o: [change_nodes(o, num_examples=lambda p: p.num_examples - 1)],
    "more examples": lambda o: [change_nodes(o, num_examples=lambda p: p.num_examples + 1)],
    "another's block": moved(lambda level, index: (0, 0)),
    "everything": moved(lambda level, index: (3, 0)),
}


@pytest.mark.parametrize("fault", PARTIAL_FAULTS)
def test_partial_sums_that_lie(fold, fault):
    folded, report, _ = exchange(fold, {2: PARTIAL_FAULTS[fault]})
    lost = {4, 5, 6, 7}  # client 3 came singly and is good
    assert same(folded, without(fold, lost))
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
    "too many examples": (lambda r: replace(r, num_examples=10**400), "at most 19 digits, found 'inf'"),
    "beyond 2^53 examples": (lambda r: replace(r, num_examples=2**53 + 1), "at most 2^53, found 9007199254740993"),
    "2.5 examples": (lambda r: replace(r, num_examples=2.5), "found '2.5' (float)"),
    "true examples": (lambda r: replace(r, num_examples=True), "found 'True' (bool)"),
    "examples as a text": (lambda r: replace(r, num_examples="4"), "found '4' (str)"),
    "negative examples": (lambda r: replace(r, num_examples=-1), "should be at least 1, found -1"),
    "a number without a sum": (lambda r: replace(r, numbers={"loss": -1e308}), "the number 'loss' is -1e+308"),
    "no sum": (lambda r: replace(r, trees={"delta": T(w=[0.0, -1e308])}), "values up to 1e+308; more than 1e+100"),
}


@pytest.mark.parametrize("fault", SINGLE_FAULTS)
def test_single_replies_that_lie(fold, fault):
    change, reason = SINGLE_FAULTS[fault]
    folded, report, _ = exchange(fold, {2: single(3, change)})
    assert same(folded, without(fold, {3}))
    ((client, (node, text)),) = report.failures.items()
    assert (client, node) == (3, 2) and reason in text


def test_integers_are_not_averaged():
    change = single(3, lambda r: replace(r, trees={"delta": {"w": torch.tensor([1, 2])}}))
    folded, report, _ = exchange(FOLDS["mean"], {2: change})
    assert same(folded, without(FOLDS["mean"], {3})) and "'w' is torch.int64" in report.failures[3][1]


def test_a_node_speaks_for_no_other(fold):
    def behave(outcome):
        lie = Reply({"delta": T(w=[1e9, 1e9])}, {"loss": 0.0}, 10**6)
        outcome.singles |= {0: lie, 8: lie, 77: lie}
        outcome.failures |= {1: "slandered"}
        outcome.seconds |= {0: 1e9, 3: 0.5}
        return [outcome]

    folded, report, _ = exchange(fold, {2: behave})
    assert same(folded, without(fold, ())) and not report.failures
    assert report.seconds.keys() == {3} and 0 <= report.seconds[3] <= 0.5


@pytest.mark.parametrize(
    ("said", "counted"), [(-1.0, None), (math.nan, None), (-math.inf, None), (math.inf, 5.0), (1e300, 5.0), (0.0, 0.0)]
)
def test_the_time_of_a_client_is_no_more_than_was_waited(fold, said, counted):
    def behave(outcome):
        outcome.seconds[3] = said
        return [outcome]

    _, report, _ = exchange(fold, {2: behave})
    assert (report.seconds.keys() == set()) if counted is None else (0 <= report.seconds[3] <= counted)
    assert not report.failures


@pytest.mark.parametrize(("said", "counted"), [(-(10**18), 16), (0, 16), (96, 96), (10**18, None)])
def test_bytes_are_those_that_can_have_come(fold, said, counted):
    """Client 3's 16 came singly and are counted here; those of four replies that were added up are the node's word."""

    def behave(outcome):
        outcome.bytes_up, outcome.framing_up = said, said
        return [outcome]

    _, report, _ = exchange(fold, {2: behave})
    (summed,) = sums(fold)
    most = 16 + 4 * sum(tensor.nbytes for tree in summed.trees.values() for tensor in tree.values())
    assert report.bytes_up - 4 * 16 == (most if counted is None else counted)
    assert 0 <= report.framing_up <= 5 * 4096 and not report.failures


def sums(fold):
    """The sum that node 2 sends."""
    caught = []
    exchange(fold, {2: lambda outcome: caught.extend(partial for _, _, partial in outcome.nodes) or [outcome]})
    return caught


DECLARED = {client: client + 1 for client in COHORT}  # as many as the honest replies count


def more_of(client, number):
    def answer(each):
        reply = make_reply(each)
        return replace(reply, num_examples=number) if each == client else reply

    return answer


@pytest.mark.parametrize(("client", "lost"), [(3, {3}), (5, {4, 5, 6, 7})])
def test_a_client_counts_no_more_examples_than_its_node_declared(fold, client, lost):
    honest, report, _ = exchange(fold, {}, examples=DECLARED)
    assert same(honest, without(fold, ())) and not report.failures
    for number in (client + 2, 10**12):
        folded, report, _ = exchange(fold, {}, more_of(client, number), DECLARED)
        assert same(folded, without(fold, lost)) and report.failures.keys() == lost
    fewer = more_of(client, 1)  # a task's part of them
    folded, report, _ = exchange(fold, {}, fewer, DECLARED)
    assert same(folded, without(fold, (), fewer)) and not report.failures


@pytest.mark.parametrize("declared", [None, dict.fromkeys(COHORT, 10**12)])
def test_nor_more_than_the_server_knows_that_it_has(fold, declared):
    knows = {"num_examples": DECLARED.__getitem__}
    honest, report, _ = exchange(fold, {}, examples=declared, **knows)
    assert same(honest, without(fold, ())) and not report.failures
    folded, report, _ = exchange(fold, {}, more_of(3, 10**12), declared, **knows)
    assert same(folded, without(fold, {3})) and report.failures.keys() == {3}


def test_a_phase_may_say_that_clients_count_more(fold):
    twice, answer = {"most_examples": lambda client, own: 2 * own}, more_of(3, 8)
    folded, report, _ = exchange(fold, {}, answer, DECLARED, **twice)
    assert same(folded, without(fold, (), answer)) and not report.failures
    _, report, _ = exchange(fold, {}, more_of(3, 9), DECLARED, **twice)
    assert report.failures[3][1] == "num_examples should be at most 8, found 9"
    _, report, _ = exchange(fold, {}, more_of(3, 10**12), DECLARED, most_examples=lambda client, own: math.inf)
    assert not report.failures


def test_a_client_without_examples_may_count_one(fold):
    """As one does whose number of examples would be private, or that evaluates."""
    answer = more_of(3, 1)
    folded, report, _ = exchange(fold, {}, answer, {**DECLARED, 3: 0})
    assert same(folded, without(fold, (), answer)) and not report.failures


def test_a_node_that_repeats_itself(fold):
    def behave(outcome):
        again = Outcome(list(outcome.nodes), dict(outcome.singles), bytes_up=outcome.bytes_up)
        return [outcome, again, ValueError("and fails")]

    folded, report, _ = exchange(fold, {1: behave, 2: behave, 3: behave})
    assert same(folded, without(fold, ())) and not report.failures
    assert report.bytes_up == 9 * 16


def test_nobody_answers(fold):
    folded, report, _ = exchange(fold, dict.fromkeys(HELD, lambda _: []))
    assert folded is None and report.failures.keys() == set(COHORT)

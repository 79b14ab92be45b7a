"""Nodes that lie, fail, are silent or shout: left out, named, and of no influence on the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from flwr.app import Message

from tests.helpers import SMALL, small_run
from tests.helpers import tree as T
from umbel.client.evaluation import evaluate_client
from umbel.core.blocks import Assembler, BlockTree, cut, fold_block
from umbel.core.collecting import Collect, Moments
from umbel.core.evaluation import evaluation_fold
from umbel.core.folds import WeightedMean, product
from umbel.core.messages import decode_work, encode_json, encode_outcome
from umbel.core.moments import pack
from umbel.core.records import Payload, Reply
from umbel.core.work import Outcome, Work
from umbel.server import checkpoint
from umbel.server.errors import RunStoppedError
from umbel.server.exchange import Exchange
from umbel.server.main import execute
from umbel.server.nodes import Directory
from umbel.simulations import api
from umbel.simulations.engines.flower_internals import error_reply, identify
from umbel.simulations.engines.inline import InlinePort
from umbel.simulations.engines.local import LocalPort

PAYLOAD = Payload({"model": T(w=[0.0, 0.0])})
FOLDS = {
    "mean": product({"delta": WeightedMean("model")}, ["loss"]),
    "collect": product({"delta": Collect("model")}, ["loss"]),
}
# Blocks of two of (0 .. 8): node 2 holds 3, so the block (2 3) is nobody's, and (4 5), (6 7) are node 2's.
HELD = {1: range(3), 2: range(3, 8), 3: range(8, 9)}
COHORT = tuple(range(9))
WORK = Work("run", "a", 1, 0, "train", "hash", 0, (), 0, frozenset())


def make_reply(client):
    value = torch.randn(2, generator=torch.Generator().manual_seed(client), dtype=torch.float64) * 10**client
    return Reply({"delta": {"w": value}}, {"loss": float(value[0])}, client + 1)


def work_honestly(message, fold):
    work, _ = decode_work(message.content)
    outcome, tree = Outcome(bytes_up=16 * len(work.clients)), BlockTree(fold, work.num_blocks)
    for block in work.blocks:
        replies = {client: make_reply(client) for client in block.clients if client in work.clients}
        if work.clients.issuperset(block.clients):
            tree.add(0, block.index, fold_block(fold, block, replies))
        else:
            outcome.singles |= replies
    outcome.nodes = list(tree.nodes())
    return outcome


class FakePort(LocalPort):
    """Nodes in this process; `behave` turns a node's honest outcome into what it sends."""

    def __init__(self, fold, behave):
        identify()
        self._fold, self._behave = fold, behave

    def nodes(self):
        return set(HELD)

    def stream(self, messages, deadline, on_wait=None):
        for message in reversed(list(messages)):
            node = message.metadata.dst_node_id
            if message.metadata.message_type == "query":
                answer = {"partitions": list(HELD[node]), "config_hash": "hash"}
                yield Message(encode_json(answer), reply_to=message)
                continue
            outcome = work_honestly(message, self._fold)
            behave = self._behave.get(node, lambda outcome: [outcome])
            for answer in behave(outcome):
                if isinstance(answer, Exception):
                    yield error_reply(message, answer)
                else:
                    content = encode_outcome(answer) if isinstance(answer, Outcome) else answer
                    yield Message(content, reply_to=message)


def exchange(fold, behave):
    port = FakePort(fold, behave)
    directory = Directory(port, "hash", len(COHORT), 1.0)
    directory.wait()
    done = []
    found = Exchange(port, directory, 2, 5.0, 1 << 20, done.append, lambda: None).run(WORK, PAYLOAD, COHORT, fold)
    return *found, done


def without(fold, clients):
    """What comes of the others, in one process."""
    assembler = Assembler(fold, cut(COHORT, 2))
    for client in COHORT:
        assembler.add_client(client, None if client in clients else make_reply(client))
    return fold.finish(assembler.finish())


def same(left, right):
    assert (left.num_examples, left.num_replies, left.numbers) == (
        right.num_examples,
        right.num_replies,
        right.numbers,
    )
    for name, tree in right.trees.items():
        assert left.trees[name].keys() == tree.keys()
        assert all(torch.equal(left.trees[name][key], tree[key]) for key in tree)
    return True


@pytest.fixture(params=list(FOLDS))
def fold(request):
    return FOLDS[request.param]


def test_honest_nodes(fold):
    found, report, done = exchange(fold, {})
    assert same(found, without(fold, ())) and not report.failures
    assert report.bytes_down == report.bytes_up == 9 * 16 and report.framing_down > 0
    assert done == [1, 6, 9]


# What a whole node does wrong ------------------------------------------------------------------------------


def change_nodes(outcome, **changes):
    outcome.nodes = [
        (level, index, replace(partial, **{k: v(partial) for k, v in changes.items()}))
        for level, index, partial in outcome.nodes
    ]
    return outcome


def nodes_trees(change):
    def changed(partial):
        return {name: {key: change(t) for key, t in tree.items()} for name, tree in partial.trees.items()}

    return lambda outcome: [change_nodes(outcome, trees=changed)]


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
        assert node == 2 and reason in text
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


def single(client, change):
    def behave(outcome):
        outcome.singles[client] = change(outcome.singles[client])
        return [outcome]

    return behave


SINGLE_FAULTS = {
    "NaN": (lambda r: replace(r, trees={"delta": T(w=[math.nan, 0.0])}), "'w' holds NaN"),
    "shape": (lambda r: replace(r, trees={"delta": T(w=[0.0] * 3)}), r"should have shape (2,), found (3,)"),
    "scalar": (lambda r: replace(r, trees={"delta": T(w=0.0)}), "should have shape (2,), found ()"),
    "keys": (lambda r: replace(r, trees={"delta": T(v=[0.0, 0.0])}), "missing ['w'], unexpected ['v']"),
    "nothing": (lambda r: replace(r, trees={}), "expected the trees ['delta'], found []"),
    "number": (lambda r: replace(r, numbers={"loss": math.inf}), "the number 'loss' is inf"),
    "examples": (lambda r: replace(r, num_examples=0), "num_examples should be at least 1, found 0"),
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


# Keys that a reply may leave out ----------------------------------------------------------------------------

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
    found, report, _ = exchange(OPEN, {2: behave})
    assert same(found, without(OPEN, {4, 5, 6, 7})) and report.failures.keys() == {4, 5, 6, 7}


OTHER_SHAPES = {
    "rows": (nodes_trees(lambda t: t.repeat(1, 2) if t.ndim == 2 else t), {4, 5, 6, 7}),
    "a single reply": (single(3, lambda r: replace(r, trees={"delta": T(w=[1.0, 2.0, 3.0])})), {3}),
}


@pytest.mark.parametrize("fault", OTHER_SHAPES)
def test_shapes_that_cannot_be_merged_cost_those_who_come_with_them(fault):
    """The payload leaves the shapes open: the first answer, here of node 3, sets them for all."""
    behave, lost = OTHER_SHAPES[fault]
    found, report, _ = exchange(OPEN, {2: behave})
    assert same(found, without(OPEN, lost)) and report.failures.keys() == lost
    assert all("another client's has" in text for _, text in report.failures.values())


def test_moments_of_another_width_cost_those_who_send_them(monkeypatch):
    def moments_of(width):
        return {"delta": {"1": pack(torch.tensor(2.0), torch.zeros(width), torch.eye(width))}}

    monkeypatch.setattr(f"{__name__}.make_reply", lambda client: Reply(moments_of(2), {"loss": 0.0}, 2))
    fold = product({"delta": Moments()}, ["loss"])
    found, report, _ = exchange(fold, {2: single(3, lambda r: replace(r, trees=moments_of(3)))})
    assert report.failures.keys() == {3} and "should have shape (6,)" in report.failures[3][1]
    assert same(found, without(fold, {3}))


# Evaluation -------------------------------------------------------------------------------------------------

HONEST = T(**{"test/retrieval": [[1.0] * 6, [2.0] * 6], "test/retrieval/loss": 0.0})


@pytest.mark.parametrize("width", [0, 1, 5, 7])
@pytest.mark.parametrize("liar", [0, 3, 6])
def test_a_lie_about_retrieval_costs_the_liar(monkeypatch, liar, width):
    lie = T(**{"test/retrieval": [[1.0] * width, [2.0] * width], "test/retrieval/loss": 0.0})
    monkeypatch.setattr(f"{__name__}.make_reply", lambda client: Reply({"counts": HONEST}))
    fold, node = evaluation_fold(5), 1 if liar < 3 else 2

    def apart(outcome):  # one by one, so that it is the server who looks
        outcome.nodes, outcome.singles = [], {client: make_reply(client) for client in HELD[node]}
        outcome.singles[liar] = Reply({"counts": lie})
        return [outcome]

    found, report, _ = exchange(fold, {node: apart})
    assert same(found, without(fold, {liar})) and report.failures.keys() == {liar}
    assert "6 of retrieval" in report.failures[liar][1]


def test_a_run_goes_on_without_the_evaluation_that_lies(tmp_path, monkeypatch):
    def evaluate(strategy, payload, client, *rest):
        honest = evaluate_client(strategy, payload, client, *rest)
        if client.id != 1:
            return honest
        return replace(honest, trees={"counts": {name: t[..., :3] for name, t in honest.trees["counts"].items()}})

    monkeypatch.setattr("umbel.client.worker.evaluate_client", evaluate)
    metrics = small_run(tmp_path, "evaluate.clients=-1").summary
    assert metrics["num_failures"] == metrics["rounds"] and "clients/test/accuracy" in metrics["metrics"]


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


# Nodes ------------------------------------------------------------------------------------------------------


class Greeting(FakePort):
    def __init__(self, answers):
        identify()
        self._answers = answers

    def nodes(self):
        return set(self._answers)

    def stream(self, messages, deadline, on_wait=None):
        for message in messages:
            answer = self._answers[message.metadata.dst_node_id]
            if isinstance(answer, Exception):
                yield error_reply(message, answer)
            else:
                yield Message(encode_json(answer), reply_to=message)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"partitions": [1], "config_hash": "other"}, "composed the experiment other, the server hash"),
        ({"partitions": None, "config_hash": "hash"}, "cannot be read"),
        ({"config_hash": "hash"}, "cannot be read"),
        (KeyError("experiment"), "KeyError: 'experiment'"),
    ],
    ids=range(4),
)
def test_nodes_that_are_refused(answer, reason):
    directory = Directory(Greeting({1: {"partitions": [0], "config_hash": "hash"}, 2: answer}), "hash", 2, 0.0)
    with pytest.raises(RunStoppedError, match="nobody holds the clients 1 of 2") as found:
        directory.wait()
    assert "Node 2 was refused" in str(found.value) and reason in str(found.value)


def test_a_client_that_two_nodes_hold_runs_on_one():
    held = {1: {"partitions": [0, 1], "config_hash": "hash"}, 5: {"partitions": [1, 2], "config_hash": "hash"}}
    directory = Directory(Greeting(held), "hash", 3, 0.0)
    directory.wait()
    assert directory.split([0, 1, 2]) == ({1: frozenset({0, 1}), 5: frozenset({2})}, [])
    assert directory.split([2, 9]) == ({5: frozenset({2})}, [9])


# Through a whole run ----------------------------------------------------------------------------------------


def corrupt_run(tmp_path, monkeypatch, from_round, *overrides):
    """A run whose only node loses client 1's block from a round on."""

    class Corrupt(InlinePort):
        def stream(self, messages, deadline, on_wait=None):
            for message in messages:
                for reply in super().stream([message], deadline):
                    if message.metadata.message_type != "query":
                        work, _ = decode_work(message.content)
                        if work.round >= from_round:
                            bad = Outcome(failures=dict.fromkeys(sorted(work.clients), "burnt"))
                            yield Message(encode_outcome(bad), reply_to=message)
                            continue
                    yield reply

    monkeypatch.setattr(api, "InlinePort", Corrupt)
    return small_run(tmp_path, *overrides)


def test_too_few_replies_end_the_run_with_everything_saved(tmp_path, monkeypatch):
    with pytest.raises(RunStoppedError) as found:
        corrupt_run(tmp_path, monkeypatch, 3, "run.rounds=4", "checkpoint.every=0", "run.name=r")
    text = str(found.value)
    assert "Round 3, phase train: 0 of 4 clients sent a good reply, 1 are needed (run.min_replies)" in text
    assert "client 0 on node 1: burnt" in text
    assert checkpoint.latest(tmp_path / "r" / "checkpoints").progress.round == 2
    monkeypatch.undo()
    whole = small_run(tmp_path, "run.rounds=4", "checkpoint.every=0")
    assert api.resume(tmp_path / "r").summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_execute_is_what_runs(tmp_path):
    # `execute` by itself, as the ServerApp calls it over a port of its own.
    experiment = api.load("digits", [*SMALL, f"run.results={tmp_path}"])
    grid = InlinePort(api.run_config(experiment), {"state-folder": str(tmp_path / "memory")}, lambda _: None)
    path = execute(experiment, grid, api.Listener())
    assert api.RunResult(path).summary["weights_sha256"] == small_run(tmp_path).summary["weights_sha256"]

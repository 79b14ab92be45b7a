"""Three nodes of which the second is hostile, for each kind of fold, and what may come of what it sends."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from flwr.app import Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from tests.server.fakes import COHORT, HELD, WORK, same, work_honestly
from tests.server.hostile.mutations import INSIDE, KINDS, mutated
from tests.server.hostile.objects import mutated_objects, mutated_tree, with_objects_changed
from tests.server.superlink import Objects, SuperLinkGrid
from umbel.core import moments
from umbel.core.collecting import Collect, Moments
from umbel.core.fold_tree import FoldTree
from umbel.core.folds import Folded, Product, Sum, UniformMean, WeightedMean, product
from umbel.core.records import Payload, Reply
from umbel.core.wire.messages import encode_json, encode_outcome, encode_payload, encode_work
from umbel.core.wire.work import share
from umbel.server.exchange import Exchange, Report
from umbel.server.flower.inbox import FlowerPort
from umbel.server.flower.internals import identify
from umbel.server.flower.message_port import MessagePort
from umbel.server.nodes import Directory
from umbel.server.port import OnWait

HOSTILE = 2  # holds the clients 3 to 7: one block with a neighbour, two of its own
FOLDS: dict[str, Product] = {
    "mean": product({"delta": WeightedMean("model")}, ["loss"]),
    "uniform": product({"delta": UniformMean("model")}, ["loss"]),
    "sum": product({"delta": Sum("model")}, ["loss"]),
    "moments": product({"delta": Moments(bounds=lambda payload: (4, 2))}, ["loss"]),
    "collect": product({"delta": Collect("model")}, ["loss"]),
}
MOST = 20  # examples that a client may claim
# Of the answers whose objects are changed, some are whole, and the receiver could read them; some have another tree.
WHOLE, TREES = 0.25, 0.25
LARGEST = 1.9e19  # of a change of a parameter in float32: its square is still one
PAYLOAD = Payload({"model": {"w": torch.zeros(2)}})


@cache
def answer(name: str, client: int) -> Reply:
    """The honest reply of a client: its values are exact in all orders of addition but one."""
    source = torch.Generator().manual_seed(client)
    values = torch.randn(2, generator=source, dtype=torch.float64) * 10 ** (client / 3)
    tree = {"w": values.float()}
    if name == "moments":
        rows = torch.randn(3, 2, generator=source, dtype=torch.float64)
        centred = rows - rows.mean(0)
        packed = moments.pack(torch.tensor(3.0).double(), rows.mean(0), centred.T @ centred / 3)
        tree = {str(client % 4): packed.float(), "0": packed.float()}
    return Reply({"delta": tree}, {"loss": float(values[0])}, client + 6)


@cache
def honest(name: str, node: int) -> RecordDict:
    """What a node sends that is honest."""
    identify()
    work = share(replace(WORK, num_leaves=len(COHORT)), COHORT, HELD[node])
    message = Message(encode_work(work, PAYLOAD, encode_payload(PAYLOAD)), node, "train")
    return encode_outcome(work_honestly(message, FOLDS[name], lambda client: answer(name, client)))


@dataclass(frozen=True)
class Case:
    """A mutation: which fold's answer, which kind of change, and the seed of it."""

    fold: str
    kind: str
    seed: int

    def content(self) -> RecordDict:
        return mutated(honest(self.fold, HOSTILE), self.kind, random.Random(self.seed))


def cases(number: int, seed: int = 0) -> list[Case]:
    """So many cases, kinds of changes and folds in turn."""
    names = list(FOLDS)
    return [
        Case(names[index // len(KINDS) % len(names)], KINDS[index % len(KINDS)], seed * 10**6 + index)
        for index in range(number)
    ]


class Replayed(MessagePort):
    """Nodes that send what they would, the hostile one with a change."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def nodes(self) -> set[int]:
        return set(HELD)

    def stream(
        self, messages: Collection[Message], deadline: float, on_wait: OnWait | None = None
    ) -> Iterator[Message]:
        for message in messages:
            yield Message(self.content(message), reply_to=message)

    def content(self, message: Message) -> RecordDict:
        node = message.metadata.dst_node_id
        if message.metadata.message_type == "query":
            examples = {str(client): MOST for client in HELD[node]}
            return encode_json({"partitions": list(HELD[node]), "config_hash": "hash", "examples": examples})
        if node == HOSTILE and self._case.kind in INSIDE:
            return self._case.content()
        return honest(self._case.fold, node)


def grid(case: Case) -> SuperLinkGrid:
    """A SuperLink's grid, whose hostile node has its answer's objects, and their tree, changed on the way."""
    port, source = Replayed(case), random.Random(case.seed)
    whole = source.random() < WHOLE

    def is_hostile(asked: Message) -> bool:
        return asked.metadata.message_type != "query" and asked.metadata.dst_node_id == HOSTILE

    def answer(asked: Message) -> Message:
        if not (whole and is_hostile(asked)):
            return Message(port.content(asked), reply_to=asked)
        content = honest.__wrapped__(case.fold, HOSTILE)  # its own, since records are changed in place
        with_objects_changed(content, source)
        return Message(content, reply_to=asked)

    def change(asked: Message, objects: Objects, tree: ObjectTree) -> tuple[Objects, ObjectTree]:
        if whole or not is_hostile(asked):
            return objects, tree
        if source.random() < TREES:
            return objects, mutated_tree(tree, source)
        return mutated_objects(objects, source), tree

    return SuperLinkGrid(HELD, answer, change)


def run(case: Case) -> tuple[Folded | None, Report]:
    """Run the exchange of a case."""
    superlink = grid(case)
    port = FlowerPort(superlink) if case.kind == "objects" else Replayed(case)
    directory = Directory(port, "hash", len(COHORT), 5.0)
    directory.wait()
    exchange = Exchange(port, directory, 2.0, 1 << 20, lambda _: None, lambda: None)
    done = exchange.run(WORK, PAYLOAD, COHORT, FOLDS[case.fold], most_examples=lambda client, own: own)
    assert not superlink.faults
    return done


@cache
def without(name: str, clients: frozenset[int]) -> Folded:
    """What comes of the others, in one process."""
    fold = FOLDS[name]
    replies = FoldTree(fold, len(COHORT))
    for place, client in enumerate(COHORT):
        replies.add_reply(place, client, None if client in clients else answer(name, client))
    return fold.finish(replies.root())


def wrong(case: Case, folded: Folded | None, report: Report) -> str:
    """Say what is wrong with what came of a case; "" when nothing is."""
    if folded is None or not report.failures.keys() <= set(HELD[HOSTILE]):
        return f"others fail: {sorted(report.failures)}"
    for client, (node, reason) in report.failures.items():
        if node != HOSTILE or not reason or len(reason) > 500 or not reason.isprintable():
            return f"client {client} of node {node} fails with {reason!r}"
    if folded.num_replies != len(COHORT) - len(report.failures):
        return f"{folded.num_replies} replies and {len(report.failures)} failures"
    if any(not 0 <= seconds < 60 for seconds in report.seconds.values()):
        return f"seconds {report.seconds}"
    if not (0 <= report.bytes_up <= 10**6 and 0 <= report.framing_up <= 10**6):
        return f"{report.bytes_up} and {report.framing_up} bytes"
    try:
        same(folded, without(case.fold, frozenset(report.failures)))
    except (AssertionError, KeyError, RuntimeError):
        return out_of_bounds(folded)  # something that is not honest has been taken: it has to be within bounds
    return ""


def out_of_bounds(folded: Folded) -> str:
    """Say what of a result is more than its clients can have; "" when nothing is."""
    honest = sum(client + 6 for client in COHORT if client not in HELD[HOSTILE])
    if not len(COHORT) - 5 <= folded.num_examples <= honest + MOST * len(HELD[HOSTILE]):
        return f"{folded.num_examples} examples"
    if not all(math.isfinite(number) for number in folded.numbers.values()):
        return f"numbers {folded.numbers}"
    for tree in folded.trees.values():
        for name, tensor in tree.items():
            sizes = tensor.tolist() if name.startswith("#num_examples") else []
            if not bool(torch.isfinite(tensor.float()).all()) or any(size > MOST for size in sizes):
                return f"{name} is {tensor.tolist()}"
            if name == "w" and float(tensor.abs().max()) > len(COHORT) * LARGEST:
                return f"{name} is {tensor.tolist()}"
    return ""

"""Three nodes of which the second is hostile, for each kind of fold, and what may come of what it sends."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from tests.server.fakes import COHORT, HELD, WORK, same, work_honestly
from tests.server.hostile.mutations import INSIDE, KINDS, mutated, mutated_objects
from umbel.core import moments
from umbel.core.blocks import Assembler, cut
from umbel.core.collecting import Collect, Moments
from umbel.core.folds import Folded, Product, Sum, UniformMean, WeightedMean, product
from umbel.core.messages import encode_json, encode_outcome, encode_payload, encode_work
from umbel.core.records import Payload, Reply
from umbel.core.work import share
from umbel.server.exchange import Exchange, Report
from umbel.server.flower.inbox import FlowerPort
from umbel.server.nodes import Directory
from umbel.server.port import OnWait
from umbel.simulations.engines.flower_internals import identify
from umbel.simulations.engines.local import LocalPort

HOSTILE = 2  # holds the clients 3 to 7: one block with a neighbour, two of its own
FOLDS: dict[str, Product] = {
    "mean": product({"delta": WeightedMean("model")}, ["loss"]),
    "uniform": product({"delta": UniformMean("model")}, ["loss"]),
    "sum": product({"delta": Sum("model")}, ["loss"]),
    "moments": product({"delta": Moments(bounds=lambda payload: (4, 2))}, ["loss"]),
    "collect": product({"delta": Collect("model")}, ["loss"]),
}
MOST = 20  # examples that a client may claim
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
    blocks = cut(COHORT, 2)
    touched, mine = share(blocks, frozenset(HELD[node]))
    work = replace(WORK, blocks=touched, num_blocks=len(blocks), clients=mine)
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


class Replayed(LocalPort):
    """Nodes that send what they would, the hostile one with a change."""

    def __init__(self, case: Case) -> None:
        super().__init__()
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


class Grid:
    """A SuperLink's grid, whose hostile node has the bytes of its answer's objects changed on the way."""

    def __init__(self, case: Case) -> None:
        self._case, self._port, self._sent = case, Replayed(case), dict[str, Message]()

    def get_node_ids(self) -> list[int]:
        return list(HELD)

    def push_messages(self, messages: list[Message]) -> list[str]:
        names = []
        for message in messages:
            names.append(f"m{len(self._sent)}")
            message.metadata.__dict__["_message_id"] = names[-1]
            self._sent[names[-1]] = message
        return names

    def pull_messages(self, names: list[str]) -> list[Message]:
        asked = self._sent[names[0]]
        reply = Message(self._port.content(asked), reply_to=asked)
        if asked.metadata.message_type == "query" or asked.metadata.dst_node_id != HOSTILE:
            return [reply]
        objects = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
        objects = mutated_objects(objects, random.Random(self._case.seed))
        inflated = inflate_object_from_contents(reply.object_id, objects)
        assert isinstance(inflated, Message)
        return [inflated]


def run(case: Case) -> tuple[Folded | None, Report]:
    """Run the exchange of a case."""
    port = FlowerPort(Grid(case)) if case.kind == "objects" else Replayed(case)  # type: ignore[arg-type]
    directory = Directory(port, "hash", len(COHORT), 5.0)
    directory.wait()
    exchange = Exchange(port, directory, 2, 2.0, 1 << 20, lambda _: None, lambda: None)
    return exchange.run(WORK, PAYLOAD, COHORT, FOLDS[case.fold], most_examples=float)


@cache
def without(name: str, clients: frozenset[int]) -> Folded:
    """What comes of the others, in one process."""
    fold = FOLDS[name]
    assembler = Assembler(fold, cut(COHORT, 2))
    for client in COHORT:
        assembler.add_client(client, None if client in clients else answer(name, client))
    return fold.finish(assembler.finish())


def wrong(case: Case, found: Folded | None, report: Report) -> str:
    """Say what is wrong with what came of a case; "" when nothing is."""
    if found is None or not report.failures.keys() <= set(HELD[HOSTILE]):
        return f"others fail: {sorted(report.failures)}"
    for client, (node, reason) in report.failures.items():
        if node != HOSTILE or not reason or len(reason) > 500 or not reason.isprintable():
            return f"client {client} of node {node} fails with {reason!r}"
    if found.num_replies != len(COHORT) - len(report.failures):
        return f"{found.num_replies} replies and {len(report.failures)} failures"
    if any(not 0 <= seconds < 60 for seconds in report.seconds.values()):
        return f"seconds {report.seconds}"
    if not (0 <= report.bytes_up <= 10**6 and 0 <= report.framing_up <= 10**6):
        return f"{report.bytes_up} and {report.framing_up} bytes"
    try:
        same(found, without(case.fold, frozenset(report.failures)))
    except (AssertionError, KeyError, RuntimeError):
        return out_of_bounds(found)  # something that is not honest has been taken: it has to be within bounds
    return ""


def out_of_bounds(found: Folded) -> str:
    """Say what of a result is more than its clients can have; "" when nothing is."""
    honest = sum(client + 6 for client in COHORT if client not in HELD[HOSTILE])
    if not len(COHORT) - 5 <= found.num_examples <= honest + MOST * len(HELD[HOSTILE]):
        return f"{found.num_examples} examples"
    if not all(math.isfinite(number) for number in found.numbers.values()):
        return f"numbers {found.numbers}"
    for tree in found.trees.values():
        for name, tensor in tree.items():
            sizes = tensor.tolist() if name.startswith("#num_examples") else []
            if not bool(torch.isfinite(tensor.float()).all()) or any(size > MOST for size in sizes):
                return f"{name} is {tensor.tolist()}"
            if name == "w" and float(tensor.abs().max()) > len(COHORT) * LARGEST:
                return f"{name} is {tensor.tolist()}"
    return ""

"""A warm node that turned hostile: it keeps its key and its clients, and changes what its clients answer.

    python hostile_node.py FILE [options of umbel.client.node.supernode]

For each of them it adds a line to FILE, with the kind of the change.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from flwr.app import Message, RecordDict

from tests.server.hostile.mutations import INSIDE, mutated
from tests.server.hostile.objects import with_objects_changed
from umbel.client.node import options
from umbel.client.node.connection import Bundle, Connection, connect
from umbel.client.node.node import Node
from umbel.core.evaluation import evaluation_fold
from umbel.core.fold_tree import FoldTree
from umbel.core.folds import Product, WeightedMean, product
from umbel.core.wire.messages import decode_work
from umbel.server.flower.message_port import read_answer
from umbel.server.receiver import Receiver, Report

TRAIN: Product = product({"delta": WeightedMean("model")}, ["loss"])  # as FedAvg has it
EVALUATE: Product = evaluation_fold(10)
NUM_CLIENTS = 4
OBJECTS = 0.3  # of the answers are good for the receiver, and no answer where they are pulled


class Hostile(Connection):
    """A connection that changes what is sent over it."""

    def __init__(self, honest: Connection, notes: Path) -> None:
        self.node_id, self._honest, self._notes = honest.node_id, honest, notes
        self._asked: Message | None = None
        self._source = random.Random(7)

    def receive(self) -> Message | None:
        message = self._honest.receive()
        self._asked = message or self._asked
        return message

    def send(self, reply: Message, seconds: float) -> None:
        assert self._asked is not None
        if self._asked.metadata.message_type != "query" and reply.has_content():
            kind = self._change(reply)
            with self._notes.open("a") as file:
                file.write(f"{kind}\n")
        self._honest.send(reply, seconds)

    def _change(self, reply: Message) -> str:
        if self._source.random() < OBJECTS:
            with_objects_changed(reply.content, self._source)
            return "objects"
        while True:  # a change that does no harm is none: time that was told, a value by a little
            kind = self._source.choice(INSIDE)
            content = mutated(reply.content, kind, self._source)
            if self._costs_everybody(content):
                reply.content = content
                return kind

    def _costs_everybody(self, content: RecordDict) -> bool:
        """Say whether a server that asked what was asked here could use nothing of a content."""
        assert self._asked is not None
        work, payload = decode_work(self._asked.content)
        fold = TRAIN if self._asked.metadata.message_type == "train" else EVALUATE
        cohort, report = range(NUM_CLIENTS), Report()
        receiver = Receiver(FoldTree(fold, NUM_CLIENTS), cohort, fold, payload, report)
        clients = frozenset(work.leaves)
        receiver.take(read_answer(Message(content, reply_to=self._asked), receiver.limits(clients)), clients)
        return receiver.num_done == len(report.failures)

    def check_running(self, run_id: int) -> None:
        self._honest.check_running(run_id)

    def bundle(self, run_id: int) -> Bundle:
        return self._honest.bundle(run_id)


def main() -> None:
    told = options.read(sys.argv[2:])
    with connect(told.address) as connection:
        print(f"node {connection.node_id} is connected to {told.address.superlink}", flush=True)
        Node(Hostile(connection, Path(sys.argv[1])), told.rules).serve()


if __name__ == "__main__":
    main()

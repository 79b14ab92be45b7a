"""One exchange of a round: send the payload, take the replies as they come, fold them in the fixed order."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from umbel.core import leftovers
from umbel.core.blocks import Assembler, Block, BlockTree, cut
from umbel.core.files import read_tensors, write_tensors
from umbel.core.folds import Folded, Partial, Product, Shapes
from umbel.core.messages import MessageError, decode_outcome, encode_payload, encode_work, framing_bytes
from umbel.core.records import BadReplyError, Payload, shortened
from umbel.core.work import Outcome, Work, share
from umbel.server.nodes import Directory
from umbel.server.port import Port
from umbel.strategies.base import EVALUATE


@dataclass
class Report:
    """What an exchange cost and what went wrong in it.

    Attributes:
        cohort: The selected clients.
        failures: For each client that failed, its node and the reason.
        seconds: Time that each client took.
        remembered: Clients that wrote their memory and whose reply was good.
        bytes_down: Tensor bytes that the selected clients received, each counted.
        bytes_up: Tensor bytes that they sent.
        framing_down: Bytes of framing down.
        framing_up: Bytes of framing up.
    """

    cohort: tuple[int, ...] = ()
    failures: dict[int, tuple[int, str]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    remembered: set[int] = field(default_factory=set)
    bytes_down: int = 0
    bytes_up: int = 0
    framing_down: int = 0
    framing_up: int = 0


class Exchange:
    """Runs phases over a port.

    Args:
        port: How nodes are reached.
        directory: Which node holds which clients.
        block_size: Clients in a block.
        deadline_seconds: How long a phase may take.
        memory_bytes: Memory for partial sums that wait.
        on_clients: Called with the number of clients that a reply accounts for.
        on_wait: Called while waiting; may raise to stop.
    """

    def __init__(
        self,
        port: Port,
        directory: Directory,
        block_size: int,
        deadline_seconds: float,
        memory_bytes: int,
        on_clients: Callable[[int], None],
        on_wait: Callable[[], None],
    ) -> None:
        self._port = port
        self._directory = directory
        self._block_size = block_size
        self._deadline_seconds = deadline_seconds
        self._memory_bytes = memory_bytes
        self._on_clients = on_clients
        self._on_wait = on_wait

    def run(
        self,
        work: Work,
        payload: Payload,
        cohort: Sequence[int],
        fold: Product,
        dropped_out: frozenset[int] = frozenset(),
    ) -> tuple[Folded | None, Report]:
        """Run one phase.

        Args:
            work: Everything but blocks and clients, which are filled in for each node.
            payload: What every client receives.
            cohort: The selected clients in their fixed order.
            fold: How their replies combine.
            dropped_out: Those of the cohort that are not asked and count as failed.

        Returns:
            The combination, or None when there is no good reply; and what happened.
        """
        report = Report(tuple(cohort))
        blocks = cut(cohort, self._block_size)
        self._directory.refresh()
        assigned, unheld = self._directory.split([client for client in cohort if client not in dropped_out])
        with tempfile.TemporaryDirectory(prefix=leftovers.prefix("fold")) as folder:
            tree = BlockTree(fold, len(blocks), Spill(Path(folder)), self._memory_bytes)
            receiver = _Receiver(Assembler(fold, blocks, tree), blocks, fold, payload, report)
            for client in sorted(dropped_out):
                receiver.fail(client, 0, "dropped out, as run.dropout has it")
            for client in unheld:
                receiver.fail(client, 0, "no connected node holds this client")
            messages = self._messages(work, payload, blocks, assigned, report)
            deadline = time.monotonic() + self._deadline_seconds
            for reply in self._port.stream(messages, deadline, self._on_wait):
                node = reply.metadata.src_node_id
                receiver.take(reply, node, assigned.get(node, frozenset()))
                self._on_clients(receiver.num_done)
            late = f"no answer within {self._deadline_seconds:g} s"
            for node, clients in assigned.items():
                reason = "its node's answer leaves it out" if node in receiver.answered else late
                for client in sorted(clients):
                    receiver.fail(client, node, reason)
            partial = receiver.finish()
        report.remembered -= report.failures.keys()
        return (fold.finish(partial) if partial.num_replies else None), report

    def _messages(
        self,
        work: Work,
        payload: Payload,
        blocks: Sequence[Block],
        assigned: dict[int, frozenset[int]],
        report: Report,
    ) -> list[Message]:
        arrays = encode_payload(payload)
        messages = []
        kind = "evaluate" if work.phase == EVALUATE else "train"
        for node, clients in assigned.items():
            touched, mine = share(blocks, clients)
            part = Work(
                **{
                    **vars(work),
                    "blocks": touched,
                    "num_blocks": len(blocks),
                    "clients": mine,
                    "memories": {client: v for client, v in work.memories.items() if client in mine},
                }
            )
            content = encode_work(part, payload, arrays)
            report.bytes_down += payload.num_bytes * len(mine)
            report.framing_down += framing_bytes(content) * len(mine)
            messages.append(Message(content, node, kind, group_id=str(work.round)))
        return messages


class Spill:
    """Puts accumulators that must wait on disk.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, partial: Partial) -> Callable[[], Partial]:
        """Write the accumulator and return a function that reads it back."""
        self._count += 1
        path = self._folder / f"{self._count}.safetensors"
        names = [(tree, key) for tree, tensors in partial.trees.items() for key in tensors]
        write_tensors(path, {str(i): partial.trees[tree][key] for i, (tree, key) in enumerate(names)})
        numbers, num_examples, num_replies = partial.numbers, partial.num_examples, partial.num_replies

        def fetch() -> Partial:
            tensors, _ = read_tensors(path)
            path.unlink()
            back = Partial({}, numbers, num_examples, num_replies)
            for i, (tree, key) in enumerate(names):
                back.trees.setdefault(tree, {})[key] = tensors[str(i)]
            return back

        return fetch


class _Receiver:
    """Takes nodes' answers apart and trusts none of them."""

    def __init__(
        self, assembler: Assembler, blocks: Sequence[Block], fold: Product, payload: Payload, report: Report
    ) -> None:
        self._assembler = assembler
        self._blocks = {block.index: block for block in blocks}
        self._fold = fold
        self._payload = payload
        self._report = report
        self._height = (len(blocks) - 1).bit_length()
        self._shapes: Shapes = {}
        self._done: set[int] = set()
        self.answered: set[int] = set()

    @property
    def num_done(self) -> int:
        return len(self._done)

    def fail(self, client: int, node: int, reason: str) -> None:
        """Record a client that failed, unless it is accounted for already."""
        if client not in self._done:
            self._done.add(client)
            self._report.failures[client] = (node, shortened(reason))
            self._assembler.add_client(client, None)

    def take(self, message: Message, node: int, clients: frozenset[int]) -> None:
        """Take a node's answer for the clients that it was given."""
        if message.has_error():
            for client in sorted(clients):
                self.fail(client, node, str(message.error.reason))
            return
        try:
            outcome = decode_outcome(message.content)
        except MessageError as error:
            for client in sorted(clients):
                self.fail(client, node, str(error))
            return
        before = self.num_done
        self._take_nodes(outcome, node, clients)
        self._take_singles(outcome, node, clients)
        for client, reason in outcome.failures.items():
            if client in clients:
                self.fail(client, node, reason)
        self._report.remembered |= clients.intersection(outcome.remembered)
        if self.num_done > before:  # not an answer that came twice; an engine may answer block by block
            self._report.bytes_up += outcome.bytes_up
            self._report.framing_up += outcome.framing_up
        self.answered.add(node)
        self._report.seconds |= {c: s for c, s in outcome.seconds.items() if c in clients}

    def _take_nodes(self, outcome: Outcome, node: int, clients: frozenset[int]) -> None:
        for level, index, partial in outcome.nodes:
            if not 0 <= level <= self._height or not 0 <= index << level < len(self._blocks):
                continue  # no such node of the tree: its clients stay without an answer
            leaves = range(index << level, (index + 1) << level)
            covered = [c for leaf in leaves if leaf in self._blocks for c in self._blocks[leaf].clients]
            if not covered or not clients.issuperset(covered) or not self._done.isdisjoint(covered):
                continue  # it answers for clients that are not its own: those stay without an answer
            good = [c for c in covered if c not in outcome.failures]
            try:
                self._fold.check_partial(partial, self._payload, good)
                if good:
                    self._fold.agree(self._shapes, partial.trees, lifted=True)
            except BadReplyError as error:
                for client in covered:
                    self.fail(client, node, str(error))
                continue
            for client in covered:
                self._done.add(client)
                if client in outcome.failures:
                    self._report.failures[client] = (node, shortened(outcome.failures[client]))
            self._assembler.add_node(level, index, partial)

    def _take_singles(self, outcome: Outcome, node: int, clients: frozenset[int]) -> None:
        for client, reply in outcome.singles.items():
            if client not in clients or client in self._done:
                continue
            try:
                self._fold.check(reply, self._payload)
                self._fold.agree(self._shapes, reply.trees, lifted=False)
            except BadReplyError as error:
                self.fail(client, node, str(error))
                continue
            self._done.add(client)
            self._assembler.add_client(client, reply)

    def finish(self) -> Partial:
        return self._assembler.finish()

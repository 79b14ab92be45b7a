"""One exchange of a round: send the payload, take the replies as they come, fold them in the fixed order."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import Message

from umbel.core import leftovers
from umbel.core.blocks import Assembler, Block, BlockTree, cut
from umbel.core.files import read_tensors, write_tensors
from umbel.core.folds import Folded, Partial, Product
from umbel.core.messages import encode_payload, encode_work, framing_bytes
from umbel.core.records import Payload
from umbel.core.work import Work, share
from umbel.server.nodes import Directory
from umbel.server.port import Port
from umbel.server.receiver import Receiver, Report
from umbel.strategies.base import EVALUATE

MostExamples = Callable[[int], float]


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
        num_examples: Returns how many training examples a client has, as far as the server knows; None: it does not.
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
        num_examples: Callable[[int], int] | None = None,
    ) -> None:
        self._port = port
        self._directory = directory
        self._block_size = block_size
        self._deadline_seconds = deadline_seconds
        self._memory_bytes = memory_bytes
        self._on_clients = on_clients
        self._on_wait = on_wait
        self._num_examples = num_examples

    def run(
        self,
        work: Work,
        payload: Payload,
        cohort: Sequence[int],
        fold: Product,
        dropped_out: frozenset[int] = frozenset(),
        most_examples: MostExamples = lambda own: math.inf,
    ) -> tuple[Folded | None, Report]:
        """Run one phase.

        Args:
            work: Everything but blocks and clients, which are filled in for each node.
            payload: What every client receives.
            cohort: The selected clients in their fixed order.
            fold: How their replies combine.
            dropped_out: Those of the cohort that are not asked and count as failed.
            most_examples: Returns the most examples that a reply may count, of the training examples that its client
                has by the word of the node that holds it; by default any number.

        Returns:
            The combination, or None when there is no good reply; and what happened.
        """
        report = Report(tuple(cohort))
        blocks = cut(cohort, self._block_size)
        self._directory.refresh()
        assigned, unheld = self._directory.split([client for client in cohort if client not in dropped_out])
        with tempfile.TemporaryDirectory(prefix=leftovers.prefix("fold")) as folder:
            tree = BlockTree(fold, len(blocks), Spill(Path(folder)), self._memory_bytes)
            receiver = Receiver(Assembler(fold, blocks, tree), blocks, fold, payload, report, self._most(most_examples))
            for client in sorted(dropped_out):
                receiver.fail(client, 0, "dropped out, as run.dropout has it")
            for client in unheld:
                receiver.fail(client, 0, "no connected node holds this client")
            messages = self._messages(work, payload, blocks, assigned, report)
            deadline = time.monotonic() + self._deadline_seconds
            self._port.limit({node: receiver.limits(clients).message_bytes for node, clients in assigned.items()})
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

    def _most(self, most_examples: MostExamples) -> MostExamples:
        """Return the most examples that a reply of a client may count; one at least, which says nothing of its data."""

        def most(client: int) -> float:
            known = [self._directory.most_examples(client), self._num_examples and self._num_examples(client)]
            own = min((each for each in known if each is not None), default=None)
            return math.inf if own is None else max(most_examples(own), 1)

        return most

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

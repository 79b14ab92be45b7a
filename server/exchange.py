"""One exchange of a round: send the payload, take the replies as they come, fold them in the fixed order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from umbel.core.fold_tree import FoldTree
from umbel.core.folds import Folded, Product
from umbel.core.records import Payload
from umbel.core.stored import Spill
from umbel.core.wire.heads import work_framing
from umbel.core.wire.work import Work, share
from umbel.server.nodes import Directory
from umbel.server.port import Port, Task
from umbel.server.receiver import Receiver, Report

MostExamples = Callable[[int, int], float]


class Exchange:
    """Runs phases over a port.

    Args:
        port: How nodes are reached.
        directory: Which node holds which clients.
        deadline_seconds: How long a phase may take.
        memory_bytes: Memory for partial sums that wait.
        on_clients: Called with the number of clients that a reply accounts for.
        on_wait: Called while waiting; may raise to stop.
        num_examples: Returns how many training examples a client has, as far as the server knows; None: it does not.
        on_notice: Told, once, when partial sums begin to wait on disk.
    """

    def __init__(
        self,
        port: Port,
        directory: Directory,
        deadline_seconds: float,
        memory_bytes: int,
        on_clients: Callable[[int], None],
        on_wait: Callable[[], None],
        num_examples: Callable[[int], int] | None = None,
        on_notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._on_notice, self._told = on_notice, set[str]()
        self._port = port
        self._directory = directory
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
        most_examples: MostExamples = lambda client, own: math.inf,
    ) -> tuple[Folded | None, Report]:
        """Run one phase.

        Args:
            work: Everything but the clients, which are filled in for each node.
            payload: What every client receives.
            cohort: The selected clients in their fixed order.
            fold: How their replies combine.
            dropped_out: Those of the cohort that are not asked and count as failed.
            most_examples: Returns the most examples that a reply may count, of its client and the training examples
                that this one has by the word of the node that holds it; by default any number.

        Returns:
            The combination, or None when there is no good reply; and what happened.
        """
        report = Report(tuple(cohort))
        self._directory.refresh()
        assigned, unheld = self._directory.split([client for client in cohort if client not in dropped_out])
        tree = FoldTree(fold, len(cohort), Spill(self._memory_bytes, self._tell), self._memory_bytes)
        most = self._most(most_examples)
        receiver = Receiver(tree, cohort, fold, payload, report, most)
        for client in sorted(dropped_out):
            receiver.fail(client, 0, "dropped out, as run.dropout has it")
        for client in unheld:
            receiver.fail(client, 0, "no connected node holds this client")
        allowed = {client: most(client) for client in cohort if most(client) < math.inf}
        shared = replace(work, num_leaves=len(cohort), most_examples=allowed)
        tasks = [
            Task(node, share(shared, cohort, clients), payload, receiver.limits(clients))
            for node, clients in assigned.items()
        ]
        for task in tasks:
            report.bytes_down += payload.num_bytes * len(task.work.leaves)
            report.framing_down += work_framing(task.work, payload) * len(task.work.leaves)
        deadline = time.monotonic() + self._deadline_seconds
        for answer in self._port.exchange(tasks, deadline, self._on_wait):
            if answer.outcome is not None or answer.error:
                receiver.take(answer, assigned.get(answer.node, frozenset()))
            self._on_clients(receiver.num_done + answer.pending)
        late = f"no answer within {self._deadline_seconds:g} s"
        for node, clients in assigned.items():
            reason = "its node's answer leaves it out" if node in receiver.answered else late
            for client in sorted(clients):
                receiver.fail(client, node, reason)
        partial = tree.root()
        report.remembered -= report.failures.keys()
        return (fold.finish(partial) if partial.num_replies else None), report

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._on_notice(text)

    def _most(self, most_examples: MostExamples) -> Callable[[int], float]:
        """Return the most examples that a reply of a client may count; one at least, which says nothing of its data."""

        def most(client: int) -> float:
            known = [self._directory.most_examples(client), self._num_examples and self._num_examples(client)]
            own = min((each for each in known if each is not None), default=None)
            return math.inf if own is None else max(most_examples(client, own), 1)

        return most

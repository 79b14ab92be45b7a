"""The inline engine: server and clients in one process, one client after the other; a breakpoint works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from umbel.client.process import Place, answer, process
from umbel.core.records import reason
from umbel.server.port import Answer, OnWait, Question, Said, Task
from umbel.simulations.engines.local import NODE, LocalPort


class InlinePort(LocalPort):
    """Runs clients where the server stands, with the worker that a node has; nothing is encoded.

    Args:
        run_config: The run configuration, as Flower would give it.
        node_config: The node's configuration.
        on_clients: Called after each client with the number of the phase's clients that are done.
    """

    def __init__(
        self, run_config: dict[str, Any], node_config: dict[str, Any], on_clients: Callable[[int], None]
    ) -> None:
        self._place = Place(run_config, node_config, NODE)
        self._on_clients = on_clients

    def __enter__(self) -> InlinePort:
        return self

    def __exit__(self, *raised: object) -> None:
        process.forget()

    def exchange(self, tasks: Sequence[Task], deadline: float, on_wait: OnWait | None = None) -> Iterator[Answer]:
        """Run each task and yield its answer; a phase has no deadline here, each of its clients has."""
        done = 0

        def count(_: int) -> None:
            nonlocal done
            done += 1
            self._on_clients(done)

        for task in tasks:
            try:
                outcome = process.worker(self._place).run(task.work, task.payload, count)
            except Exception as error:  # noqa: BLE001 - as on a node: what raises there is its answer
                yield Answer(task.node, None, reason(error))
            else:
                yield Answer(task.node, outcome, framing=outcome.framing_up)

    def say(self, question: Question) -> Said:
        """Answer a question, as a node does."""
        try:
            return Said(question.node, answer(question.kind, question.content, self._place))
        except Exception as error:  # noqa: BLE001 - as on a node: what raises there is its answer
            return Said(question.node, None, reason(error))

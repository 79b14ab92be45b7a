"""Questions that are no part of a phase: a worker that died for reasons of its own costs the run nothing."""

from __future__ import annotations

import pytest

from umbel.server.port import Question, Said
from umbel.simulations.engines.workers import WorkerDiedError, WorkerFailedError
from umbel.simulations.engines.workers_port import WorkersPort


class Reach:
    """Asks workers, which are what they do: an answer, or an error."""

    def ask(self, worker, method, *arguments):
        return worker

    def wait(self, given, seconds):
        return given[0]

    def take(self, given):
        if isinstance(given, Exception):
            raise given
        return given


class Port(WorkersPort):
    def __init__(self, workers):
        self._reach, self._workers, self._next = Reach(), workers[:1], workers[1:]

    def replace(self, worker):
        self._workers = [self._next.pop(0)]
        return self._workers[0]

    def look(self):
        pass


DIED, FAILED, ANSWER = WorkerDiedError("it died"), WorkerFailedError("ValueError: no"), {"partitions": [0]}


@pytest.mark.parametrize(
    ("workers", "why"),
    [([ANSWER], ""), ([DIED, ANSWER], ""), ([DIED, DIED], "it died"), ([FAILED, ANSWER], "ValueError: no")],
)
def test_a_worker_that_died_is_replaced_once(workers, why):
    question = Question(1, "query", {"hello": "hash"})
    expected = Said(1, None, why) if why else Said(1, ANSWER)
    assert list(Port(list(workers)).ask([question], deadline=0.0)) == [expected]

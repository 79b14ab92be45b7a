"""What the engines with workers share: a phase is spread over them, however they are started and reached."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.conf.federation import held
from umbel.conf.schema import Experiment
from umbel.core.wire.work import Outcome
from umbel.server.port import Answer, OnWait, Question, Said, Task
from umbel.simulations.engines.how_many import ProbeError
from umbel.simulations.engines.local import LocalPort
from umbel.simulations.engines.workers import LOOK_SECONDS, WorkerDiedError, WorkerFailedError

if TYPE_CHECKING:
    from umbel.data.federation import Federation
    from umbel.simulations.engines.how_many import Probed
    from umbel.simulations.engines.phase import Pace


class WorkersPort(LocalPort):
    """A port to workers; `umbel.simulations.engines.workers.Workers` and `umbel.simulations.engines.how_many.Start`.

    Args:
        experiment: The experiment.
        run_config: The run configuration for the workers.
        memory: Folder of the clients' memory.
    """

    def __init__(self, experiment: Experiment, run_config: dict[str, Any], memory: Path) -> None:
        self._experiment = experiment
        self._run_config = run_config
        self._node_config = {"state-folder": str(memory)}
        self._workers: list[Any] = []
        self._reach: Any = None
        self._pace: Pace | None = None
        self._sizes: list[float] = []

    def _load(self) -> Federation:
        """Return the data that workers are given."""
        data = held(self._experiment)
        self._sizes = [float(number) for number in data.num_train.tolist()]
        return data

    def all(self) -> list[Any]:
        """Return the workers."""
        return list(self._workers)

    @abstractmethod
    def replace(self, worker: Any) -> Any:
        """End a worker, whatever it is doing, and return another one, which may take a while to come."""

    @abstractmethod
    def look(self) -> None:
        """Raise `RunStoppedError` where what starts workers has ended."""

    def is_there(self, worker: Any) -> bool:
        """Say whether a worker has come; raise `WorkerDiedError` where it never will."""
        there: bool = self._reach.is_there(worker)
        return there

    def lay(self, task: Task) -> Any:
        """Put a phase where all workers find it."""
        return self._reach.lay(task)

    def give(self, worker: Any, opening: Any, clients: tuple[int, ...], closes: bool) -> Any:
        """Give a worker clients to run."""
        return self._reach.give(worker, opening, clients, closes)

    def wait(self, given: Sequence[Any], seconds: float) -> Any:
        """Return one of what was given that is done; None when there is none in time."""
        return self._reach.wait(given, seconds)

    def take(self, given: Any) -> Outcome | None:
        """Return what came of something that is done."""
        outcome: Outcome | None = self._reach.take(given)
        return outcome

    def exchange(self, tasks: Sequence[Task], deadline: float, on_wait: OnWait | None = None) -> Iterator[Answer]:
        """Spread the clients over the workers and yield what these hand over."""
        from umbel.simulations.engines.phase import Pace, WorkersPhase
        from umbel.simulations.engines.workers import Limits

        self._pace = self._pace or Pace()
        config = self._experiment.engine
        limits = Limits(config.client_seconds, config.node_timeout_seconds)
        for task in tasks:
            self.look()
            phase = WorkersPhase(task, self, self._cost, self._pace, limits)
            yield from phase.answers(deadline, on_wait)
            phase.abandon()
            self._reach.clear()

    def _cost(self, client: int) -> float:
        """Estimate a client's time: its training examples."""
        return self._sizes[client]

    def say(self, question: Question) -> Said:
        """Have a worker answer a question."""
        try:
            try:
                return Said(question.node, self._asked(question))
            except WorkerDiedError:  # for a reason of its own, perhaps
                self.replace(self._workers[0])
                return Said(question.node, self._asked(question))
        except (WorkerFailedError, WorkerDiedError) as error:
            return Said(question.node, None, str(error))

    def _asked(self, question: Question) -> Any:
        given = self._reach.ask(self._workers[0], "answer", question.kind, dict(question.content))
        while self._reach.wait([given], LOOK_SECONDS) is None:
            self.look()
        return self._reach.take(given)

    def probe(self, workers: Sequence[Any]) -> list[Probed]:
        """Have workers probe, all at once.

        Raises:
            ProbeError: One of them cannot.
        """
        self._all_of(workers, "warm_up")
        found: list[Probed] = self._all_of(workers, "probe")
        return found

    def _all_of(self, workers: Sequence[Any], method: str) -> list[Any]:
        """Call a method of some workers at once, and return what came of it."""
        ends = time.monotonic() + self._experiment.engine.node_timeout_seconds
        calls = [self._reach.ask(worker, method) for worker in workers]
        answers = []
        for call in calls:
            while self._reach.wait([call], LOOK_SECONDS) is None:
                self.look()
                if time.monotonic() > ends:
                    raise ProbeError("it took longer than engine.node_timeout_seconds")
            try:
                answers.append(self._reach.take(call))
            except (WorkerFailedError, WorkerDiedError) as error:
                raise ProbeError(str(error)) from error
        return answers

"""The first rounds of a run in each setting, which tell how long all of it may take before most of it has begun.

Nothing of them is lost: in its turn the run goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from umbel.conf.schema import Experiment
from umbel.server.errors import StopRequested
from umbel.server.listener import Listener
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.at_once import Course, Job, Runs
from umbel.simulations.compare.matrix import Matrix
from umbel.simulations.compare.plan import Estimate

_PROBED_ROUNDS = 2  # in the first everything is new
_LEAST_ROUNDS = 2 * _PROBED_ROUNDS  # of a run that is worth it


def measure_first_rounds(
    matrix: Matrix,
    plans: Sequence[Sequence[str]],
    estimate: Estimate,
    listener: Watcher,
    runs: Runs,
    at_once: int,
) -> None:
    """Begin a run in each setting in which nothing was measured, and stop it after its first rounds.

    Of a budget of seconds nothing may be begun and stopped: what the run spends is what the others get.

    Args:
        matrix: All runs.
        plans: What becomes of each, by setting, from `plan.states`.
        estimate: Learns from them.
        listener: Told of everything that happens.
        runs: Carries them out.
        at_once: How many go on at once.

    Raises:
        StopRequested: Somebody else than the measurement asked a run to stop.
    """
    asked, index = [], 1
    for number, cell in enumerate(matrix.cells):
        member, how, own, index = cell.comparison.members[0], plans[number][0], index, index + len(plans[number])
        is_short = member.experiment.run.rounds < _LEAST_ROUNDS
        if estimate.is_known(number) or how == "reused" or is_short or matrix.budget == "seconds":
            continue
        # Its number is that of the run it is the beginning of; one after the other each is announced by its setting.
        place = (own, matrix.num_runs) if at_once > 1 else (1, 1)
        asked.append(Job(member, *place, cell.comparison, number, cell.setting.label, _FirstRounds()))
    runs.go(asked, _Probes(matrix, estimate, listener))


class _Probes(Course):
    """First rounds of a run in some settings.

    Args:
        matrix: All runs.
        estimate: Learns from them.
        listener: Told of everything that happens.
    """

    def __init__(self, matrix: Matrix, estimate: Estimate, listener: Watcher) -> None:
        self._matrix, self._estimate, self._listener = matrix, estimate, listener

    def begins(self, job: Job) -> None:
        self._listener.setting(job.number + 1, len(self._matrix.cells), job.setting, probed=True)
        self._matrix.cells[job.number].comparison.path.mkdir(parents=True, exist_ok=True)

    def ended(self, job: Job, error: Exception | None) -> None:
        if isinstance(error, StopRequested) and not (isinstance(job.beside, _FirstRounds) and job.beside.asked):
            raise error
        (job.member.path / "stop").unlink(missing_ok=True)  # it may have ended before it saw that
        if error is None or isinstance(error, StopRequested):
            self._estimate.learn(job.number, job.member)
        # What failed is tried again in its turn, and written down then.


class _FirstRounds(Listener):
    """Asks a run to stop after its first rounds."""

    def __init__(self) -> None:
        self.asked = False
        self._folder = Path()
        self._num_rounds = 0

    def begin(self, experiment: Experiment, folder: str) -> None:
        """Remember the folder."""
        self._folder = Path(folder)

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Count the round, and ask."""
        self._num_rounds += 1
        if self._num_rounds == _PROBED_ROUNDS and round_ < num_rounds:
            self.asked = True
            (self._folder / "stop").touch()

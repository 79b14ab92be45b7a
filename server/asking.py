"""What clients are asked in a round, a phase of the strategy or an evaluation, and whether enough of them answered."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from umbel.core.evaluation import evaluation_fold
from umbel.core.folds import Folded
from umbel.core.memory import Version
from umbel.core.records import BadReplyError, has_diverged
from umbel.core.wire.work import Work
from umbel.server.accounts import Accounts
from umbel.server.checkpoint import Progress
from umbel.server.coverage import RoundCoverage
from umbel.server.errors import RunStoppedError, diverged
from umbel.server.exchange import Exchange
from umbel.server.listener import Listener
from umbel.server.receiver import Report
from umbel.server.results import RunFolder
from umbel.server.session import Session
from umbel.strategies.base import EVALUATE, Phase, ServerContext

EVALUATION_STEP = 99  # sorts after every phase of a round


@dataclass
class OpenRound:
    """A round that goes on; it counts when it is complete.

    Attributes:
        number: Which, from 1.
        context: What the strategy sees of it.
        state: What the strategy's State has become in it.
        progress: What the run comes to with it.
        checkpoint_round: Round of the oldest checkpoint from which the run may have to go on.
        coverage: Who took part.
        cohorts: By phase, the clients that were selected.
    """

    number: int
    context: ServerContext
    state: Any
    progress: Progress
    checkpoint_round: int
    coverage: RoundCoverage = field(init=False)
    cohorts: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.coverage = RoundCoverage(self.number)


class Asking:
    """Asks clients, of one attempt at a run: from a start or a resume to its end.

    Args:
        session: Experiment, strategy and data.
        folder: Where the run's results go.
        listener: Told of what begins, and of replies that do not go together.
        accounts: Of the run.
        exchange: Reaches clients.
    """

    def __init__(
        self, session: Session, folder: RunFolder, listener: Listener, accounts: Accounts, exchange: Exchange
    ) -> None:
        self._session, self._folder, self._listener = session, folder, listener
        self._accounts, self._exchange = accounts, exchange
        self._attempt = uuid.uuid4().hex
        self._run_id = folder.identity()

    def phase(self, now: OpenRound, step: int, phase: Phase[Any]) -> Folded:
        """Ask the clients of a phase; nobody, of one of the server alone.

        Args:
            now: The round.
            step: Which of its phases this is, from 0.
            phase: The phase.

        Returns:
            Their replies, as the phase combines them.

        Raises:
            RunStoppedError: Too few replies are good.
            DivergedError: Likewise, and all others hold NaN, infinity or too large values.
            BadReplyError: Replies are good each for itself and do not go together.
        """
        cohorts, progress = self._session.cohorts, now.progress
        begins = cohorts.begins(phase, progress.virtual_seconds)
        is_first = now.number == 1 and not any(now.cohorts.values())
        now.cohorts[phase.name] = cohort = cohorts.of(phase, now.number, now.cohorts, begins)
        if phase.who == "server":
            return Folded({}, {}, 0, 0)
        with self._accounts.stage(phase.name, progress):
            payload = phase.broadcast(now.state, now.context)
            remembering = frozenset(map(int, progress.memories))
            turn = cohorts.turn(phase, now.state, now.context, cohort, payload, begins, remembering, is_first)
            now.cohorts[phase.name], out = (cohort := turn.clients), turn.dropped_out
            progress.virtual_seconds, progress.num_late = turn.ends, progress.num_late + len(turn.late)
            self._listener.phase(now.number, phase.name, len(cohort))
            work = self._work(now, phase.name, step, cohort)
            work = replace(work, squads=cohorts.squads(cohort, now.number))
            most = partial(_most_trained, phase, now.state)
            came, report = self._exchange.run(work, payload, cohort, phase.fold(), out, most)
        folded = self._enough(came, report, work, progress)
        now.coverage.count(phase.name, cohort, report.failures)
        spared = out | cohorts.idle(cohort, now.number)
        now.coverage.ask(set(cohort) - spared, report.failures.keys() - spared)
        return folded

    def evaluation(self, now: OpenRound, cohort: tuple[int, ...]) -> Folded | None:
        """Ask clients to evaluate.

        Args:
            now: The round.
            cohort: The clients.

        Returns:
            What they measured; None where there is no good reply, or replies do not go together.
        """
        session = self._session
        payload = session.strategy.evaluated(now.state, session.context(now.number))
        self._listener.phase(now.number, EVALUATE, len(cohort))
        work = self._work(now, EVALUATE, EVALUATION_STEP, cohort)
        try:
            fold = evaluation_fold(session.data.num_classes, len(session.experiment.evaluate.metrics))
            most = partial(_most_evaluated, session.data.num_held_out.tolist())
            folded, report = self._exchange.run(work, payload, cohort, fold, most_examples=most)
        except BadReplyError as error:
            self._listener.failure(now.number, EVALUATE, -1, 0, str(error))
            return None
        self._accounts.take(report, work, now.progress)
        now.coverage.count(EVALUATE, cohort, report.failures)
        return folded

    def _work(self, now: OpenRound, phase: str, step: int, cohort: tuple[int, ...]) -> Work:
        memories = now.progress.memories
        return Work(
            run=self._run_id,
            attempt=self._attempt,
            round=now.number,
            step=step,
            phase=phase,
            config_hash=self._session.config_hash,
            checkpoint_round=now.checkpoint_round,
            memories={c: Version(*memories[str(c)]) for c in cohort if str(c) in memories},
            agreed=self._session.agreed,
        )

    def _enough(self, folded: Folded | None, report: Report, work: Work, progress: Progress) -> Folded:
        """Account for an exchange; raise unless enough replies are good."""
        seconds = self._accounts.seconds
        self._accounts.take(report, work, progress)
        good = folded.num_replies if folded else 0
        experiment = self._session.experiment
        needed = experiment.run.replies_needed(len(report.cohort))
        if folded is None or good < needed:
            reasons = "\n".join(
                f"  client {client} on node {node}: {reason}"
                for client, (node, reason) in list(report.failures.items())[:5]
            )
            text = (
                f"Round {work.round}, phase {work.phase}: {good} of {len(report.cohort)} clients sent a good reply, "
                f"{needed} are needed (run.min_replies={experiment.run.min_replies}).\n{reasons}"
            )
            if report.failures and all(has_diverged(reason) for _, reason in report.failures.values()):
                raise diverged(f"{text}\n", experiment, work.round - 1)
            raise RunStoppedError(text)
        values = {**folded.numbers, "num_replies": good, "num_failures": len(report.failures)}
        values |= {"num_steps": report.spent.steps, "num_processed": report.spent.examples}
        self._folder.add(work.round, "clients", "train", values, seconds, phase=work.phase)
        return folded


def _most_trained(phase: Phase[Any], state: Any, client: int, own: int) -> float:
    return phase.most_examples(state, own)


def _most_evaluated(num_held_out: Sequence[int], client: int, own: int) -> float:
    return num_held_out[client]

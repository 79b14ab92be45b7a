"""The only round loop there is: phases, evaluation, checkpoints; the same for every strategy and engine."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from umbel.core import state as states
from umbel.core.evaluation import evaluation_fold
from umbel.core.folds import Folded
from umbel.core.memory import Version
from umbel.core.records import BadReplyError, has_diverged
from umbel.core.refusal import Refusal
from umbel.core.schedule import parse_until
from umbel.core.settled import settled
from umbel.core.spent import Spent, counted
from umbel.core.wire.work import ClientTime, Work
from umbel.models import registry
from umbel.server import checkpoint, endings, evaluation
from umbel.server.checkpoint import Checkpoint, Progress
from umbel.server.coverage import RoundCoverage, lost
from umbel.server.errors import DivergedError, RunStoppedError, StopRequested, learning_rates
from umbel.server.exchange import Exchange
from umbel.server.gather import directory_of, unheld
from umbel.server.listener import Listener
from umbel.server.nodes import Directory
from umbel.server.port import Port
from umbel.server.receiver import Report
from umbel.server.results import RunFolder
from umbel.server.session import Session
from umbel.strategies.base import EVALUATE, Phase

EVALUATION_STEP = 99  # sorts after every phase of a round


class FederatedRun:
    """One run of a strategy.

    Args:
        session: Experiment, strategy and data.
        folder: Where the run's results go.
        listener: Told of everything that happens.
        resume: Checkpoint to go on from, or None to begin.

    Attributes:
        session: As given.
        progress: What the run has come to.
        state: The strategy's State after the last completed round.
        best_model: The model of the best round, where there is one.
        lost: After the last round: the clients that the run lost for good.
    """

    def __init__(
        self, session: Session, folder: RunFolder, listener: Listener, resume: Checkpoint | None = None
    ) -> None:
        self.session = session
        self.folder = folder
        self.listener = listener
        self.progress = resume.progress if resume else Progress()
        self.best_model = resume.best_model if resume else None
        if resume:  # to another end, perhaps
            self.progress.ended = endings.again(session.experiment.run, self.progress)
        self._resume = resume
        self._attempt = uuid.uuid4().hex
        self._run_id = folder.identity()
        self._began = 0.0
        # Client memory is kept for the older of the two checkpoints as well, in case the newer is damaged.
        self._checkpoint_round = self._older_checkpoint_round = self.progress.round
        self.state: Any = None
        self.lost: list[int] = []
        self._times: dict[str, list[ClientTime]] = {}
        self._noticed: set[str] = set()

    def start(self, port: Port, directory: Directory | None = None) -> None:
        """Run all rounds that are still to come.

        Args:
            port: How nodes are reached.
            directory: The nodes, where they have been waited for.

        Raises:
            RunStoppedError: Too few nodes or replies; everything up to the last completed round is saved.
            StopRequested: Somebody asked; likewise.
        """
        experiment = self.session.experiment
        total = experiment.run.rounds
        self._began = time.monotonic() - self.progress.seconds.get("total", 0.0)
        waits = directory is None
        directory = directory or directory_of(experiment, port, self.folder, self.listener)
        directory.hold_to(self.session.check_data)
        exchange = Exchange(
            port,
            directory,
            experiment.engine.deadline_seconds,
            experiment.engine.memory_bytes,
            self.listener.clients_done,
            self.folder.look_for_stop,
            self.session.data.num_train.tolist().__getitem__,
            self.listener.notice,
        )
        try:
            with self._stage("setup"):
                self.state = self._begin()
                if waits:
                    directory.wait(self.folder.look_for_stop)
                self.folder.go_on(self.progress.round)
            self.session.forget_initial()
            with settled():
                for round_ in range(self.progress.round + 1, total + 1):
                    if self.progress.ended:
                        self.listener.notice(self.progress.ended)
                        break
                    self._round(exchange, round_, total)
            held_by_none = unheld(port, directory, experiment.data.num_clients, self.folder.look_for_stop)
            self.lost = lost(self.progress.turns, self.progress.round, held_by_none)
        except (StopRequested, RunStoppedError, KeyboardInterrupt):
            self._save()
            raise
        except BadReplyError as error:  # replies that are good each for itself and do not go together
            self._save()
            raise RunStoppedError(f"Round {self.progress.round + 1}: {error}") from error

    def _begin(self) -> Any:
        if self._resume is None:
            state = self.session.strategy.initial(self.session.context(0))
            if name := states.not_finite(state):
                raise Refusal(f"The server's state has a NaN or an infinity before the first round, in {name}.")
            experiment = self.session.experiment
            if experiment.schedule.is_sequence and experiment.evaluate.every and experiment.evaluate.server:
                evaluation.before_training(self.session, state, self.progress)
            return state
        return checkpoint.restore(self._resume, self.session.strategy, lambda: self.session.context(0))

    def _round(self, exchange: Exchange, round_: int, total: int) -> None:
        """Run one round; `self.state` and `self.progress` change only when it is complete."""
        strategy, progress = self.session.strategy, self.progress.copy()
        context, state, before = self.session.context(round_), self.state, dict(self.progress.seconds)
        self._times.clear()
        coverage, cohorts = RoundCoverage(round_), dict[str, tuple[int, ...]]()
        for step, phase in enumerate(self.session.phases(state)):
            self.folder.look_for_stop()
            begins = self.session.begins(phase, progress.virtual_seconds)
            is_first = round_ == 1 and not any(cohorts.values())
            cohorts[phase.name] = cohort = self.session.cohort(phase, round_, cohorts, begins)
            folded = Folded({}, {}, 0, 0)
            if phase.who != "server":
                with self._stage(phase.name, progress):
                    payload = phase.broadcast(state, context)
                    turn = self.session.turn(phase, state, round_, cohort, payload, begins, is_first)
                    cohorts[phase.name], out = (cohort := turn.clients), turn.dropped_out
                    progress.virtual_seconds, progress.num_late = turn.ends, progress.num_late + len(turn.late)
                    self.listener.phase(round_, phase.name, len(cohort))
                    work = self._work(phase.name, round_, step, cohort, progress)
                    work = replace(work, squads=self.session.squads(cohort, round_))
                    most = partial(_most_trained, phase, state)
                    came, report = exchange.run(work, payload, cohort, phase.fold(), out, most)
                folded = self._enough(came, report, work, progress)
                del came
                coverage.count(phase.name, cohort, report.failures)
                spared = out | self.session.idle(cohort, round_)
                coverage.ask(set(cohort) - spared, report.failures.keys() - spared)
            with self._stage("server", progress):
                state = self._finite(phase.update(state, folded, context), round_, phase.name)
            del folded  # twice as large as the model
            if values := phase.measured(state):
                seconds = time.monotonic() - self._began
                self.folder.add(round_, "server", "train", values, seconds, phase=phase.name)
        progress.round, progress.num_rounds = round_, total
        progress.seconds["total"] = time.monotonic() - self._began
        progress.ended = endings.over_budget(self.session.experiment.run, progress)
        is_last = round_ == total or bool(progress.ended)
        if is_last:
            with self._stage("server", progress):
                state = self._finite(strategy.finish(state, context), round_, "finish")
        progress.seconds["total"] = time.monotonic() - self._began
        self.folder.add(round_, "server", "costs", progress.spent_so_far, progress.seconds["total"])
        try:
            if metrics := self._evaluate(exchange, state, round_, is_last, progress, coverage):
                self._judge(metrics, state, progress)
        except Refusal as error:  # a metric of somebody's own, or one that there is not: too late to be refused
            raise RunStoppedError(f"Round {round_}: {error}") from error
        if progress.ended and not is_last:
            with self._stage("server", progress):
                state = self._finite(strategy.finish(state, context), round_, "finish")
        progress.coverage, progress.turns = coverage.rows(progress.coverage), coverage.turns(progress.turns)
        progress.seconds["total"] = time.monotonic() - self._began
        told = metrics
        if self.session.virtual is not None:
            times = {"virtual_seconds": progress.virtual_seconds, "num_late": progress.num_late}
            self.folder.add(round_, "server", "train", times, progress.seconds["total"])
            told = metrics | {f"train/{name}": value for name, value in times.items()}
        self.state, self.progress = state, progress
        every = self.session.experiment.checkpoint.every
        if every and (round_ % every == 0 or round_ == total or progress.ended):
            with self._stage("checkpoint", self.progress):
                self._save()
        spent = {name: seconds - before.get(name, 0.0) for name, seconds in progress.seconds.items() if name != "total"}
        self.listener.time_spent(round_, spent, dict(self._times))
        moved = {"bytes_down": sum(progress.bytes_down.values()), "bytes_up": sum(progress.bytes_up.values())}
        self.listener.costs(round_, progress.counted_costs | moved)
        self.listener.round(round_, total, told, progress.seconds["total"])

    def _judge(self, metrics: dict[str, float], state: Any, progress: Progress) -> None:
        """Note an evaluation: whether it is the best so far, and whether the run has what it was for."""
        experiment, round_ = self.session.experiment, progress.round
        if experiment.run.until:
            parse_until(experiment.run.until).check(metrics, is_first=not progress.last_metrics)
        progress.last_metrics = metrics
        # In a sequence, rounds of different tasks measure different things; only those of the last see all.
        schedule = experiment.schedule
        whole = not schedule.is_sequence or schedule.task(round_) == schedule.num_tasks - 1
        value = evaluation.selection_value(metrics) if whole else None
        if value is not None and value > progress.best_value:
            progress.best_round, progress.best_value, progress.best_metrics = round_, value, metrics
            progress.since_best = 0
            self.best_model = self.session.strategy.model(state)
        elif value is not None:
            progress.since_best += 1
        progress.ended = progress.ended or endings.ended(experiment.run, progress)

    def _finite(self, state: Any, round_: int, step: str) -> Any:
        """Return a State, unless it has diverged."""
        if name := states.not_finite(state):
            raise self._diverged(f"Round {round_}, {step}: the server's state has a NaN or an infinity, in {name}. ")
        return state

    def _diverged(self, what: str) -> DivergedError:
        rates = ", ".join(f"{key}={value}" for key, value in learning_rates(self.session.experiment).items())
        return DivergedError(
            f"{what}The run has diverged; it is kept as it was after round {self.progress.round}. Learning rates in "
            f"force: {rates}. Start a new run with lower ones."
        )

    def _work(self, phase: str, round_: int, step: int, cohort: tuple[int, ...], progress: Progress) -> Work:
        every = self.session.experiment.checkpoint.every
        # Without checkpoints only a stop can be resumed, which needs the last completed round.
        durable = self._older_checkpoint_round if every else self.progress.round
        return Work(
            run=self._run_id,
            attempt=self._attempt,
            round=round_,
            step=step,
            phase=phase,
            config_hash=self.session.config_hash,
            checkpoint_round=durable,
            memories={c: Version(*progress.memories[str(c)]) for c in cohort if str(c) in progress.memories},
            agreed=self.session.agreed,
        )

    def _enough(self, folded: Folded | None, report: Report, work: Work, progress: Progress) -> Folded:
        """Account for an exchange; raise unless enough replies are good."""
        seconds = time.monotonic() - self._began
        self._account(report, work, progress)
        good = folded.num_replies if folded else 0
        run = self.session.experiment.run
        needed = run.replies_needed(len(report.cohort))
        if folded is None or good < needed:
            reasons = "\n".join(
                f"  client {client} on node {node}: {reason}"
                for client, (node, reason) in list(report.failures.items())[:5]
            )
            text = (
                f"Round {work.round}, phase {work.phase}: {good} of {len(report.cohort)} clients sent a good reply, "
                f"{needed} are needed (run.min_replies={run.min_replies}).\n{reasons}"
            )
            if report.failures and all(has_diverged(reason) for _, reason in report.failures.values()):
                raise self._diverged(f"{text}\n")
            raise RunStoppedError(text)
        values = {**folded.numbers, "num_replies": good, "num_failures": len(report.failures)}
        values |= {"num_steps": report.spent.steps, "num_processed": report.spent.examples}
        self.folder.add(work.round, "clients", "train", values, seconds, phase=work.phase)
        return folded

    def _known(self, spent: Spent, progress: Progress) -> Spent:
        """Return what nodes say that training cost, without models that nobody here has built: a name is free text."""
        progress.models = sorted(registry.built.keys() | set(progress.models))
        known = {spec: each for spec, each in spent.passes.items() if spec in progress.models}
        if len(known) < len(spent.passes):
            self._notice_once(
                "A node counts images that went through a model which the server has not built; its operations are "
                "not counted."
            )
        return replace(spent, passes=known)

    def _notice_once(self, text: str) -> None:
        if text not in self._noticed:
            self._noticed.add(text)
            self.listener.notice(text)

    def _account(self, report: Report, work: Work, progress: Progress) -> None:
        progress.bytes_down["tensors"] += report.bytes_down
        progress.bytes_down["framing"] += report.framing_down
        progress.bytes_up["tensors"] += report.bytes_up
        progress.bytes_up["framing"] += report.framing_up
        if work.phase != EVALUATE:  # to fine-tune for an evaluation is no part of training
            progress.spend("clients", self._known(report.spent, progress))
        progress.num_failures += len(report.failures)
        self._times[work.phase] = report.times
        for text in dict.fromkeys(report.notices):
            self._notice_once(text)
        for client in report.remembered:
            progress.memories[str(client)] = (work.round, work.step, work.attempt)
        for client, (node, reason) in sorted(report.failures.items()):
            self.listener.failure(work.round, work.phase, client, node, reason)

    def _evaluate(
        self, exchange: Exchange, state: Any, round_: int, is_last: bool, progress: Progress, coverage: RoundCoverage
    ) -> dict[str, float]:
        config = self.session.experiment.evaluate
        ends_task = self.session.experiment.schedule.ends_task(round_)
        if not config.every or (round_ % config.every and not is_last and not ends_task):
            return {}
        metrics: dict[str, float] = {}
        cohort = self.session.evaluation_cohort(round_)
        if not config.server and not cohort:
            return metrics
        with self._stage("evaluate", progress):
            seconds = time.monotonic() - self._began
            predictors = self.session.strategy.predictors(state, self.session.context(round_))
            groups = evaluation.class_groups(self.session, predictors)
            if config.server:
                metrics |= evaluation.on_server(self.session, predictors, round_, self.folder, seconds, progress)
                if config.collapse:
                    evaluation.neural_collapse(self.session, state, round_, self.folder, seconds)
            del predictors  # the models that they hold
            if cohort:
                payload = self.session.strategy.evaluated(state, self.session.context(round_))
                self.listener.phase(round_, EVALUATE, len(cohort))
                work = self._work(EVALUATE, round_, EVALUATION_STEP, cohort, progress)
                try:
                    fold = evaluation_fold(self.session.data.num_classes, len(config.metrics))
                    most = partial(_most_evaluated, self.session.data.num_held_out.tolist())
                    folded, report = exchange.run(work, payload, cohort, fold, most_examples=most)
                except BadReplyError as error:
                    self.listener.failure(round_, EVALUATE, -1, 0, str(error))
                    return metrics
                self._account(report, work, progress)
                coverage.count(EVALUATE, cohort, report.failures)
                if folded is not None:
                    metrics |= evaluation.of_clients(folded, round_, self.folder, seconds, groups, config.metrics)
        return metrics

    def _save(self) -> None:
        """Write a checkpoint of the last completed round, if there is one."""
        if not self.progress.round:
            return
        self.folder.write_metrics()
        if self._checkpoint_round == self.progress.round:
            return  # it is on disk already, and to replace it would be a moment without it
        metrics = self.folder.metrics(self.progress.round)
        checkpoint.write(self.folder.checkpoints, self.progress, self.state, self.best_model, metrics)
        self._older_checkpoint_round, self._checkpoint_round = self._checkpoint_round, self.progress.round

    @contextmanager
    def _stage(self, name: str, progress: Progress | None = None) -> Iterator[None]:
        progress, start = progress or self.progress, time.monotonic()
        try:
            with counted() as spent:  # by the server: clients in this process count for themselves
                yield
        finally:
            progress.seconds[name] = progress.seconds.get(name, 0.0) + time.monotonic() - start
            if name != "evaluate":
                progress.spend("server", spent)


def _most_trained(phase: Phase[Any], state: Any, client: int, own: int) -> float:
    return phase.most_examples(state, own)


def _most_evaluated(num_held_out: Sequence[int], client: int, own: int) -> float:
    return num_held_out[client]

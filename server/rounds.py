"""The only round loop there is: phases, evaluation, checkpoints; the same for every strategy and engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from umbel.core import state as states
from umbel.core.device import give_back_memory
from umbel.core.once import keep_rest
from umbel.core.records import BadReplyError
from umbel.core.refusal import Refusal
from umbel.core.schedule import parse_until
from umbel.core.settled import settled
from umbel.core.tree import num_bytes
from umbel.server import checkpoint, endings, evaluation
from umbel.server.accounts import Accounts
from umbel.server.asking import Asking, OpenRound
from umbel.server.checkpoint import Checkpoint, Progress
from umbel.server.coverage import lost
from umbel.server.errors import RunStoppedError, StopRequested, diverged
from umbel.server.exchange import Exchange
from umbel.server.gather import directory_of, unheld
from umbel.server.listener import Listener
from umbel.server.nodes import Directory
from umbel.server.port import Port
from umbel.server.results import RunFolder
from umbel.server.session import Session

_LARGE = 32 << 20  # bytes of what replies came to: memory counts more than the moment that it takes to give it back


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
        self._accounts = Accounts(listener)
        # Client memory is kept for the older of the two checkpoints as well, in case the newer is damaged.
        self._checkpoint_round = self._older_checkpoint_round = self.progress.round
        self.state: Any = None
        self.lost: list[int] = []

    def fall_back(self, texts: Iterable[str]) -> None:
        """Tell, and keep for the summary, what is known before a step to train without a mode that was asked for."""
        for text in texts:
            self._accounts.fall_back(text, self.progress)

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
        self._accounts.begin(self.progress)
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
        asking = Asking(self.session, self.folder, self.listener, self._accounts, exchange)
        try:
            with self._accounts.stage("setup", self.progress):
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
                    self._round(asking, round_, total)
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
        state = checkpoint.restore(self._resume, self.session.strategy, lambda: self.session.context(0))
        self._resume = None  # nobody else has its tensors once a round has made others
        return state

    def _round(self, asking: Asking, round_: int, total: int) -> None:
        """Run one round; `self.state` and `self.progress` change only when it is complete."""
        strategy, accounts, progress = self.session.strategy, self._accounts, self.progress.copy()
        every = self.session.experiment.checkpoint.every
        # Without checkpoints only a stop can be resumed, which needs the last completed round.
        durable = self._older_checkpoint_round if every else self.progress.round
        now = OpenRound(round_, self.session.context(round_), self.state, progress, durable)
        accounts.begin_round(self.progress)
        for step, phase in enumerate(self.session.phases(now.state)):
            self.folder.look_for_stop()
            folded = asking.phase(now, step, phase)
            is_large = sum(map(num_bytes, folded.trees.values())) >= _LARGE
            with accounts.stage("server", progress):
                now.state = self._finite(phase.update(now.state, folded, now.context), round_, phase.name)
            keep_rest(folded.trees.values())
            del folded  # twice as large as the model
            if is_large:
                give_back_memory()
            if values := phase.measured(now.state):
                self.folder.add(round_, "server", "train", values, accounts.seconds, phase=phase.name)
        progress.round, progress.num_rounds = round_, total
        progress.seconds["total"] = accounts.seconds
        progress.ended = endings.over_budget(self.session.experiment.run, progress)
        is_last = round_ == total or bool(progress.ended)
        if is_last:
            with accounts.stage("server", progress):
                now.state = self._finite(strategy.finish(now.state, now.context), round_, "finish")
        progress.seconds["total"] = accounts.seconds
        self.folder.add(round_, "server", "costs", progress.spent_so_far, progress.seconds["total"])
        try:
            if metrics := self._evaluate(asking, now, is_last):
                self._judge(metrics, now.state, progress)
        except Refusal as error:  # a metric of somebody's own, or one that there is not: too late to be refused
            raise RunStoppedError(f"Round {round_}: {error}") from error
        if progress.ended and not is_last:
            with accounts.stage("server", progress):
                now.state = self._finite(strategy.finish(now.state, now.context), round_, "finish")
        progress.coverage, progress.turns = now.coverage.rows(progress.coverage), now.coverage.turns(progress.turns)
        progress.seconds["total"] = accounts.seconds
        told = metrics
        if self.session.virtual is not None:
            times = {"virtual_seconds": progress.virtual_seconds, "num_late": progress.num_late}
            self.folder.add(round_, "server", "train", times, progress.seconds["total"])
            told = metrics | {f"train/{name}": value for name, value in times.items()}
        self.state, self.progress = now.state, progress
        if every and (round_ % every == 0 or round_ == total or progress.ended):
            with accounts.stage("checkpoint", progress):
                self._save()
        accounts.end_round(told, progress)

    def _evaluate(self, asking: Asking, now: OpenRound, is_last: bool) -> dict[str, float]:
        """Return what the server and clients measured after a round, by name; nothing where it is not evaluated."""
        config, round_, progress = self.session.experiment.evaluate, now.number, now.progress
        ends_task = self.session.experiment.schedule.ends_task(round_)
        if not config.every or (round_ % config.every and not is_last and not ends_task):
            return {}
        metrics: dict[str, float] = {}
        cohort = self.session.cohorts.evaluation(round_)
        if not config.server and not cohort:
            return metrics
        with self._accounts.stage("evaluate", progress):
            seconds = self._accounts.seconds
            predictors = self.session.strategy.predictors(now.state, self.session.context(round_))
            groups = evaluation.class_groups(self.session, predictors)
            if config.server:
                metrics |= evaluation.on_server(self.session, predictors, round_, self.folder, seconds, progress)
                if config.collapse:
                    evaluation.neural_collapse(self.session, now.state, round_, self.folder, seconds)
            del predictors  # the models that they hold
            if cohort and (folded := asking.evaluation(now, cohort)) is not None:
                metrics |= evaluation.of_clients(folded, round_, self.folder, seconds, groups, config.metrics)
        return metrics

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
            what = f"Round {round_}, {step}: the server's state has a NaN or an infinity, in {name}. "
            raise diverged(what, self.session.experiment, round_ - 1)
        return state

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

"""What a run has cost and how its replies went: counted in its `Progress`, and told to its listener."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from umbel.core.spent import Spent, counted
from umbel.core.wire.work import MOST_FALLBACKS, ClientTime, Work
from umbel.models import registry
from umbel.server.checkpoint import Progress
from umbel.server.listener import Listener
from umbel.server.receiver import Report
from umbel.strategies.base import EVALUATE


class Accounts:
    """Keeps account of a run.

    Args:
        listener: Told of what was counted.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._began = 0.0
        self._before: dict[str, float] = {}
        self._times: dict[str, list[ClientTime]] = {}
        self._noticed: set[str] = set()

    def begin(self, progress: Progress) -> None:
        """Count seconds from now on, beyond those that the run has taken before."""
        self._began = time.monotonic() - progress.seconds.get("total", 0.0)

    @property
    def seconds(self) -> float:
        """What the run has taken up to now, without the time between a stop and a resume."""
        return time.monotonic() - self._began

    @contextmanager
    def stage(self, name: str, progress: Progress) -> Iterator[None]:
        """Count the seconds of what is inside, and what training it cost the server.

        Args:
            name: Of the stage: a phase's, or `setup`, `server`, `evaluate`, `checkpoint`.
            progress: Where it is counted.
        """
        start = time.monotonic()
        try:
            with counted() as spent:  # by the server: clients in this process count for themselves
                yield
        finally:
            progress.seconds[name] = progress.seconds.get(name, 0.0) + time.monotonic() - start
            if name != "evaluate":
                progress.spend("server", spent)

    def begin_round(self, progress: Progress) -> None:
        """A round begins, and the run has come to this."""
        self._before = dict(progress.seconds)
        self._times.clear()

    def take(self, report: Report, work: Work, progress: Progress) -> None:
        """Count what an exchange cost, and tell of replies that failed.

        Args:
            report: What happened.
            work: What clients were asked.
            progress: Where it is counted.
        """
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
        for text in dict.fromkeys(report.fallbacks):
            self.fall_back(text, progress)
        for client in report.remembered:
            progress.memories[str(client)] = (work.round, work.step, work.attempt)
        for client, (node, reason) in sorted(report.failures.items()):
            self._listener.failure(work.round, work.phase, client, node, reason)

    def end_round(self, metrics: Mapping[str, float], progress: Progress) -> None:
        """Tell that a round is complete, and what it and the run so far have cost.

        Args:
            metrics: What was measured in it.
            progress: What the run has come to with it.
        """
        spent = {
            name: seconds - self._before.get(name, 0.0) for name, seconds in progress.seconds.items() if name != "total"
        }
        self._listener.time_spent(progress.round, spent, dict(self._times))
        moved = {"bytes_down": sum(progress.bytes_down.values()), "bytes_up": sum(progress.bytes_up.values())}
        self._listener.costs(progress.round, progress.counted_costs | moved)
        self._listener.round(progress.round, progress.num_rounds, metrics, progress.seconds["total"])

    def fall_back(self, text: str, progress: Progress) -> None:
        """Tell, once, that something trains without a fast mode that was asked for, and keep it for the summary."""
        if text not in progress.fallbacks and len(progress.fallbacks) < MOST_FALLBACKS:
            progress.fallbacks.append(text)
        if text in progress.fallbacks:
            self._notice_once(text)

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
            self._listener.notice(text)

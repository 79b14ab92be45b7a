"""What a person sees while a run goes: a live display on a terminal, JSON lines for machines, or nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.columns import Columns
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from umbel.conf.schema import Experiment
from umbel.simulations.commands.watcher import JsonLines, Watcher
from umbel.simulations.commands.words import clock, describe, sparkline
from umbel.simulations.report import progress
from umbel.simulations.report.measures import AFTER_TASKS, MEASURES

_SHOWN_FAILURES = 3
_NOTES = {
    "changed": ": run anew, its code has changed",
    "reused": ": reused, it is there already",
    "resumed": ": goes on from its checkpoint",
}
_VIRTUAL = (MEASURES["virtual_seconds"].metric, "train/num_late")
_OF_TASKS = tuple(MEASURES[key].of_split(split) for split in ("test", "validation") for key in AFTER_TASKS)


class Display(Watcher):
    """A live display: what runs, round, time left, clients done, metrics, failures.

    Args:
        console: A console on standard error.
        transient: Whether the display goes away when a run ends, as in a comparison.
    """

    def __init__(self, console: Console, transient: bool = False) -> None:
        super().__init__()
        self._console = console
        self._transient = transient
        self._live: Live | None = None
        self._rows_beside: list[_Row] = []
        self._is_beside = False
        self._member = ""
        self._experiment = Experiment()
        self._reset()

    def _reset(self) -> None:
        self._began = self._round_began = time.monotonic()
        self._first_round = 0
        self._round, self._phase, self._done, self._num_clients = 0, "setup", 0, 0
        self._metrics: dict[str, float] = {}
        self._virtual: dict[str, float] = {}
        self._history: list[float] = []
        self._failures: list[str] = []
        self._notices: list[str] = []
        self._num_failures = 0

    # ---- what happens --------------------------------------------------------------------------------------

    def member(self, index: int, total: int, label: str, seed: int, how: str) -> None:
        """Say which run of a comparison comes next."""
        self._pause()
        self._member = f"Run {index} of {total}: {label}, seed {seed}{_NOTES.get(how, '')}"
        if how == "reused":
            self._console.print(Text(self._member, style="dim"))

    def beside(self, index: int, total: int, label: str, seed: int, how: str, setting: str = "") -> Watcher:
        """Show a run that goes on beside others, in a line or a few of its own, until it ends."""
        where = f"{setting}, " if setting else ""
        name = f"Run {index} of {total}: {where}{label}, seed {seed}{_NOTES.get(how, '')}"
        row = _Row(self._console, name, self._rows_beside)
        if not self._is_beside:
            self._stop()
            self._is_beside = self._transient = True
            self._show()
        return row

    def setting(self, index: int, total: int, label: str, probed: bool = False) -> None:
        """Say which setting comes next."""
        self._pause()
        note = ": its first rounds, to tell the time" if probed else ""
        self._console.print(Text(f"Setting {index} of {total}, {label}{note}", style="bold"))

    def left(self, num_runs: int, seconds: float | None) -> None:
        """Say how long it may take."""
        self._pause()
        if num_runs:
            about = "nothing is measured yet" if seconds is None else f"about {clock(seconds)} left"
            self._console.print(Text(f"{num_runs} run{'s' * (num_runs > 1)} to go, {about}", style="dim"))

    def run_failed(self, label: str, seed: int, reason: str) -> None:
        """Say it."""
        self._pause()
        self._console.print(Text(f"{label}, seed {seed}, failed: {reason}", style="yellow"))

    def begin(self, experiment: Experiment, folder: str) -> None:
        """Start the display."""
        super().begin(experiment, folder)
        self._stop()
        self._experiment = experiment
        self._reset()
        self._show()

    def _show(self) -> None:
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=8,
            transient=self._transient,
        )
        self._live.start()

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        """Show a phase."""
        super().phase(round_, phase, num_clients)
        if round_ != self._round:
            self._round, self._round_began = round_, time.monotonic()
            self._first_round = self._first_round or round_
        self._phase, self._num_clients, self._done = phase, num_clients, 0

    def clients_done(self, num_clients: int) -> None:
        """Show how many clients are done."""
        self._done = num_clients

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        """Show the first few failures, count the others."""
        self._num_failures += 1
        if len(self._failures) < _SHOWN_FAILURES:
            who = f"client {client}" if client >= 0 else "evaluation"
            lines = reason.strip().splitlines() or [""]
            self._failures.append(f"round {round_}, {phase}: {who} on node {node}: {lines[-1]}")

    def notice(self, text: str) -> None:
        """Show it until the run ends."""
        self._notices.append(text)
        if self._is_beside:
            self._console.print(Text(text, style="yellow"))

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Show a round's metrics."""
        super().round(round_, num_rounds, metrics, seconds)
        self._first_round = self._first_round or round_
        # Virtual time is known of every round, and what is evaluated only of some.
        self._virtual = {name: metrics[name] for name in _VIRTUAL if name in metrics}
        if metrics.keys() - self._virtual.keys():
            # What is measured after each task only is shown until the next one ends.
            kept = {key: self._metrics[key] for key in _OF_TASKS if key in self._metrics}
            self._metrics = kept | dict(metrics)
            value = progress.course(metrics)
            if value is not None:
                self._history.append(value)
        if self.complete:
            self._phase = "done"
            if self._transient and self._member:
                result = progress.headline(self._metrics)
                self._stop()
                self._console.print(Text(f"{self._member}: {result}{', ' if result else ''}{clock(seconds)}"))

    def close(self) -> None:
        """End the display; its last state stays unless it is transient."""
        self._stop()

    def _pause(self) -> None:
        """End what is shown of one run; what is shown of several stays below all that is printed."""
        if not self._is_beside:
            self._stop()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    # ---- what is drawn -------------------------------------------------------------------------------------

    def _render(self) -> Group:
        if self._is_beside:
            return Group(*(row.drawn() for row in self._rows_beside))
        parts: list[Any] = []
        if self._member:
            parts.append(Text(self._member, style="bold"))
        parts += [Text(describe(self._experiment), style="cyan"), self._progress()]
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(overflow="fold")
        for name, value in self._rows():
            rows.add_row(name, value)
        parts.append(rows)
        if self.folder and not self._transient:
            parts.append(Text(self.folder, style="dim", overflow="fold"))
        return Group(*parts)

    def _progress(self) -> Table:
        total = self._experiment.run.rounds
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        shown = max(self._round, self.last_round)
        done = self.last_round or max(self._first_round - 1, 0)
        line.add_row(
            Text(f"Round {shown:>{len(str(total))}}/{total}", style="bold"),
            ProgressBar(total=total, completed=done, width=None),
            Text(self._times()),
        )
        return line

    def _times(self) -> str:
        now = time.monotonic()
        gone = clock(now - self._began)
        if self.complete:
            return gone
        rounds = self.last_round - self._first_round + 1 if self.last_round else 0
        if not rounds:
            return f"{gone}, time left unknown"
        a_round = (self._round_began - self._began) / max(rounds, 1)
        if self._round == self.last_round:
            a_round, current = (now - self._began) / rounds, 0.0
        else:
            current = now - self._round_began
        left = max(a_round * (self._experiment.run.rounds - self.last_round) - current, 0.0)
        return f"{gone}, {clock(left)} left"

    def _rows(self) -> list[tuple[str, Any]]:
        rows: list[tuple[str, Any]] = []
        if self._num_clients and not self.complete:
            rows.append((self._phase, f"{self._done} of {self._num_clients} clients done"))
        elif not self.complete:
            rows.append((self._phase, "loading data, building the model"))
        schedule = self._experiment.schedule
        if schedule.is_sequence:
            rows.append(("task", f"{schedule.task(max(self._round, 1)) + 1} of {schedule.num_tasks}"))
        for label, values in progress.lines(self._metrics | self._virtual):
            shown = [Text.assemble(f"{name} ", (value, "bold")) for name, value in values]
            rows.append((label, Columns(shown, padding=(0, 3, 0, 0))))
        if len(self._history) > 1:
            rows.append(("course", sparkline(self._history[-50:])))
        if self._num_failures:
            more = self._num_failures - len(self._failures)
            text = "\n".join(escape(line) for line in self._failures) + (f"\nand {more} more" if more else "")
            rows.append((f"failures {self._num_failures}", f"[yellow]{text}[/]"))
        rows += [("note", Text(text, style="yellow")) for text in self._notices]
        return rows


class _Row(Display):
    """What is shown of a run that goes on beside others: its name, round, bar, time, and what there is to note.

    Args:
        console: Of all of them.
        name: Which run it is.
        rows: Those that are shown, among which this one is until it ends.
    """

    def __init__(self, console: Console, name: str, rows: list[_Row]) -> None:
        super().__init__(console, transient=True)
        self._member, self._others = name, rows
        rows.append(self)

    def _show(self) -> None:
        """All are shown together."""

    def close(self) -> None:
        """Leave the others alone."""
        self._others[:] = [each for each in self._others if each is not self]

    def drawn(self) -> Group:
        """Return what is drawn of it."""
        parts: list[Any] = [Text(self._member, style="bold", no_wrap=True, overflow="ellipsis")]
        if self.folder is None:
            return Group(*parts, Text("  begins", style="dim"))
        parts.append(self._progress())
        if headline := progress.headline(self._metrics):
            parts[0].append(f"  {headline}", style="not bold cyan")
        if self._num_failures:
            parts.append(Text(f"  {self._num_failures} failures, the first: {self._failures[0]}", style="yellow"))
        parts += [Text(f"  {text}", style="yellow") for text in self._notices]
        return Group(*parts)


def watcher(console: Console, quiet: bool, as_json: bool, transient: bool = False) -> Watcher:
    """Choose how to show a run.

    Args:
        console: A console on standard error.
        quiet: Show nothing.
        as_json: JSON lines on standard output even at a terminal.
        transient: See `Display`.
    """
    if quiet:
        return Watcher()
    if as_json or not console.is_terminal:
        return JsonLines()
    return Display(console, transient)

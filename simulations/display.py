"""What a person sees while a run goes: a live display on a terminal, JSON lines for machines, or nothing."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from conf.schema import Experiment
from server.listener import Listener

_SHOWN_FAILURES = 3
_BARS = "▁▂▃▄▅▆▇█"


class Watcher(Listener):
    """A listener that knows where the run is, how far it has come, and which one of several it is.

    Attributes:
        folder: The run's folder, or None before it begins.
        last_round: Last round that this process saw completed.
        started: Whether a phase has begun; before that a run can still be refused.
        complete: Whether the last round is done.
    """

    def __init__(self) -> None:
        self.folder: str | None = None
        self.last_round = 0
        self.started = False
        self.complete = False

    def begin(self, experiment: Experiment, folder: str) -> None:
        """Remember the folder."""
        self.folder, self.last_round, self.started, self.complete = folder, 0, False, False

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        """Remember that work has begun."""
        self.started = True

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Remember the round."""
        self.last_round, self.complete = round_, round_ >= num_rounds

    def member(self, index: int, total: int, label: str, seed: int, how: str) -> None:
        """Run `index` (from 1) of a comparison's `total` comes next; `how` is new, resumed or reused."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines(Watcher):
    """One JSON object a line: `begin`, `round`, `failure`, and `member` in a comparison.

    Args:
        stream: Where lines go; None is standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdout

    def _write(self, event: str, **values: Any) -> None:
        plain = {key: _finite(value) for key, value in values.items()}
        self._stream.write(json.dumps({"event": event, **plain}) + "\n")
        self._stream.flush()

    def begin(self, experiment: Experiment, folder: str) -> None:
        """Write what runs and where."""
        super().begin(experiment, folder)
        self._write(
            "begin",
            folder=folder,
            experiment=experiment.name,
            strategy=experiment.strategy.name,
            model=experiment.model.name,
            data=experiment.data.name,
            partition=experiment.data.partition,
            num_clients=experiment.data.num_clients,
            engine=experiment.engine.name,
            seed=experiment.run.seed,
            rounds=experiment.run.rounds,
        )

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        """Write a failure."""
        self._write("failure", round=round_, phase=phase, client=client, node=node, reason=reason)

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Write a round with its metrics."""
        super().round(round_, num_rounds, metrics, seconds)
        self._write("round", round=round_, rounds=num_rounds, seconds=round(seconds, 3), **dict(metrics))

    def member(self, index: int, total: int, label: str, seed: int, how: str) -> None:
        """Write which run comes next."""
        self._write("member", index=index, total=total, strategy=label, seed=seed, how=how)


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
        self._member = ""
        self._experiment = Experiment()
        self._reset()

    def _reset(self) -> None:
        self._began = self._round_began = time.monotonic()
        self._first_round = 0
        self._round, self._phase, self._done, self._num_clients = 0, "setup", 0, 0
        self._metrics: dict[str, float] = {}
        self._history: list[float] = []
        self._failures: list[str] = []
        self._num_failures = 0

    # ---- what happens --------------------------------------------------------------------------------------

    def member(self, index: int, total: int, label: str, seed: int, how: str) -> None:
        """Say which run of a comparison comes next."""
        self._stop()
        note = {"reused": ": reused, it is there already", "resumed": ": goes on from its checkpoint"}
        self._member = f"Run {index} of {total}: {label}, seed {seed}{note.get(how, '')}"
        if how == "reused":
            self._console.print(Text(self._member, style="dim"))

    def begin(self, experiment: Experiment, folder: str) -> None:
        """Start the display."""
        super().begin(experiment, folder)
        self._stop()
        self._experiment = experiment
        self._reset()
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

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Show a round's metrics."""
        super().round(round_, num_rounds, metrics, seconds)
        self._first_round = self._first_round or round_
        if metrics:
            self._metrics = dict(metrics)
            key = next((key for key in _MAIN if key in metrics), None)
            if key:
                self._history.append(metrics[key])
        if self.complete:
            self._phase = "done"
            if self._transient and self._member:
                found = self._metrics.get("test/accuracy")
                shown = "" if found is None else f"test accuracy {found:.4f}, "
                self._stop()
                self._console.print(Text(f"{self._member}: {shown}{_clock(seconds)}"))

    def close(self) -> None:
        """End the display; its last state stays unless it is transient."""
        self._stop()

    def _stop(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    # ---- what is drawn -------------------------------------------------------------------------------------

    def _render(self) -> Group:
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
        gone = _clock(now - self._began)
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
        return f"{gone}, {_clock(left)} left"

    def _rows(self) -> list[tuple[str, Any]]:
        rows: list[tuple[str, Any]] = []
        if self._num_clients and not self.complete:
            rows.append((self._phase, f"{self._done} of {self._num_clients} clients done"))
        elif not self.complete:
            rows.append((self._phase, "loading data, building the model"))
        metrics = self._metrics
        for label, keys in _LINES:
            found = [f"{name} [bold]{metrics[key]:.4f}[/]" for name, key in keys if key in metrics]
            if found:
                rows.append((label, "   ".join(found)))
        if len(self._history) > 1:
            rows.append(("course", sparkline(self._history[-50:])))
        if self._num_failures:
            more = self._num_failures - len(self._failures)
            text = "\n".join(escape(line) for line in self._failures) + (f"\nand {more} more" if more else "")
            rows.append((f"failures {self._num_failures}", f"[yellow]{text}[/]"))
        return rows


_MAIN = ("test/accuracy", "validation/accuracy", "clients/test/accuracy_mean")
_LINES = (
    ("accuracy", (("validation", "validation/accuracy"), ("test", "test/accuracy"))),
    ("loss", (("validation", "validation/loss"), ("test", "test/loss"))),
    (
        "clients",
        (("mean", "clients/test/accuracy_mean"), ("worst 10 %", "clients/test/accuracy_worst10")),
    ),
)


def describe(experiment: Experiment) -> str:
    """Return one line: strategy with its options, model, data, clients, engine."""
    data, options = experiment.data, experiment.strategy.options
    given = ", ".join(f"{name}={value}" for name, value in options.items() if isinstance(value, int | float))
    skewed = data.partition in ("dirichlet", "long_tail", "quantity_skew", "domain_label")
    cut = f"{data.partition}({data.alpha:g})" if skewed else data.partition
    return " · ".join(
        [
            f"{experiment.strategy.name}({given})" if given else experiment.strategy.name,
            experiment.model.name,
            f"{data.name}, {cut}",
            f"{experiment.num_sampled} of {data.num_clients} clients a round",
            f"seed {experiment.run.seed}",
            experiment.engine.name,
        ]
    )


def sparkline(values: list[float]) -> str:
    """Draw values as block characters, the smallest to the largest."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    return "".join(_BARS[int((v - low) / span * 7)] if math.isfinite(v) else " " for v in values)


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


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

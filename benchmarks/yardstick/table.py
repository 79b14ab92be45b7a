"""What several repeats come to: medians, spreads, ratios within a repeat; and the tables that say so."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from yardstick.contenders import FIRST
from yardstick.measure import Measurement
from yardstick.stages import MEANINGS
from yardstick.workload import Workload

MB = 1e6
QUIET = 0.1  # cores: what somebody else may keep busy without a word


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Return "median (least-most)"; "" of nothing."""
    kept = sorted(values)
    if not kept:
        return ""
    return f"{statistics.median(kept):.{digits}f} ({kept[0]:.{digits}f}-{kept[-1]:.{digits}f})"


def median(values: Iterable[float | None], digits: int = 2) -> str:
    """Return the median of what is there; "" of nothing."""
    kept = [value for value in values if value is not None]
    return f"{statistics.median(kept):,.{digits}f}" if kept else ""


def ratios(measured: Sequence[Measurement], of: str, value: Callable[[Measurement], float]) -> list[float]:
    """Return a contender's ratios to the plain loop, each within one repeat; a repeat that lacks one is left out.

    Args:
        measured: All measurements.
        of: The contender.
        value: What is compared.
    """
    good = {(each.contender, each.repeat): value(each) for each in measured if not each.failure}
    repeats = sorted({each.repeat for each in measured})
    pairs = [(good.get((of, repeat)), good.get((FIRST, repeat))) for repeat in repeats]
    return [own / first for own, first in pairs if own is not None and first]


def _whole(values: Iterable[int | None]) -> str:
    """Return numbers that should all be the same: that number, or all of them."""
    kept = sorted({value for value in values if value is not None})
    return ", ".join(f"{value:,}" for value in kept)


def _rows(measured: Sequence[Measurement], cells: Callable[[str, list[Measurement]], list[str]]) -> list[str]:
    lines = []
    for name in dict.fromkeys(each.contender for each in measured):
        own = [each for each in measured if each.contender == name]
        good = [each for each in own if not each.failure]
        if good:
            lines.append("| " + " | ".join([name, *cells(name, good)]) + " |")
    return lines


def _head(*names: str) -> list[str]:
    return ["| " + " | ".join(names) + " |", "|---" + "|---:" * (len(names) - 1) + "|"]


def time_table(measured: Sequence[Measurement], num_rounds: int) -> list[str]:
    """Return the lines of the table of seconds."""

    def cells(name: str, good: list[Measurement]) -> list[str]:
        return [
            median(each.first_step for each in good),
            median(each.startup for each in good),
            spread(each.rounds for each in good),
            median((1e3 * each.rounds / num_rounds for each in good), 1),
            spread(ratios(measured, name, lambda each: each.rounds)),
            median(each.cpu_startup for each in good),
            median(each.cpu_rounds for each in good),
        ]

    head = _head(
        *("contender", "first step (s)", "start-up (s)", "rounds (s)", "ms a round"),
        *("rounds / plain's", "CPU of start-up (s)", "CPU of rounds (s)"),
    )
    return [*head, *_rows(measured, cells)]


def work_table(measured: Sequence[Measurement]) -> list[str]:
    """Return the lines of the table of memory, and of what each contender did."""

    def cells(name: str, good: list[Measurement]) -> list[str]:
        return [
            median((each.peak_bytes / MB for each in good), 0),
            median((each.end_bytes / MB for each in good), 0),
            spread(ratios(measured, name, lambda each: each.end_bytes)),
            _whole(each.num_processes for each in good),
            _whole(each.num_steps for each in good) or "not seen",
            median((each.loss for each in good), 4),
            median((each.norm for each in good), 3),
            spread(each.others for each in good),
        ]

    head = _head(
        *("contender", "PSS, peak (MB)", "PSS, end (MB)", "end / plain's", "processes", "steps"),
        *("loss after", "norm after", "others' cores"),
    )
    return [*head, *_rows(measured, cells)]


def remarks(measured: Sequence[Measurement], workload: Workload) -> list[str]:
    """Return what a reader must know: who failed, whose work was another, when the machine was not quiet."""
    lines = []
    for each in measured:
        if each.failure:
            lines.append(f"* {each.contender}, repeat {each.repeat}: no figures, since {each.failure}")
        elif each.num_steps is not None and workload.num_steps not in (None, each.num_steps):
            lines.append(f"* {each.contender}, repeat {each.repeat}: {each.num_steps} steps, not {workload.num_steps}")
    loud = [each for each in measured if each.others > QUIET]
    if loud:
        most = max(loud, key=lambda each: each.others)
        lines.append(
            f"* NOT QUIET: in {len(loud)} of {len(measured)} measurements others kept more than {QUIET:g} cores busy, "
            f"at most {most.others:.2f} ({most.contender}, repeat {most.repeat}). These figures are no yardstick."
        )
    return lines


def profile_table(measured: Sequence[Measurement], num_rounds: int) -> list[str]:
    """Return the lines of the table of stages: milliseconds, and calls, a round, of each process that matters.

    Medians over the repeats; in the last two lines, all else, and the whole.
    """
    columns: dict[str, list[tuple[Measurement, str]]] = {}
    for each in measured:
        for role in each.stages:
            columns.setdefault(f"{each.contender}, {role}", []).append((each, role))
    lines = _head("stage", *columns)
    lines[0], lines[1] = f"{lines[0]} what |", f"{lines[1]}---|"
    for stage, meaning in MEANINGS.items():
        shown = []
        for column in columns.values():
            cells = [each.stages[role][stage] for each, role in column]
            seconds, calls = (statistics.median(values) / num_rounds for values in zip(*cells, strict=True))
            shown.append(f"{1e3 * seconds:.2f} ({calls:.1f})")
        lines.append(f"| {stage} | {' | '.join(shown)} | {meaning} |")
    rest, whole = [], []
    for column in columns.values():
        known = [sum(seconds for seconds, _ in each.stages[role].values()) for each, role in column]
        left = [each.rounds - seconds for (each, _), seconds in zip(column, known, strict=True)]
        rest.append(f"{1e3 * statistics.median(left) / num_rounds:.2f}")
        whole.append(f"{1e3 * statistics.median(each.rounds for each, _ in column) / num_rounds:.2f}")
    lines.append(f"| rest | {' | '.join(rest)} | all else; of a worker mostly that it has nothing to do |")
    lines.append(f"| a round | {' | '.join(whole)} | |")
    return lines


def loads(measured: Sequence[Measurement]) -> str:
    """Return the load average before each repeat."""
    by_repeat = {each.repeat: each.load for each in measured}
    return ", ".join(f"{by_repeat[repeat]:.2f}" for repeat in sorted(by_repeat))


def machine_lines(machine: dict[str, Any], pfl: dict[str, str] | None) -> list[str]:
    """Return what the figures were measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [f"{machine['processor']}, {machine['cpus']} CPUs, Python {machine['python']}; {versions}"]
    if pfl is not None:
        lines.append("pfl's own environment: " + ", ".join(f"{name} {version}" for name, version in pfl.items()))
    return lines

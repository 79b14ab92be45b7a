"""What a page shows of one run: its rounds, costs, stages, clients, failures; as JSON has it."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from umbel.core.names import shown
from umbel.server import coverage, reading
from umbel.simulations.commands.words import describe, strategy_label
from umbel.simulations.report import progress
from umbel.simulations.report import rows as report_rows
from umbel.simulations.report import series as report_series
from umbel.simulations.report.measures import COURSE, MEASURES, unit
from umbel.simulations.runs import overview
from umbel.simulations.runs.tale import Round, Tale
from umbel.simulations.watch.followed import Followed

_SHOWN_FAILURES = 50
_DIGITS = 7  # of a value: a curve needs no more
_SPLITS = ("test", "validation")
# What the curves begin with: of each the first that a run has.
ACCURACIES = tuple(MEASURES[key].of_split(split) for key in ("acc", *COURSE) for split in _SPLITS)
LOSSES = (
    *(MEASURES["loss"].of_split(split) for split in _SPLITS),
    *(MEASURES[key].metric for key in ("clients_loss", "training_loss")),
)


def detail(run: Followed, row: Mapping[str, Any], after: int, generation: int) -> dict[str, Any]:
    """Return all of a run, of its rounds those that are not known yet.

    Args:
        run: The run, which is read on.
        row: What the table of runs has of it.
        after: The last round that is known.
        generation: The generation of the tale that this round is of; where it is another now, all rounds are told.
    """
    flaw, tale = "", run.tale
    try:
        tale = run.told()
    except OSError as error:
        flaw = str(error)
    after = after if generation == tale.generation else 0
    metrics = {name for each in tale.rounds for name in each.metrics}
    return {
        **row,
        **_what(run),
        "path": shown(run.path),
        "again": again(run.path),
        "generation": tale.generation,
        "after": after,
        "told": [_round(each) for each in tale.rounds if each.number > after],
        "next": {"round": tale.next.number, "phases": _phases(tale.next)},
        "measures": {name: _measure(name) for name in sorted(metrics)},
        "stages": _stages(tale),
        "failures": [dict(each) for each in list(tale.failures)[-_SHOWN_FAILURES:]][::-1],
        "num_failures": tale.num_failures,
        "notices": list(tale.notices),
        "trouble": flaw or tale.flaw,
        **_ended(run),
    }


def again(path: Path) -> str:
    """Return the command by which a run goes on, as a shell takes it; empty where the path cannot be shown as it is."""
    text = shown(path)
    if text != os.fspath(path) or not text.isprintable():
        return ""
    return f"umbel resume {shlex.quote(f'./{text}' if text.startswith('-') else text)}"


def _what(run: Followed) -> dict[str, str]:
    """Return what runs, in words; nothing where its configuration cannot be read."""
    try:
        experiment = run.experiment()
        return {"line": describe(experiment), "strategy_label": strategy_label(experiment)}
    except overview.FLAWS:
        return {"line": "", "strategy_label": run.seen.strategy}


def _round(done: Round) -> dict[str, Any]:
    return {
        "round": done.number,
        "seconds": _short(done.seconds),
        "metrics": {name: _short(value) for name, value in done.metrics.items()},
        "costs": done.costs,
        "phases": _phases(done),
    }


def _phases(done: Round) -> list[list[Any]]:
    """Return of each phase its name, its cohort's size and how many replies of it were left out."""
    return [[name, number, done.num_failures[name]] for name, number in done.phases.items()]


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _measure(metric: str) -> dict[str, Any]:
    """Return what a metric is called, and how its values are written."""
    kind = unit(metric)
    return {"title": _TITLES.get(metric, metric), "whole": kind.whole, "digits": kind.digits}


def _titles() -> dict[str, str]:
    titles = {}
    for measure in MEASURES.values():
        if measure.metric and "{}" not in measure.metric:
            titles[measure.metric] = measure.title
            if measure.metric.startswith("test/"):
                titles[measure.of_split("validation")] = measure.title.replace("test ", "validation ")
    return titles


_TITLES = _titles()


def _stages(tale: Tale) -> list[tuple[str, float]]:
    """Return seconds by stage of all rounds, the longest first; empty in runs of an earlier umbel."""
    total: dict[str, float] = {}
    for each in tale.rounds:
        for name, seconds in each.stages.items():
            total[name] = total.get(name, 0.0) + seconds
    return _by_length(total.items())


def _by_length(stages: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(((name, round(seconds, 3)) for name, seconds in stages), key=lambda item: -item[1])


def _ended(run: Followed) -> dict[str, Any]:
    """Return what is known of a run that has ended: its summary, and how its clients fare; read once."""
    if not run.seen.is_over:
        return {"metrics": metric_rows(run.tale.measured), "accuracies": None, "coverage": []}
    if run.ended is None:
        run.ended = _read(run)
    return run.ended


def _read(run: Followed) -> dict[str, Any]:
    try:
        content = reading.summary(run.path)
        spread = report_series.of_clients(reading.metrics(run.path).to_pandas())
        heads, rows = report_rows.client_facts(spread)
        return {
            "stages": _by_length((name, value) for name, value in content["seconds"].items() if name != "total"),
            "metrics": [list(row) for row in report_rows.metric_rows(content["metrics"])],
            "accuracies": {"heads": heads, "rows": rows} if rows else None,
            "coverage": report_rows.coverage(content) + ([content["ended"]] if content.get("ended") else []),
            "bytes": [list(row) for row in report_rows.bytes(content)],
            "spent": content.get("spent"),
            "lost": coverage.in_words(content),
            "weights_sha256": content["weights_sha256"],
        }
    except overview.FLAWS as error:
        return {"metrics": [], "accuracies": None, "coverage": [], "trouble": str(error)}


def metric_rows(metrics: Mapping[str, float]) -> list[list[str]]:
    """Return (metric, value) of the last evaluation."""
    return [[name, progress.text(name, value)] for name, value in metrics.items() if not math.isnan(value)]

"""Rows of a report's tables, made from what a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from umbel.core.clients import written
from umbel.data.sites.description import SPLITS
from umbel.server.coverage import in_words
from umbel.server.listener import events
from umbel.simulations.report import series as report_series
from umbel.simulations.report.measures import MEASURES, NOT_OF_TASKS, known
from umbel.simulations.report.progress import text

_FAILURES = 20
_ROWS = 100  # of sites, and of classes
# The order of metrics: what people ask for first.
_FIRST = ("test/", "validation/", "clients/", "best/")


def tiles(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of the numbers that a report begins with."""
    metrics = content["metrics"]
    is_sequence = known(metrics.get(MEASURES["acc"].metric))
    tiles = [
        (measure.tile, measure.unit.tile(metrics[measure.metric]))
        for key, measure in MEASURES.items()
        if measure.tile and known(metrics.get(measure.metric)) and not (is_sequence and key in NOT_OF_TASKS)
    ]
    best = f", the best is {content['best_round']}" if content["best_round"] and not is_sequence else ""
    tiles.append((f"rounds{best}", str(content["rounds"])))
    tiles.append(("time", f"{content['seconds']['total']:.1f} s"))
    if "virtual_seconds" in content:
        tiles.append(("virtual time", f"{content['virtual_seconds']:,.1f} s"))
    tiles.append(("parameters", f"{content['num_parameters']:,}"))
    return tiles


def client_facts(spread: Mapping[str, list[float]]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows about the spread over clients, a column for each predictor; "" is the main one."""
    series = {name: pd.Series(values) for name, values in spread.items()}
    quantiles = {f"{100 * q:g} % quantile": q for q in (0, 0.1, 0.5, 0.9, 1)}
    rows = [["clients", *(f"{len(values):,}" for values in series.values())]]
    rows.append(["mean", *(f"{values.mean():.4f}" for values in series.values())])
    rows += [[name, *(f"{values.quantile(q):.4f}" for values in series.values())] for name, q in quantiles.items()]
    heads = ["", *(name or report_series.MODEL for name in series)] if set(series) != {""} else []
    return (heads, rows) if spread else ([], [])


def class_rows(metrics: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Return (class, accuracy as text, fraction) on the server's test set in the last evaluated round."""
    last = report_series.last_classes(metrics)
    return [(name, f"{100 * value:.1f} %", value) for name, value in last.items()]


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Return (metric, last round, best round)."""
    names = [name for name in metrics if not name.startswith("best/")]
    order = sorted(names, key=lambda name: next((i for i, p in enumerate(_FIRST) if name.startswith(p)), 9))

    def cell(name: str, key: str) -> str:
        return text(name, metrics[key]) if known(metrics.get(key)) else "–"

    return [(name, cell(name, name), cell(name, f"best/{name}")) for name in order]


def site_rows(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (site, its clients and examples) and (class, examples of all clients), where sites said what they have."""
    sites = [
        (f"site {name}", f"clients {written(said['clients'])}: {_by_split(said)}")
        for name, said in content.get("sites", {}).items()
    ]
    classes = [(f"class {name}", _by_split(counts)) for name, counts in content.get("classes", {}).items()]
    return [*_first(sites, "sites"), *_first(classes, "classes")]


def _by_split(counts: Mapping[str, Any]) -> str:
    train, validation, test = (counts[split] for split in SPLITS)
    return f"{train:,} to train, {validation:,} to validate, {test:,} to test with"


def _first(rows: list[tuple[str, str]], what: str) -> list[tuple[str, str]]:
    """Return the first rows, and one about the rest."""
    more = [(f"{len(rows) - _ROWS:,} {what} more", "summary.json has them")] if len(rows) > _ROWS else []
    return [*rows[:_ROWS], *more]


def shares(seconds: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Return (stage, seconds as text, share of the total)."""
    total = max(seconds.get("total", 0.0), 1e-9)
    stages = [(name, value) for name, value in seconds.items() if name != "total"]
    ordered = sorted(stages, key=lambda item: -item[1])
    return [(name, f"{value:.2f} s", min(value / total, 1.0)) for name, value in ordered]


def bytes(content: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return (direction, tensors, framing, both a round)."""
    rounds = max(int(content["rounds"]), 1)
    rows = []
    for name, key in (("to clients", "bytes_down"), ("from clients", "bytes_up")):
        tensors, framing = content[key]["tensors"], content[key]["framing"]
        rows.append((name, _size(tensors), _size(framing), _size((tensors + framing) / rounds)))
    return rows


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"


def coverage(content: Mapping[str, Any]) -> list[str]:
    """Return sentences about who took part; none where the summary is that of an older umbel."""
    covered = content.get("coverage", {"rounds": [], "never": []})
    by_phase: dict[str, list[Mapping[str, Any]]] = {}
    for row in covered["rounds"]:
        by_phase.setdefault(row["phase"], []).append(row)
    lines = [_phase_coverage(phase, rows) for phase, rows in by_phase.items()]
    if covered["never"]:
        lines.append(f"Asked, and in no round with a good reply: {written(covered['never'])}.")
    return [*lines, *filter(None, [in_words(content)])]


def _phase_coverage(phase: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many of the clients that a phase selected answered, and in which round the fewest did."""
    times = [row["last_round"] - row["first_round"] + 1 for row in rows]
    selected = sum(row["selected"] * number for row, number in zip(rows, times, strict=True))
    answered = sum(row["answered"] * number for row, number in zip(rows, times, strict=True))
    if answered == selected:
        return f"{phase}: all {selected:,} replies came."
    worst = min(rows, key=lambda row: row["answered"] - row["selected"])
    return (
        f"{phase}: {answered:,} of {selected:,} replies came; the fewest in round {worst['first_round']}, "
        f"{worst['answered']:,} of {worst['selected']:,}."
    )


def failures(folder: Path) -> list[dict[str, Any]]:
    """Return the first failures that the run told of, in rounds that count."""
    return [event for event in events(folder) if event["event"] == "failure"][:_FAILURES]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as (name, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key} ")
        else:
            rows.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


# What the report says of each client after `umbel explain`, and how it is written.
INSIDE = {
    "accuracy": "{:.3f}",
    "labels": "{:.2f}",
    "expected": "{:.2f}",
    "learned": "{:.2f}",
    "drift": "{:.4f}",
    "drift_z": "{:+.1f}",
    "kernels": "{:.3f}",
    "kernels_z": "{:+.1f}",
    "update": "{:.3f}",
    "update_z": "{:+.1f}",
    "correlation": "{:.2f}",
    "iou": "{:.2f}",
}


def inside_rows(clients: Sequence[Mapping[str, Any]], keys: Sequence[str] = tuple(INSIDE)) -> list[list[str]]:
    """Return what `umbel explain` says of each client: its number, a cell a key, and the last one what stands out."""
    rows = []
    for row in clients:
        cells = [
            "–" if row[key] is None else form.format(row[key]) for key, form in ((key, INSIDE[key]) for key in keys)
        ]
        words = [word for word, key in (("suspect", "flagged"), ("labels shuffled", "shuffled")) if row[key]]
        rows.append([str(row["client"]), *cells, ", ".join(words)])
    return rows

"""Rows of a report's tables, made from what a run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

_FAILURES = 20
# The order of metrics: what people ask for first.
_FIRST = ("test/", "validation/", "clients/", "best/")


def tiles(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of the numbers that a report begins with."""
    metrics = content["metrics"]
    tiles = [
        (name, f"{100 * metrics[key]:.2f} %")
        for name, key in (
            ("test accuracy, last round", "test/accuracy"),
            ("test accuracy, best round", "best/test/accuracy"),
            ("clients' mean", "clients/test/accuracy_mean"),
            ("worst 10 % of clients", "clients/test/accuracy_worst10"),
        )
        if _known(metrics.get(key))
    ]
    best = f", the best is {content['best_round']}" if content["best_round"] else ""
    tiles.append((f"rounds{best}", str(content["rounds"])))
    tiles.append(("time", f"{content['seconds']['total']:.1f} s"))
    tiles.append(("parameters", f"{content['num_parameters']:,}"))
    return tiles


def _known(value: Any) -> bool:
    return value is not None and not math.isnan(value)


def rows(metrics: pd.DataFrame, side: str, split: str, metric: str) -> dict[int, float]:
    """Return a metric's value by round; NaN is left out."""
    chosen = metrics[(metrics["side"] == side) & (metrics["split"] == split) & (metrics["metric"] == metric)]
    values = zip(chosen["round"], chosen["value"], strict=True)
    return {int(round_): float(value) for round_, value in values if not math.isnan(value)}


def course(metrics: pd.DataFrame, metric: str) -> dict[str, list[dict[int, float]]]:
    """Return the curves of accuracy or loss: for each label a list of one mapping from round to value."""
    of_clients = "accuracy_mean" if metric == "accuracy" else "loss_mean"
    lines = {
        "test": rows(metrics, "server", "test", metric),
        "validation": rows(metrics, "server", "validation", metric),
        "clients' own test, mean": rows(metrics, "clients", "test", of_clients),
    }
    if metric == "accuracy":
        lines["clients' own test, worst 10 %"] = rows(metrics, "clients", "test", "accuracy_worst10")
    else:
        lines["clients' training"] = rows(metrics, "clients", "train", "loss")
    return {label: [values] for label, values in lines.items() if values}


def of_clients(metrics: pd.DataFrame) -> list[float]:
    """Return each client's accuracy on its own test in the last evaluated round."""
    rows = metrics[(metrics["side"] == "client") & (metrics["split"] == "test") & (metrics["metric"] == "accuracy")]
    last = rows[rows["round"] == rows["round"].max()]
    return [float(value) for value in last["value"].dropna()]


def client_facts(values: list[float]) -> list[tuple[str, str]]:
    """Return (name, value) about the spread over clients."""
    if not values:
        return []
    series = pd.Series(values)
    facts = [("clients", f"{len(values):,}"), ("mean", f"{series.mean():.4f}")]
    facts += [(f"{100 * q:g} % quantile", f"{series.quantile(q):.4f}") for q in (0, 0.1, 0.5, 0.9, 1)]
    return facts


def class_rows(metrics: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Return (class, accuracy as text, fraction) on the server's test set in the last evaluated round."""
    rows = metrics[(metrics["side"] == "server") & (metrics["split"] == "test")]
    rows = rows[rows["metric"].str.fullmatch(r"class/\d+/accuracy") & (rows["round"] == rows["round"].max())]
    found = sorted((int(name.split("/")[1]), value) for name, value in zip(rows["metric"], rows["value"], strict=True))
    return [(str(number), f"{100 * value:.1f} %", value) for number, value in found]


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Return (metric, last round, best round)."""
    names = [name for name in metrics if not name.startswith("best/")]
    order = sorted(names, key=lambda name: next((i for i, p in enumerate(_FIRST) if name.startswith(p)), 9))

    def text(value: float | None) -> str:
        return f"{value:.4f}" if value is not None and not math.isnan(value) else "–"

    return [(name, text(metrics[name]), text(metrics.get(f"best/{name}"))) for name in order]


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


def failures(folder: Path) -> list[dict[str, Any]]:
    """Return the first failures that the run told of."""
    path = folder / "progress.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    events = [json.loads(line) for line in lines if '"failure"' in line]
    return [event for event in events if event.get("event") == "failure"][:_FAILURES]


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested values as (name, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key} ")
        else:
            rows.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows

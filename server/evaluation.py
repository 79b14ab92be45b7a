"""Evaluation: on the server's held-out examples, and of what clients measured on their own."""

from __future__ import annotations

from typing import Any

import torch

from core import metrics
from core.folds import Folded
from core.gathered import collected
from core.metrics import ClassCounts
from server.results import RunFolder
from server.session import Session

MAIN = "model"  # the predictor whose metrics have no prefix


def _prefix(name: str) -> str:
    return "" if name == MAIN else f"{name}/"


def on_server(session: Session, state: Any, round_: int, folder: RunFolder, seconds: float) -> dict[str, float]:
    """Evaluate the strategy's predictors on the server's validation and test examples.

    Returns:
        Metrics by name, such as `validation/accuracy` and `test/loss`.
    """
    found: dict[str, float] = {}
    server = session.data.server
    for name, predictor in session.strategy.predictors(state, session.context(round_)).items():
        for split, examples in (("validation", server.validation), ("test", server.test)):
            if not len(examples):
                continue
            images, labels = session.prepare(examples)
            size = session.experiment.evaluate.batch_size
            counts = metrics.classify(predictor.predict, images, labels, session.data.num_classes, size)
            values = {f"{_prefix(name)}{metric}": value for metric, value in metrics.summarise(counts).items()}
            folder.add(round_, "server", split, values, seconds)
            by_class = {f"{_prefix(name)}class/{c}/accuracy": v for c, v in metrics.per_class(counts).items()}
            folder.add(round_, "server", split, by_class, seconds)
            found |= {f"{split}/{metric}": value for metric, value in values.items()}
    return found


def of_clients(folded: Folded, round_: int, folder: RunFolder, seconds: float) -> dict[str, float]:
    """Summarise what clients measured on their own examples.

    Returns:
        Metrics by name: over clients `clients/test/accuracy_mean`, `_std`, `_worst10`, `_min`, and pooled over
        all of their examples `clients/test/accuracy`.
    """
    by_split: dict[tuple[str, str], dict[int, ClassCounts]] = {}
    for client, _, counts in collected(folded.trees["counts"]):
        for key, value in counts.items():
            if key.endswith("/loss"):
                continue
            split, _, name = key.partition("/")
            loss = float(counts[f"{key}/loss"])
            by_split.setdefault((split, name), {})[client] = ClassCounts(value[0], value[1], loss)
    found: dict[str, float] = {}
    for (split, name), per_client in sorted(by_split.items()):
        values = {client: metrics.summarise(counts) for client, counts in per_client.items()}
        for client, own in values.items():
            kept = {f"{_prefix(name)}{metric}": own[metric] for metric in ("accuracy", "loss")}
            folder.add(round_, "client", split, kept, seconds, client)
        spread = {
            f"{_prefix(name)}{metric}_{statistic}": value
            for metric in ("accuracy", "loss")
            for statistic, value in metrics.over_clients([own[metric] for own in values.values()]).items()
            if metric == "accuracy" or statistic == "mean"
        }
        pooled = metrics.summarise(_total(list(per_client.values())))
        spread |= {f"{_prefix(name)}{metric}": value for metric, value in pooled.items()}
        folder.add(round_, "clients", split, spread, seconds)
        found |= {f"clients/{split}/{metric}": value for metric, value in spread.items()}
    return found


def _total(counts: list[ClassCounts]) -> ClassCounts:
    zero = torch.zeros_like(counts[0].correct_C)
    return sum(counts, ClassCounts(zero, zero, 0.0))


def selection_value(found: dict[str, float]) -> float | None:
    """Return the validation accuracy that chooses the best round, or None without validation data.

    The server's where it has validation examples, else the mean over clients; never anything of a test set.
    """
    for key in ("validation/accuracy", "clients/validation/accuracy_mean"):
        if key in found:
            return found[key]
    return None

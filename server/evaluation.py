"""Evaluation: on the server's held-out examples, and of what clients measured on their own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from umbel.core import metrics
from umbel.core.collecting import replies_in
from umbel.core.evaluation import SCORES
from umbel.core.folds import Folded
from umbel.core.metrics import ClassCounts, collapse, matching, scores, sequences
from umbel.core.metrics.confusion import Confusion, as_csv
from umbel.core.metrics.counts import Keep
from umbel.data.types import Examples
from umbel.server.checkpoint import Progress
from umbel.server.results import RunFolder
from umbel.server.session import Session
from umbel.strategies.base import Predictor

MAIN = "model"  # the predictor whose metrics have no prefix
LONG_TAIL = 10  # times as many examples of the largest class as of the smallest, from which groups of classes are told
NO_DOMAIN = -1  # stands for the domain of examples that have none
Measured = dict[int, dict[int, ClassCounts]]  # domain -> task -> counts


def _prefix(name: str) -> str:
    return "" if name == MAIN else f"{name}/"


def on_server(
    session: Session,
    predictors: Mapping[str, Predictor],
    round_: int,
    folder: RunFolder,
    seconds: float,
    progress: Progress,
) -> dict[str, float]:
    """Evaluate the strategy's predictors on the server's validation and test examples.

    In a sequence of tasks, metrics are over the tasks seen so far, `task/<t>/accuracy` stands beside them, and after
    the last round of a task also what `umbel.core.metrics.sequences` makes of all accuracies so far.

    Returns:
        Metrics by name, such as `validation/accuracy` and `test/loss`.
    """
    by_name: dict[str, float] = {}
    server = session.data.server
    for name, predictor in predictors.items():
        for split, examples in (("validation", server.validation), ("test", server.test)):
            if not len(examples):
                continue
            if predictor.family == matching.NAME:
                matched = {f"{_prefix(name)}{k}": v for k, v in _match(session, predictor, examples).items()}
                folder.add(round_, "server", split, matched, seconds)
                by_name |= {f"{split}/{metric}": value for metric, value in matched.items()}
                continue
            kept, names = scores.Seen(), session.experiment.evaluate.metrics
            is_told = name == MAIN and split == "test"  # what its examples are taken for
            confusion = Confusion()
            keeps = [keep for keep, wanted in ((kept.add, names), (confusion.add, is_told)) if wanted]
            measured = _classify(session, predictor, examples, keeps)
            if is_told:
                progress.confusion = as_csv(confusion.counts(_last_task(session, round_)))
            values, by_class = _summary(session, predictor, measured, _last_task(session, round_))
            values |= kept.scores(names, _last_task(session, round_))
            values, by_class = ({f"{_prefix(name)}{k}": v for k, v in each.items()} for each in (values, by_class))
            folder.add(round_, "server", split, by_class, seconds)
            if session.experiment.schedule.is_sequence:
                values |= _sequence(session, _by_task(measured), split, name, round_, progress)
            folder.add(round_, "server", split, values, seconds)
            by_name |= {f"{split}/{metric}": value for metric, value in values.items()}
    return by_name


@torch.no_grad()
def neural_collapse(session: Session, state: Any, round_: int, folder: RunFolder, seconds: float) -> None:
    """Measure the generic model's neural collapse on the server's validation examples, else on its test examples."""
    server, size = session.data.server, session.experiment.evaluate.batch_size
    split, examples = ("validation", server.validation) if len(server.validation) else ("test", server.test)
    if not len(examples):
        return
    model = session.context(round_).model(session.strategy.model(state))
    images, labels = session.prepare(examples)
    features = [model.features(images[start : start + size]).double().cpu() for start in range(0, len(labels), size)]
    values = collapse.measure(torch.cat(features), labels.cpu(), model.head)
    folder.add(round_, "server", split, {f"collapse/{name}": value for name, value in values.items()}, seconds)


def _match(session: Session, predictor: Predictor, examples: Examples) -> dict[str, float]:
    """Return how well a pair of encoders finds texts by images and images by texts."""
    if predictor.texts is None:
        raise ValueError("A predictor of retrieval needs an encoder of texts.")
    images, _ = session.prepare(examples)
    tokens = examples.read_tokens(images.device, images.dtype)
    size = session.experiment.evaluate.batch_size
    return matching.match(predictor.predict, predictor.texts, images, tokens, examples.identities(), size)


def _summary(
    session: Session, predictor: Predictor, measured: Measured, last_task: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the metrics over the tasks up to one, with domains and class groups where there are any, and by class."""
    num_classes = session.data.num_classes
    by_domain = {
        domain: metrics.total((each for task, each in tasks.items() if task <= last_task), num_classes)
        for domain, tasks in measured.items()
    }
    counts = metrics.total(by_domain.values(), num_classes)
    values = metrics.summarise(counts)
    if NO_DOMAIN not in by_domain:
        values |= metrics.by_domain({session.data.domain_names[d]: each for d, each in sorted(by_domain.items())})
    if (groups := _groups(session, predictor)) is not None:
        values |= metrics.by_group(counts, groups)
    return values, {f"class/{c}/accuracy": value for c, value in metrics.per_class(counts).items()}


def _last_task(session: Session, round_: int) -> int:
    """Return the last task that counts: the current one in a sequence, else any."""
    schedule = session.experiment.schedule
    return schedule.task(round_) if schedule.is_sequence else session.data.num_tasks


def _classify(session: Session, predictor: Predictor, examples: Examples, keeps: Sequence[Keep] = ()) -> Measured:
    def keep(logits: Tensor, labels: Tensor, task: int) -> None:
        for each in keeps:
            each(logits, labels, task)

    images, labels = session.prepare(examples)
    heads = session.data.task_of_class if session.experiment.data.heads == "per_task" else None
    size, num_classes = session.experiment.evaluate.batch_size, session.data.num_classes
    if examples.domains is None:
        by_task = metrics.classify_tasks(
            predictor.predict, images, labels, examples.tasks, num_classes, size, heads, keep
        )
        return {NO_DOMAIN: by_task}
    measured = {}
    for domain in torch.unique(examples.domains).tolist():
        rows = examples.domains == domain
        tasks = None if examples.tasks is None else examples.tasks[rows]
        rows = rows.to(labels.device)
        measured[domain] = metrics.classify_tasks(
            predictor.predict, images[rows], labels[rows], tasks, num_classes, size, heads, keep
        )
    return measured


def _by_task(measured: Measured) -> dict[int, ClassCounts]:
    """Return the counts of each task over all domains."""
    totals: dict[int, ClassCounts] = {}
    for tasks in measured.values():
        for task, counts in tasks.items():
            totals[task] = totals[task] + counts if task in totals else counts
    return totals


def _sequence(
    session: Session, by_task: dict[int, ClassCounts], split: str, name: str, round_: int, progress: Progress
) -> dict[str, float]:
    """Return the accuracy on each task, and after a task the summary of the sequence so far."""
    row = _row(by_task, session.data.num_tasks)
    known = ((task, value) for task, value in enumerate(row) if not math.isnan(value))
    values = {f"{_prefix(name)}task/{task}/accuracy": value for task, value in known}
    key = f"{_prefix(name)}{split}"
    if session.experiment.schedule.ends_task(round_):
        kept = progress.tasks.setdefault(key, {"before": None, "matrix": []})
        kept["matrix"] = [*kept["matrix"], row]
        summary = sequences.summarise(kept["matrix"], kept["before"])
        values |= {f"{_prefix(name)}{metric}": value for metric, value in summary.items()}
    return values


def _row(by_task: dict[int, ClassCounts], num_tasks: int) -> list[float]:
    """Return the accuracy on each task; NaN for one without examples."""
    return [metrics.summarise(by_task[t])["accuracy"] if t in by_task else math.nan for t in range(num_tasks)]


def before_training(session: Session, state: Any, progress: Progress) -> None:
    """Note the accuracy of the untrained model on each task, from which forward transfer is counted."""
    server = session.data.server
    for name, predictor in session.strategy.predictors(state, session.context(0)).items():
        for split, examples in (("validation", server.validation), ("test", server.test)):
            if len(examples):
                by_task = _by_task(_classify(session, predictor, examples))
                row = _row(by_task, session.data.num_tasks)
                progress.tasks[f"{_prefix(name)}{split}"] = {"before": row, "matrix": []}


def class_groups(session: Session, predictors: Mapping[str, Predictor]) -> Tensor | None:
    """Return the class groups of the strategy's main predictor, [C] int64, or None."""
    return _groups(session, predictors[MAIN]) if MAIN in predictors else None


def _groups(session: Session, predictor: Predictor) -> Tensor | None:
    """Return the class groups of a predictor: its own, else by what clients train on, where they have a long tail."""
    if predictor.groups is not None or predictor.family != "classification":
        return predictor.groups
    data = session.data
    counts = torch.bincount(data.pool.labels[data.partition.indices], minlength=data.num_classes)
    present = counts[counts > 0]
    if len(present) < 3 or present.max() < LONG_TAIL * present.min():
        return None
    return metrics.split_at(data.num_train_per_class)


def of_clients(
    folded: Folded,
    round_: int,
    folder: RunFolder,
    seconds: float,
    groups: Tensor | None = None,
    names: Sequence[str] = (),
) -> dict[str, float]:
    """Summarise what clients measured on their own examples.

    Args:
        folded: Their counts, collected.
        round_: Round.
        folder: Where rows go.
        seconds: Time since the run began.
        groups: Class groups [C] whose accuracy is reported apart, pooled over all clients' examples.
        names: Metrics beyond counts, which every client measured; their spread over those that have a value.

    Returns:
        Metrics by name: over clients `clients/test/accuracy_mean`, `_std`, `_worst10`, `_min`, `_jain`, and pooled over
        all of their examples `clients/test/accuracy`.
    """
    by_split: dict[tuple[str, str], dict[int, ClassCounts]] = {}
    scored: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for client, _, counts in replies_in(folded.trees["counts"]):
        for key, value in counts.items():
            if key.endswith(("/loss", SCORES)):
                continue
            split, _, name = key.partition("/")
            loss = float(counts[f"{key}/loss"])
            by_split.setdefault((split, name), {})[client] = ClassCounts(value[0], value[1], loss)
            if f"{key}{SCORES}" in counts:
                scored.setdefault((split, name), {})[client] = scores.from_tensor(counts[f"{key}{SCORES}"], names)
    by_name: dict[str, float] = {}
    for (split, name), per_client in sorted(by_split.items()):
        if name == matching.NAME:
            by_name |= _matched(per_client, split, round_, folder, seconds)
            continue
        values = {client: metrics.summarise(counts) for client, counts in per_client.items()}
        for client, own in values.items():
            own_scores = scored.get((split, name), {}).get(client, {})
            kept = {metric: own[metric] for metric in ("accuracy", "loss")} | own_scores
            rows = {f"{_prefix(name)}{metric}": value for metric, value in kept.items()}
            folder.add(round_, "client", split, rows, seconds, client)
        spread = {
            f"{_prefix(name)}{metric}_{statistic}": value
            for metric in ("accuracy", "loss")
            for statistic, value in metrics.over_clients([own[metric] for own in values.values()]).items()
            if metric == "accuracy" or statistic == "mean"
        }
        spread |= _spread_of_scores(_prefix(name), scored.get((split, name), {}), names)
        whole = metrics.total(per_client.values(), len(next(iter(per_client.values())).total_C))
        pooled = metrics.summarise(whole)
        if groups is not None:
            pooled |= metrics.by_group(whole, groups)
        spread |= {f"{_prefix(name)}{metric}": value for metric, value in pooled.items()}
        folder.add(round_, "clients", split, spread, seconds)
        by_name |= {f"clients/{split}/{metric}": value for metric, value in spread.items()}
    return by_name


def _spread_of_scores(
    prefix: str, per_client: Mapping[int, Mapping[str, float]], names: Sequence[str]
) -> dict[str, float]:
    """Return mean, deviation, worst tenth and least of each metric over the clients where it has a value."""
    spread: dict[str, float] = {}
    for name in sorted(names, key=scores.title):
        title = scores.title(name)
        if known := [own[title] for own in per_client.values() if title in own]:
            over = metrics.over_clients(known, scores.less_is_better(name))
            spread |= {f"{prefix}{title}_{statistic}": value for statistic, value in over.items()}
    return spread


def _matched(
    per_client: dict[int, ClassCounts], split: str, round_: int, folder: RunFolder, seconds: float
) -> dict[str, float]:
    """Summarise how well clients match their own pairs: each client's recalls, their mean, and pooled over queries.

    The mean of a recall is over the clients with enough pairs that it says something, and absent when there are none.
    """
    counts = {client: torch.stack([each.correct_C, each.total_C]) for client, each in per_client.items()}
    values = {client: matching.from_counts(each) for client, each in counts.items()}
    for client, own in values.items():
        folder.add(round_, "client", split, {f"{matching.NAME}/{k}": v for k, v in own.items()}, seconds, client)
    pooled = matching.from_counts(torch.stack(list(counts.values())).sum(0))
    spread = {f"{matching.NAME}/{k}": value for k, value in pooled.items()}
    for metric in matching.RECALLS:
        known = [own[metric] for client, own in values.items() if not matching.too_few(counts[client], metric)]
        if known:
            spread[f"{matching.NAME}/{metric}_mean"] = metrics.over_clients(known)["mean"]
    num_pairs = [float(each[1, 0]) for each in counts.values()]  # as many as images that ask
    spread[f"{matching.NAME}/num_pairs_mean"] = metrics.over_clients(num_pairs)["mean"]
    folder.add(round_, "clients", split, spread, seconds)
    return {f"clients/{split}/{metric}": value for metric, value in spread.items()}


# What chooses a run's best round, the first of these that it has; never anything of a test set.
SELECTION = ("validation/accuracy", "validation/rsum", "clients/validation/accuracy_mean")


def selection_value(values: dict[str, float]) -> float | None:
    """Return the validation accuracy, or sum of recalls, that chooses the best round; None without validation data.

    The server's where it has validation examples, else the mean over clients.
    """
    return next((values[key] for key in SELECTION if key in values), None)

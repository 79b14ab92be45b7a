"""Evaluate on a client's own data; only counts leave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from umbel.core.device import parameter_dtype
from umbel.core.evaluation import SCORES
from umbel.core.metrics import classify_tasks, matching, scores, total
from umbel.core.records import Payload, Reply
from umbel.core.schedule import Schedule
from umbel.data.types import Examples
from umbel.strategies.base import ClientContext, Predictor, Strategy


def evaluate_client(
    strategy: Strategy[Any],
    payload: Payload,
    client: ClientContext,
    batch_size: int,
    schedule: Schedule | None = None,
    task_of_class: Tensor | None = None,
    names: Sequence[str] = (),
) -> Reply:
    """Count what each personal predictor gets right on the client's validation and test examples.

    In a sequence of tasks, those of the tasks seen so far.

    Args:
        strategy: The strategy.
        payload: What the server sent for the evaluation.
        client: The client.
        batch_size: Examples at once.
        schedule: When the sequence of tasks moves on, if there is one.
        task_of_class: [C], when each task has a head of its own.
        names: Metrics beyond counts (`umbel.core.metrics.scores`), M of them.

    Returns:
        A reply with one tree `counts`: `<split>/<predictor>` is [2, C] (correct, total),
        `<split>/<predictor>/loss` the summed loss, and with metrics `<split>/<predictor>/scores` [2, M]; a predictor of
        retrieval has the columns of `umbel.core.metrics.matching.RECALLS` in place of classes, and no loss.
    """
    counts = {}
    splits = {"validation": client.validation_data, "test": client.test_data}
    if schedule is not None and schedule.is_sequence:
        splits = {split: seen(examples, client.task) for split, examples in splits.items()}
    for name, predictor in strategy.personal(payload, client).items():
        for split, examples in splits.items():
            if not len(examples):
                continue
            if predictor.family == matching.NAME:
                counts[f"{split}/{name}"] = _matched(predictor, client, examples, batch_size)
                counts[f"{split}/{name}/loss"] = torch.zeros((), dtype=torch.float64)
                continue
            read, labels = _read(predictor, client, examples)
            num_classes = client.num_classes
            kept = scores.Seen()
            by_task = classify_tasks(
                predictor.predict,
                read,
                labels,
                examples.tasks,
                num_classes,
                batch_size,
                task_of_class,
                kept.add if names else None,
            )
            if names:
                counts[f"{split}/{name}{SCORES}"] = scores.as_tensor(kept.scores(names), names)
            whole = total(by_task.values(), num_classes)
            counts[f"{split}/{name}"] = torch.stack([whole.correct_C, whole.total_C])
            counts[f"{split}/{name}/loss"] = torch.tensor(whole.loss_sum, dtype=torch.float64)
    return Reply({"counts": counts}, {}, max(len(client.test_data), 1))


def _read(predictor: Predictor, client: ClientContext, examples: Examples) -> tuple[Tensor, Tensor]:
    """Return what a predictor reads, and the labels: images are prepared only for those who see them."""
    if predictor.reads == "images":
        return client.prepare(examples)
    tokens = examples.read_tokens(client.device, parameter_dtype(client.local.precision))
    return tokens, examples.labels.to(client.device)


def _matched(predictor: Predictor, client: ClientContext, examples: Examples, batch_size: int) -> Tensor:
    if predictor.texts is None:
        raise ValueError("A predictor of retrieval needs an encoder of texts.")
    images, _ = client.prepare(examples)
    tokens, ids = examples.read_tokens(images.device, images.dtype), examples.identities()
    recalls = matching.match(predictor.predict, predictor.texts, images, tokens, ids, batch_size)
    return matching.as_counts(recalls, len(examples), len(matching.distinct_texts(tokens, ids)))


def seen(examples: Examples, task: int) -> Examples:
    """Return the examples of the tasks up to one."""
    return examples if examples.tasks is None else examples.take(examples.tasks <= task)

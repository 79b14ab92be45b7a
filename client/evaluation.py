"""Evaluate on a client's own data; only counts leave it."""

from __future__ import annotations

from typing import Any

import torch

from core.metrics import classify
from core.records import Payload, Reply
from strategies.base import ClientContext, Strategy


def evaluate_client(strategy: Strategy[Any], payload: Payload, client: ClientContext, batch_size: int) -> Reply:
    """Count what each personal predictor gets right on the client's validation and test examples.

    Returns:
        A reply with one tree `counts`: `<split>/<predictor>` is [2, C] (correct, total) and
        `<split>/<predictor>/loss` the summed loss.
    """
    counts = {}
    splits = {"validation": client.validation_data, "test": client.test_data}
    for name, predictor in strategy.personal(payload, client).items():
        for split, examples in splits.items():
            if not len(examples):
                continue
            images, labels = client.prepare(examples)
            num_classes = client.num_classes
            found = classify(predictor.predict, images, labels, num_classes, batch_size)
            counts[f"{split}/{name}"] = torch.stack([found.correct_C, found.total_C])
            counts[f"{split}/{name}/loss"] = torch.tensor(found.loss_sum, dtype=torch.float64)
    return Reply({"counts": counts}, {}, max(len(client.test_data), 1))

"""A client that trains its head on given features and its trunk on its images, under strategies that call `train`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from umbel.core.training import Correction, Objective, TrainReport
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.strategies.base import ClientContext


@dataclass(frozen=True)
class HeadOnDraws(ClientContext):
    """A client whose head's gradient is that on a batch of completed features; the rest of a step is the base's."""

    completed: Examples | None = None

    def train(self, model: Model, correct: Correction | None = None, objective: Objective | None = None) -> TrainReport:
        assert self.completed is not None
        labels = self.completed.labels.to(self.device)
        features = self.completed.images.to(self.device, model.head.weight.dtype)
        source, size = self.rng("completed batches"), self.local.batch_size or len(labels)
        head = list(model.head.parameters())

        def on_draws(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
            index = torch.randint(len(labels), (size,), generator=source).to(self.device)
            with torch.enable_grad():
                loss = self.loss(model.head(features[index]), labels[index])
                replaced = torch.autograd.grad(loss, head)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                for ours, mine in zip(head, replaced, strict=True):
                    if parameter is ours:
                        gradient.copy_(mine)
            if correct is not None:
                correct(parameters, gradients)

        return super().train(model, on_draws, objective)


def head_on_draws(client: ClientContext, completed: Examples) -> HeadOnDraws:
    """Return the same client, with its head trained on these features [N, D] and labels."""
    given = {each.name: getattr(client, each.name) for each in fields(ClientContext)}
    return HeadOnDraws(**given, completed=completed)

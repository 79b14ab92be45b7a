"""Classes of pictures that nobody has labelled.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from umbel.core.metrics.counts import Predict, only_task
from umbel.core.names import shown
from umbel.core.refusal import Refusal
from umbel.data import pictures
from umbel.simulations.use.inputs import embedder, find_pictures, picture_form
from umbel.simulations.use.trained import Trained, load_model


@dataclass(frozen=True)
class Predictions:
    """What a model says of pictures.

    Attributes:
        paths: [N] the pictures.
        classes: [C] names.
        probabilities: [N, C] float32, rows sum to 1.
        notices: What whoever reads them should know, a sentence each.
    """

    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    probabilities: Tensor
    notices: tuple[str, ...]

    def rows(self) -> list[tuple[Path, str, float]]:
        """Return for each picture its class and the probability of that."""
        values, places = self.probabilities.max(dim=1)
        return [
            (path, self.classes[place], value)
            for path, place, value in zip(self.paths, places.tolist(), values.tolist(), strict=True)
        ]

    def csv(self) -> str:
        """Return a table: `file`, `class`, `probability`, and the probability of each class under `p:<class>`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "class", "probability", *(f"p:{name}" for name in self.classes)])
        for (path, name, value), each in zip(self.rows(), self.probabilities.tolist(), strict=True):
            writer.writerow([shown(path), name, f"{value:.6g}", *(f"{one:.6g}" for one in each)])
        return text.getvalue()


@torch.no_grad()
def predict(where: str | Path, folder: str | Path, *, task: int | None = None, batch_size: int = 256) -> Predictions:
    """Predict the classes of pictures, which are read, resized, embedded and normalised as the training images were.

    Args:
        where: The folder of a run that has ended, or a model's file.
        folder: A folder of pictures, in folders of any depth, or one picture.
        task: The task that the pictures are of, where each has a head of its own (`data.heads=per_task`).
        batch_size: Pictures at once.

    Raises:
        Refusal: The model cannot be used alone, there is no picture, or one cannot be read.
    """
    trained = load_model(where)
    logits_of = _of_task(trained, task)
    paths, notices = find_pictures(folder)
    form, embed, parts = picture_form(trained), embedder(trained), []
    for start in range(0, len(paths), batch_size):
        images, more = pictures.read(paths[start : start + batch_size], form)
        notices += more
        parts.append(torch.softmax(logits_of(embed(images)).float(), dim=1).cpu())
    probabilities = torch.cat(parts)
    if not bool(torch.isfinite(probabilities).all()):
        raise Refusal(f"{trained.path} gives no numbers for these pictures: its training has diverged.")
    return Predictions(tuple(paths), trained.classes, probabilities, (*trained.card.remarks, *notices))


def _of_task(trained: Trained, task: int | None) -> Predict:
    """Return what gives logits of images, of the classes of one task where each has a head of its own."""
    tasks = torch.tensor(trained.card.tasks)
    if not len(tasks):
        if task is not None:
            raise Refusal(f"{trained.path} has one head for all classes.", key="--task", remedy="Leave out --task.")
        return trained.logits
    if task is None or not 0 <= task <= int(tasks.max()):
        raise Refusal(
            f"{trained.path} has a head for each of {int(tasks.max()) + 1} tasks, and has to be told the pictures'.",
            key="--task",
            remedy=f"Give --task 0 to {int(tasks.max())}.",
        )
    return only_task(trained.logits, tasks == task)

"""A trained model, opened from its run or from its file.

Shapes: N images, I channels, S side of an image, D features of an encoder, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from umbel.core.refusal import Refusal
from umbel.data import transforms
from umbel.models import card as cards
from umbel.models.base import Model
from umbel.models.card import Card
from umbel.server import reading


@dataclass(frozen=True)
class Trained:
    """A trained model and what is known of it.

    Attributes:
        model: The model itself, an `nn.Module` in evaluation mode on the CPU; it maps normalised images to logits.
        card: What it is: its classes, their normalisation, its size.
        path: Its file.
    """

    model: Model
    card: Card
    path: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.card.classes

    def normalize(self, images: Tensor) -> Tensor:
        """Return what the model takes of images [N, I, S, S], uint8 or floating in [0, 1]; embeddings stay."""
        weight = self.model.head.weight
        return transforms.normalize(images.to(weight.device), self.card.mean, self.card.std, weight.dtype)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits [N, C] of images [N, I, S, S], uint8 or floating in [0, 1], or of embeddings [N, D].

        Images are normalised here.
        """
        logits: Tensor = self.model(self.normalize(images))
        return logits

    @property
    def run(self) -> Path | None:
        """The folder of its run, if the file is still there."""
        return self.path.parent if (self.path.parent / "config.yaml").is_file() else None


def load_model(where: str | Path) -> Trained:
    """Open a trained model; it needs neither the run nor its data.

    Args:
        where: The folder of a run that has ended, or a model's file such as `best.safetensors` of one.

    Raises:
        Refusal: There is none, it does not say what model it is, or its weights alone predict nothing.
        umbel.core.files.DamagedError: It is not what was written.
    """
    file = cards.file_of(where)
    if file.parent == Path(where).expanduser().absolute():
        reading.checked(file.parent, file.name)
    tensors, card = cards.read(file)
    if card.unusable:
        raise Refusal(f"{file} cannot be used alone. {card.unusable}")
    return Trained(cards.build(card, tensors), card, file)

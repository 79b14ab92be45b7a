"""From picture files, or the images of a set, to what a trained model takes.

Shapes: N pictures, C channels, S pixels on a side, D features of an encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from umbel.core.refusal import Refusal
from umbel.data import encoders, pictures
from umbel.data.sets import registry
from umbel.data.sources.picture_files import SUFFIXES, find_anywhere
from umbel.server import reading
from umbel.simulations.use.trained import Trained


def find_pictures(folder: str | Path) -> tuple[list[Path], list[str]]:
    """Return the picture files of a folder and of all folders in it, sorted; and what was left out, in sentences.

    Args:
        folder: The folder, or one picture.

    Raises:
        Refusal: There is none.
    """
    root = Path(folder).expanduser()
    if not root.exists():
        raise Refusal(f"{folder}: there is no such file or folder.", remedy="Give a folder with pictures.")
    if root.is_file():
        return [root], []
    files = find_anywhere(root)
    if not files.paths:
        known = ", ".join(sorted(SUFFIXES))
        raise Refusal(" ".join([f"{folder}: there is no picture.", *files.notices]), remedy=f"Known: {known}.")
    return list(files.paths), list(files.notices)


def picture_form(trained: Trained) -> pictures.Form:
    """Return the form that the model's training images had.

    Raises:
        Refusal: It was trained on something else than pictures.
    """
    card = trained.card
    if card.picture_channels not in (1, 3):
        what = f"images of {card.picture_channels} channels" if card.picture_channels else "texts"
        raise Refusal(
            f"{trained.path} was trained on {what}, and pictures have 1 channel or 3.",
            remedy="Give it tensors: umbel.load_model.",
        )
    return pictures.Form(card.picture_size, pictures.mode_of(card.picture_channels), card.white)


def embedder(trained: Trained) -> Callable[[Tensor], Tensor]:
    """Return what makes of images [N, C, S, S] what the model takes: themselves, or embeddings [N, D].

    Raises:
        Refusal: The encoder is fitted to the training images, and the run that has them is not there.
        umbel.data.DataError: The encoder is not on this machine, or takes no images.
    """
    card = trained.card
    if not card.encoder:
        return lambda images: images
    if not encoders.is_fitted(card.encoder):
        return encoders.open_images(
            card.encoder,
            card.encoder_size,
            torch.zeros(1, card.picture_channels, card.picture_size, card.picture_size, dtype=torch.uint8),
        )
    if trained.run is None:
        raise Refusal(
            f"{trained.path}: its model reads {card.encoder}, which is fitted to the training images of the run.",
            remedy="Give the run's folder, where its data are.",
        )
    experiment = reading.experiment(trained.run)
    fit = registry.load(experiment.data, experiment.data_seed).train.images
    return encoders.open_images(card.encoder, card.encoder_size, fit)

"""What the file of a trained model says of it: all that is needed to build and to use the model without its run.

The card is JSON under one key of the safetensors metadata. (Under several, the bytes of a file would not be the same
every time: safetensors writes them in no order.)

Shapes: I channels, S side of an image, D features, C classes.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umbel.core.files import DamagedError, read_tensors
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded
from umbel.core.tree import TreeMismatchError, sha256
from umbel.models.assemble import assemble
from umbel.models.base import Model
from umbel.models.weights import load_state

KEY = "umbel"
MODEL = "model.safetensors"  # in a run's folder


@dataclass(frozen=True)
class Card:
    """What a model is and what it is shown.

    Attributes:
        version: Of the umbel that trained it.
        strategy: What it was trained by.
        model: A name of the zoo, or `package.module:Factory`.
        sizes: Its sizes.
        operators: What was put into it.
        norm: Its rule for norms.
        seed: Of the run.
        image_size: S that the model takes; 1 behind an encoder.
        in_channels: I that it takes; D of embeddings behind an encoder.
        classes: [C] names, in the order of the logits.
        mean: [I] that images are normalised by, in units of [0, 1] pixels; empty behind an encoder.
        std: [I], likewise.
        encoder: The frozen encoder whose embeddings it reads, or empty.
        encoder_size: Side in pixels that images are resized to for the encoder; 0 is its own.
        picture_size: S of the images that the set has, before an encoder.
        picture_channels: I of them; 0 where it has texts and no images.
        white: Value of white in pictures of more than 8 bits; 0 takes what their format says.
        tasks: [C], the task of each class where each task has a head of its own; else empty.
        unusable: Why these weights alone predict nothing, in a sentence; empty where they do.
        remarks: What whoever predicts with them should know, a sentence each.
        weights_sha256: Hash of the tensors (`umbel.core.tree.sha256`).
    """

    version: str
    strategy: str
    model: str
    sizes: dict[str, Any]
    operators: dict[str, Any]
    norm: str
    seed: int
    image_size: int
    in_channels: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    encoder: str
    encoder_size: int
    picture_size: int
    picture_channels: int
    white: float
    tasks: tuple[int, ...]
    unusable: str
    remarks: tuple[str, ...]
    weights_sha256: str

    def metadata(self) -> dict[str, str]:
        """Return it as the metadata of a file."""
        return {KEY: json.dumps(dataclasses.asdict(self), ensure_ascii=False)}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Card:
        """Return the card in a file's metadata.

        Raises:
            ValueError: There is none, or it is not as this version writes it.
        """
        if KEY not in metadata:
            raise ValueError("its metadata do not say what model it is")
        content = json.loads(metadata[KEY])
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            by = content.get("version", "") if isinstance(content, dict) else ""
            raise ValueError(f"its metadata are those of another version of umbel ({by or 'unknown'})")
        values: dict[str, Any] = {}
        for name, hint in typing.get_type_hints(cls).items():
            kind = typing.get_origin(hint) or hint
            value = tuple(content[name]) if isinstance(content[name], list) else content[name]
            if not isinstance(value, int | float if kind is float else kind):
                raise ValueError(f"its metadata say {name}={content[name]!r}")
            values[name] = value
        return cls(**values)


def version() -> str:
    """Return the version of umbel, or `unknown` where it is no installed package."""
    try:
        return installed.version("umbel")
    except installed.PackageNotFoundError:
        return "unknown"


def file_of(where: str | Path, key: str = "") -> Path:
    """Return the file of a trained model, absolute.

    Args:
        where: A run's folder, or the file.
        key: The key that an error names.

    Raises:
        Refusal: There is none.
    """
    path = Path(where).expanduser().absolute()
    if not path.exists():
        raise Refusal(f"{where}: there is no such file or folder.", key=key, remedy="Give a run's folder or a model.")
    file = path / MODEL if path.is_dir() else path
    if not file.is_file():
        raise Refusal(
            f"{where} has no {MODEL}.", key=key, remedy="Give the folder of a run that has ended, or the file itself."
        )
    return file


def read(file: Path) -> tuple[dict[str, Tensor], Card]:
    """Read a trained model with its card.

    Raises:
        DamagedError: It is no safetensors file, or its weights are not those that were written.
        Refusal: It does not say what model it is.
    """
    try:
        tensors, metadata = read_tensors(file)
    except ValueError as error:
        raise DamagedError.of(file, str(error), "Bring it back from a copy.") from error
    try:
        card = Card.of(metadata)
    except (ValueError, TypeError) as error:
        raise Refusal(f"{file}: {error}.", remedy="Give a model that this version of umbel has written.") from error
    if card.weights_sha256 != sha256(tensors):
        raise DamagedError.of(file, "its weights do not have the hash that its metadata say", "Bring it from a copy.")
    return tensors, card


def build(card: Card, tensors: Mapping[str, Tensor]) -> Model:
    """Build a model and give it its weights.

    Args:
        card: What it is.
        tensors: Its whole state.

    Returns:
        The model, in evaluation mode on the CPU.

    Raises:
        Refusal: It cannot be built, or the weights are not its own.
    """
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)

    def factory() -> Model:
        return assemble(
            card.model,
            len(card.classes),
            card.image_size,
            card.in_channels,
            sizes=card.sizes,
            operators_=card.operators,
            norm_rule=card.norm,
        )

    model = build_seeded(factory, card.seed, dtype)
    try:
        load_state(model, tensors)
    except TreeMismatchError as error:
        raise Refusal(f"The weights are not those of model {card.model}: {error}.") from error
    return model.eval()

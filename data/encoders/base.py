"""What an encoder is: what it needs, what its embeddings depend on, and how it is run.

Shapes: N examples, B batch, C channels (1 grey, 3 colour), H height, W width, D features.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from umbel.data.errors import DataError, MissingDataError

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Plan:
    """An encoder that is ready to be opened for some inputs; making one loads no weights into a model.

    Attributes:
        num_features: D.
        identity: Everything besides the inputs that the embeddings depend on, fit for JSON: the encoder, its size,
            the hash of its weights, the library that runs it and its version, the number of threads.
        open: Loads the encoder. What it returns maps a batch, [B, C, H, W] of what the set holds or B texts, to
            [B, D] float32.
        batch: Largest batch that it is given.
        note: What a person who waits should know.
    """

    num_features: int
    identity: Mapping[str, Any]
    open: Callable[[], Callable[[Any], Tensor]]
    batch: int
    note: str = ""


class Encoder(Protocol):
    """An encoder of the table; `argument` is what follows the colon of its name, or empty."""

    @property
    def description(self) -> str:
        """One line about it."""

    @property
    def takes(self) -> frozenset[str]:
        """`images`, `texts`, or both."""

    def check(self, argument: str, size: int) -> None:
        """Raise when it cannot be used with this argument at this size."""

    def images(self, argument: str, size: int, images: Tensor, fit: Tensor) -> Plan:
        """Plan for images [N, C, H, W]; one that is fitted to data is fitted to `fit`, [M, C, H, W]."""

    def texts(self, argument: str) -> Plan:
        """Plan for texts."""


def no_images(name: str) -> DataError:
    """Make the error of an encoder of texts that was given images."""
    return DataError(
        f"data.encoder={name} takes texts and was given images.",
        key="data.encoder",
        remedy="Set data.encoder to one of images: lite0.",
    )


def no_texts(name: str) -> DataError:
    """Make the error of an encoder of images that was given texts."""
    return DataError(
        f"data.encoder={name} takes images and was given texts.",
        key="data.encoder",
        remedy="Set data.encoder to one of texts: minilm, or clip:<name or folder>.",
    )


def no_argument(name: str, argument: str) -> None:
    """Raise where a name takes nothing after a colon and has something there."""
    if argument:
        raise DataError(
            f"data.encoder={name}:{argument}: {name} takes nothing after a colon.",
            key="data.encoder",
            remedy=f"Set data.encoder={name}.",
        )


def imported(module: str) -> Any:
    """Import an optional package, now and not before."""
    return importlib.import_module(module)


def installed(*modules: str) -> bool:
    """Say whether all modules are installed, without importing one."""
    return all(importlib.util.find_spec(module) is not None for module in modules)


def need(name: str, modules: Sequence[str], command: str) -> None:
    """Raise `MissingDataError` with the command that installs what an encoder needs, if a module is not there."""
    lacking = [module for module in modules if not installed(module)]
    if lacking:
        raise MissingDataError(
            f"data.encoder={name}: expected the Python modules {', '.join(modules)}, and {', '.join(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} not installed.",
            key="data.encoder",
            remedy=f"Install with\n    {command}",
        )


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of installed packages, for an identity."""

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:  # onnxruntime-gpu brings the module onnxruntime
            return str(imported(package).__version__)

    return {package: version(package) for package in packages}


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        MissingDataError: There is no such file.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{path}: expected a file of weights, and it is not there.", remedy="Install it again."
        ) from error
    return digest.hexdigest()


def tensor_hash(*tensors: Tensor) -> str:
    """Return the SHA-256 over dtypes, shapes and bytes; no tensor is copied as a whole."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        for piece in torch.split(tensor, 4096):
            digest.update(piece.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use so many threads inside, and as many as before afterwards: the number changes bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_bytes(images: Tensor) -> Tensor:
    """Return uint8 images as they are, floating ones in [0, 1] rounded to uint8: what encoders were trained on."""
    return images if images.dtype == torch.uint8 else (images.float() * 255).round().clamp(0, 255).to(torch.uint8)


def as_colour(images: Tensor, name: str) -> Tensor:
    """Return [B, 3, H, W]: a grey image is its own red, green and blue.

    Raises:
        DataError: There are neither 1 nor 3 channels.
    """
    if images.shape[1] not in (1, 3):
        raise DataError(
            f"data.encoder={name}: expected images of 1 or 3 channels, found {images.shape[1]}.", key="data.encoder"
        )
    return images.expand(-1, 3, -1, -1)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load models of transformers without bars and reports; what was set before is put back."""
    logging = imported("transformers").utils.logging
    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()

"""`pixels`: no encoder at all, and `pca:<d>`: the first d principal components of the pixels.

Both need nothing but what umbel needs, and are what an encoder has to be better than.

The components are fitted on all training images, which in a real federation nobody holds: a convenience of
simulations. They are those of the covariance in float64, each with its largest entry positive, not whitened.

Shapes: N images, C channels, H height, W width, S side they are resized to, P = C H W (or C S S) pixels, d components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from umbel.data.encoders.base import Plan, no_argument, no_texts, tensor_hash, threads, versions
from umbel.data.encoders.resize import resize
from umbel.data.errors import DataError
from umbel.data.sources.cache import Maker, cached

_BATCH = 1024
_LARGEST = 4096  # a decomposition of this many rows takes a minute, of twice as many eight


def flat(images: Tensor, size: int) -> Tensor:
    """Return [N, P] float32 in [0, 1] of images [N, C, H, W]; a size of 0 keeps theirs."""
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    return (resize(pixels, size, size) if size else pixels).flatten(1)


def num_pixels(images: Tensor, size: int) -> int:
    """Return P."""
    channels, height, width = images.shape[1:]
    return int(channels * (size * size if size else height * width))


def check_size(name: str, size: int) -> None:
    """Raise `DataError` for a negative size."""
    if size < 0:
        raise DataError(
            f"data.encoder_size must be at least 0 for {name} (0 keeps the images' own), found {size}.",
            key="data.encoder_size",
        )


@dataclass(frozen=True)
class Pixels:
    """Flattened pixels in [0, 1], in the order channel, row, column."""

    description: str = "the pixels themselves, flattened, in [0, 1]; needs nothing"
    takes: frozenset[str] = frozenset({"images"})

    def check(self, argument: str, size: int) -> None:
        """Raise for an argument or a negative size."""
        no_argument("pixels", argument)
        check_size("pixels", size)

    def images(self, argument: str, size: int, images: Tensor, fit: Tensor) -> Plan:
        """Plan for images of any shape."""
        identity = {"encoder": "pixels", "size": size, "versions": versions("torch") if size else {}}
        return Plan(num_pixels(images, size), identity, lambda: lambda batch: flat(batch, size), _BATCH)

    def texts(self, argument: str) -> Plan:
        """Refuse texts."""
        raise no_texts("pixels")


@dataclass(frozen=True)
class PCA:
    """Principal components of the pixels."""

    description: str = "the first d principal components of the pixels, fitted on all training images; needs nothing"
    takes: frozenset[str] = frozenset({"images"})

    def check(self, argument: str, size: int) -> None:
        """Raise for what is no number of components, or a negative size."""
        if not argument.isascii() or not argument.isdigit() or int(argument) < 1:
            raise DataError(
                f"data.encoder=pca:{argument}: expected a whole number of components of at least 1, such as pca:50.",
                key="data.encoder",
            )
        check_size("pca", size)

    def images(self, argument: str, size: int, images: Tensor, fit: Tensor) -> Plan:
        """Plan for images, with the components of `fit`.

        Raises:
            DataError: There are fewer images or pixels than components, or too many of both; or no such shape.
        """
        count, pixels = int(argument), num_pixels(fit, size)
        if num_pixels(images, size) != pixels:
            raise DataError(
                f"data.encoder=pca:{count} was fitted to images with {pixels} pixels and got some with "
                f"{num_pixels(images, size)}.",
                key="data.encoder",
            )
        limit = min(len(fit), pixels)
        if count > limit:
            raise DataError(
                f"data.encoder=pca:{count}: {len(fit)} training images of {pixels} pixels have at most {limit} "
                f"components.",
                key="data.encoder",
                remedy=f"Set data.encoder=pca:{limit} or less.",
            )
        if limit > _LARGEST:
            raise DataError(
                f"data.encoder=pca:{count}: {len(fit)} training images of {pixels} pixels are too many to decompose "
                f"(at most {_LARGEST} of one of them).",
                key="data.encoder_size",
                remedy="Set data.encoder_size to a smaller side.",
            )
        identity = {
            "encoder": "pca",
            "components": count,
            "size": size,
            "fit": tensor_hash(fit),
            "threads": 1,
            "versions": versions("torch"),
        }

        def opened() -> Callable[[Tensor], Tensor]:
            def make(maker: Maker) -> None:
                mean, components = principal_components(fit, count, size)
                maker.put("mean", mean.numpy())
                maker.put("components", components.numpy())

            entry = cached("encoders", f"pca-{count}", identity, make)
            mean, components = (torch.from_numpy(entry[name].copy()) for name in ("mean", "components"))

            def encode(batch: Tensor) -> Tensor:
                with threads(1):
                    return ((flat(batch, size).double() - mean) @ components.T).float()

            return encode

        return Plan(count, identity, opened, _BATCH)

    def texts(self, argument: str) -> Plan:
        """Refuse texts."""
        raise no_texts("pca")


def principal_components(images: Tensor, count: int, size: int = 0) -> tuple[Tensor, Tensor]:
    """Return the mean, [P], and the first components, [d, P], of the pixels of images, float64.

    Args:
        images: [N, C, H, W].
        count: d, at most the smaller of N and P.
        size: S; 0 keeps the images' own.
    """
    with torch.inference_mode(), threads(1):
        blocks = torch.split(images, _BATCH)
        number, pixels = len(images), num_pixels(images, size)
        mean = torch.zeros(pixels, dtype=torch.float64)
        for block in blocks:
            mean += flat(block, size).double().sum(0)
        mean /= number
        if pixels <= number:
            scatter = torch.zeros(pixels, pixels, dtype=torch.float64)
            for block in blocks:
                centred = flat(block, size).double() - mean
                scatter += centred.T @ centred
            components = torch.linalg.eigh(scatter).eigenvectors.T.flip(0)[:count]
        else:
            components = torch.linalg.svd(flat(images, size).double() - mean, full_matrices=False).Vh[:count]
        # An eigenvector has no sign of its own.
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        return mean.clone(), (components * torch.where(largest < 0, -1.0, 1.0)).clone()


PIXELS = Pixels()
PRINCIPAL = PCA()

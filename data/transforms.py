"""What is done to a batch of images: normalisation, augmentation, permutation; tensor operations only.

Shapes: N images, C channels, H height, W width, P pixels of zero padding on each side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.core.names import unknown
from umbel.core.rng import generator as make_generator

_AUGMENTATIONS = {
    "none": "images as they are",
    "flip": "mirror left and right, half of the images",
    "crop": "shift by up to an eighth of the size, zeros from outside",
    "flip_crop": "both",
}


def augmentations() -> tuple[str, ...]:
    """Return the names that `augment` knows."""
    return tuple(_AUGMENTATIONS)


def check_augmentation(kind: str) -> None:
    """Raise `UnknownNameError` unless `augment` knows `kind`."""
    if kind not in _AUGMENTATIONS:
        raise unknown("augmentation", kind, _AUGMENTATIONS, key="data.augment")


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (pixels - mean) / std per channel, computed in float32 and cast to `dtype` at the end.

    Args:
        images: [N, C, H, W], uint8 in 0..255 or floating point in units of [0, 1] pixels.
        mean: [C], in units of [0, 1] pixels; empty for embeddings [N, D], which stay as they are.
        std: [C], in the same units.
        dtype: Dtype of the result.
    """
    if not mean:
        return images.to(dtype)
    center = torch.tensor(mean, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    spread = torch.tensor(std, dtype=torch.float32, device=images.device).view(1, -1, 1, 1)
    if images.dtype == torch.uint8:
        # (x / 255 - m) / s = (x - 255 m) / (255 s): one pass over the pixels less.
        center, spread = center * 255, spread * 255
    return ((images.to(torch.float32) - center) / spread).to(dtype)


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return augmented copies of a batch; each image has its own flip and its own shift.

    Shifts are uniform in -P..P on both axes with P = max(1, H // 8). What enters from outside is zero: black
    in pixels, the mean in normalised images.

    Args:
        images: [N, C, H, W], any dtype, on any device.
        kind: A name of `augmentations()`.
        generator: CPU generator, so that the draws are the same on every device.
    """
    check_augmentation(kind)
    if kind in ("flip", "flip_crop"):
        images = _flip(images, generator)
    if kind in ("crop", "flip_crop"):
        images = _shift(images, generator)
    return images


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(images.shape[0], generator=generator) < 0.5
    return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    num, channels, height, width = images.shape
    pad = max(1, height // 8)
    corner = torch.randint(0, 2 * pad + 1, (2, num), generator=generator).to(images.device)
    padded = F.pad(images, (pad, pad, pad, pad))
    image = torch.arange(num, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    rows = (corner[0].view(-1, 1) + torch.arange(height, device=images.device)).view(num, 1, height, 1)
    columns = (corner[1].view(-1, 1) + torch.arange(width, device=images.device)).view(num, 1, 1, width)
    return padded[image, channel, rows, columns]


def permute_pixels(images: Tensor, task: int, seed: int) -> Tensor:
    """Return images with their pixels in the fixed order of a task; task 0 is the identity.

    All channels of a pixel move together. The order depends on the seed, the task and H * W only.

    Args:
        images: [N, C, H, W].
        task: Task number, from 0.
        seed: The seed of the data.
    """
    if task == 0:
        return images
    num_pixels = images.shape[2] * images.shape[3]
    order = torch.randperm(num_pixels, generator=make_generator(seed, purpose=f"pixels of task {task}"))
    return images.flatten(2)[:, :, order.to(images.device)].view(images.shape)

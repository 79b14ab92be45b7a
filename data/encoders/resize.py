"""Resizing as two matrix products, so that every backend resizes in the same way.

Shapes: B batch, C channels, H height, W width, S side of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def matrix(size: int, target: int, mode: str = "bilinear") -> Tensor:
    """Return R, [S, H] float32, so that R @ x is a column x of H pixels resized to S, with antialiasing.

    Args:
        size: H.
        target: S.
        mode: bilinear or bicubic.
    """
    unit = torch.eye(size)[None, None]
    return functional.interpolate(unit, size=(target, size), mode=mode, antialias=True, align_corners=False)[0, 0]


def resize(images: Tensor, height: int, width: int, mode: str = "bilinear") -> Tensor:
    """Return images [B, C, H, W], floating point, at another size, [B, C, height, width]."""
    if images.shape[-1] != width:
        images = images @ matrix(images.shape[-1], width, mode).T
    if images.shape[-2] != height:
        images = matrix(images.shape[-2], height, mode) @ images
    return images

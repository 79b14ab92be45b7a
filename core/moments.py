"""Counts, means and covariances of classes: merged exactly, and packed for the wire.

Merged after Chan, Golub and LeVeque (1983) in the form of covariances: with n = n_a + n_b, s = n_b / n and
d = mean_b - mean_a, the mean is mean_a + s d and the covariance (1 - s) S_a + s S_b + s (1 - s) d d'.

Legend: C classes, D features, Z = 1 + D + D (D + 1) / 2 packed numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ClassMoments = tuple[Tensor, Tensor, Tensor]


def merge(left: ClassMoments, right: ClassMoments, within_only: bool = False) -> ClassMoments:
    """Return the moments of two sets of examples together, class by class, in float64.

    Args:
        left: Count [C], mean [C, D], biased covariance [C, D, D]; those of an absent class are 0.
        right: The same.
        within_only: Leave out s (1 - s) d d', so that the mean of the covariances remains.

    Raises:
        ValueError: Shapes differ.
    """
    if left[2].shape != right[2].shape:
        raise ValueError(f"Expected covariances of shape {list(left[2].shape)}, found {list(right[2].shape)}.")
    (n_a, mean_a, cov_a), (n_b, mean_b, cov_b) = ((part.to(torch.float64) for part in each) for each in (left, right))
    count = n_a + n_b
    share = torch.where(count > 0, n_b / torch.where(count > 0, count, torch.ones_like(count)), 0.0)
    apart = mean_b - mean_a
    covariance = cov_a * (1 - share)[:, None, None] + cov_b * share[:, None, None]
    if not within_only:
        covariance += (share * (1 - share))[:, None, None] * apart[:, :, None] * apart[:, None, :]
    return count, mean_a + share[:, None] * apart, covariance


def pack(count: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Return [..., Z]: count [...], mean [..., D] and the upper triangle of covariance [..., D, D] row by row."""
    rows, columns = torch.triu_indices(mean.shape[-1], mean.shape[-1]).to(mean.device)
    return torch.cat([count[..., None], mean, covariance[..., rows, columns]], dim=-1)


def unpack(packed: Tensor) -> ClassMoments:
    """Return count, mean and covariance of `pack`.

    Raises:
        ValueError: There is no D with as many numbers.
    """
    width = (math.isqrt(8 * packed.shape[-1] + 1) - 3) // 2 if packed.ndim else 0
    if width < 1 or packed.shape[-1] != packed_size(width):
        raise ValueError(f"Expected 1 + D + D (D + 1) / 2 numbers, found shape {list(packed.shape)}.")
    rows, columns = torch.triu_indices(width, width).to(packed.device)
    covariance = packed.new_zeros(*packed.shape[:-1], width, width)
    covariance[..., rows, columns] = packed[..., 1 + width :]
    covariance[..., columns, rows] = packed[..., 1 + width :]
    return packed[..., 0], packed[..., 1 : 1 + width], covariance


def packed_size(width: int) -> int:
    """Return Z for D features."""
    return 1 + width + width * (width + 1) // 2

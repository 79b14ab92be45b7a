"""The shape of each class: in which directions its embeddings vary, and by how much.

Legend: C classes, D features, R kept directions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from umbel.strategies.ggeur import noise as privacy
from umbel.strategies.ggeur.pooling import ClassStatistics


@dataclass(frozen=True)
class Geometry:
    """Shape of each class: the directions in which its embeddings vary, and by how much.

    Attributes:
        eigenvalues_CR: [C, R], variances along the directions, descending, at least 0.
        eigenvectors_CDR: [C, D, R], orthonormal columns.
        mean_CD: [C, D].
        count_C: [C].
    """

    eigenvalues_CR: Tensor
    eigenvectors_CDR: Tensor
    mean_CD: Tensor
    count_C: Tensor


def geometry(statistics: ClassStatistics, rank: int | None = None) -> Geometry:
    """Return the eigen-decomposition of each class's covariance, largest variance first.

    The sign of a direction is chosen so that its largest entry is positive.

    Args:
        statistics: Of all clients together.
        rank: R, directions to keep; None keeps all D.

    Raises:
        ValueError: `rank` is not in 1..D.
    """
    num_classes, width = statistics.mean_CD.shape
    kept = width if rank is None else rank
    if not 1 <= kept <= width:
        raise ValueError(f"Expected a rank in 1..{width}, found {rank}.")
    covariance = statistics.covariance_CDD
    values = covariance.new_zeros(num_classes, kept)
    vectors = covariance.new_zeros(num_classes, width, kept)
    for label in range(num_classes):
        symmetric = (covariance[label] + covariance[label].T) / 2
        ascending, directions = torch.linalg.eigh(symmetric)
        directions = directions.flip(1)[:, :kept]
        peak = directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
        values[label] = ascending.flip(0)[:kept].clamp_min(0)
        vectors[label] = directions * peak
    return Geometry(values, vectors, statistics.mean_CD, statistics.count_C)


def inflate_smallest(geometry: Geometry, num: int = 10, largest: float = 5.0) -> Geometry:
    """Return a geometry whose smallest variances are multiplied, the smallest by 5, ..., the tenth by 1.

    The authors' code means the largest, but its eigenvalues ascend. The columns may then no longer descend.
    """
    values = geometry.eigenvalues_CR.clone()
    num = min(num, values.shape[1])
    values[:, -num:] *= torch.linspace(largest, 1, num, dtype=values.dtype, device=values.device).flip(0)
    return replace(geometry, eigenvalues_CR=values)


def denoise(geometry: Geometry, sigma: float, unit: float) -> Geometry:
    """Return a geometry without the directions whose variance the noise alone could have made.

    Args:
        geometry: Of noisy statistics.
        sigma: See `umbel.strategies.ggeur.noise.noise_edge`.
        unit: Likewise.
    """
    edge = privacy.noise_edge(sigma, unit, geometry.count_C, geometry.mean_CD.shape[1])
    values = geometry.eigenvalues_CR
    return replace(geometry, eigenvalues_CR=torch.where(values > edge[:, None], values, 0.0))

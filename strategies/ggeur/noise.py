"""The Gaussian mechanism on sums of (1, f, f f') over examples.

With norm(f) <= B one example, added or removed, moves (n, sum f, sum f f') by (1, f, f f'), whose length is
sqrt(1 + norm(f)^2 + norm(f)^4) when the matrix is measured by its Frobenius norm. Of the symmetric matrix the upper
triangle travels; its entries off the diagonal count twice in that norm, so they carry noise of sigma / sqrt(2).

How large sigma must be for (epsilon, delta) is asked of Google's `dp-accounting`, whose analysis of one Gaussian
release is exact.

Legend: N examples, D features, C classes, Z = 1 + D + D (D + 1) / 2 packed numbers.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor

from umbel.core import moments
from umbel.core.refusal import Refusal


class MissingAccountantError(Refusal):
    """The library that knows how much noise is needed is not installed."""


def noise_multiplier(epsilon: float, delta: float) -> float:
    """Return the deviation of the noise for one release of sensitivity 1.

    Args:
        epsilon: Above 0.
        delta: In (0, 1).

    Raises:
        MissingAccountantError: `dp-accounting` is not installed.
    """
    try:
        from dp_accounting.pld.accountant import get_smallest_gaussian_noise
        from dp_accounting.pld.common import DifferentialPrivacyParameters
    except ImportError as error:
        raise MissingAccountantError(
            "The noise for strategy.epsilon is computed by dp-accounting, which is not installed here.",
            key="strategy.epsilon",
            remedy="Install it on the server and on every client: pip install dp-accounting",
        ) from error
    return float(get_smallest_gaussian_noise(DifferentialPrivacyParameters(epsilon, delta), 1, 1.0))


def sensitivity(bound: float) -> float:
    """Return how far one example with norm(f) <= B moves (n, sum f, sum f f'): sqrt(1 + B^2 + B^4).

    Args:
        bound: B, in the unit of the features.
    """
    return math.sqrt(1 + bound**2 + bound**4)


def clip_rows(features_ND: Tensor, bound: float) -> Tensor:
    """Return the features with rows that are longer than `bound` shortened to it, in float64, [N, D]."""
    wide = features_ND.to(torch.float64)
    lengths: Tensor = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    return wide * lengths.clamp_min(bound).reciprocal() * bound


def noise_scale(width: int) -> Tensor:
    """Return the deviation of the noise of each packed number for sigma = 1, [Z]: 1 / sqrt(2) off the diagonal."""
    rows, columns = torch.triu_indices(width, width)
    square = torch.ones(len(rows), dtype=torch.float64)
    square[rows != columns] = math.sqrt(0.5)
    return torch.cat([torch.ones(1 + width, dtype=torch.float64), square])


def units(width: int, unit: float) -> Tensor:
    """Return what each packed number is measured in when features are measured in `unit`, [Z]: 1, u and u^2."""
    squares = torch.full((moments.packed_size(width) - 1 - width,), unit**2, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), torch.full((width,), unit, dtype=torch.float64), squares])


def secret_normal(shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers from the operating system's secret source, float64, never the same twice."""
    count = math.prod(shape)
    raw = np.frombuffer(os.urandom(16 * count), dtype=np.uint64).reshape(2, count)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # inside (0, 1)
    drawn = np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * math.pi * uniform[1])  # Box and Muller
    return torch.from_numpy(drawn).reshape(shape)


def add_noise(packed_CZ: Tensor, sigma: float, unit: float, source: torch.Generator | None) -> Tensor:
    """Return packed sums with Gaussian noise, in float64.

    Args:
        packed_CZ: [C, Z], (n, sum f, upper triangle of sum f f').
        sigma: Deviation of the noise where features are measured in `unit`.
        unit: A length u: the noise of n is sigma, of sum f sigma u, of sum f f' sigma u^2.
        source: Of the noise; None takes `secret_normal`.
    """
    shape = tuple(packed_CZ.shape)
    noise = secret_normal(shape) if source is None else torch.randn(shape, generator=source, dtype=torch.float64)
    width = moments.unpack(packed_CZ[:1])[1].shape[-1]
    return packed_CZ.to(torch.float64) + sigma * noise * noise_scale(width) * units(width, unit)


def noise_edge(sigma: float, unit: float, count_C: Tensor, width: int) -> Tensor:
    """Return how large an eigenvalue of a covariance may become by the noise alone, [C].

    The noise of sum f f' / n is a symmetric matrix with deviation tau = sigma u^2 / (sqrt(2) n) off its diagonal,
    whose largest eigenvalue is about 2 tau sqrt(D) (Wigner).

    Args:
        sigma: Deviation of the noise of the sum over all clients, where features are measured in `unit`.
        unit: u.
        count_C: [C], n; what is below 1 counts as 1.
        width: D.
    """
    return math.sqrt(2 * width) * sigma * unit**2 / count_C.clamp_min(1)

"""Statistics of 3 x 3 filters: how far a client's lie from the global model's, and how much a layer's differ.

Source: Gavrikov and Keuper 2022, "CNN Filter DB: An Empirical Investigation of Trained Convolutional Filters" (arXiv
2203.15331). Details are those of the authors' public scripts: a filter is scaled by its own largest weight (CNN-Filter-
DB); coordinates are counted in 70 bins from -3 to 3, an empty bin has the density 1.19e-7 (float32's epsilon), and
logarithms of the divergence are natural (a later paper's script, arXiv 2210.13799, which weighs all directions alike);
the constants of `random_threshold` (torchconvquality). Not confirmed: that the paper's own figures have these bins, and
the lower threshold of the entropy, 0.5.

Only weights are read: no data and no forward pass. A drift says that filters look different, not that they are worse.

Legend: O output and I input channels of a convolution (I = 1 where it is depthwise), N = O I filters of one layer or of
all, J bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

from umbel.core.tree import Tree

BINS = 70
LEAST_ENTROPY = 0.5
SCALES = ("filter", "layer")
THRESHOLD = 3.5

# A filter of weights in [-1, 1] has a norm of 3 at most.
_LIMIT = 3.0
_FLOOR = float(torch.finfo(torch.float32).eps)
_SPARSE = 0.01
# The median absolute deviation of a normal distribution in standard deviations, and one over that of the mean one.
_MAD, _MEAN_AD = 0.6745, math.sqrt(math.pi / 2)


@dataclass(frozen=True)
class Basis:
    """The directions in which a set of filters varies.

    Attributes:
        mean: The mean filter, [9].
        filters: The eigen-filters, a row each, [9, 9]; the entry of largest magnitude is positive.
        shares: a_i, how much of the variance each explains, falling, [9]; they sum to 1, or to 0 where filters do not
            vary at all.
    """

    mean: Tensor
    filters: Tensor
    shares: Tensor


@dataclass(frozen=True)
class LayerStatistics:
    """What one layer's filters are like.

    Attributes:
        num_filters: N.
        sparsity: Share of the filters whose weights are all within a hundredth of the layer's largest.
        entropy: H, from 0, where one direction explains the variance, to log10 9 = 0.954, where all do alike.
        threshold: T_H(N), above which filters are as random ones.
    """

    num_filters: int
    sparsity: float
    entropy: float
    threshold: float

    @property
    def verdict(self) -> str:
        """`uniform` where the entropy is below 0.5, `random` where it is not below the threshold, else empty.

        A layer that has not been trained is random. Of few filters the threshold is low: below 8 it says nothing.
        """
        if self.entropy < LEAST_ENTROPY:
            return "uniform"
        return "random" if self.entropy >= self.threshold else ""


def layer_filters(state: Tree) -> dict[str, Tensor]:
    """Return the filters of each 3 x 3 convolution, depthwise ones too, by the name of its weight: [N, 9] float64.

    Raises:
        ValueError: There is none, or one has weights that are not finite.
    """
    layers = {
        name: tensor.detach().to("cpu", torch.float64).reshape(-1, 9)
        for name, tensor in state.items()
        if tensor.dim() == 4 and tensor.shape[2:] == (3, 3) and tensor.is_floating_point() and tensor.numel()
    }
    if not layers:
        raise ValueError(
            "expected convolutions with 3 x 3 kernels, found none; choose a model that has some (key model.name), as "
            "cnn, resnet18 and most hybrids do, and linear, mlp, ConViT and RaftMLP do not"
        )
    for name, filters in layers.items():
        if not filters.isfinite().all():
            raise ValueError(f"{name}: expected finite weights, found NaN or infinity")
    return layers


def stacked(state: Tree, scale: str = "filter") -> Tensor:
    """Return all 3 x 3 filters of a state in the order of its names, scaled into [-1, 1], [N, 9] float64.

    Args:
        state: The model's tensors by name.
        scale: `filter` divides each by its own largest weight, as the authors do; `layer` by that of its layer, so
            that small filters stay small. Filters of zeros stay what they are.

    Raises:
        ValueError: No 3 x 3 filters, weights that are not finite, or an unknown `scale`.
    """
    if scale not in SCALES:
        raise ValueError(f"scale should be one of {', '.join(SCALES)}, found {scale!r}")
    parts = []
    for filters in layer_filters(state).values():
        size = filters.abs()
        largest = size.amax(dim=1, keepdim=True) if scale == "filter" else size.max()
        parts.append(filters / torch.where(largest > 0, largest, 1.0))
    return torch.cat(parts)


def basis(filters: Tensor) -> Basis:
    """Return the basis of filters [N, 9] by a singular value decomposition of what is left without the mean."""
    mean = filters.mean(dim=0)
    # The right factor is 9 x 9 also where there are fewer filters.
    _, values, rows = torch.linalg.svd(torch.cat([filters - mean, filters.new_zeros(9, 9)]), full_matrices=False)
    top = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return Basis(mean, rows * torch.where(top < 0, -1.0, 1.0), _shares(values))


def _shares(values: Tensor) -> Tensor:
    """Return a_i of singular values [9]; what is rounding beside the first is none."""
    variance = torch.where(values > values[0] * 1e-12, values, 0.0).square()
    return variance / variance.sum() if values[0] > 0 else variance


def histograms(filters: Tensor, directions: Basis, bins: int = BINS, pseudo_count: float = 0.0) -> Tensor:
    """Return how the coordinates of filters [N, 9] along each eigen-filter are distributed, [9, J].

    The bins are those of all clients: J of the same width from -3 to 3; what lies outside counts as on the edge.
    With no pseudo-count an empty bin has the density of float32's epsilon in place of none. A row sums to 1.

    Args:
        filters: Scaled as the basis's were.
        directions: The basis.
        bins: J.
        pseudo_count: What every bin has beside the filters that fall into it; 0 or more.
    """
    centred = filters - directions.mean
    # Summed one by one, so that a filter's coordinates do not depend on where in the stack it is.
    coordinates = sum(centred[:, i, None] * directions.filters[:, i] for i in range(9))
    assert isinstance(coordinates, Tensor)
    which = ((coordinates + _LIMIT) * (bins / (2 * _LIMIT))).floor().clamp(0, bins - 1).to(torch.int64)
    counts = torch.stack([torch.bincount(column, minlength=bins) for column in which.T]).to(torch.float64)
    if pseudo_count:
        density = counts + pseudo_count
    else:
        density = torch.where(counts > 0, counts * (bins / (2 * _LIMIT * len(filters))), _FLOOR)
    return density / density.sum(dim=1, keepdim=True)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return KL(one || other) + KL(other || one) of each row of distributions [..., J] without zeros, [...]."""
    return ((one - other) * (one.log() - other.log())).sum(dim=-1)


def drifts(
    clients: Mapping[str, Tree],
    global_state: Tree,
    *,
    scale: str = "filter",
    bins: int = BINS,
    pseudo_count: float = 0.0,
) -> dict[str, float]:
    """Return how far each client's filters have drifted from the global model's.

    sum_i a_i KLsym(hist_i(client) || hist_i(global)), a_i and the eigen-filters those of the global model.

    Args:
        clients: Each client's state.
        global_state: The state that they began from.
        scale: As `stacked` has it.
        bins: J.
        pseudo_count: As `histograms` has it: 0 is the authors' floor, under which single filters weigh heavily that
            fall into bins which are empty elsewhere; 0.5 is steadier where filters are few.

    Returns:
        By client, 0 or more, no unit; 0 where filters are the same but for their order and scale.

    Raises:
        ValueError: No 3 x 3 filters, weights that are not finite, or other layers than the global model's.
    """
    reference = stacked(global_state, scale)
    expected = {name: len(filters) for name, filters in layer_filters(global_state).items()}
    directions = basis(reference)
    there = histograms(reference, directions, bins, pseudo_count)
    distances: dict[str, float] = {}
    for client, state in clients.items():
        if {name: len(filters) for name, filters in layer_filters(state).items()} != expected:
            raise ValueError(f"client {client}: expected the 3 x 3 layers of the global model, found others")
        here = histograms(stacked(state, scale), directions, bins, pseudo_count)
        distances[client] = float((directions.shares * divergence(here, there)).sum())
    return distances


def drift(
    client: Tree, global_state: Tree, *, scale: str = "filter", bins: int = BINS, pseudo_count: float = 0.0
) -> float:
    """Return the drift of one client; arguments, value and errors are those of `drifts`."""
    return drifts({"": client}, global_state, scale=scale, bins=bins, pseudo_count=pseudo_count)[""]


def random_threshold(num_filters: int) -> float:
    """Return T_H(N): about the least entropy that N filters of normal random weights have."""
    return 1.2618047 / (1 + math.exp(-0.88767525 * (math.log2(num_filters) - 2.30436435))) - 0.31050834


def entropy(filters: Tensor) -> float:
    """Return H = -sum_i a_i log10 a_i of a layer's filters [N, 9]; the scale of the layer is no matter."""
    shares = _shares(torch.linalg.svdvals(torch.cat([filters - filters.mean(dim=0), filters.new_zeros(9, 9)])))
    return float(-torch.xlogy(shares, shares).sum()) / math.log(10)


def layer_statistics(state: Tree) -> dict[str, LayerStatistics]:
    """Return sparsity and entropy of each layer with 3 x 3 filters, by the name of its weight.

    Raises:
        ValueError: No 3 x 3 filters, or weights that are not finite.
    """
    statistics = {}
    for name, filters in layer_filters(state).items():
        size = filters.abs().amax(dim=1)
        sparse = (size <= size.max() * _SPARSE).to(torch.float64).mean()
        statistics[name] = LayerStatistics(
            len(filters), float(sparse), entropy(filters), random_threshold(len(filters))
        )
    return statistics


def robust_z(values: Mapping[str, float]) -> dict[str, float]:
    """Return 0.6745 (value - median) / MAD of each, MAD the median absolute deviation.

    Where more than half of the values are the same, the MAD is 0: then (value - median) / (1.2533 mean absolute
    deviation), and 0 where all are the same.

    Source: Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", the modified z-score; the case of a MAD of 0
    is not theirs.

    Raises:
        ValueError: A value is not a number.
    """
    if any(math.isnan(value) for value in values.values()):
        names = [name for name, value in values.items() if math.isnan(value)]
        raise ValueError(f"expected numbers, found NaN for {', '.join(names)}")
    if not values:
        return {}
    middle = median(values.values())
    distances = [abs(value - middle) for value in values.values()]
    unit = median(distances) / _MAD or _MEAN_AD * fmean(distances)
    return {name: (value - middle) / unit if unit else 0.0 for name, value in values.items()}

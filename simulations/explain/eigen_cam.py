"""Eigen-CAM: where a layer's activations vary most, from one image and without labels or gradients.

Source: Muhammad and Yeasin 2020, "Eigen-CAM: Class Activation Map using Principal Components" (arXiv 2008.00299). The
activations of an image are a matrix of places times channels; its first singular direction, projected onto, is the map.

The paper does not centre the columns; the usual library (`grad-cam`) does, because a projection of activations that are
all positive has one sign and little contrast. Both are here. The sign of a singular direction is nobody's choice: the
map is turned so that its value of largest magnitude is positive. That is a rule, and no knowledge of what matters:
where it is the background that varies, the background is bright.

Legend: B images, C channels, H and W sides of a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Of maps whose extremes are this close, relatively, the first place decides about the sign: else rounding would.
_TIE = 1e-9


@dataclass(frozen=True)
class Agreement:
    """How alike two maps of each image are; not a number where one of the two is constant.

    Attributes:
        correlation: Pearson's, from -1 to 1, [B] float64.
        iou: Intersection over union of the brightest places of both, from 0 to 1, [B] float64.
    """

    correlation: Tensor
    iou: Tensor


def eigen_cam(maps_BCHW: Tensor, centred: bool = True, size: int | tuple[int, int] | None = None) -> Tensor:
    """Return Eigen-CAM maps of activations, from 0 to 1.

    Computed in float64 on the CPU, so that every device gives the same bits.

    Args:
        maps_BCHW: Activations of a layer, as `umbel.models.maps` reads them.
        centred: Subtract each channel's mean over the places, as the usual library does; False is the paper's form.
        size: Side, or height and width, to enlarge the maps to, bilinearly; None leaves them as they are.

    Returns:
        [B, H, W] or [B, *size] on the device of the activations, float64 for float64 and else float32. The least value
        of a map is 0 and the largest 1; a map that is the same everywhere is 0.

    Raises:
        ValueError: Not [B, C, H, W] with a channel and a place, or values that are not finite.
    """
    if maps_BCHW.dim() != 4 or 0 in maps_BCHW.shape[1:]:
        raise ValueError(f"expected activations [batch, channels, height, width], found {list(maps_BCHW.shape)}")
    if not maps_BCHW.isfinite().all():
        raise ValueError("expected finite activations, found NaN or infinity; the model has diverged")
    batch, _, height, width = maps_BCHW.shape
    places = maps_BCHW.detach().to("cpu", torch.float64).flatten(2).transpose(1, 2)  # [B, H W, C]
    # What rounding alone can leave of a map that is the same everywhere.
    noise = 64 * torch.finfo(torch.float64).eps * places.norm(dim=2).amax(dim=1)
    if centred:
        places = places - places.mean(dim=1, keepdim=True)
    left, values, _ = torch.linalg.svd(places, full_matrices=False)
    heat = left[:, :, 0] * values[:, :1]
    heat = torch.where((heat.amax(1) - heat.amin(1) <= noise)[:, None], 0.0, _turned(heat))
    heat = heat.view(batch, height, width)
    if size is not None:
        heat = F.interpolate(heat[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    low, high = heat.amin(dim=(1, 2), keepdim=True), heat.amax(dim=(1, 2), keepdim=True)
    heat = (heat - low) / torch.where(high > low, high - low, 1.0)
    dtype = torch.float64 if maps_BCHW.dtype == torch.float64 else torch.float32
    return heat.to(dtype).to(maps_BCHW.device)


def _turned(maps: Tensor) -> Tensor:
    """Return maps [B, N] with the sign at which the value of largest magnitude is positive."""
    size = maps.abs()
    extreme = size >= size.amax(dim=1, keepdim=True) * (1 - _TIE)
    first = extreme.to(torch.uint8).argmax(dim=1, keepdim=True)
    return maps * torch.where(maps.gather(1, first) < 0, -1.0, 1.0)


def agreement(one: Tensor, other: Tensor, top: float = 0.2) -> Agreement:
    """Compare maps of the same images by two models, as a client's and the global one's.

    Args:
        one: Maps [B, H, W].
        other: Maps [B, H, W].
        top: Share of the places, the brightest, that the region is; with places as bright as the last of them.

    Raises:
        ValueError: Other shapes, not a number, or a share that is not above 0 and up to 1.
    """
    if one.shape != other.shape or one.dim() != 3 or 0 in one.shape[1:]:
        shapes = f"{list(one.shape)} and {list(other.shape)}"
        raise ValueError(f"expected maps [batch, height, width] of one shape, found {shapes}")
    if not 0 < top <= 1:
        raise ValueError(f"top should be a share of the places above 0 and up to 1, found {top!r}")
    a, b = (maps.detach().to("cpu", torch.float64).flatten(1) for maps in (one, other))
    if a.isnan().any() or b.isnan().any():
        raise ValueError("expected maps of numbers, found NaN")
    constant = (a.amax(1) == a.amin(1)) | (b.amax(1) == b.amin(1))
    num_places = max(1, round(top * a.shape[1]))
    regions = [maps >= maps.topk(num_places, dim=1).values[:, -1:] for maps in (a, b)]
    both, either = (each.sum(1).to(torch.float64) for each in (regions[0] & regions[1], regions[0] | regions[1]))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    # Each by its own norm first, so that no product of small numbers vanishes.
    a, b = F.normalize(a, dim=1, eps=0.0), F.normalize(b, dim=1, eps=0.0)
    correlation = (a * b).sum(1).clamp(-1, 1)
    return Agreement(*(values.masked_fill(constant, math.nan) for values in (correlation, both / either)))

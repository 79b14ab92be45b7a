"""DCLS: a few elements on a large kernel, whose places are learned.

Source: Khalfaoui-Hassani et al. 2023, "Dilated Convolution with Learnable Spacings" (arXiv 2112.03740), for the
construction of the kernel and the techniques of learning it; "... beyond bilinear interpolation" (arXiv 2306.00817) for
the Gaussian form. Written from the equations:

    K = sum_n  w_n  r(p_n) c(q_n)^T   on S x S places

with w_n the weights and (p_n, q_n) the positions, from -S // 2 to S // 2 around the centre. A position spreads over the
places s of its axis by r(p)_s = max(0, 1 - |s - p|) (`v1`: bilinear, over four pixels), or by
exp(-((s - p) / (0.27 + |sigma|))^2 / 2) divided by its sum (`gauss`; a sigma an element and axis is learned). Both sum
to one. At whole numbers `v1` is a dilated convolution, or any other with holes.

Positions begin as N(0, 0.5) and stay on the kernel: they are clamped after each step
(`umbel.core.training.Constrained`) and where they are used, so that the network is the same whatever a server's
optimiser leaves.

Averaging: elements can change places with one another without changing the kernel, their positions' mean cannot. The
mean of positions means something because every client starts a round from the server's, element by element; models that
were initialised apart should not be averaged.

Deviations: positions learn at the rate of the other parameters and with their weight decay (the paper: a higher rate,
no decay); S is odd; weights begin as loud as the convolution's, which is the paper's start where that was torch's own.
With `v1` a position at a whole number has the slope on its right, and at the upper limit that on its left, where the
formula has none.

Shapes: B batch, I and O input and output channels, g groups, S side of the large kernel, N elements of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.core.training import Constrained
from umbel.models.base import check_count
from umbel.models.layers import no_autocast
from umbel.models.operators.base import Site, refuse, same_bias
from umbel.models.operators.kernels import check_odd_square, draw, gain

VERSIONS = ("v1", "gauss")
SHARES = ("layer", "stage")
_NARROWEST = 0.27  # of a Gaussian, in pixels: narrower ones have no gradient between the pixels
_SIGMA = 0.23  # to begin with, so that both together are half a pixel


def bilinear(positions: Tensor, size: int) -> Tensor:
    """Return max(0, 1 - |s - p|) at the places s of an axis, [..., S], of positions [...] from -S // 2 to S // 2."""
    limit = size // 2
    places = torch.arange(-limit, limit + 1, dtype=positions.dtype, device=positions.device)
    # From the pixel below rather than from the distance, whose slope at a whole number is zero: a position that was
    # clamped would stay at the limit for good.
    below = positions.detach().floor().clamp(-limit, limit - 1)[..., None]
    share = positions[..., None] - below
    return torch.where(places == below, 1 - share, torch.where(places == below + 1, share, 0))


def gaussian(positions: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Return exp(-((s - p) / (0.27 + |sigma|))^2 / 2), divided by its sum, at the places s of an axis, [..., S]."""
    limit = size // 2
    places = torch.arange(-limit, limit + 1, dtype=positions.dtype, device=positions.device)
    scaled = (places - positions[..., None]) / (_NARROWEST + sigma.abs()[..., None])
    return torch.softmax(-0.5 * scaled.square(), dim=-1)


def construct(weight: Tensor, positions: Tensor, size: int, sigma: Tensor | None = None) -> Tensor:
    """Return the kernel [O, I / g, S, S].

    Args:
        weight: w, [O, I / g, N].
        positions: Rows and columns from the centre, [2, O, I / g, N], each from -S // 2 to S // 2.
        size: S, odd.
        sigma: [2, O, I / g, N] for the Gaussian form, None for the bilinear one.
    """
    spread = bilinear(positions, size) if sigma is None else gaussian(positions, sigma, size)
    rows, columns = spread.unbind(0)
    return (weight[..., None] * rows).transpose(-1, -2) @ columns


class DclsConv(Constrained):
    """A convolution with N elements at learned places of an S x S kernel.

    Args:
        weight: What the elements begin with, [O, I / g, N].
        bias: [O], or None for no bias.
        size: S, odd.
        stride: Of rows and columns.
        padding: Zeros above and below, and left and right; S // 2 keeps the map.
        groups: g.
        version: `v1` or `gauss`.
        twin: Another whose positions (and sigmas) this one has too; None draws its own.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        size: int,
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int,
        version: str = "v1",
        twin: DclsConv | None = None,
    ) -> None:
        super().__init__()
        self.size, self.stride, self.padding, self.groups = size, stride, padding, groups
        self.positions: nn.Parameter
        self.sigma: nn.Parameter | None
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        if twin is not None:
            self.positions, self.sigma = twin.positions, twin.sigma
            return
        drawn = weight.new_empty(2, *weight.shape).normal_(0, 0.5)
        self.positions = nn.Parameter(drawn.clamp_(-(size // 2), size // 2))
        self.sigma = nn.Parameter(torch.full_like(drawn, _SIGMA)) if version == "gauss" else None

    def kernel(self) -> Tensor:
        """Return the kernel [O, I / g, S, S]."""
        limit = self.size // 2
        return construct(self.weight, self.positions.clamp(-limit, limit), self.size, self.sigma)

    def constrain_(self) -> None:
        """Put positions that have left the kernel back to its border."""
        self.positions.clamp_(-(self.size // 2), self.size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, O, H', W'] of a map [B, I, H, W]."""
        with no_autocast(x):  # a position in bfloat16 moves by sixteenths of a pixel
            kernel = self.kernel()
        return F.conv2d(x, kernel, self.bias, self.stride, self.padding, groups=self.groups)


def dcls(
    site: Site, *, size: int | None = None, count: int | None = None, version: str = "v1", share: str = "layer"
) -> DclsConv:
    """A few elements at learned places of a large kernel; as many parameters by default.

    Args:
        site: The convolution and its place.
        size: S, the side of the large kernel, odd; None is 2 K + 1 for a K x K kernel.
        count: N, elements of a kernel; None is a third of K^2, for as many parameters as before.
        version: `v1`, where an element spreads over four pixels, or `gauss`, where it has a width of its own (2 numbers
            more an element).
        share: Which layers have the same positions: `layer`, none; or `stage`, all that see a map of the same size and
            channels.

    Raises:
        UnfitError: The kernel is even or not square, or the convolution shrinks its map by more than S x S does.
        Refusal: An option is out of range; the message names its key.
    """
    if size is not None and (check_count("model.operators.dcls.size", size) % 2 == 0 or size < 3):
        raise Refusal(
            f"model.operators.dcls.size should be odd, 3 or more, found {size}.",
            key="model.operators.dcls.size",
            remedy=f"Use {max(3, size + 1)}.",
        )
    if count is not None:
        check_count("model.operators.dcls.count", count)
    for key, value, known in (("version", version, VERSIONS), ("share", share, SHARES)):
        if value not in known:
            raise Refusal(
                f"model.operators.dcls.{key} should be {' or '.join(known)}, found {value!r}.",
                key=f"model.operators.dcls.{key}",
            )
    check_odd_square(site, "dcls")
    conv = site.conv
    side = 2 * site.kernel + 1 if size is None else size
    number = site.kernel**2 // 3 if count is None else count
    # The centres of both kernels lie on the same pixels.
    above, beside = (
        zeros + side // 2 - gap * (site.kernel // 2) for zeros, gap in zip(site.padding, conv.dilation, strict=True)
    )
    if min(above, beside) < 0:
        least = side - 2 * min(above, beside)
        needed = f"a convolution with more padding, or model.operators.dcls.size {least} or more"
        raise refuse(site, "dcls", needed, f"a kernel of {site.kernel} with padding {site.padding} for size {side}")
    shape = (conv.out_channels, conv.weight.shape[1], number)
    weight = draw(shape, gain(conv), conv)
    stage = (site.height, site.width, conv.in_channels, shape, side)
    twin = site.memo.get(("dcls", stage)) if share == "stage" else None
    stride = (conv.stride[0], conv.stride[1])
    module = DclsConv(weight, same_bias(conv), side, stride, (above, beside), conv.groups, version, twin)
    site.memo.setdefault(("dcls", stage), module)
    return module

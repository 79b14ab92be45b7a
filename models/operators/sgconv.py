"""SGConv: a convolution as long as its input, whose kernel has few parameters and fades with distance.

Source: Li et al. 2022, "What Makes Convolutional Models Great on Long Sequence Modeling?" (arXiv 2210.09298),
equation 1 for the kernel, and the authors' module for its directions, its skip and what stands behind it. The kernel
has n = 1 + ceil(log2(L / d)) scales of d weights w_i each, stretched to d, d, 2 d, 4 d ... places by linear
interpolation:

    k = [stretch(w_0), a stretch(w_1), ..., a^(n - 1) stretch(w_(n - 1))] / Z        y = k * u + D u

(the authors' module has a^(i - n + 1) in place of a^i, which Z undoes). Z, one number a channel and direction, is the
norm of the kernel as it begins. A second kernel looks the other way when the convolution is bidirectional. The
published module ends in GELU and a linear layer over the channels (`project`); what takes the place of a depthwise
convolution goes without them, as in a ConvNeXt. A convolution without groups mixes channels: in its place a linear
layer from its inputs to its outputs follows, as a pointwise convolution follows a depthwise one.

A deviation, for federated learning: Z is set when the module is made and is part of its state. The authors' module sets
it at the first forward pass, from the weights that each client happens to have by then.

Shapes: B batch, C channels, L length of a sequence, d weights of a scale, n scales, S directions (1 or 2), T = d
2^(n - 1) places of a kernel, H and W sides of a map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import check_count, check_flag, check_positive
from umbel.models.layers import no_autocast
from umbel.models.operators.base import Site, refuse, same_bias
from umbel.models.operators.kernels import check_zero_padded


def num_scales(length: int, scale_dim: int) -> int:
    """Return n, the scales whose kernel is `length` or longer; never fewer than one."""
    return max(1, 1 + math.ceil(math.log2(length / scale_dim)))


def stretching(scale_dim: int, scales: int) -> list[Tensor]:
    """Return for each scale the matrix [d, d, 2 d, 4 d ...] that stretches its weights by linear interpolation.

    A matrix, because interpolation by itself does not repeat its bits on a GPU.
    """
    eye = torch.eye(scale_dim)[None]
    factors = [2 ** max(0, i - 1) for i in range(scales)]
    return [F.interpolate(eye, scale_factor=float(factor), mode="linear")[0] for factor in factors]


def global_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """Return sum over t <= s of k_0(s - t) u(t), and with two directions also over t > s of k_1(t - s - 1) u(t).

    Args:
        u: Sequences [B, C, L].
        kernel: [S, C, T]; what goes beyond L is cut off, and a shorter kernel is 0 from its end on.
    """
    length = u.shape[2]
    if not u.shape[0]:
        return u  # of which the Fourier transform of a CPU is an error
    kernel = F.pad(kernel[..., :length], (0, max(0, length - kernel.shape[2])))
    # Twice the length, so that neither direction wraps into the other; the far end is what lies before.
    around = torch.cat((kernel[0], kernel[1].flip(-1)), dim=-1) if len(kernel) == 2 else kernel[0]
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(around, n=2 * length)
    mixed: Tensor = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    return mixed


class SGConv(nn.Module):
    """Structured global convolution of sequences [B, C, L].

    Args:
        dim: C.
        length: The L that the kernel is made for. Other sequences see its start, or zeros beyond its end.
        scale_dim: d.
        bidirectional: Whether a place sees what comes after it too.
        decay: a, the factor from one scale to the next.
        project: Whether GELU and a linear layer follow, as in the published module.
    """

    stretch: Tensor
    initial_norm: Tensor

    def __init__(
        self,
        dim: int,
        length: int,
        scale_dim: int = 16,
        bidirectional: bool = True,
        decay: float = 0.5,
        project: bool = False,
    ) -> None:
        super().__init__()
        scales = num_scales(length, scale_dim)
        self.weight = nn.Parameter(torch.randn(scales, 2 if bidirectional else 1, dim, scale_dim))
        self.skip = nn.Parameter(torch.randn(dim))
        # [d, T], the scales side by side with their decay: it follows from the options, so it does not travel.
        faded = [decay**i * matrix for i, matrix in enumerate(stretching(scale_dim, scales))]
        self.widths = [matrix.shape[1] for matrix in faded]
        self.register_buffer("stretch", torch.cat(faded, dim=1), persistent=False)
        # Constant, and the same for all clients once the server's state has come.
        self.register_buffer("initial_norm", self._kernel().detach().norm(dim=-1, keepdim=True))
        self.linear = nn.Linear(dim, dim) if project else None

    def _kernel(self) -> Tensor:
        """Return the kernel before it is normalised, [S, C, T]."""
        matrices = torch.split(self.stretch, self.widths, dim=1)
        return torch.cat([weight @ matrix for weight, matrix in zip(self.weight, matrices, strict=True)], dim=-1)

    def kernel(self) -> Tensor:
        """Return the kernel of each direction, [S, C, T]."""
        return self._kernel() / self.initial_norm

    def forward(self, u: Tensor) -> Tensor:
        """Return sequences [B, C, L] of sequences [B, C, L]."""
        exact = u.to(torch.promote_types(u.dtype, torch.float32))  # there is no Fourier transform in half precision
        with no_autocast(u):
            mixed = global_convolution(exact, self.kernel()) + self.skip[:, None] * exact
        mixed = mixed.to(u.dtype)
        if self.linear is not None:
            mixed = self.linear(F.gelu(mixed).transpose(1, 2)).transpose(1, 2)
        return mixed


class SGConv2d(nn.Module):
    """Structured global convolution over the places of a map in row-major order, in both directions.

    Args:
        dim: C.
        height: H of the maps that the kernel is made for.
        width: W.
        scale_dim: d.
        decay: The factor from one scale to the next.
        project: Whether GELU and a linear layer follow.
        stride: Rows and columns from one place that is kept to the next.
        bias: Initial bias of the output, [C] or [outputs]; None has none.
        outputs: Channels that a linear layer over the places mixes them to, after GELU with `project`; None keeps C.
    """

    def __init__(
        self,
        dim: int,
        height: int,
        width: int,
        scale_dim: int = 16,
        decay: float = 0.5,
        project: bool = False,
        stride: tuple[int, int] = (1, 1),
        bias: Tensor | None = None,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.stride = stride
        own = project and outputs is None
        self.sequence = SGConv(dim, height * width, scale_dim, decay=decay, project=own)
        self.mix = None if outputs is None else nn.Conv2d(dim, outputs, 1, bias=False)
        self.activate = project and outputs is not None
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C or outputs, ceil(H / stride), ceil(W / stride)] of a map [B, C, H, W]."""
        rows, columns = self.stride
        mixed: Tensor = self.sequence(x.flatten(2)).reshape(x.shape)[:, :, ::rows, ::columns]
        if self.mix is not None:
            mixed = self.mix(F.gelu(mixed) if self.activate else mixed)
        return mixed if self.bias is None else mixed + self.bias[:, None, None].to(mixed.dtype)


def sgconv(site: Site, *, scale_dim: int = 16, decay: float = 0.5, project: bool = False) -> nn.Module:
    """Structured global convolution: 32 log2(H W) - 95 parameters an input channel, I O more if dense.

    The map is read row by row, in both directions, and a stride takes places out of what comes of it. In the place of a
    convolution without groups a linear layer over the channels follows. The kernel begins anew: the convolution's
    weights do not stay, its bias does. The number of parameters is tied to the size of the map; the line above is for a
    `scale_dim` of 16.

    Args:
        site: The place.
        scale_dim: d, the weights of each scale of the kernel.
        decay: The factor from one scale of the kernel to the next, which is twice as long.
        project: Whether GELU and a linear layer follow, as in the published module for sequences.

    Raises:
        Refusal: An option is out of range.
        UnfitError: The convolution has groups and is not depthwise, does not keep the map at stride 1, or pads it with
            anything but zeros.
    """
    check_count("model.operators.sgconv.scale_dim", scale_dim)
    check_positive("model.operators.sgconv.decay", decay)
    check_flag("model.operators.sgconv.project", project)
    check_zero_padded(site, "sgconv")
    conv = site.conv
    if not (site.depthwise or site.dense):
        raise refuse(site, "sgconv", "depthwise or dense", f"{conv.in_channels} channels in {conv.groups} groups")
    around = zip(site.padding, conv.kernel_size, conv.dilation, strict=True)
    if any(2 * padding != step * (side - 1) for padding, side, step in around):
        raise refuse(site, "sgconv", "padded so as to keep the map at stride 1", f"padding {list(site.padding)}")
    stride = int(conv.stride[0]), int(conv.stride[1])
    size, outputs = (site.height, site.width), None if site.depthwise else conv.out_channels
    made = SGConv2d(conv.in_channels, *size, scale_dim, decay, project, stride, same_bias(conv), outputs)
    return made.to(conv.weight)

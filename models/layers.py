"""Functions and layers that several families share.

Shapes: B batch, N = H W tokens on a map of H x W, C channels, P side of a window, A heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens [B, H W, C] as a map [B, C, H, W]: a view, in the memory order `channels_last`."""
    return tokens.view(tokens.shape[0], height, width, tokens.shape[2]).permute(0, 3, 1, 2)


def to_tokens(image_map: Tensor) -> Tensor:
    """Return a map [B, C, H, W] as tokens [B, H W, C]; no copy if the map is `channels_last`."""
    return image_map.permute(0, 2, 3, 1).flatten(1, 2)


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), elementwise."""
    return x * torch.sigmoid(1.702 * x)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Drop a residual branch of whole examples (stochastic depth, Huang et al. 2016, arXiv 1603.09382).

    Args:
        x: The branch, [B, ...].
        rate: Probability that an example loses the branch; the rest are scaled by 1 / (1 - rate).
        training: False returns `x` as it is.
    """
    if rate == 0 or not training:
        return x
    # From torch's global generator, which `umbel.core.rng.forked` seeds for each local run.
    kept = torch.rand(x.shape[0], *(1,) * (x.dim() - 1), device=x.device) >= rate
    return x * kept.to(x.dtype) / (1 - rate)


def drop_rates(depths: Sequence[int], last: float) -> list[list[float]]:
    """Return the rate of stochastic depth of each block of each stage: from 0 at the first to `last` at the last."""
    total = sum(depths)
    # An only block is the last.
    rates = [last if total == 1 else last * i / (total - 1) for i in range(total)]
    return [rates[sum(depths[:stage]) : sum(depths[: stage + 1])] for stage in range(len(depths))]


def to_windows(image_map: Tensor, side: int) -> Tensor:
    """Cut a map [B, H, W, C] into windows of neighbours, [B (H / P) (W / P), P, P, C], row-major; P divides H and W."""
    batch, height, width, channels = image_map.shape
    cut = image_map.view(batch, height // side, side, width // side, side, channels)
    return cut.transpose(2, 3).reshape(-1, side, side, channels)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Invert `to_windows`: return the map [B, H, W, C]."""
    side, channels = windows.shape[1], windows.shape[3]
    cut = windows.view(-1, height // side, width // side, side, side, channels)
    return cut.transpose(2, 3).reshape(-1, height, width, channels)


def pad_evenly(images: Tensor, pixels: int) -> Tensor:
    """Return images [B, C, H, W] with `pixels` more rows and columns of zeros, the odd one below and to the right."""
    before = pixels // 2
    return F.pad(images, (before, pixels - before, before, pixels - before)) if pixels else images


def halving_strides(side: int, number: int) -> list[int]:
    """Return `number` strides that halve a map of `side` as long as it keeps 2 x 2.

    One pixel leaves attention nothing to look at, and batch norm no variance: it refuses to train on one such image.
    """
    strides = []
    for _ in range(number):
        strides.append(2 if side > 2 else 1)
        side = -(-side // strides[-1])
    return strides


def split_heads(tokens: Tensor, heads: int, parts: int = 1) -> tuple[Tensor, ...]:
    """Return tokens [B, N, parts C] as `parts` tensors [B, A, N, C / A], as attention takes queries, keys and values.

    Sizes are written out: of an empty batch, a view with -1 says nothing.
    """
    split = tokens.reshape(*tokens.shape[:2], parts, heads, tokens.shape[2] // (parts * heads))
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(tokens: Tensor) -> Tensor:
    """Return tokens [B, A, N, C / A] as [B, N, C]."""
    return tokens.transpose(1, 2).flatten(2)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which what is computed from `x` keeps its precision.

    Autocast does not know the meta device, on which shapes are worked out and nothing is computed.
    """
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def pooling_matrix(side: int, bins: int) -> Tensor:
    """Return the [bins, side] matrix that averages over places floor(i side / bins) to ceil((i + 1) side / bins) - 1.

    That is adaptive average pooling along an axis. As a matrix product it has a gradient that is the same every time
    on a GPU too, and overlapping bins cost nothing more.
    """
    place, bin_ = torch.arange(side), torch.arange(bins)[:, None]
    inside = (place >= bin_ * side // bins) & (place < -(-(bin_ + 1) * side // bins))
    shares = inside.to(torch.get_default_dtype())
    return shares / shares.sum(dim=1, keepdim=True)


def max_pool(x: Tensor) -> Tensor:
    """Return the maximum over 3 x 3 places at stride 2, padded by 1.

    By comparisons of slices, because torch's own has no deterministic gradient on CUDA.
    """
    x = F.pad(x, (1, 1, 1, 1), value=float("-inf"))
    height, width = x.shape[2:]
    rows = torch.maximum(torch.maximum(x[:, :, 0 : height - 2 : 2], x[:, :, 1 : height - 1 : 2]), x[:, :, 2::2])
    return torch.maximum(
        torch.maximum(rows[:, :, :, 0 : width - 2 : 2], rows[:, :, :, 1 : width - 1 : 2]), rows[:, :, :, 2::2]
    )


def depthwise(dim: int, kernel: int = 3, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """Return a convolution of each channel alone that keeps the map; `kernel` is odd."""
    return nn.Conv2d(dim, dim, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=dim, bias=bias)


def strided(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 2, bias: bool = True, eps: float = 1e-5
) -> list[nn.Module]:
    """Return a convolution that shrinks a map, an even kernel by tiling it, and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=bias)
    return [conv, nn.BatchNorm2d(outputs, eps=eps)]


def relative_index(side: int) -> Tensor:
    """Return for each pair of places of a window which entry of a bias table is theirs, [P P, P P] int64.

    The table has (2 P - 1)^2 entries, one for each difference (dy, dx) of query less key, row-major from -(P - 1).
    """
    axis = torch.arange(side)
    place = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    dy, dx = place[:, :, None] - place[:, None, :] + (side - 1)
    index: Tensor = dy * (2 * side - 1) + dx
    return index


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (Touvron et al. 2021, arXiv 2103.17239).

    Args:
        dim: C.
        start: Where the factors begin. The published 1e-6 leaves a block the identity for as long as a small federated
            run lasts.
        spatial: The branch is a map [B, C, H, W] and not tokens [..., C].
    """

    def __init__(self, dim: int, start: float, spatial: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, 1, 1) if spatial else (dim,), float(start)))

    def forward(self, branch: Tensor) -> Tensor:
        """Return the scaled branch."""
        return branch * self.weight


class Mlp(nn.Module):
    """Linear, GELU, linear on tokens [..., C]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        mixed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return mixed


class SelfAttention(nn.Module):
    """Multi-head self-attention; A heads share the C channels.

    Args:
        dim: C.
        heads: A, a divisor of C.
        bias: Whether queries, keys and values have biases.
    """

    def __init__(self, dim: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def project(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values [B, A, N, C / A] of tokens [B, N, C]."""
        return split_heads(self.qkv(tokens), self.heads, 3)

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return attended tokens [B, N, C] of what `project` returns."""
        attended: Tensor = self.out(join_heads(F.scaled_dot_product_attention(queries, keys, values)))
        return attended

    def forward(self, tokens: Tensor) -> Tensor:
        """Return attended tokens [B, N, C] of tokens [B, N, C]."""
        return self.mix(*self.project(tokens))


class ConvNorm(nn.Sequential):
    """Convolution without bias, padded to keep the map at stride 1, and batch norm.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        kernel: Side of the kernel, odd.
        stride: Its stride.
        groups: Its groups; `inputs` makes it depthwise.
        scale: Where the batch norm's weights begin; 0 lets a residual branch begin as nothing.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.constant_(self.norm.weight, scale)


class SqueezeExcite(nn.Module):
    """Weigh the channels of a map by what its mean says (Hu et al. 2018, arXiv 1709.01507).

    Args:
        dim: C.
        hidden: Channels in between.
        bias: Whether the two 1 x 1 convolutions have biases.
        activation: What is in between.
    """

    def __init__(
        self, dim: int, hidden: int, bias: bool = True, activation: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, hidden, 1, bias=bias)
        self.expand = nn.Conv2d(hidden, dim, 1, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted map [B, C, H, W]."""
        squeezed = self.reduce(x.mean(dim=(2, 3), keepdim=True))
        return x * torch.sigmoid(self.expand(self.activation(squeezed)))


def initialise_linear(
    model: nn.Module, std: float = 0.02, kinds: tuple[type[nn.Linear | nn.Conv2d], ...] = (nn.Linear,)
) -> None:
    """Give all linear layers, or all of `kinds`, a truncated normal and no bias, as vision transformers do."""
    for module in model.modules():
        if isinstance(module, kinds):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to others; A heads share the C channels.

    Args:
        dim: C.
        heads: A, a divisor of C.
        context_dim: Channels of the others; None is C.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim if context_dim is None else context_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Return attended tokens [B, N, C] of tokens [B, N, C] that look at `context` [B, M, context channels]."""
        (queries,) = split_heads(self.q(tokens), self.heads)
        keys, values = split_heads(self.kv(context), self.heads, 2)
        attended: Tensor = self.out(join_heads(F.scaled_dot_product_attention(queries, keys, values)))
        return attended

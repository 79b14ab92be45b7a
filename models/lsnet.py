"""LSNet: a large kernel looks at the surroundings and decides how a small kernel gathers the nearest neighbours.

Source: Wang et al. 2025, "LSNet: See Large, Focus Small" (arXiv 2503.23135): section 3.2 with equations 4 to 6 for the
convolution, section 3.3 and figure 3 for the blocks, the appendix's table for the sizes. Written from the equations.

The published counts, 11.4, 16.1 and 23.2 M, are those of a network with one head. They agree with the parameters to
train at T and S (11.41, 16.15) and, at all three, with what is left when batch norm is folded into the convolutions and
the head (11.37, 16.10, 23.249). Accuracies called distilled are those of networks with a second head that a teacher
trains, averaged with the first; that head is not built here. The small kernel's gathering is plain PyTorch
(`gather_small`), where the authors have a Triton kernel.

Deviation: `lsnet_tiny32` has a stem of one convolution and normalises the map before it takes the mean, not after, so
that a batch of one can train.

Shapes: B batch, I input channels, H and W sides of a map, S side of the last stage's map, C channels of a stage, G
groups of a small kernel, A heads, E channels of a head's keys, D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_count, check_counts, check_divides, check_fraction, check_image_size
from umbel.models.layers import ConvNorm, SqueezeExcite, drop_path, drop_rates, halving_strides, initialise_linear

# Every so many channels there is a group of the small kernel's weights: G = C / 8.
CHANNELS_PER_GROUP = 8


def gather_small(x: Tensor, weights: Tensor) -> Tensor:
    """Sum each place's 3 x 3 neighbours by weights of its own; places outside the map count as zero (equation 5).

    Args:
        x: A map [B, C, H, W].
        weights: [B, G, 9, H, W], the nine row-major from the upper left neighbour; channel c takes group c mod G.

    Returns:
        A map [B, C, H, W].
    """
    batch, channels, height, width = x.shape
    groups = weights.shape[1]
    neighbours = F.unfold(x, kernel_size=3, padding=1).view(batch, channels // groups, groups, 9, height * width)
    gathered = (neighbours * weights.flatten(3).unsqueeze(1)).sum(dim=3)
    return gathered.view(batch, channels, height, width)


class LSConv(nn.Module):
    """x + BN(`gather_small` of x), the weights by 1 x 1, depthwise 7 x 7 and 1 x 1 convolutions of x and group norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        groups, half = dim // CHANNELS_PER_GROUP, dim // 2
        self.reduce = ConvNorm(dim, half)
        self.large = ConvNorm(half, half, 7, groups=half)
        self.mix = ConvNorm(half, half)
        self.weigh = nn.Conv2d(half, 9 * groups, 1)
        self.weights_norm = nn.GroupNorm(groups, 9 * groups)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        seen = F.relu(self.mix(self.large(F.relu(self.reduce(x)))))
        weights = self.weights_norm(self.weigh(seen)).unflatten(1, (-1, 9))
        gathered: Tensor = self.norm(gather_small(x, weights))
        return x + gathered


class RepConv(nn.Module):
    """x + BN(depthwise 3 x 3 of x) + BN(depthwise 1 x 1 of x), and squeeze and excitation of the sum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.square = ConvNorm(dim, dim, 3, groups=dim)
        self.point = ConvNorm(dim, dim, groups=dim)
        self.excite = SqueezeExcite(dim, dim // 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        excited: Tensor = self.excite(x + self.square(x) + self.point(x))
        return excited


class Attention(nn.Module):
    """x + attention with narrow queries and keys, a 3 x 3 convolution on the queries and a bias by distance."""

    def __init__(self, dim: int, heads: int, key_dim: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.widths = (heads * key_dim, heads * key_dim, dim)
        self.qkv = ConvNorm(dim, sum(self.widths))
        self.query = ConvNorm(heads * key_dim, heads * key_dim, 3, groups=heads * key_dim)
        self.out = ConvNorm(dim, dim, scale=0.0)
        # One entry for each (|dy|, |dx|).
        self.bias = nn.Parameter(torch.zeros(heads, side * side))
        y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        dy, dx = ((axis.reshape(-1, 1) - axis.reshape(1, -1)).abs() for axis in (y, x))
        self.register_buffer("index", dy * side + dx, persistent=False)
        self.index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, S, S] of a map [B, C, S, S]."""
        query, key, value = self.qkv(x).split(self.widths, dim=1)
        # [B, A E, S, S] -> [B, A, S S, E]
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3) for part in (self.query(query), key, value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[:, self.index].to(q.dtype))
        attended: Tensor = self.out(F.relu(mixed.transpose(2, 3).reshape(x.shape)))
        return x + attended


class LSNetBlock(Block):
    """A mixer over places, with a shortcut of its own, then x += MLP x of 1 x 1 convolutions with batch norm."""

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: int, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.mixer = mixer
        self.fc1 = ConvNorm(dim, mlp_ratio * dim)
        self.fc2 = ConvNorm(mlp_ratio * dim, dim, scale=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        x = self.mixer(x)
        return x + drop_path(self.fc2(F.relu(self.fc1(x))), self.drop_rate, self.training)


class LSNet(Model):
    """A stem, four stages of blocks, batch norm of the mean over the map.

    Blocks 0, 2, ... of a stage mix by `RepConv`; 1, 3, ... by `LSConv`, in the last stage by `Attention`.

    Args:
        num_classes: K.
        image_size: H and W of an image.
        in_channels: I.
        dims: Channels of each stage, multiples of 8.
        depths: Blocks of each stage; none is a stem without a stage.
        heads: A of the last stage.
        key_dim: E.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        stem_dims: Channels of the stem's convolutions, at stride 2 each.
        strides: Strides of the second to the last stage.
        drop_rate: Stochastic depth of the last block; it rises linearly from 0.
        norm_map: Normalise the map before the mean and not the mean.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: int,
        key_dim: int,
        mlp_ratio: int,
        stem_dims: Sequence[int],
        strides: Sequence[int],
        drop_rate: float,
        norm_map: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        self.norm_map = norm_map
        stem: list[nn.Module] = []
        side, inputs = image_size, in_channels
        for number, dim in enumerate(stem_dims):
            # No ReLU after the last: it opens the first stage's shortcuts.
            stem += [*([nn.ReLU()] if number else []), ConvNorm(inputs, dim, 3, 2)]
            side, inputs = -(-side // 2), dim
        self.stem = nn.Sequential(*stem)
        stages: list[nn.Module] = []
        for number, (dim, rates) in enumerate(zip(dims, drop_rates(depths, drop_rate), strict=True)):
            layers: list[nn.Module] = []
            if number:
                stride = strides[number - 1]
                layers += [ConvNorm(inputs, inputs, 3, stride, groups=inputs), ConvNorm(inputs, dim)]
                side, inputs = -(-side // stride), dim
            for i, rate in enumerate(rates):
                mixer: nn.Module
                if i % 2 == 0:
                    mixer = RepConv(dim)
                elif number < len(dims) - 1:
                    mixer = LSConv(dim)
                else:
                    mixer = Attention(dim, heads, key_dim, side)
                layers.append(LSNetBlock(dim, mixer, mlp_ratio, rate))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = nn.BatchNorm2d(inputs) if norm_map else nn.BatchNorm1d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        x = self.stages(self.stem(x))
        features: Tensor = self.norm(x).mean(dim=(2, 3)) if self.norm_map else self.norm(x.mean(dim=(2, 3)))
        return features


# name -> channels of each stage, depths
PUBLISHED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "lsnet_t": ((64, 128, 256, 384), (0, 2, 8, 10)),
    "lsnet_s": ((96, 192, 320, 448), (1, 2, 8, 10)),
    "lsnet_b": ((128, 256, 384, 512), (4, 6, 8, 10)),
}


def _published(name: str, num_classes: int, image_size: int, in_channels: int, drop_rate: float) -> LSNet:
    """Build an LSNet of the paper, which differ in their channels and depths."""
    check_image_size(name, image_size, 32)
    dims, depths = PUBLISHED[name]
    model = LSNet(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        depths=depths,
        heads=4,
        key_dim=16,
        mlp_ratio=2,
        stem_dims=(dims[0] // 4, dims[0] // 2, dims[0]),
        strides=(2, 2, 2),
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model)
    return model


def lsnet_t(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.0) -> LSNet:
    """LSNet-T: 20 blocks, 11.4 M parameters at 1000 classes.

    The mean over the map is batch-normalised, so that a batch of one cannot train: drop last batches that small, or
    replace the batch norm (key model.norm).

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32; the table of the attention's bias depends on it.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block's MLP; it rises linearly from 0. The paper has none.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("lsnet_t", num_classes, image_size, in_channels, drop_path)


def lsnet_s(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.0) -> LSNet:
    """LSNet-S: 21 blocks, 16.1 M parameters at 1000 classes.

    Arguments, errors and the note on a batch of one are those of `lsnet_t`.
    """
    return _published("lsnet_s", num_classes, image_size, in_channels, drop_path)


def lsnet_b(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.0) -> LSNet:
    """LSNet-B: 28 blocks, 23.3 M parameters at 1000 classes.

    The paper prints 23.2 M, which is the count with batch norm folded away, 23.249 M.

    Arguments, errors and the note on a batch of one are those of `lsnet_t`.
    """
    return _published("lsnet_b", num_classes, image_size, in_channels, drop_path)


def lsnet_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (32, 48, 96, 128),
    depths: Sequence[int] = (1, 2, 2, 2),
    heads: int = 2,
    key_dim: int = 8,
    mlp_ratio: int = 2,
    drop_path: float = 0.0,
) -> LSNet:
    """A small LSNet: 0.33 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. A batch of one trains at every size of image.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the four stages, multiples of 8.
        depths: Blocks of the four stages: the first, third, ... of a stage is a depthwise convolution; the second,
            fourth, ... an LS convolution, in the last stage attention.
        heads: Attention heads of the last stage; they divide its channels.
        key_dim: E, channels of a head's queries and keys.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        drop_path: Stochastic depth of the last block's MLP; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("lsnet_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 4, multiple=CHANNELS_PER_GROUP)
    return LSNet(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        depths=check_counts("model.sizes.depths", depths, 4),
        heads=check_divides("model.sizes.heads", heads, dims[-1:]),
        key_dim=check_count("model.sizes.key_dim", key_dim),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        stem_dims=dims[:1],
        strides=halving_strides(-(-image_size // 2), 3),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
        norm_map=True,
    )

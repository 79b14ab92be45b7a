"""GLNet: convolutions for what is near, attention among a few slots for what is far, side by side.

Source: Zhu et al. 2024, "Revisiting the Integration of Convolution and Attention for Vision Backbone" (arXiv
2411.14429): the equations of soft clustering, of attention among slots and of dispatching for GLMix; the sizes of
GLNet-STL, which is laid out like Swin-T, and of GLNet-4G and -9G. Written from the equations.

Deviations: the sharpness s is a vector of one number where the paper's is a scalar. `glnet_tiny32` has a stem of one
convolution, 16 slots, and stops halving a map once it is 2 x 2, so that a batch of one trains.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage, N = H W tokens, P side of the grid of
slots, M = P P slots, A heads, D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_count, check_counts, check_divides, check_fraction, check_image_size
from umbel.models.layers import (
    LayerNorm2d,
    SelfAttention,
    depthwise,
    drop_path,
    drop_rates,
    halving_strides,
    initialise_linear,
    pooling_matrix,
    strided,
    to_map,
    to_tokens,
)


class MapAttention(nn.Module):
    """Attention among all places of a map; the second map is not used."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads)

    def forward(self, normed: Tensor, _: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        return to_map(self.attention(to_tokens(normed)), *normed.shape[2:])


class GLMix(nn.Module):
    """Attention among slots, into which the places are clustered softly, plus a convolution of the map.

    A slot begins as the mean of its cell of the unnormalised map. Places and slots are compared by cosine times s; a
    softmax over the places of what a slot sees makes its content, a softmax over the slots sends it back to a place.

    Args:
        dim: C.
        heads: A.
        side: H and W.
        grid: P.
    """

    def __init__(self, dim: int, heads: int, side: int, grid: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.full((1,), dim**-0.5))
        self.attention = SelfAttention(dim, heads)
        self.enter = nn.Linear(dim, dim)
        self.local = depthwise(dim, 5)
        self.leave = nn.Linear(dim, dim)
        self.register_buffer("pooling", pooling_matrix(side, grid), persistent=False)
        self.pooling: Tensor

    def assign(self, normed: Tensor, before: Tensor) -> Tensor:
        """Return how well each slot fits each place, [B, M, N], before either softmax.

        Args:
            normed: The normalised map, [B, C, H, W].
            before: The map that the slots begin from, [B, C, H, W].
        """
        slots = to_tokens(self.pooling @ before @ self.pooling.T)
        places = F.normalize(to_tokens(normed), dim=2) * self.sharpness
        return F.normalize(slots, dim=2) @ places.transpose(1, 2)

    def forward(self, normed: Tensor, before: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of the two maps that `assign` takes."""
        height, width = normed.shape[2:]
        tokens = to_tokens(normed)
        fits = self.assign(normed, before)
        slots = self.attention(fits.softmax(dim=2) @ tokens)
        far = fits.softmax(dim=1).transpose(1, 2) @ slots
        near = self.leave(to_tokens(self.local(to_map(self.enter(tokens), height, width))))
        return to_map(far + near, height, width)


class ConvMlp(nn.Module):
    """Linear, optionally x += DW x of 3 x 3, GELU, linear at every place of a map."""

    def __init__(self, dim: int, hidden: int, local: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.local = depthwise(hidden) if local else None
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        height, width = x.shape[2:]
        hidden = self.fc1(to_tokens(x))
        if self.local is not None:
            hidden = hidden + to_tokens(self.local(to_map(hidden, height, width)))
        return to_map(self.fc2(F.gelu(hidden)), height, width)


class GLBlock(Block):
    """y = x + DW x (if it has positions); y += mixer(LN y, x); y += MLP(LN y)."""

    def __init__(
        self, dim: int, mixer: MapAttention | GLMix, mlp_ratio: int, positions: bool, local_mlp: bool, drop_rate: float
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.positions = depthwise(dim) if positions else None
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.mixer = mixer
        self.norm2 = LayerNorm2d(dim, eps=1e-6)
        self.mlp = ConvMlp(dim, mlp_ratio * dim, local_mlp)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, C, H, W] of a map [B, C, H, W]."""
        y = x if self.positions is None else x + self.positions(x)
        y = y + drop_path(self.mixer(self.norm1(y), x), self.drop_rate, self.training)
        return y + drop_path(self.mlp(self.norm2(y)), self.drop_rate, self.training)


class GLNet(Model):
    """A stem, stages of blocks, batch norm and the mean over the map.

    Args:
        num_classes: K.
        image_size: H and W of an image.
        in_channels: I.
        dims: Channels of each stage.
        mixers: For each stage and each of its blocks whether it is a `GLMix`; else it is a `MapAttention`.
        head_dim: Channels of a head; divides all of `dims`.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        grid: P.
        stem_dims: Channels of an overlapping stem's convolutions at stride 2 each, the last the first stage's; empty
            has patches: 4 x 4 in the stem, 2 x 2 between the stages.
        strides: Strides of the convolutions between the stages.
        hybrid: Blocks have positions and an MLP with a depthwise convolution.
        drop_rate: Stochastic depth of the last block; it rises linearly from 0.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        *,
        dims: Sequence[int],
        mixers: Sequence[Sequence[bool]],
        head_dim: int,
        mlp_ratio: int,
        grid: int,
        stem_dims: Sequence[int],
        strides: Sequence[int],
        hybrid: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        side, inputs = image_size, in_channels
        stem: list[nn.Module] = []
        for number, dim in enumerate(stem_dims):
            stem += [*([nn.GELU()] if number else []), *strided(inputs, dim)]
            side, inputs = -(-side // 2), dim
        if not stem_dims:
            stem = [nn.Conv2d(in_channels, dims[0], 4, 4), nn.BatchNorm2d(dims[0])]
            side, inputs = side // 4, dims[0]
        self.stem = nn.Sequential(*stem)
        stages: list[nn.Module] = []
        rates = drop_rates([len(stage) for stage in mixers], drop_rate)
        for number, dim in enumerate(dims):
            layers: list[nn.Module] = []
            if number:
                stride = strides[number - 1]
                if stem_dims:
                    layers = strided(inputs, dim, stride=stride)
                else:  # patches are normalised before they are joined
                    layers = [nn.BatchNorm2d(inputs), nn.Conv2d(inputs, dim, stride, stride)]
                side, inputs = -(-side // stride), dim
            for glmix, rate in zip(mixers[number], rates[number], strict=True):
                heads = dim // head_dim
                mixer = GLMix(dim, heads, side, grid) if glmix else MapAttention(dim, heads)
                layers.append(GLBlock(dim, mixer, mlp_ratio, hybrid, hybrid, rate))
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, W]."""
        self.check_input(x)
        features: Tensor = self.norm(self.stages(self.stem(x))).mean(dim=(2, 3))
        return features


def _mixers(depths: Sequence[int], alternate: bool) -> list[list[bool]]:
    """Say which blocks are `GLMix`: none of the last stage, of the third every other one if they alternate."""
    last = len(depths) - 1
    return [
        [stage < last and not (alternate and stage == last - 1 and i % 2 == 1) for i in range(depth)]
        for stage, depth in enumerate(depths)
    ]


def _published(
    name: str, num_classes: int, image_size: int, in_channels: int, dim: int, swin: bool, drop_rate: float
) -> GLNet:
    """Build a GLNet of the paper: the channels double from stage to stage."""
    check_image_size(name, image_size, 32)
    dims = [dim * 2**stage for stage in range(4)]
    model = GLNet(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        mixers=_mixers((2, 2, 6, 2) if swin else (4, 4, 18, 4), alternate=not swin),
        head_dim=32,
        mlp_ratio=4 if swin else 3,
        grid=8,
        stem_dims=() if swin else (dim // 2, dim),
        strides=(2, 2, 2),
        hybrid=not swin,
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model)
    return model


def glnet_4g(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.15) -> GLNet:
    """GLNet-4G: 30 blocks, 64 slots, 27.0 M parameters at 1000 classes.

    Maps of less than 8 x 8, in the third stage below 128 px, have slots that are the same. At 32 px the last map is one
    pixel: its batch norm then cannot train on a batch of one.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32.
        in_channels: I, 1 for grey and 3 for colour.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("glnet_4g", num_classes, image_size, in_channels, 64, swin=False, drop_rate=drop_path)


def glnet_9g(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.3) -> GLNet:
    """GLNet-9G: 30 blocks, 64 slots, 60.0 M parameters at 1000 classes.

    Arguments, errors and the notes on small images are those of `glnet_4g`.
    """
    return _published("glnet_9g", num_classes, image_size, in_channels, 96, swin=False, drop_rate=drop_path)


def glnet_stl(num_classes: int, image_size: int = 224, in_channels: int = 3, *, drop_path: float = 0.1) -> GLNet:
    """GLNet-STL, laid out like Swin-T: 30.3 M parameters at 1000 classes.

    Its patches do not overlap, and its blocks have neither positions nor a convolution in the MLP.

    Arguments, errors and the notes on small images are those of `glnet_4g`.
    """
    return _published("glnet_stl", num_classes, image_size, in_channels, 96, swin=True, drop_rate=drop_path)


def glnet_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (32, 48, 96, 128),
    depths: Sequence[int] = (1, 1, 2, 1),
    head_dim: int = 16,
    mlp_ratio: int = 2,
    grid: int = 4,
    drop_path: float = 0.0,
) -> GLNet:
    """A small GLNet: 0.52 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. Parameters have the same shapes at every size of image, and a batch of
    one trains at every size.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the four stages.
        depths: Blocks of the four stages: slots in the first two, slots and attention in turn in the third, attention
            in the last.
        head_dim: Channels of an attention head; divides all of `dims`.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        grid: P, so that there are P P slots.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("glnet_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 4)
    return GLNet(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        mixers=_mixers(check_counts("model.sizes.depths", depths, 4), alternate=True),
        head_dim=check_divides("model.sizes.head_dim", head_dim, dims),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        grid=check_count("model.sizes.grid", grid),
        stem_dims=dims[:1],
        strides=halving_strides(-(-image_size // 2), 3),
        hybrid=True,
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )

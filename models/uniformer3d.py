"""UniFormer for clips: convolutions over space and time in the first two stages, attention over all frames after them.

Source: Li et al. 2022, "UniFormer: Unified Transformer for Efficient Spatiotemporal Representation Learning" (arXiv
2201.04676): section 3 for the blocks (`umbel.models.uniformer_blocks`) and the sizes. Written from the equations. The
first embedding overlaps in time (kernel 3, stride 2) and not in space; after it no layer shortens a clip.

An image is read as a still clip, `num_frames` times the same frame, so that these models go wherever images go. What
umbel's data sets hold are images; clips are passed to the model in Python.

Shapes: B batch, I input channels, F frames of a clip, S side of an image, T = F / 2 frames of a map, rounded up, H and
W its sides, C channels of a stage, D features (C of the last stage), K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_count, check_counts, check_divides, check_fraction, check_image_size
from umbel.models.layers import drop_rates, halving_strides, initialise_linear
from umbel.models.uniformer_blocks import GlobalBlock, LocalBlock


class LayerNorm3d(nn.LayerNorm):
    """Layer norm over the channels of a map [B, C, T, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        normed = F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.movedim(-1, 1)


def _embed(inputs: int, dim: int, kernel: int, stride: int, first: bool) -> nn.Sequential:
    """Return the embedding before a stage: patches if `kernel` is `stride`, else overlapping ones.

    The first takes three frames to one of every second; the others take each frame alone.
    """
    padding = (kernel - stride + 1) // 2
    conv = nn.Conv3d(
        inputs,
        dim,
        (3 if first else 1, kernel, kernel),
        (2 if first else 1, stride, stride),
        (1 if first else 0, padding, padding),
    )
    return nn.Sequential(conv, LayerNorm3d(dim))


class UniFormer3D(Model):
    """Two stages of local blocks and two of global ones; the features are the mean of the batch-normalised map.

    Nothing ties the parameters to a size of image or a number of frames.

    Attributes:
        num_frames: F, the frames of a clip; all clients of a run share one.
    """

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        num_frames: int,
        dims: Sequence[int],
        depths: Sequence[int],
        *,
        head_dim: int,
        mlp_ratio: int,
        kernels: Sequence[int],
        strides: Sequence[int],
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_features = dims[-1]
        self.in_channels = in_channels
        self.image_size = image_size
        self.num_frames = num_frames
        self.stages = nn.ModuleList()
        for i, (dim, rates) in enumerate(zip(dims, drop_rates(depths, drop_rate), strict=True)):
            blocks: list[Block] = [
                LocalBlock(dim, mlp_ratio, rate, 3) if i < 2 else GlobalBlock(dim, dim // head_dim, mlp_ratio, rate, 3)
                for rate in rates
            ]
            embed = _embed(dims[i - 1] if i else in_channels, dim, kernels[i], strides[i], first=i == 0)
            self.stages.append(nn.Sequential(embed, *blocks))
        self.norm = nn.BatchNorm3d(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of clips [B, I, F, S, S], or of images [B, I, S, S] read as still clips."""
        self.check_input(x)
        if x.dim() == 4:
            x = x.unsqueeze(2).expand(-1, -1, self.num_frames, -1, -1)
        for stage in self.stages:
            x = stage(x)
        features: Tensor = self.norm(x).mean(dim=(2, 3, 4))
        return features

    def check_input(self, x: Tensor) -> None:
        """Raise `ValueError` unless `x` is [B, I, F, S, S] or [B, I, S, S] with the model's channels and sizes."""
        image = (self.in_channels, self.image_size, self.image_size)
        clip = (self.in_channels, self.num_frames, self.image_size, self.image_size)
        if tuple(x.shape[1:]) not in (image, clip):
            raise ValueError(
                f"{type(self).__name__} was built for images [batch, {', '.join(map(str, image))}] and clips [batch, "
                f"{', '.join(map(str, clip))}], found {list(x.shape)}; resize them, take as many frames, or build the "
                "model for them (keys model.image_size, model.sizes.num_frames)"
            )


def _published(
    name: str,
    num_classes: int,
    image_size: int,
    in_channels: int,
    num_frames: int,
    depths: Sequence[int],
    drop_rate: float,
) -> UniFormer3D:
    """Build UniFormer-S or -B, which differ in their depths."""
    model = UniFormer3D(
        num_classes,
        check_image_size(name, image_size, 32, 64),
        in_channels,
        check_count("model.sizes.num_frames", num_frames),
        (64, 128, 320, 512),
        depths,
        head_dim=64,
        mlp_ratio=4,
        kernels=(4, 2, 2, 2),
        strides=(4, 2, 2, 2),
        drop_rate=check_fraction("model.sizes.drop_path", drop_rate),
    )
    initialise_linear(model)
    return model


def uniformer3d_s(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, num_frames: int = 16, drop_path: float = 0.1
) -> UniFormer3D:
    """UniFormer-S for clips: 21.7 M parameters at 1000 classes.

    It has depths 3, 4, 8, 3. Published are 21.4 M at the 400 classes of Kinetics.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of a frame in pixels, a multiple of 32 from 64 on.
        in_channels: I, 1 for grey and 3 for colour.
        num_frames: F, the frames of a clip, and how often an image is repeated; published are 8, 16 and 32.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _published("uniformer3d_s", num_classes, image_size, in_channels, num_frames, (3, 4, 8, 3), drop_path)


def uniformer3d_b(
    num_classes: int, image_size: int = 224, in_channels: int = 3, *, num_frames: int = 16, drop_path: float = 0.3
) -> UniFormer3D:
    """UniFormer-B for clips: 50.1 M parameters at 1000 classes.

    It has depths 5, 8, 20, 7. Published are 49.8 M at the 400 classes of Kinetics.
    Arguments and errors are those of `uniformer3d_s`.
    """
    return _published("uniformer3d_b", num_classes, image_size, in_channels, num_frames, (5, 8, 20, 7), drop_path)


def uniformer3d_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    num_frames: int = 8,
    dims: Sequence[int] = (32, 48, 96, 128),
    depths: Sequence[int] = (1, 1, 2, 1),
    head_dim: int = 16,
    mlp_ratio: int = 2,
    drop_path: float = 0.0,
) -> UniFormer3D:
    """A small UniFormer for clips: 0.49 M parameters at 10 classes.

    For frames of 28 and 32 px; not in the paper. It is `uniformer_tiny32` with kernels over time: every embedding is a
    3 x 3 convolution of stride 2, of stride 1 where the map would not keep 2 x 2, and the first is 3 x 3 x 3 and takes
    every second frame.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of a frame in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        num_frames: F, the frames of a clip, and how often an image is repeated.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        head_dim: Channels of an attention head; divides those of the last two stages.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        drop_path: Stochastic depth of the last block; it rises linearly from 0 at the first.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("uniformer3d_tiny32", image_size, 1, least=4)
    dims = check_counts("model.sizes.dims", dims, 4)
    return UniFormer3D(
        num_classes,
        image_size,
        in_channels,
        check_count("model.sizes.num_frames", num_frames),
        dims,
        check_counts("model.sizes.depths", depths, 4),
        head_dim=check_divides("model.sizes.head_dim", head_dim, dims[2:]),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        kernels=(3, 3, 3, 3),
        strides=halving_strides(image_size, 4),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )

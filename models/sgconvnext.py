"""SGConvNeXt: a ConvNeXt whose 7 x 7 depthwise convolutions are convolutions as long as the map, read row by row.

Source: Li et al. 2022, "What Makes Convolutional Models Great on Long Sequence Modeling?" (arXiv 2210.09298) for the
convolution (`umbel.models.operators.sgconv`) and its place; the network around it is
`umbel.models.convnext_dcls.ConvNeXt`.

The authors have published the convolution and not this network. Their figure for `sgconvnext_t` is "29 M" parameters
(which we have second-hand); which d they took is not known. With d = 16 and no GELU and linear layer behind the
convolution (the block has its own), ours has 29.3 M. A linear layer in every block would make it 32.5 M.

Deviation: `sgconvnext_tiny32` shrinks its maps by 3 x 3 convolutions in place of 4 x 4 and 2 x 2 (and by none once a
map is 2 x 2), so that any size of image works, and starts its layer scale at 1.

Shapes: I input channels, C channels of a stage, d weights of a scale, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from umbel.models.base import check_count, check_counts, check_fraction, check_image_size, check_positive
from umbel.models.convnext_dcls import ConvNeXt, Mixers
from umbel.models.layers import halving_strides, initialise_linear
from umbel.models.operators.sgconv import SGConv2d


def map_sides(image_size: int, strides: Sequence[int]) -> list[int]:
    """Return the side of each stage's map."""
    sides = []
    for stride in strides:
        image_size = -(-image_size // stride)
        sides.append(image_size)
    return sides


def sgconv_mixers(sides: Sequence[int], scale_dim: int) -> Mixers:
    """Return what makes the convolutions of a stage, called once a stage, from the first to the last.

    Args:
        sides: Side of the map that the kernels of each stage are made for.
        scale_dim: d.
    """
    left = iter(sides)

    def mixers(dim: int, depth: int) -> list[nn.Module]:
        side = next(left)
        return [SGConv2d(dim, side, side, scale_dim) for _ in range(depth)]

    return mixers


def sgconvnext_t(
    num_classes: int,
    image_size: int = 224,
    in_channels: int = 3,
    *,
    scale_dim: int = 16,
    layer_scale: float = 1e-6,
    drop_path: float = 0.1,
) -> ConvNeXt:
    """SGConvNeXt-T: depths 3, 3, 9, 3; 29.3 M parameters at 1000 classes.

    The figure of the paper is 29 M; see the head of this file. The kernels are as long as the maps, so that the number
    of parameters grows with the logarithm of the image.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, a multiple of 32.
        in_channels: I, 1 for grey and 3 for colour.
        scale_dim: d, the weights of each scale of a kernel.
        layer_scale: Where the factors on the branches begin. With the published 1e-6 a block begins as the identity;
            take 1e-2 for short federated runs from scratch.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("sgconvnext_t", image_size, 32)
    check_count("model.sizes.scale_dim", scale_dim)
    strides = (4, 2, 2, 2)
    model = ConvNeXt(
        num_classes,
        image_size,
        in_channels,
        dims=(96, 192, 384, 768),
        depths=(3, 3, 9, 3),
        mixers=sgconv_mixers(map_sides(image_size, strides), scale_dim),
        mlp_ratio=4,
        kernels=(4, 2, 2, 2),
        strides=strides,
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )
    initialise_linear(model, kinds=(nn.Linear, nn.Conv2d))
    return model


def sgconvnext_tiny32(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    dims: Sequence[int] = (32, 64, 96),
    depths: Sequence[int] = (1, 1, 2),
    mlp_ratio: int = 4,
    scale_dim: int = 16,
    layer_scale: float = 1.0,
    drop_path: float = 0.0,
) -> ConvNeXt:
    """A small SGConvNeXt: 0.28 M parameters at 10 classes.

    For images of 28 and 32 px; not in the paper. Parameters have the same shapes for all images up to 32 px, and a
    batch of one trains. A third stage makes up for kernels that know no rows: with two it learns far slower.

    Args:
        num_classes: K, the number of logits.
        image_size: The side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        dims: Channels of the stages.
        depths: Blocks of the stages.
        mlp_ratio: Hidden width of an MLP as a multiple of the channels.
        scale_dim: d, the weights of each scale of a kernel.
        layer_scale: Where the factors on the branches begin.
        drop_path: Stochastic depth of the last block; it rises linearly from 0.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_image_size("sgconvnext_tiny32", image_size, 1, least=4)
    check_count("model.sizes.scale_dim", scale_dim)
    dims = check_counts("model.sizes.dims", dims)
    strides = halving_strides(image_size, len(dims))
    # Smaller images see the start of the kernels that 32 px need, so that the parameters keep their shapes.
    longest = zip(map_sides(image_size, strides), map_sides(32, halving_strides(32, len(dims))), strict=True)
    return ConvNeXt(
        num_classes,
        image_size,
        in_channels,
        dims=dims,
        depths=check_counts("model.sizes.depths", depths, len(dims)),
        mixers=sgconv_mixers([max(sides) for sides in longest], scale_dim),
        mlp_ratio=check_count("model.sizes.mlp_ratio", mlp_ratio),
        kernels=(3,) * len(dims),
        strides=strides,
        layer_scale=check_positive("model.sizes.layer_scale", layer_scale),
        drop_rate=check_fraction("model.sizes.drop_path", drop_path),
    )

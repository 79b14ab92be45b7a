"""E2GC: group convolutions whose groups are all of one size, in place of as many groups in every layer.

Source: Jha et al. 2020, "E2GC: Energy-efficient Group Convolution in Deep Neural Networks" (arXiv 2006.15100). With G
channels a group everywhere, a layer of I inputs has I / G groups and K^2 G O weights, and how often what was fetched is
used again is the same in narrow and in wide layers. G = 1 is a depthwise convolution, G = I a dense one.

G is part of the model's architecture: all clients whose weights are averaged need the same.

Deviation: weights are drawn anew, as loud as those of the convolution were; a layer that has groups of this size
already keeps its own.

Shapes: B batch, I and O input and output channels, G channels of a group, K side of a kernel.
"""

from __future__ import annotations

from umbel.models.base import check_count
from umbel.models.operators.base import Site, refuse, same_bias
from umbel.models.operators.kernels import Convolution, check_zero_padded, draw, gain


class GroupSizeConv(Convolution):
    """A convolution with groups of G input channels."""


def e2gc(site: Site, *, group_size: int = 8) -> GroupSizeConv:
    """Group convolutions with the same size of group in each; K^2 G O weights a layer.

    Args:
        site: The convolution and its place.
        group_size: G, input channels of a group. Layers whose inputs it does not divide are left as they are, and so
            are those whose outputs are no multiple of their groups.

    Raises:
        UnfitError: It is such a layer.
        Refusal: `group_size` is no whole number of at least 1.
    """
    check_count("model.operators.e2gc.group_size", group_size)
    check_zero_padded(site, "e2gc")
    conv = site.conv
    if conv.in_channels % group_size:
        needed = f"a convolution whose inputs are a multiple of {group_size} (key model.operators.e2gc.group_size)"
        raise refuse(site, "e2gc", needed, f"{conv.in_channels} inputs")
    groups = conv.in_channels // group_size
    if conv.out_channels % groups:
        needed = f"a convolution whose outputs are a multiple of its {groups} groups"
        raise refuse(site, "e2gc", needed, f"{conv.out_channels} outputs")
    shape = (conv.out_channels, group_size, *conv.kernel_size)
    weight = conv.weight.detach().clone() if groups == conv.groups else draw(shape, gain(conv), conv)
    return GroupSizeConv(weight, same_bias(conv), conv.stride, conv.padding, conv.dilation, groups)

"""GLSim: the part of the image that is most like the whole is cut out, enlarged and seen again by the same model.

Source: Rios et al. 2024, "Global-Local Similarity for Efficient Fine-Grained Image Recognition with Vision
Transformers" (arXiv 2407.12891). Written from the description:

    s_j = cos(g, z_j)                     of the global vector g and each place z_j of a late map
    box = bounding box of the O places of the largest s_j, in pixels of the image
    f   = LN(Aggregator([e(x), e(x')]))_0 with e the trunk and x' the box of x, resized to the size of x

The choice of the box has no gradient. The head begins at zero, as published.

What any model needs beside the paper's ViT: g is the class token where the map has one, else the mean over its places.
The map is that of the last block, before a norm that the trunk may have behind it (the paper's is behind). Places share
the image evenly, and a box is rounded outwards to whole pixels; of a trunk that pads its images, as some do whose
places do not tile them, a box is off by as much as that at the most. The paper's box encloses the top patches; the
authors' code leaves out the lower and right row of them, which is not done here.

Shapes: B batch, I input channels, H side of an image in pixels, S side of the map, C its channels, O chosen places,
D features, A heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block, Model, check_count, check_divides
from umbel.models.layers import Mlp, SelfAttention, no_autocast
from umbel.models.maps import MapLayer, last_map
from umbel.models.operators.around import Taps, beheaded, in_full

_KEY = "model.operators.glsim"
_HEAD_WIDTH = 64  # channels of an attention head of a ViT


def similarity(overall: Tensor, places: Tensor) -> Tensor:
    """Return the cosine of one vector [B, C] and each place of a map [B, C, S, S], as [B, S, S]."""
    return F.cosine_similarity(overall[:, :, None, None], places, dim=1)


def top_box(scores: Tensor, num_top: int, size: int) -> Tensor:
    """Return the smallest boxes that hold the places of the highest scores, [B, 4] int64.

    Of equal scores the first place, row by row, counts as the higher.

    Args:
        scores: [B, S, S].
        num_top: O, at most S S.
        size: H.

    Returns:
        Of each image the first row and column of pixels, and those behind the last row and column.
    """
    side = scores.shape[2]
    order = scores.flatten(1).argsort(dim=1, descending=True, stable=True)[:, :num_top]
    places = torch.stack((order // side, order % side), dim=2)
    first = places.amin(1) * size // side
    behind = ((places.amax(1) + 1) * size + side - 1) // side
    return torch.cat((first, behind), dim=1)


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Return the boxes of images, each resized to the whole image: bilinear, corners upon corners.

    It is a product with a matrix for rows and one for columns, which differ from image to image. A box that is all of
    an image gives the image itself.

    Args:
        images: [B, I, H, H].
        boxes: [B, 4], as `top_box` returns them.
    """
    with no_autocast(images):
        exact = in_full(images)
        rows, columns = (_interpolation(boxes[:, axis], boxes[:, axis + 2], exact) for axis in (0, 1))
        enlarged: Tensor = rows[:, None] @ exact @ columns[:, None].transpose(2, 3)
        return enlarged.to(images.dtype)


def _interpolation(first: Tensor, behind: Tensor, images: Tensor) -> Tensor:
    """Return matrices [B, H, H] that enlarge the pixels from `first` [B] to those before `behind` [B] to all H."""
    size = images.shape[2]
    pixels = torch.arange(size, device=images.device)
    # Pixel i of the result lies at i (h - 1) / (H - 1) of a box of h pixels.
    steps = pixels * (behind - first - 1)[:, None]
    wanted = steps.to(images.dtype) / max(size - 1, 1)
    given = (pixels - first[:, None]).to(images.dtype)
    return (1 - (wanted[:, :, None] - given[:, None, :]).abs()).clamp(min=0)


class AggregatorBlock(Block):
    """Pre-norm block on the features of image and crop: x += Attention(LN x); x += MLP(LN x)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens [B, 2, D] of tokens [B, 2, D]."""
        tokens = tokens + self.attention(self.norm1(tokens))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class GLSim(Model):
    """A trunk that sees an image and a crop of it, and an aggregator; its features are the image's, refined.

    Args:
        trunk: The model that it goes around; it loses its head.
        layer: Which of its maps chooses the crop.
        num_top: O.
        blocks: Aggregator.
    """

    def __init__(self, trunk: Model, layer: MapLayer, num_top: int, blocks: Sequence[AggregatorBlock]) -> None:
        super().__init__()
        self.num_features = trunk.num_features
        self.in_channels, self.image_size = trunk.in_channels, trunk.image_size
        self.layer, self.num_top = layer, num_top
        head = nn.Linear(self.num_features, trunk.head.out_features)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        like = trunk.head.weight
        self.trunk = beheaded(trunk)
        self.taps = Taps(trunk, [layer])
        self.aggregator = nn.Sequential(*blocks).to(like)
        self.norm = nn.LayerNorm(self.num_features, eps=1e-6).to(like)
        self.head = head.to(like)
        self.train(trunk.training)

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trunk's features [B, D] of images [B, I, H, H], and the boxes to look at again, [B, 4]."""
        features, (output,) = self.taps.features(self.trunk, x)
        with torch.no_grad(), no_autocast(x):
            scores = similarity(in_full(self.layer.overall(output)), in_full(self.layer.read(output)))
            return features, top_box(scores, self.num_top, self.image_size)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, H]."""
        self.check_input(x)
        whole, boxes = self.look(x)
        part = self.trunk.features(crop(x, boxes))
        tokens = self.norm(self.aggregator(torch.stack((whole, part), dim=1)))
        features: Tensor = tokens[:, 0]
        return features


def _heads(dim: int, given: object) -> int:
    """Return A: what is given, or the most that share D evenly with 64 channels or more each."""
    if given is not None:
        return check_divides(f"{_KEY}.heads", given, [dim], "the model's features")
    return next(heads for heads in range(max(1, dim // _HEAD_WIDTH), 0, -1) if dim % heads == 0)


def glsim(
    model: Model,
    *,
    num_top: int = 8,
    layer: str = "",
    depth: int = 1,
    heads: int | None = None,
    mlp_ratio: int = 4,
) -> GLSim:
    """A crop of the places most like the whole image is seen too; 12 D^2 more, the trunk twice.

    The model's own head is replaced by one that begins at zero. On small images few places are many pixels: at 4 x 4
    places, 8 of them leave hardly a crop, and 2 or 3 suit better.

    Args:
        model: Any whose layers give maps; it becomes the trunk.
        num_top: O, places that the crop holds, or all where there are fewer; the paper's are of 14 x 14 or more.
        layer: Name of the layer whose map is compared; empty is the last block with more than `num_top` places.
        depth: Layers of the aggregator.
        heads: A of them, a divisor of D; None is one for each 64 of D.
        mlp_ratio: Hidden width of their MLP as a multiple of D.

    Raises:
        umbel.core.names.UnknownNameError: There is no such layer with a map.
        Refusal: An option is out of range, or no layer gives a map of 2 x 2 places.
    """
    check_count(f"{_KEY}.num_top", num_top)
    check_count(f"{_KEY}.depth", depth)
    check_count(f"{_KEY}.mlp_ratio", mlp_ratio)
    dim = model.num_features
    chosen = last_map(model, layer, least=math.isqrt(num_top) + 1, key=f"{_KEY}.layer")
    blocks = [AggregatorBlock(dim, _heads(dim, heads), mlp_ratio) for _ in range(depth)]
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):  # as published
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
    return GLSim(model, chosen, min(num_top, chosen.side**2), blocks)

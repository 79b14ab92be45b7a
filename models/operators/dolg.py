"""DOLG: what local features say beside the global one is added to it.

Source: Yang et al. 2021, "DOLG: Single-Stage Image Retrieval with Deep Orthogonal Fusion of Local and Global Features"
(arXiv 2108.02927), section 3. Written from the equations, for f3 an earlier map of a model and f4 its last:

    f_l       = softplus(Conv relu(h)) h / |h|,  h = BN(Conv(MultiAtrous(f3)))
    f_g       = Linear(GeM_3(f4)),               GeM_3(f) = (mean over places of f^3)^(1/3)
    f_perp(p) = f_l(p) - (f_l(p) . f_g) f_g / |f_g|^2
    features  = Linear([f_g, mean over places of f_perp])

MultiAtrous are three dilated convolutions and one of the mean over the map, side by side, and a 1 x 1 convolution of
all of them; the authors' code has a 1 x 1 convolution of the map beside them as well.

Deviations: classification is by the linear head, like that of every model here, and not by ArcFace's margin, whose
logits depend on the label. The paper's dilations are 6, 12 and 18, for maps of 32 x 32 places and more; (1, 2, 3) keep
them inside the maps of small images. The features are as many as the model's own, unless `width` says another number
(the paper's is 512 of ResNet's 2048). What a model computes behind its last map is not used, as the paper uses nothing
behind f4, and does not learn; `pool=features` takes it in GeM's place.

Shapes: B batch, I input channels, H side of an image, C3 and S3 channels and side of f3, C4 and S4 those of f4, L = C3
channels of f_l and f_g, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Model, check_count, check_counts
from umbel.models.layers import no_autocast
from umbel.models.maps import MapLayer, blocks_of, last_map, map_layers
from umbel.models.operators.around import Taps, beheaded, freeze_unused, in_full

_KEY = "model.operators.dolg"
POOLS = ("gem", "features")


def gem(image_map: Tensor, power: float = 3.0, least: float = 1e-6) -> Tensor:
    """Return the generalised mean over the places of a map [B, C, S, S], [B, C] (Radenović et al. 2018, 1711.02512).

    Args:
        image_map: The map.
        power: 1 is the mean; the larger, the nearer to the maximum.
        least: Smaller values count as this one: a root has no slope at 0.
    """
    return image_map.clamp(min=least).pow(power).mean(dim=(2, 3)).pow(1 / power)


def orthogonal(local: Tensor, overall: Tensor) -> Tensor:
    """Return the part of each place of `local` [B, L, S, S] that is orthogonal to `overall` [B, L]; all of it to 0."""
    direction = overall[:, :, None, None]
    # A vector so short has an inner product of nothing anyway; by less, gradients are divided beyond all bounds.
    square = direction.square().sum(1, keepdim=True).clamp(min=torch.finfo(overall.dtype).tiny ** 0.5)
    return local - (local * direction).sum(1, keepdim=True) * direction / square


class LocalBranch(nn.Module):
    """Features of places: dilated convolutions, and a weight a place.

    Args:
        dim: C3.
        dilations: Of the convolutions.
    """

    def __init__(self, dim: int, dilations: Sequence[int]) -> None:
        super().__init__()
        half = max(dim // 2, 1)
        self.dilated = nn.ModuleList(nn.Conv2d(dim, half, 3, padding=d, dilation=d) for d in dilations)
        self.pooled = nn.Conv2d(dim, half, 1)
        self.mix = nn.Conv2d((len(dilations) + 1) * half, dim, 1)
        self.point = nn.Conv2d(dim, dim, 1)
        self.norm = nn.BatchNorm2d(dim)
        self.score = nn.Conv2d(dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return f_l [B, L, S3, S3] of f3 [B, C3, S3, S3]."""
        pooled = F.relu(self.pooled(x.mean(dim=(2, 3), keepdim=True)))
        atrous = [conv(x) for conv in self.dilated]
        mixed = F.relu(self.mix(torch.cat([*atrous, pooled.expand_as(atrous[0])], dim=1)))
        local = self.norm(self.point(mixed))
        return F.softplus(self.score(F.relu(local))) * F.normalize(local, dim=1)


class DOLG(Model):
    """A trunk, a local branch on an earlier map, a global one on its last, and their orthogonal fusion.

    Args:
        trunk: The model that it goes around; it loses its head.
        local_layer: Which of its layers gives f3.
        last_layer: Which gives f4; None takes the trunk's features in place of GeM.
        width: D.
        dilations: Of the local branch.
    """

    def __init__(
        self,
        trunk: Model,
        local_layer: MapLayer,
        last_layer: MapLayer | None,
        width: int,
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        self.num_features = width
        self.in_channels, self.image_size = trunk.in_channels, trunk.image_size
        self.layers = [local_layer] if last_layer is None else [local_layer, last_layer]
        head, pooled = trunk.head, trunk.num_features if last_layer is None else last_layer.channels
        self.trunk = beheaded(trunk)
        self.taps = Taps(trunk, self.layers)
        dim = local_layer.channels
        self.local = LocalBranch(dim, dilations).to(head.weight)
        self.overall = nn.Linear(pooled, dim).to(head.weight)
        self.fuse = nn.Linear(2 * dim, width).to(head.weight)
        self.head = nn.Linear(width, head.out_features).to(head.weight)
        self.train(trunk.training)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return f_l [B, L, S3, S3] and f_g [B, L] of images [B, I, H, H]."""
        pooled, outputs = self.taps.features(self.trunk, x)
        maps = [layer.read(output) for layer, output in zip(self.layers, outputs, strict=True)]
        if len(maps) > 1:
            with no_autocast(x):
                pooled = gem(in_full(maps[1])).to(maps[1].dtype)
        return self.local(maps[0]), self.overall(pooled)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, H, H]."""
        self.check_input(x)
        local, overall = self.parts(x)
        with no_autocast(x):
            beside = orthogonal(in_full(local), in_full(overall)).mean(dim=(2, 3))
        fused: Tensor = self.fuse(torch.cat((overall, beside.to(overall.dtype)), dim=1))
        return fused


def earlier_map(model: Model, last: MapLayer) -> MapLayer:
    """Return the last map before `last` that has more places, of a block where one does.

    Where none has, as in a transformer of one stage, it is the block before, or else whatever gives a map before, or
    `last` itself.
    """
    layers = map_layers(model)
    inner = f"{last.name}."
    before = [each for each in layers[: layers.index(last)] if not each.name.startswith(inner)]
    blocks = blocks_of(model, before)
    larger = ([each for each in group if each.side > last.side] for group in (blocks, before))
    return next((group[-1] for group in (*larger, blocks, before) if group), last)


def dolg(
    model: Model,
    *,
    width: int | None = None,
    layer: str = "",
    dilations: Sequence[int] = (1, 2, 3),
    pool: str = "gem",
) -> DOLG:
    """Local features, less their share of the global one, beside it; 17 C3^2 and two linear layers more.

    Args:
        model: Any whose layers give maps; it becomes the trunk.
        width: D, features; None is as many as the model has.
        layer: Name of the layer that gives f3; empty is the last block whose map has more places than the last.
        dilations: Of the three convolutions side by side; the paper's are [6, 12, 18].
        pool: `gem`, the generalised mean of the last map: layers of the model that stand behind it do not learn.
            `features`, those of the model.

    Raises:
        umbel.core.names.UnknownNameError: There is no such layer with a map.
        Refusal: An option is out of range, or no layer gives a map of 2 x 2 places.
    """
    width = model.num_features if width is None else check_count(f"{_KEY}.width", width)
    spread = check_counts(f"{_KEY}.dilations", dilations, 3)
    if pool not in POOLS:
        raise Refusal(f"{_KEY}.pool should be one of {', '.join(POOLS)}, found {pool!r}.", key=f"{_KEY}.pool")
    last = last_map(model)
    local = earlier_map(model, last) if layer == "" else last_map(model, layer, key=f"{_KEY}.layer")
    made = DOLG(model, local, last if pool == "gem" else None, width, spread)
    if pool == "gem":
        freeze_unused(made.trunk, made.layers)
    return made

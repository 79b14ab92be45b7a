"""What can be said of a model without running it: parameters, operations, activations, bytes, norms, sizes.

All of it is read off a forward pass on the `meta` device, which computes shapes and no numbers.

Legend: B batch, I input channels, S image side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from umbel.models import registry
from umbel.models.assemble import assemble
from umbel.models.base import Model
from umbel.models.weights import shared_state

_NORMS: dict[str, tuple[type[nn.Module], ...]] = {
    "batch": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "layer": (nn.LayerNorm,),
    "group": (nn.GroupNorm,),
}


@dataclass(frozen=True)
class Facts:
    """One model at one size of image.

    Attributes:
        name: Of the zoo.
        image_size: S.
        in_channels: I.
        num_classes: Of the head.
        parameters: Numbers that are trained.
        macs: Multiplications with an addition of one image's forward pass, in matrix products and convolutions, as
            `torch.utils.flop_counter` counts them (it counts each twice); Fourier transforms are not counted.
        activation_bytes: What the backward pass of one image keeps in float32, parameters not counted.
        bytes_per_round: Down and up for one client: float32 parameters and floating-point buffers, twice.
        norms: Layers of each kind of norm.
        smallest: The smallest image that the model can be built for and trained on; 0 if none was found.
    """

    name: str
    image_size: int
    in_channels: int
    num_classes: int
    parameters: int
    macs: int
    activation_bytes: int
    bytes_per_round: int
    norms: dict[str, int]
    smallest: int


def facts(
    name: str, num_classes: int = 1000, image_size: int | None = None, in_channels: int = 3, **sizes: Any
) -> Facts:
    """Return the facts of a model; arguments are those of `models.build`."""
    model = _build(name, num_classes, image_size, in_channels, sizes)
    return Facts(
        name=name,
        image_size=model.image_size,
        in_channels=in_channels,
        num_classes=num_classes,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=macs(model),
        activation_bytes=activation_bytes(model),
        bytes_per_round=2 * 4 * sum(tensor.numel() for tensor in shared_state(model).values()),
        norms={kind: sum(isinstance(m, types) for m in model.modules()) for kind, types in _NORMS.items()},
        smallest=smallest(name, num_classes, in_channels, **sizes),
    )


def _build(name: str, num_classes: int, image_size: int | None, in_channels: int, sizes: dict[str, Any]) -> Model:
    with torch.device("meta"):
        return registry.build(name, num_classes, image_size, in_channels, **sizes)


def _images(model: Model, batch: int) -> Tensor:
    return torch.empty(batch, model.in_channels, model.image_size, model.image_size, device="meta")


def macs(model: Model) -> int:
    """Return the multiply-adds of one image's forward pass; the model is on `meta`."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(_images(model, 1))
    model.train()
    return int(counter.get_total_flops()) // 2


@cache
def macs_of(spec: str) -> tuple[int, int]:
    """Return the multiply-adds of one image's forward pass through a model that was built, and those of its head.

    Args:
        spec: The model's.

    Raises:
        ValueError: It is none, or of a model that cannot be built here.
    """
    name, num_classes, image_size, in_channels, sizes, *operators = json.loads(spec)
    with torch.device("meta"):
        put_in = operators[0] if operators else {}
        model = assemble(name, num_classes, image_size, in_channels, sizes=sizes, operators_=put_in, norm_rule="")
    return macs(model), model.head.weight.numel()


def flops(passes: Mapping[str, Mapping[str, int]]) -> float:
    """Return the floating-point operations of images that went through models; NaN if a model is not known here.

    A multiplication with an addition counts as two. Backward through a whole model is twice the forward pass, each of
    whose products it repeats for the weights and for the input; where the head alone learns, its product once more.
    Losses, heads by themselves, optimisers and what `models.checkpointing` computes again are not counted.

    Args:
        passes: By the model's spec, how many images went `forward`, and of how many learned all of it, `backward`, or
            the `head` alone.
    """
    total = 0
    try:
        for spec, counts in passes.items():
            whole, head = macs_of(spec)
            through = counts.get("forward", 0) + 2 * counts.get("backward", 0)
            total += 2 * (whole * through + head * counts.get("head", 0))
    except Exception:  # noqa: BLE001 - a model of somebody's own may raise anything, and is then not known here
        return math.nan
    return float(total)


def activation_bytes(model: Model) -> int:
    """Return what the backward pass of one image keeps, each storage once; the model is on `meta`.

    It is the difference between three images and two, so that nothing that does not depend on the batch is in it.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def kept(batch: int) -> int:
        storages: dict[int, int] = {}
        held: list[Tensor] = []  # a storage that were freed could give its address to the next

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                storages[storage._cdata] = storage.nbytes()
                held.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train()(_images(model, batch))
        return sum(storages.values())

    return kept(3) - kept(2)


def smallest(name: str, num_classes: int = 10, in_channels: int = 3, **sizes: Any) -> int:
    """Return the smallest image that the model can be built for and trained on with a batch of two; 0 for none."""
    for side in range(1, 257):
        try:
            model = _build(name, num_classes, side, in_channels, sizes)
            model(_images(model, 2))
        except (ValueError, RuntimeError):
            continue
        return side
    return 0

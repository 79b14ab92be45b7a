"""Layers that FOT projects: their names and shapes, the projection of one, and how its basis grows.

Legend: D inputs of a layer, M sketch columns, R basis directions, G groups of a convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from umbel.core.records import Payload
from umbel.strategies.fot.subspace import expand_basis, project_update, unexplained

if TYPE_CHECKING:
    from umbel.strategies.fot.method import Config


def bias_name(weight_name: str) -> str:
    """Return the name of the bias beside a weight: `a.weight` -> `a.bias`, `in_proj_weight` -> `in_proj_bias`."""
    return weight_name.removesuffix("weight") + "bias"


def project_layer(weight: Tensor, bias: Tensor | None, basis: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the projected updates of a layer's weight and bias.

    Args:
        weight: Delta W, [out, ...].
        bias: Delta b, [out], which is projected as one more column; or None where the basis is of the weight alone.
        basis: [D, R] or [G, D, R], with D one more than the weight's inputs when there is a bias.
    """
    if bias is None:
        return project_update(weight, basis), None
    whole = project_update(torch.cat([weight.flatten(1), bias[:, None]], dim=1), basis)
    return whole[:, :-1].reshape(weight.shape), whole[:, -1].clone()


def layers_of(payload: Payload) -> dict[str, tuple[int, int]]:
    """Return groups and inputs of each projected layer, as the server said."""
    names = [name.removeprefix("groups/") for name in payload.numbers if name.startswith("groups/")]
    return {name: (int(payload.numbers[f"groups/{name}"]), int(payload.numbers[f"inputs/{name}"])) for name in names}


def shapes(payload: Payload, shape: Callable[[int], tuple[int, ...]]) -> dict[str, Tensor]:
    """Return what a client should send for each layer of D inputs, without content; groups go in front."""
    return {
        name: torch.empty((*([groups] if groups > 1 else []), *shape(inputs)), device="meta")
        for name, (groups, inputs) in layers_of(payload).items()
    }


def grow(basis: Tensor | None, sketch: Tensor, rho: Tensor, config: Config, threshold: float) -> Tensor:
    """Return a layer's basis with the directions of a task added, for one group or several.

    Args:
        basis: [D, R] or [G, D, R], or None.
        sketch: [D, M] or [G, D, M]; with `width=0` the Gram matrix R R'.
        rho: [] or [G], ||R|| / ||A||.
        config: Hyper-parameters.
        threshold: epsilon of this task.
    """
    if sketch.ndim == 3:
        parts = [
            grow(None if basis is None else basis[g], sketch[g], rho[g], config, threshold) for g in range(len(sketch))
        ]
        most = max(part.shape[1] for part in parts)
        return torch.stack([torch.nn.functional.pad(part, (0, most - part.shape[1])) for part in parts])
    if basis is not None:
        basis = basis[:, basis.abs().sum(0) > 0]  # columns of zeros fill a group up
        if config.residual == "server":
            sketch, rho = unexplained(basis, sketch, gram=not config.width)
    factor = sketch.to(torch.float64)
    if not config.width:
        values, vectors = torch.linalg.eigh((factor + factor.T) / 2)
        # The Gram matrix came in float32: smaller eigenvalues than its rounding are noise.
        floor = len(values) * torch.finfo(torch.float32).eps * values[-1:]
        factor = vectors * torch.where(values > floor, values, 0.0).clamp_min(0).sqrt()
    return expand_basis(
        basis, factor.to(torch.float32), float(rho), threshold, config.ratio_power, config.min_directions
    )

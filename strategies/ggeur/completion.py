"""Draws that complete a class on a client: around its own embeddings, other domains' prototypes, or the class's mean.

Legend: N examples, D features, C classes, R kept directions, A anchors, M draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

from umbel.core.tree import Tree
from umbel.strategies.ggeur.shapes import Geometry

SCALES = ("sqrt", "eig")


def sample(
    geometry: Geometry,
    label: int,
    anchors_AD: Tensor,
    num_per_anchor: int,
    generator: torch.Generator,
    scale: str = "sqrt",
) -> Tensor:
    """Draw around anchors in the shape of a class, in one matrix product.

    Args:
        geometry: Of all classes.
        label: The class.
        anchors_AD: [A, D], what to draw around.
        num_per_anchor: Draws for each anchor.
        generator: Of the normal numbers.
        scale: `sqrt`: the standard deviation along a direction is the root of its eigenvalue, so that the draws have
            the class's covariance; `eig`: it is the eigenvalue, as the paper's equation is written.

    Returns:
        [A * num_per_anchor, D] in the anchors' dtype, those of an anchor one after the other.

    Raises:
        ValueError: An unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"Expected a scale of {' or '.join(SCALES)}, found {scale!r}.")
    dtype = torch.promote_types(geometry.eigenvalues_CR.dtype, anchors_AD.dtype)
    values, vectors = geometry.eigenvalues_CR[label].to(dtype), geometry.eigenvectors_CDR[label].to(dtype)
    spread = values.clamp_min(0).sqrt() if scale == "sqrt" else values
    shape = (anchors_AD.shape[0] * num_per_anchor, values.shape[0])
    noise = torch.randn(shape, generator=generator, dtype=values.dtype, device=generator.device).to(values.device)
    drawn = noise @ (vectors * spread).T
    centres = anchors_AD.to(drawn.dtype).repeat_interleave(num_per_anchor, dim=0)
    return (centres + drawn).to(anchors_AD.dtype)


def completion(
    geometry: Geometry,
    label: int,
    own_ND: Tensor,
    target: int,
    source: torch.Generator,
    *,
    scale: str = "sqrt",
    draws: int = 0,
    foreign_AD: Tensor | None = None,
    per_prototype: int = 0,
    keep_own: int = 0,
    mean_D: Tensor | None = None,
) -> Tensor:
    """Return what is drawn to complete a class on a client; its own embeddings are not among it.

    With enough of its own (n >= T - n), as many different ones as are needed get one draw each; with fewer, each gets
    `draws` and those that are needed are kept, drawn without replacement. Where there are prototypes, `keep_own` are
    kept in their place and join the draws around prototypes; of both together those that are needed are kept.

    Args:
        geometry: Of all classes.
        label: The class.
        own_ND: The client's embeddings of the class, [N, D]; may be none.
        target: T.
        source: Of everything that is drawn.
        scale: See `sample`.
        draws: See `Config`.
        foreign_AD: Prototypes of other domains, [A, D], at least one; or None.
        per_prototype: Draws around each of them.
        keep_own: Own draws in the mixture with them; 0 keeps as many as are needed.
        mean_D: What to draw around when there is nothing else; None draws nothing then.

    Returns:
        [M, D] with M = max(T - n, 0), or fewer when there is too little to draw around: see `num_drawn`.
    """
    num_own, needed = len(own_ND), max(target - len(own_ND), 0)
    wanted = keep_own if keep_own and foreign_AD is not None else needed
    anchors = []
    if num_own and needed <= num_own and foreign_AD is None:
        anchors.append(own_ND[torch.randperm(num_own, generator=source)[:needed]])
    elif num_own:
        each = max(draws, -(-wanted // num_own))
        kept = torch.randperm(num_own * each, generator=source)[:wanted]
        anchors.append(own_ND[torch.div(kept, each, rounding_mode="floor")])
    if foreign_AD is not None:
        anchors.append(foreign_AD.to(own_ND.dtype).repeat_interleave(per_prototype, dim=0))
    if not anchors and mean_D is not None:
        anchors.append(mean_D.to(own_ND.dtype).expand(needed, -1))
    if not anchors:
        return own_ND[:0]
    around = torch.cat(anchors)
    if len(around) > needed:
        around = around[torch.randperm(len(around), generator=source)[:needed]]
    return sample(geometry, label, around, 1, source, scale)


def num_drawn(
    num_own: int,
    target: int,
    *,
    foreign_AD: Tensor | None = None,
    per_prototype: int = 0,
    keep_own: int = 0,
    mean_D: Tensor | None = None,
) -> int:
    """Return M, how many `completion` draws, without drawing; arguments as there."""
    needed = max(target - num_own, 0)
    if foreign_AD is None:
        return needed if num_own or mean_D is not None else 0
    own = (keep_own or needed) if num_own else 0
    return min(own + len(foreign_AD) * per_prototype, needed)


def foreign_prototypes(prototypes: Tree, label: int, own_domains: set[int]) -> Tensor | None:
    """Return the prototypes [A, D] of a class in the domains that a client does not have, or None."""
    names = [name.split("/") for name in prototypes]
    others = [f"{d}/{c}" for d, c in names if int(c) == label and int(d) not in own_domains]
    return torch.stack([prototypes[name] for name in others]) if others else None

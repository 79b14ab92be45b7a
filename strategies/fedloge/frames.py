"""The frame that trains FedLoGe's trunk: simplex, sparse, and as it travels.

Legend: D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from umbel.core.refusal import Refusal
from umbel.core.training.optimizers import eager

if TYPE_CHECKING:
    from umbel.strategies.fedloge.method import Config

_ITERATIONS = 2000
_COSINE_TOLERANCE = 0.2  # a random mask now and then leaves two classes nothing in common, so that their cosine is 0


def make_frame(config: Config, num_features: int, num_classes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return psi_SSE as `weight` [C, D]; nothing with `frame=none`.

    Raises:
        Refusal: There are fewer features than classes, or the entries that are kept are too few for the cosines.
    """
    if config.frame == "none":
        return {}
    if num_features < num_classes:
        raise Refusal(
            f"strategy.frame={config.frame} needs at least as many features as classes, and the model has "
            f"{num_features} features for {num_classes} classes.",
            key="strategy.frame",
            remedy="Widen it (model.sizes), or set strategy.frame=none.",
        )
    etf = simplex_etf(num_features, num_classes, generator)
    if config.frame == "etf":
        return {"weight": (config.norm * etf).T.contiguous()}
    scores = torch.rand(num_features, num_classes, generator=generator)
    if config.balanced_mask:
        dropped = min(round(config.sparsity * num_features), num_features - 1)
        keep = scores.argsort(0).argsort(0) >= dropped
    else:
        ranks = scores.flatten().argsort().argsort().view_as(scores)
        keep = ranks >= round(config.sparsity * scores.numel())
        keep |= (scores == scores.amax(0)) & ~keep.any(0)  # a class keeps one entry at least
    frame = sparse_etf(etf, keep, config.norm).T.contiguous()
    missed = cosine_error(frame)
    if not missed <= _COSINE_TOLERANCE:
        raise Refusal(
            f"strategy.sparsity={config.sparsity} leaves a frame of {num_classes} classes and {num_features} features "
            f"too few entries: two classes miss their cosine of {-1 / (num_classes - 1):.3f} by {missed:.3f}, and "
            f"{_COSINE_TOLERANCE} is allowed.",
            key="strategy.sparsity",
            remedy="Lower strategy.sparsity, widen the model (model.sizes), or set strategy.frame=none.",
        )
    return {"weight": frame}


def simplex_etf(num_features: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Return a simplex equiangular tight frame: C unit vectors, each two at the cosine -1 / (C - 1).

    M = sqrt(C / (C - 1)) P (I - 1 1' / C), with the orthonormal columns of P from a QR decomposition.

    Args:
        num_features: D, at least C.
        num_classes: C, at least 2.
        generator: Of the uniform numbers that P is made of.

    Returns:
        [D, C], its Gram matrix is C / (C - 1) (I - 1 1' / C).

    Raises:
        ValueError: There are fewer features than classes, or fewer than two classes.
    """
    if num_classes < 2 or num_features < num_classes:
        raise ValueError(
            f"Expected at least 2 classes and as many features as classes, found {num_classes} classes and "
            f"{num_features} features."
        )
    uniform = torch.rand(num_features, num_classes, generator=generator, dtype=torch.float64)
    p, _ = torch.linalg.qr(uniform)
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    frame: Tensor = math.sqrt(num_classes / (num_classes - 1)) * p @ centred
    return frame.to(torch.get_default_dtype())


def sparse_etf(etf_DC: Tensor, keep_mask_DC: Tensor, norm: float = 0.1) -> Tensor:
    """Return the frame nearest to equiangular that uses the kept entries only (SSE-C).

    The paper runs 10,000 steps of Adam on the largest cosine of each vector. Here all cosines are fitted to
    -1 / (C - 1) in the least-squares sense by L-BFGS over the directions, with the lengths exact.

    Args:
        etf_DC: [D, C], where to begin.
        keep_mask_DC: [D, C] bool, entries that may differ from 0.
        norm: Length gamma of each vector.

    Returns:
        [D, C] in the dtype of `etf_DC`.

    Raises:
        ValueError: Shapes differ, or a class keeps no entry.
    """
    if keep_mask_DC.shape != etf_DC.shape or keep_mask_DC.dtype != torch.bool:
        raise ValueError(
            f"Expected a bool mask of shape {list(etf_DC.shape)}, found {keep_mask_DC.dtype} of shape "
            f"{list(keep_mask_DC.shape)}."
        )
    bare = (~keep_mask_DC.any(0)).nonzero().flatten().tolist()
    if bare:
        raise ValueError(f"The mask keeps nothing of the classes {bare}: their vectors would be zero.")
    num_classes = etf_DC.shape[1]
    if num_classes < 2:
        raise ValueError("Expected at least two classes: one vector has no angle to another.")
    rows, columns = keep_mask_DC.nonzero(as_tuple=True)
    start = etf_DC.detach().to(torch.float64)[rows, columns]
    lone = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, columns.cpu(), start.abs().cpu()) == 0
    start = torch.where(lone.to(columns.device)[columns], torch.ones_like(start), start)  # nothing to begin from
    free = start.clone().requires_grad_(True)
    target = -1 / (num_classes - 1)
    others = ~torch.eye(num_classes, dtype=torch.bool, device=etf_DC.device)

    def directions() -> Tensor:
        whole = torch.zeros(etf_DC.shape, dtype=torch.float64, device=etf_DC.device)
        whole = whole.index_put((rows, columns), free)
        lengths: Tensor = torch.linalg.norm(whole, dim=0)
        return whole / lengths

    optimizer = eager(torch.optim.LBFGS)(
        [free],
        max_iter=_ITERATIONS,
        max_eval=2 * _ITERATIONS,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        unit = directions()
        loss = ((unit.T @ unit)[others] - target).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        frame: Tensor = (norm * directions()).to(etf_DC.dtype)
    return frame


def cosine_error(weight_CD: Tensor) -> float:
    """Return how far the cosines of the rows of a frame are from -1 / (C - 1), at most."""
    unit = F.normalize(weight_CD.to(torch.float64), dim=1)
    missed = unit @ unit.T + 1 / (len(unit) - 1)
    return float(missed.fill_diagonal_(0).abs().max())


def pack_frame(weight_CD: Tensor) -> dict[str, Tensor]:
    """Return a frame as it travels: its entries that are not 0 and one bit an entry that says where they are.

    Args:
        weight_CD: [C, D].

    Returns:
        `values` [nnz] in the frame's dtype, `mask` [ceil(C D / 8)] uint8, `shape` [2] int32.
    """
    kept = weight_CD != 0
    bits = F.pad(kept.flatten().to(torch.uint8), (0, -kept.numel() % 8)).view(-1, 8)
    powers = 2 ** torch.arange(8, dtype=torch.uint8)
    mask = (bits * powers).sum(1).to(torch.uint8)
    return {"values": weight_CD[kept], "mask": mask, "shape": torch.tensor(kept.shape, dtype=torch.int32)}


def unpack_frame(packed: Mapping[str, Tensor]) -> Tensor:
    """Return the frame [C, D] of `pack_frame`, bit for bit."""
    num_classes, width = packed["shape"].tolist()
    bits = packed["mask"][:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    kept = bits.flatten()[: num_classes * width].bool().view(num_classes, width)
    frame = packed["values"].new_zeros(num_classes, width)
    frame[kept] = packed["values"]
    return frame

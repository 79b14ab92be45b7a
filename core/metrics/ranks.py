"""Retrieval between images and texts, from the ranks of what belongs together.

Legend: N images, M texts, D features.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def retrieval(
    image_ND: Tensor, text_MD: Tensor, image_ids_N: Tensor, text_ids_M: Tensor, chunk: int = 1024
) -> dict[str, float]:
    """Say how well images find their texts and texts their images by cosine.

    An image and a text belong together when their ids are equal; of several that do, the best counts. A rank is
    one more than the number of wrong items that score at least as high, so that equal scores never help.

    Args:
        image_ND: [N, D].
        text_MD: [M, D].
        image_ids_N: [N] int64.
        text_ids_M: [M] int64.
        chunk: Queries at once.

    Returns:
        `i2t_recall@1`, `@5`, `@10` and `t2i_...` in percent, `i2t_median_rank`, `t2i_median_rank`, and `rsum`, the sum
        of the six recalls.

    Raises:
        ValueError: Shapes do not fit, or an item has no partner.
    """
    if image_ND.shape[1:] != text_MD.shape[1:] or len(image_ids_N) != len(image_ND) or len(text_ids_M) != len(text_MD):
        raise ValueError(
            f"Expected images [N, D] and texts [M, D] with an id each, found {list(image_ND.shape)}, "
            f"{list(text_MD.shape)}, {len(image_ids_N)} and {len(text_ids_M)} ids."
        )
    image, text = F.normalize(image_ND, dim=1), F.normalize(text_MD, dim=1)
    measures: dict[str, float] = {}
    ways = {"i2t": (image, text, image_ids_N, text_ids_M), "t2i": (text, image, text_ids_M, image_ids_N)}
    for way, (queries, items, query_ids, item_ids) in ways.items():
        parts = []
        for start in range(0, len(queries), chunk):
            scores = queries[start : start + chunk] @ items.T
            right = query_ids[start : start + chunk, None] == item_ids[None, :]
            if not bool(right.any(1).all()):
                raise ValueError(f"{way}: some items have no partner with their id.")
            best = scores.masked_fill(~right, -math.inf).amax(1, keepdim=True)
            parts.append(1 + (~(scores < best) & ~right).sum(1))  # NaN is worse than anything
        ranks = torch.cat(parts).to(torch.float64)
        for k in (1, 5, 10):
            measures[f"{way}_recall@{k}"] = 100 * float((ranks <= k).double().mean())
        measures[f"{way}_median_rank"] = float(ranks.quantile(0.5))
    measures["rsum"] = sum(value for name, value in measures.items() if "recall@" in name)
    return measures

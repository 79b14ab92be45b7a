"""Texts of equal length in tokens go through a network together, so that nothing is ever padded.

Shapes: B texts, L tokens of a text, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def by_length(tokens: Sequence[Sequence[int]], run: Callable[[Tensor], Tensor], batch: int) -> Tensor:
    """Return the embeddings of token sequences, [B, D] float32.

    Args:
        tokens: B sequences, each at least one token long.
        run: Maps [b, L] int64 to [b, D] float32, b at most `batch`.
        batch: Largest number of sequences at a time.
    """
    lengths = torch.tensor([len(sequence) for sequence in tokens])
    embeddings: Tensor | None = None
    for length in sorted({len(sequence) for sequence in tokens}):
        equal = (lengths == length).nonzero().flatten()
        for start in range(0, len(equal), batch):
            members = equal[start : start + batch]
            rows = run(torch.tensor([tokens[index] for index in members.tolist()]))
            if embeddings is None:
                embeddings = rows.new_empty(len(tokens), rows.shape[1])
            embeddings[members] = rows
    assert embeddings is not None, "no texts"
    return embeddings

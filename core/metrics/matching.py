"""How well two encoders match images and texts: measured on the server, or on a client as counts that can be added.

Legend: N pairs, M distinct texts, D dimension, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from umbel.core.metrics import Predict, retrieval

RECALLS = tuple(f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))
NAME = "retrieval"  # of a client's predictor whose counts are of RECALLS in place of classes


@torch.no_grad()
def match(
    encode_image: Predict, encode_text: Predict, images: Tensor, tokens: Tensor, ids_N: Tensor, batch_size: int = 512
) -> dict[str, float]:
    """Return what `umbel.core.metrics.retrieval` says of pairs of image and text.

    A text that several pairs of one id share (a caption of several drawings) is there once: a wrong text counts once
    in a rank however often it is drawn, and asks once.

    Args:
        encode_image: Maps images [B, ...] to [B, D].
        encode_text: Maps tokens [B, L] to [B, D].
        images: [N, ...], on the encoders' device.
        tokens: [N, L], same device.
        ids_N: [N] int64; pairs of one id are right for one another.
        batch_size: Pairs at once.
    """
    image = torch.cat([encode_image(part) for part in torch.split(images, batch_size)])
    once = distinct_texts(tokens, ids_N).to(tokens.device)
    text = torch.cat([encode_text(part) for part in torch.split(tokens[once], batch_size)])
    ids = ids_N.to(image.device)
    return retrieval(image, text, ids, ids[once.to(ids.device)])


def distinct_texts(tokens: Tensor, ids_N: Tensor) -> Tensor:
    """Return the first pair of each text, [M] int64 ascending: of those that have the same id and the same tokens.

    Args:
        tokens: [N, L].
        ids_N: [N] int64.
    """
    _, text = torch.unique(tokens.cpu(), dim=0, return_inverse=True)
    distinct, member = torch.unique(torch.stack([ids_N.cpu(), text], 1), dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(tokens), dtype=torch.int64)
    return first.scatter_reduce_(0, member, torch.arange(len(tokens)), "amin").sort().values


def as_counts(measured: dict[str, float], num_images: int, num_texts: int) -> Tensor:
    """Return [2, 6]: how many of a client's queries found their partner under each of `RECALLS`, and how many asked.

    Args:
        measured: What `match` says.
        num_images: Images that asked for their text.
        num_texts: Texts that asked for their image: the distinct ones.
    """
    asked = [num_images if name.startswith("i2t") else num_texts for name in RECALLS]
    right = [round(measured[name] / 100 * queries) for name, queries in zip(RECALLS, asked, strict=True)]
    return torch.tensor([right, asked], dtype=torch.float64)


def are_counts(counts: Tensor) -> bool:
    """Say whether counts [2, 6] are of one set of images and of one set of texts, which are no more."""
    images, texts = counts[1].reshape(2, -1)
    return bool((images == images[0]).all() and (texts == texts[0]).all()) and 0 < float(texts[0]) <= float(images[0])


def too_few(counts: Tensor, name: str) -> bool:
    """Say whether a client's counts [2, 6] have so few texts that a recall of `RECALLS` is 100 whatever it learns."""
    return int(counts[1].min()) <= int(name.rpartition("@")[2])


def from_counts(counts: Tensor) -> dict[str, float]:
    """Return the recalls in percent of counts [2, 6], of one client or added over several."""
    recalls = 100 * counts[0] / counts[1]
    return dict(zip(RECALLS, recalls.tolist(), strict=True))

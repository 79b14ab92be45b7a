"""Search among pairs of image and text by a ridge map from one's embeddings to the other's.

Shapes: N examples, D features of an image, T features of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from linear_probe import hold_out, standardiser  # beside this file
from probe_tables import RANK
from torch import Tensor
from torch.nn import functional as F

from umbel.core.rng import generator
from umbel.data.types import DataSet, Examples

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def ridge(images: Tensor, texts: Tensor, strength: float) -> Tensor:
    """Return the map [D, T] that minimises |X M - Y|^2 + strength * N |M|^2, for centred X [N, D] and Y [N, T]."""
    gram = images.T @ images + strength * len(images) * torch.eye(images.shape[1], dtype=images.dtype)
    matrix: Tensor = torch.linalg.solve(gram, images.T @ texts)
    return matrix


def recalls(mapped: Tensor, texts: Tensor, rank: int = RANK) -> tuple[float, float]:
    """Return recall at `rank` from image to text and back, where row n of both, [N, T], is one pair.

    Similarity is the cosine; a tie counts against the pair.
    """
    scores = F.normalize(mapped, dim=1) @ F.normalize(texts, dim=1).T
    own = scores.diagonal()
    to_text = ((scores >= own[:, None]).sum(1) <= rank).double().mean()
    to_image = ((scores >= own[None, :]).sum(0) <= rank).double().mean()
    return float(to_text), float(to_image)


def one_each(examples: Examples, seed: int) -> Tensor:
    """Return one example of each concept and of each caption, in random order: the same words twice fool a search."""
    assert examples.texts is not None
    seen: set[str] = set()
    shown: set[int] = set()
    texts, kept = list(examples.texts), []
    concepts = torch.arange(len(examples)) if examples.concepts is None else examples.concepts
    for number in torch.randperm(len(examples), generator=generator(seed, purpose="probe pairs")).tolist():
        text, concept = texts[number].strip().lower(), int(concepts[number])
        if text not in seen and concept not in shown:
            seen.add(text)
            shown.add(concept)
            kept.append(number)
    return torch.tensor(kept)


def retrieve(images: DataSet, texts: DataSet, draws: Sequence[Tensor], candidates: int) -> dict[str, Any]:
    """Learn a ridge map from image to text embeddings and search among unseen concepts with it.

    Args:
        images: Embeddings [N, D] of the images.
        texts: Embeddings [N, T] of the texts, in the same order.
        draws: Training examples, one tensor a seed.
        candidates: How many unseen concepts there are to find a pair in, at most.
    """
    measured: dict[str, Any] = {"candidates": 0, "chance": 0.0, "to_text": [], "to_image": [], "ridges": []}

    def pair(split: str, index: Tensor) -> tuple[Tensor, Tensor]:
        both = (getattr(source, split).take(index).images.double() for source in (images, texts))
        first, second = both
        return first, second

    for seed, index in enumerate(draws):
        numbered = replace(images.train.take(index), images=index.double()[:, None])
        kept, held = (part.images[:, 0].long() for part in hold_out(numbered, seed))
        held = held[one_each(images.train.take(held), seed)][:candidates]
        x, y = pair("train", kept)
        mean, scale = standardiser(x)
        centre = y.mean(0)
        maps = [ridge((x - mean) / scale, y - centre, strength) for strength in RIDGES]

        def search(split: str, index: Tensor, matrix: Tensor) -> tuple[float, float]:
            first, second = pair(split, index)
            return recalls((first - mean) / scale @ matrix, second - centre)  # noqa: B023 - called in this turn only

        scores = [sum(search("train", held, matrix)) for matrix in maps]
        best = scores.index(max(scores))
        unseen = one_each(images.test, seed)[:candidates]
        to_text, to_image = search("test", unseen, maps[best])
        measured["candidates"], measured["chance"] = len(unseen), min(1.0, RANK / len(unseen))
        measured["to_text"].append(to_text)
        measured["to_image"].append(to_image)
        measured["ridges"].append(RIDGES[best])
    return measured

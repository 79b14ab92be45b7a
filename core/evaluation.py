"""How evaluation travels: counts of each client, collected."""

from __future__ import annotations

import re

import torch

from umbel.core.collecting import Collect
from umbel.core.folds import Product, product
from umbel.core.metrics import matching
from umbel.core.records import MOST_EXAMPLES, BadReplyError, Payload
from umbel.core.tree import Tree

SPLITS = ("validation", "test")
SCORES = "/scores"
_LARGEST = 1e100  # of a loss: sums and squares over clients are still numbers
_NAME = re.compile(r"[A-Za-z0-9_][\w .:+-]{0,63}", re.ASCII)  # of a predictor: it becomes part of a metric's name
_MOST_NAMES = 64  # predictors of a split


class Counts(Collect):
    """Collects for each split and predictor `<split>/<predictor>` [2, C] (correct, total) and `<...>/loss` [].

    C classes; in their place the predictor `umbel.core.metrics.matching.NAME` has the columns of
    `umbel.core.metrics.matching.RECALLS`. A client without examples of a split leaves it out.

    With metrics beyond counts (M of them) there is also `<split>/<predictor>/scores` [2, M]: values, and whether there
    is one.

    Args:
        num_classes: C.
        num_scores: M.
    """

    def __init__(self, num_classes: int, num_scores: int = 0) -> None:
        super().__init__()
        self._num_classes = num_classes
        self._num_scores = num_scores

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        names = [name for name in tree if not name.endswith(("/loss", SCORES))]
        if len(names) > _MOST_NAMES * len(SPLITS):
            raise BadReplyError(f"{what}: {len(names)} counts, of which at most {_MOST_NAMES * len(SPLITS)} are read")
        shapes = {name: tuple(tensor.shape) for name, tensor in tree.items()}
        expected: dict[str, tuple[int, ...]] = {}
        for name in names:
            expected |= {name: (2, self._width(what, name)), f"{name}/loss": ()}
            if self._num_scores and _predictor(name) != matching.NAME:
                expected[f"{name}{SCORES}"] = (2, self._num_scores)
        if shapes != expected or any(tensor.dtype != torch.float64 for tensor in tree.values()):
            raise BadReplyError(
                f"{what}: expected counts [2, C] and a loss of each split, in float64 and with C={self._num_classes} "
                f"({len(matching.RECALLS)} of {matching.NAME}; {self._num_scores} scores), found {shapes}"
            )
        for name in names:
            right, asked = tree[name]
            if not bool(((right >= 0) & (right <= asked) & (asked <= MOST_EXAMPLES)).all()) or not bool(
                (asked > 0).any()
            ):
                raise BadReplyError(
                    f"{what}: the counts of {name!r} should be some examples and at most as many right ones, found "
                    f"{tree[name].tolist()}"
                )
            if _predictor(name) == matching.NAME and not matching.are_counts(tree[name]):
                raise BadReplyError(f"{what}: the counts of {name!r} should be of the same queries for every recall")
            if not 0 <= float(tree[f"{name}/loss"]) <= _LARGEST:
                raise BadReplyError(f"{what}: the loss of {name!r} should not be {float(tree[f'{name}/loss'])}")

    def check_examples(self, what: str, tree: Tree, most: float) -> None:
        for name in (name for name in tree if not name.endswith(("/loss", SCORES))):
            asked = tree[name][1]  # of a retrieval every recall is of the same pairs
            count = float(asked.max() if _predictor(name) == matching.NAME else asked.sum())
            if count > most:
                raise BadReplyError(f"{what}: {name!r} counts {count:,.0f} examples, at most {most:,.0f} can be")

    def _width(self, what: str, name: str) -> int:
        if name.partition("/")[0] not in SPLITS or not _NAME.fullmatch(_predictor(name)):
            raise BadReplyError(f"{what}: expected counts named <split>/<predictor>, found {name!r}")
        return len(matching.RECALLS) if _predictor(name) == matching.NAME else self._num_classes


def _predictor(name: str) -> str:
    return name.partition("/")[2]


def evaluation_fold(num_classes: int, num_scores: int = 0) -> Product:
    """Return how clients' evaluations combine, where there are so many classes and metrics beyond counts."""
    return product({"counts": Counts(num_classes, num_scores)})

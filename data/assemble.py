"""From rows to a data set: a split by what an example shows, and classes that are large enough.

The split is a hash of a key of each row: its title, its caption, its text. So it is the same on every machine, it
does not change when rows come or go, and rows that share a key are never on two sides.

Shapes: N rows, C channels, S pixels on a side.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from umbel.data.errors import DataError
from umbel.data.split import hashed
from umbel.data.texts import Texts
from umbel.data.types import DataSet, Examples, channel_statistics

TEST_FRACTION = 0.2


def plain(text: str) -> str:
    """Return a text as it is compared: single spaces, no capitals, no full stop at the end."""
    return " ".join(unicodedata.normalize("NFKC", text).split()).casefold().rstrip(".! ")


def first_of(keys: Sequence[str]) -> list[int]:
    """Return the row numbers at which a key occurs for the first time, ascending."""
    seen: dict[str, int] = {}
    for row, key in enumerate(keys):
        seen.setdefault(key, row)
    return list(seen.values())


def flag(options: dict[str, Any], name: str) -> bool:
    """Return an option that is true or false.

    Raises:
        DataError: It is something else.
    """
    value = options[name]
    if not isinstance(value, bool):
        raise DataError(f"data.options.{name} must be true or false, found {value!r}.", key=f"data.options.{name}")
    return value


def at_least(options: dict[str, Any], name: str, lowest: int) -> int:
    """Return an option that is a whole number.

    Raises:
        DataError: It is something else, or below `lowest`.
    """
    value = options[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise DataError(
            f"data.options.{name} must be a whole number of at least {lowest}, found {value!r}.",
            key=f"data.options.{name}",
        )
    return value


def data_set(
    name: str,
    *,
    classes: Sequence[str],
    keys: Sequence[str],
    images: NDArray[np.uint8] | None = None,
    rows: Sequence[int] | None = None,
    texts: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    class_order: Sequence[str] | None = None,
    min_examples: int = 1,
    licence: str,
    attribution: str = "",
) -> DataSet:
    """Return the set that rows make.

    Args:
        name: Name of the set; part of what is hashed.
        classes: Name of the class of each row.
        keys: [N] what each row shows; rows with one key are one concept.
        images: [M, C, S, S], or None for texts alone.
        rows: [N] which image each row has; None takes them in order.
        texts: Text of each row.
        domains: Name of the domain of each row.
        class_order: Order of the class names; those that no row has are left out. None sorts them.
        min_examples: Classes with fewer training examples are dropped, at least 1.
        licence: Of the data.
        attribution: Whom the licence asks to name.

    Raises:
        DataError: Nothing is left for a split.
    """
    in_test = np.array([hashed(f"{name}/{key}", TEST_FRACTION) for key in keys], dtype=bool)
    trained = Counter(each for each, test in zip(classes, in_test.tolist(), strict=True) if not test)
    ordered = sorted(trained) if class_order is None else class_order
    label_of = {each: label for label, each in enumerate(c for c in ordered if trained[c] >= max(1, min_examples))}
    labels = np.array([label_of.get(each, -1) for each in classes], dtype=np.int64)
    domain_names = tuple(sorted(set(domains))) if domains is not None else ()
    domain_codes = _codes(domains) if domains is not None else None
    concepts, picture = _codes(keys), np.arange(len(keys)) if rows is None else np.asarray(rows)

    def split(test: bool) -> Examples:
        kept = np.flatnonzero((in_test == test) & (labels >= 0))
        if not len(kept):
            raise DataError(
                f"data.name={name}: no example is left for {'test' if test else 'training'} out of {len(keys)}.",
                key="data.options.min_examples" if min_examples > 1 else "data.name",
                remedy=f"Lower data.options.min_examples={min_examples} where the set has it, or get all of the data.",
            )
        return Examples(
            images=torch.zeros(len(kept), 0) if images is None else torch.from_numpy(images[picture[kept]]),
            labels=torch.from_numpy(labels[kept]),
            domains=None if domain_codes is None else torch.from_numpy(domain_codes[kept]),
            concepts=torch.from_numpy(concepts[kept]),
            texts=None if texts is None else Texts.of(texts[row] for row in kept.tolist()),
        )

    train = split(test=False)
    mean, std = channel_statistics(train.images) if images is not None else ((), ())
    return DataSet(
        name=name,
        train=train,
        test=split(test=True),
        class_names=tuple(label_of),
        domain_names=domain_names,
        mean=mean,
        std=std,
        licence=licence,
        natural_ids=train.domains,  # who made an example is not known better
        attribution=attribution,
    )


def _codes(values: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of each value among the sorted distinct ones, [N]."""
    order = {value: place for place, value in enumerate(sorted(set(values)))}
    return np.array([order[value] for value in values], dtype=np.int64)

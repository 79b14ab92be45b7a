"""The columns of a set of the hub, found by their types or named by options, and what they hold.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from umbel.data.errors import DataError
from umbel.data.split import stratified

_NO_CLASS = "picture"


@dataclass(frozen=True)
class Columns:
    """Which column is which.

    Attributes:
        image: The column of images; "" in a set of texts.
        label: The column of labels; "" in a set of captions without classes.
        names: Names of the classes where the set knows them.
    """

    image: str
    label: str
    names: tuple[str, ...] | None

    @classmethod
    def find(cls, source: str, features: Mapping[str, Any], options: Mapping[str, str]) -> Columns:
        """Find the columns by their types, or by the options that name them.

        Raises:
            DataError: There are none or several of a type, or there is no such column; the message lists them.
        """
        from datasets import ClassLabel, Image

        for option in ("text_column", "caption_column", "image_id_column", "domain_column", "natural_id_column"):
            if options[option]:
                named(source, features, options[option], option)
        image = ""
        if not options["text_column"]:
            image = cls._one(source, features, options["image_column"], "image_column", Image)
            if not isinstance(features[image], Image):
                raise DataError(
                    f"{source}: column {image!r} holds no images.",
                    key="data.options.image_column",
                    remedy="Set data.options.image_column.",
                )
        if options["caption_column"] and not options["label_column"]:
            return cls(image, "", (_NO_CLASS,))
        label = cls._one(source, features, options["label_column"], "label_column", ClassLabel)
        feature = features[label]
        return cls(image, label, tuple(feature.names) if isinstance(feature, ClassLabel) else None)

    @staticmethod
    def _one(source: str, features: Mapping[str, Any], wanted: str, option: str, kind: type) -> str:
        if wanted:
            return named(source, features, wanted, option)
        fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
        if not fitting and option == "label_column" and "label" in features:
            return "label"
        if len(fitting) != 1:
            raise DataError(
                f"{source}: expected one column of type {kind.__name__}, found {fitting or 'none'} among "
                f"{', '.join(features)}.",
                key=f"data.options.{option}",
                remedy=f"Set data.options.{option}.",
            )
        return fitting[0]

    def classes(self, splits: Mapping[str, Any]) -> list[Any]:
        """Return the classes in the order of their labels."""
        if self.names is not None:
            return list(self.names)
        return values(splits, self.label)

    def labels(self, split: Any, classes: Sequence[Any]) -> Tensor:
        """Return the labels of a split, [N] int64; zeros where it has none."""
        if not self.label:
            return torch.zeros(len(split), dtype=torch.int64)
        if self.names is not None:
            return torch.tensor(column(split, self.label), dtype=torch.int64)
        return codes(split, self.label, classes)


def named(source: str, features: Mapping[str, Any], wanted: str, option: str) -> str:
    """Return a column that an option names, or refuse it with those that are there."""
    if wanted not in features:
        known = ", ".join(features)
        raise DataError(
            f"{source} has no column {wanted!r} (data.options.{option}); it has {known}.",
            key=f"data.options.{option}",
        )
    return wanted


def values(splits: Mapping[str, Any], name: str) -> list[Any]:
    """Return the sorted values of a column over all splits; none without a column."""
    # `Dataset.unique` would write all columns, pictures too, of rows that were chosen.
    return sorted({value for split in splits.values() for value in column(split, name)}) if name else []


def column(split: Any, name: str) -> list[Any]:
    """Return a column that holds no pictures, without touching another; row by row takes twenty times as long."""
    entries: list[Any] = split.select_columns([name]).with_format("arrow")[:][name].to_pylist()
    return entries


def codes(split: Any, name: str, known: Sequence[Any]) -> Tensor:
    """Return the position in `known` of each entry of a column, [N] int64."""
    position = {value: index for index, value in enumerate(known)}
    return torch.tensor([position[value] for value in column(split, name)], dtype=torch.int64)


def hold_out(split: Any, groups: Tensor, images: str, fraction: float, seed: int) -> tuple[Any, Any]:
    """Cut a fixed test set off a split, the same for ever.

    Args:
        split: N rows.
        groups: [N] int64; each group gives the same fraction.
        images: Column of image ids, whose rows stay together; "" where each row is its own image.
        fraction: Fraction of the rows, or of the images, to take.
        seed: A constant.

    Returns:
        What is left and what was taken, in the order of the rows.
    """
    if not images:
        rest, taken = stratified(groups, fraction, seed, "hub test")
        return split.select(rest.tolist()), split.select(taken.tolist())
    member = codes(split, images, values({"train": split}, images))
    _, held = stratified(torch.zeros(int(member.max()) + 1, dtype=torch.int64), fraction, seed, "hub test")
    out = torch.isin(member, held)
    return split.select((~out).nonzero().flatten().tolist()), split.select(out.nonzero().flatten().tolist())


@dataclass(frozen=True)
class Pairs:
    """Captions with the row of their image.

    Attributes:
        rows: [N], where the image of each caption is, in ascending order.
        captions: [N].
        images: [N], a number for each image, the same in all splits.
    """

    rows: list[int]
    captions: list[str]
    images: list[int]


class Pairing:
    """Takes captions, each only once over all splits: the same sentence for two images is a false negative.

    Args:
        every: Take all captions of an image, not only the first that is new.
    """

    def __init__(self, every: bool) -> None:
        self._every = every
        self._seen: set[str] = set()
        self._numbers: dict[Hashable, int] = {}

    def take(self, captions: Sequence[Any], ids: Sequence[Hashable] | None = None) -> Pairs:
        """Return the pairs of a split that no split before it had.

        Args:
            captions: One of each row, or a list of them.
            ids: The image id of each row; rows with one id show one image. None makes each row its own image.
        """
        taken = Pairs([], [], [])
        first: dict[Hashable, int] = {}
        used: set[Hashable] = set()
        for row, entry in enumerate(captions):
            # An object is equal to nothing but itself, as an image without an id is.
            key: Hashable = object() if ids is None else ids[row]
            place = first.setdefault(key, row)
            for caption in _strings(entry):
                if key in used and not self._every:
                    break
                plain = " ".join(caption.lower().split())
                if not plain or plain in self._seen:
                    continue
                self._seen.add(plain)
                used.add(key)
                taken.rows.append(place)
                taken.captions.append(caption.strip())
                taken.images.append(self._numbers.setdefault(key, len(self._numbers)))
        order = sorted(range(len(taken.rows)), key=taken.rows.__getitem__)
        return Pairs(
            [taken.rows[index] for index in order],
            [taken.captions[index] for index in order],
            [taken.images[index] for index in order],
        )


def _strings(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif entry is not None:
        yield from (text for text in entry if isinstance(text, str))

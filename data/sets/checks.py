"""What every data set must be, whoever made it: this project, a folder, the hub, or a function of the user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from umbel.data.errors import DataError
from umbel.data.types import DataSet, Examples, channel_statistics

_SHOWN = 3
_FAR = 50.0  # between 0..255 and 0..1 it is 255


def check(data_set: DataSet) -> None:
    """Refuse a set that nothing can be learnt or measured from.

    Raises:
        DataError: A split is empty, there are fewer than two classes, two share a name, or values are not finite.
    """
    name = data_set.name
    for split, examples in (("train", data_set.train), ("test", data_set.test)):
        if not len(examples):
            raise DataError(f"{name}: no example is left for {split}.", key="data.name", remedy="Add some.")
        _check_values(name, split, examples)
    # What has texts may be measured by retrieval, without classes.
    if data_set.num_classes < 2 and data_set.train.texts is None:
        there = f"one ({data_set.class_names[0]})" if data_set.class_names else "none"
        raise DataError(
            f"{name}: expected two classes or more, found {there}.", key="data.name", remedy="Add examples of another."
        )
    twice = [each for each, count in Counter(data_set.class_names).items() if count > 1]
    if twice:
        raise DataError(
            f"{name}: expected a name of its own for each class, found {twice[0]!r} twice.",
            key="data.name",
            remedy="Give the classes other names.",
        )


def check_units(data_set: DataSet) -> None:
    """Refuse a set whose `mean` and `std` are in other units than its pixels, 0..255 and 0..1 say.

    Raises:
        DataError: A channel's deviation is far from what `std` says; a constant channel has none.
    """
    if data_set.train.images.ndim != 4:
        return
    means, deviations = channel_statistics(data_set.train.images)
    for channel, (given, actual) in enumerate(zip(data_set.std, deviations, strict=True)):
        if not given > 0 or not 1 / _FAR < actual / given < _FAR:
            raise DataError(
                f"{data_set.name}: channel {channel} of the training images has mean {means[channel]:.3g} and "
                f"deviation {actual:.3g}, and the set says {data_set.mean[channel]:.3g} and {given:.3g}.",
                key="data.name",
                remedy="Make images uint8 (255 is white) or floating point (1 is white), and mean and std what "
                "umbel.data.types.channel_statistics gives of them.",
            )


def notices(data_set: DataSet) -> tuple[str, ...]:
    """Return what whoever reads the result should know of a set's classes, a sentence each."""
    train, test = (
        torch.bincount(examples.labels, minlength=data_set.num_classes) for examples in (data_set.train, data_set.test)
    )
    return tuple(
        f"{data_set.name}: {len(lacking):,} of {data_set.num_classes:,} classes have no example in {split}: "
        f"{_some(lacking)}."
        for split, counts in (("train", train), ("test", test))
        if (lacking := [data_set.class_names[label] for label in (counts == 0).nonzero().flatten().tolist()])
    )


def _check_values(name: str, split: str, examples: Examples) -> None:
    images = examples.images
    if not images.numel() or images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise DataError(
            f"{name}: expected images of {split} as uint8 or floating point, found {images.dtype}.",
            key="data.name",
            remedy="Make them uint8 (255 is white), or floating point (1 is white).",
        )
    if not torch.isfinite(images).all():
        count = int((~torch.isfinite(images).flatten(1).all(1)).sum())
        raise DataError(
            f"{name}: {count:,} of {len(examples):,} examples of {split} have values that are not finite.",
            key="data.name",
            remedy="Leave them out.",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

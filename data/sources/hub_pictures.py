"""Pictures of a set of the hub, decoded to one size; many of them once for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from umbel.data import pictures
from umbel.data.errors import DamagedDataError, DataError
from umbel.data.sources.cache import Maker, cached

_BATCH = 256
# Fewer are decoded in less than a second.
WORTH_CACHING = 2000
_MEMORY_SHARE = 0.8
_GREY = ("1", "L", "LA", "I", "F")


class Decoder:
    """Decodes pictures of one set to one size, a few at a time.

    Args:
        source: What the messages call the set.
        train: The training rows; the first one decides what the options leave open.
        column: The column of images; "" in a set of texts.
        options: The options of `umbel.data.sources.hub`.

    Attributes:
        size: Pixels on a side; 0 in a set of texts.

    Raises:
        DataError: The first picture is not square, and no size is given.
        DamagedDataError: It cannot be decoded.
    """

    def __init__(self, source: str, train: Any, column: str, options: Mapping[str, str]) -> None:
        self._source, self._column = source, column
        self._form = pictures.Form(0, "L", float(options["white"]))
        if column:
            first = next(self._opened(train.select([0])))
            grey = first.mode in _GREY or first.mode.startswith("I;16")
            self._form = pictures.Form(
                int(options["image_size"]) or _square(first.size, source),
                pictures.mode_of(int(options["in_channels"]) or (1 if grey else 3)),
                self._form.white,
            )

    @property
    def size(self) -> int:
        """Pixels on a side; 0 in a set of texts."""
        return self._form.size

    def check_memory(self, count: int) -> None:
        """Raise `DataError` when `count` pictures do not fit into this machine."""
        needed, there = count * len(self._form.mode) * self.size**2, _memory_bytes()
        if there and needed > _MEMORY_SHARE * there:
            raise DataError(
                f"{self._source}: {count:,} pictures of {self.size} x {self.size} pixels need {needed / 1e9:.1f} GB, "
                f"and this machine has {there / 1e9:.1f} GB.",
                key="data.options.image_size",
                remedy="Lower data.options.image_size, or set data.options.limit to the number of examples to keep.",
            )

    def images(self, split: Any, rows: Sequence[int]) -> Tensor:
        """Return the pictures of `rows`, ascending, [N, C, S, S] uint8, each decoded once; [N, 0] without any."""
        if not self.size:
            return torch.zeros(len(rows), 0)
        if not len(rows):
            return torch.zeros(0, len(self._form.mode), self.size, self.size, dtype=torch.uint8)
        distinct, back = torch.unique(torch.tensor(rows), return_inverse=True)
        whole = len(distinct) == len(split)
        images = self._decoded(split if whole else split.select(distinct.tolist()))
        return images if len(back) == len(distinct) else images[back]

    def _decoded(self, split: Any) -> Tensor:
        """Decode all pictures of a split; many of them once for ever, into the cache."""
        shape = (len(split), len(self._form.mode), self.size, self.size)
        fingerprint = getattr(split, "_fingerprint", None)  # of its files, their commit or age, and the rows
        if len(split) < WORTH_CACHING or not fingerprint:
            images = np.empty(shape, dtype=np.uint8)
            self._fill(split, images)
            return torch.from_numpy(images)
        key = {
            "fingerprint": fingerprint,
            "column": self._column,
            "shape": shape,
            "white": self._form.white,
            "decoding": pictures.DECODING,
            "pillow": PIL.__version__,
        }
        entry = cached("hub", Path(self._source).name, key, lambda maker: self._fill(split, _whole(maker, shape)))
        # A copy: what the cache maps into memory is read-only.
        return torch.from_numpy(np.array(entry["images"]))

    def _fill(self, split: Any, images: NDArray[np.uint8]) -> None:
        for position, picture in enumerate(self._opened(split)):
            try:
                images[position] = self._form.array(picture).transpose(2, 0, 1)
            except DataError as error:
                raise DataError(
                    f"{self._source}: a picture cannot be used: {error.reason}", key=error.key, remedy=error.remedy
                ) from error
            except pictures.UNREADABLE as error:
                raise self._damaged(error) from error

    def _opened(self, split: Any) -> Iterator[Image.Image]:
        """Yield the pictures of a split as their files have them, whatever mode the set would convert them to."""
        import datasets

        raw = split.select_columns([self._column]).cast_column(self._column, datasets.Image(decode=False))
        feature = datasets.Image()
        for batch in raw.iter(batch_size=_BATCH):
            for stored in batch[self._column]:
                try:
                    picture: Image.Image = feature.decode_example(stored)
                except pictures.UNREADABLE as error:
                    raise self._damaged(error) from error
                yield picture

    def _damaged(self, error: BaseException) -> DamagedDataError:
        return DamagedDataError(f"{self._source}: a picture cannot be decoded ({error}).", remedy="Fetch it again.")


def _whole(maker: Maker, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return maker.empty("images", shape, np.uint8)


def _memory_bytes() -> int:
    """Return this machine's memory, 0 where it is not known."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return 0
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE"))


def _square(size: tuple[int, int], source: str) -> int:
    width, height = size
    if width != height:
        raise DataError(
            f"{source}: the first picture has {width} x {height} pixels and is not square.",
            key="data.options.image_size",
            remedy="Set data.options.image_size.",
        )
    return width

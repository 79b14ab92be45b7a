"""A site's examples as a list, before a picture is opened; and pictures to one tensor.

Shapes: N rows, M of them wanted, C channels, S pixels on a side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from umbel.data import pictures
from umbel.data.errors import DamagedDataError, DataError
from umbel.data.pictures import Form

_SHOWN = 3
_GREY = ("1", "L", "LA", "La", "I", "F")


@dataclass(frozen=True)
class Pictures:
    """What pictures came to.

    Attributes:
        images: [M, C, S, S] uint8.
        num_converted: How many were grey and are colour now, or the other way.
        num_paged: How many have several pages, of which the first is read.
        sizes: Smallest and largest width and height as they were, or None of none.
    """

    images: Tensor
    num_converted: int
    num_paged: int
    sizes: tuple[tuple[int, int], tuple[int, int]] | None


Read = Callable[[Sequence[int], Form], Pictures]


@dataclass(frozen=True)
class Rows:
    """A site's examples, one a row.

    Attributes:
        labels: [N] the site's name of the class of each.
        read: Opens the pictures of some rows.
        clients: [N] what the site says of whose each is, or None.
        splits: [N] the site's name of the split of each, or None.
        groups: [N] which belong together in one split, or None.
        notices: What was left out, a sentence each; they may name files, and stay at the site.
        files: Where the pictures are, besides the site's path.
    """

    labels: Sequence[str]
    read: Read
    clients: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    notices: tuple[str, ...] = ()
    files: Sequence[Path] = ()


def decode(opened: Iterator[tuple[str, Callable[[], Image.Image]]], count: int, form: Form) -> Pictures:
    """Read pictures one after the other.

    Args:
        opened: What each is called and what opens it.
        count: M.
        form: What all are made to be.

    Raises:
        DamagedDataError: Some cannot be read; the message counts them and names the first.
        DataError: The values of one do not say what white is.
    """
    images = np.empty((count, form.size, form.size, len(form.mode)), dtype=np.uint8)
    converted, paged, damaged = 0, 0, []
    widths, heights = [], []
    for position, (name, opening) in enumerate(opened):
        try:
            with opening() as picture:
                grey = picture.mode in _GREY or picture.mode.startswith("I;16")
                widths.append(picture.width)
                heights.append(picture.height)
                # A telephone's picture has its own thumbnail behind it.
                several = picture.format != "MPO" and bool(getattr(picture, "is_animated", False))
                images[position] = form.array(picture)
        except DataError as error:
            raise DataError(f"{name}: {error.reason}", key=error.key, remedy=error.remedy) from error
        except pictures.UNREADABLE as error:
            damaged.append(f"{name} ({error})")
            continue
        converted += grey != (len(form.mode) == 1)
        paged += several
    if damaged:
        more = ", ..." if len(damaged) > _SHOWN else ""
        raise DamagedDataError(
            f"{len(damaged):,} of {count:,} pictures cannot be read: {', '.join(damaged[:_SHOWN])}{more}.",
            remedy="Mend the files or remove them.",
        )
    sizes = ((min(widths), min(heights)), (max(widths), max(heights))) if widths else None
    return Pictures(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), converted, paged, sizes)


def of_tensor(images: Tensor) -> Read:
    """Return what reads rows of pictures that are a tensor, [N, C, H, W] uint8."""

    def read(rows: Sequence[int], form: Form) -> Pictures:
        taken = images[torch.tensor(rows, dtype=torch.int64)]
        channels, height, width = images.shape[1:]
        if (channels, height, width) == (len(form.mode), form.size, form.size):
            return Pictures(taken, 0, 0, ((width, height), (width, height)) if len(taken) else None)
        arrays = taken.permute(0, 2, 3, 1).numpy()

        def opening(row: int) -> Callable[[], Image.Image]:
            return lambda: Image.fromarray(arrays[row].squeeze(-1) if channels == 1 else arrays[row])

        return decode(((f"example {rows[row]}", opening(row)) for row in range(len(rows))), len(rows), form)

    return read

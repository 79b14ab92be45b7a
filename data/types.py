"""Examples and data sets: images, texts or embeddings with labels, as whole tensors.

Shapes: N examples, C channels, H height, W width, D features. Images are uint8 in 0..255, or floating point in
units of [0, 1] pixels; `umbel.data.transforms.normalize` takes either. Behind a frozen encoder they are embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from umbel.data.errors import DataError
from umbel.data.texts import Texts

_COLUMNS = ("domains", "tasks", "concepts")


@dataclass(frozen=True)
class Examples:
    """Images with their labels, and where they have them the domain, task, concept and text of each.

    Attributes:
        images: [N, C, H, W], uint8 in 0..255 or floating point in units of [0, 1] pixels; or embeddings [N, D] of
            a frozen encoder, floating point; or [N, 0] where a set has texts and no images.
        labels: [N] int64.
        domains: [N] int64, or None where the set has no domains.
        tasks: [N] int64, or None outside a sequence of tasks.
        concepts: [N] int64, what an example shows: examples of one concept (the same emoji by several vendors, the
            same caption) are never in two splits. None where each example is its own.
        texts: The caption or the text of each example, or None.
        tokens: What a text model reads (`data.text_encoder`): token ids [N, L] int64, 0 after the end, or embeddings
            [N, E] of a frozen encoder, floating point; or None.
    """

    images: Tensor
    labels: Tensor
    domains: Tensor | None = None
    tasks: Tensor | None = None
    concepts: Tensor | None = None
    texts: Texts | None = None
    tokens: Tensor | None = None

    def __post_init__(self) -> None:
        for what in ("images", "labels", *_COLUMNS, "tokens"):
            column = getattr(self, what)
            if not isinstance(column, Tensor) and (column is not None or what in ("images", "labels")):
                raise DataError(
                    f"Expected {what} as a torch.Tensor, found {type(column).__name__}.",
                    remedy="Make one with torch.as_tensor.",
                )
        if self.images.ndim not in (2, 4):
            raise DataError(
                f"Expected images of shape [N, C, H, W] or embeddings [N, D], found {tuple(self.images.shape)}."
            )
        if self.texts is not None and len(self.texts) != self.images.shape[0]:
            raise DataError(f"Expected {self.images.shape[0]} texts, one an example, found {len(self.texts)}.")
        if self.tokens is not None and (self.tokens.ndim != 2 or self.tokens.shape[0] != self.images.shape[0]):
            raise DataError(f"Expected tokens [{self.images.shape[0]}, L], found {tuple(self.tokens.shape)}.")
        for what in ("labels", *_COLUMNS):
            column = getattr(self, what)
            if column is None:
                continue
            if column.dtype != torch.int64 or column.shape != self.images.shape[:1]:
                raise DataError(
                    f"Expected {what} of shape [{self.images.shape[0]}] and dtype int64, "
                    f"found {tuple(column.shape)} and {column.dtype}.",
                    remedy=f"Number {what} from 0, one an example.",
                )

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def take(self, index: Tensor) -> Examples:
        """Return the examples at `index`, int64 [M] or bool [N], in its order.

        The index is moved to where the examples are.
        """
        index = index.to(self.labels.device)
        return Examples(
            images=self.images[index],
            labels=self.labels[index],
            texts=None if self.texts is None else self.texts.take(index),
            tokens=None if self.tokens is None else self.tokens[index],
            **self._each(lambda column: column[index]),
        )

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor | None]:
        """Return the columns that may be missing, changed where they are not."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        return {name: None if column is None else change(column) for name, column in columns.items()}

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Examples:
        """Return the examples on `device`.

        Args:
            device: Where to.
            dtype: Floating dtype of the images; uint8 images are divided by 255 on the way, so that floating
                images stay in units of [0, 1] pixels. None keeps the dtype (uint8 is the smallest to move).
        """
        images = self.images.to(device)
        if dtype is not None and images.dtype != dtype:
            scale = images.dtype == torch.uint8 and dtype.is_floating_point
            images = images.to(dtype).div_(255) if scale else images.to(dtype)
        return Examples(
            images=images,
            labels=self.labels.to(device),
            texts=self.texts,  # of no use to a device; `tokens` are
            tokens=None if self.tokens is None else self.tokens.to(device),
            **self._each(lambda column: column.to(device)),
        )

    def read_tokens(self, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """Return `tokens` on `device`; embeddings in place of tokens in `dtype`.

        Raises:
            DataError: There are none.
        """
        if self.tokens is None:
            raise DataError("These examples have no tokens.", key="data.text_encoder", remedy="Set data.text_encoder.")
        tokens = self.tokens.to(device)
        return tokens.to(dtype) if tokens.is_floating_point() else tokens

    def identities(self) -> Tensor:
        """Return a number for each example, [N] int64, which examples of one concept share."""
        return torch.arange(len(self)) if self.concepts is None else self.concepts

    def with_tasks(self, tasks: Tensor | None) -> Examples:
        """Return the same examples with other task ids, [N] int64."""
        return replace(self, tasks=tasks)


@dataclass(frozen=True)
class DataSet:
    """A training set and a test set that share classes and domains.

    Attributes:
        name: The name it was loaded by.
        train: Training examples; the server's validation and all clients come from here.
        test: Test examples; the server's.
        class_names: Name of each class, in the order of the labels.
        domain_names: Name of each domain; empty where the set has none.
        mean: Mean of each channel over `train`, in units of [0, 1] pixels; empty for what is no image, which is
            then never normalised.
        std: Standard deviation of each channel over `train`, in the same units.
        licence: Under which licence the data are.
        natural_ids: [N of train] int64, who made each training example (a writer, a site), or None.
        attribution: Whom the licence asks to name, a line each; empty where it asks for nobody.
        notices: What whoever reads the result should know, such as what was left out and why, a sentence each.
    """

    name: str
    train: Examples
    test: Examples
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    natural_ids: Tensor | None = None
    attribution: str = ""
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images = self.train.images
        channels, height, width = images.shape[1:] if images.ndim == 4 else (0, 0, 0)
        if height != width:
            raise DataError(
                f"{self.name}: expected square images, found {height} x {width}.",
                key="data.options.image_size",
                remedy="Set data.options.image_size.",
            )
        if self.test.images.shape[1:] != self.train.images.shape[1:]:
            raise DataError(
                f"{self.name}: training images are {tuple(self.train.images.shape[1:])} and test images "
                f"{tuple(self.test.images.shape[1:])}; expected the same [C, H, W]."
            )
        if len(self.mean) != channels or len(self.std) != channels:
            raise DataError(f"{self.name}: expected {channels} means and deviations, found {len(self.mean)}.")
        for split, examples in (("train", self.train), ("test", self.test)):
            self._check_range(split, "label", examples.labels, len(self.class_names))
            if examples.domains is not None:
                self._check_range(split, "domain", examples.domains, len(self.domain_names))
        if (self.train.concepts is None) != (self.test.concepts is None):
            raise DataError(f"{self.name}: expected concepts in train and test, or in neither.")
        if self.train.concepts is not None and self.test.concepts is not None:
            shared = torch.isin(torch.unique(self.test.concepts), torch.unique(self.train.concepts))
            if shared.any():
                raise DataError(f"{self.name}: {int(shared.sum())} concepts are in train and in test.")
        if self.natural_ids is not None and self.natural_ids.shape != self.train.labels.shape:
            raise DataError(f"{self.name}: expected {len(self.train)} natural ids, found {len(self.natural_ids)}.")

    def _check_range(self, split: str, what: str, values: Tensor, limit: int) -> None:
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise DataError(
                f"{self.name}: expected every {what} of {split} in 0..{limit - 1}, "
                f"found {int(values.min())}..{int(values.max())}.",
                remedy=f"Number each {what} from 0, and leave out examples without one.",
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels; 1 for embeddings."""
        return int(self.train.images.shape[-1]) if self.train.images.ndim == 4 else 1

    @property
    def in_channels(self) -> int:
        """Number of channels of an image; D for embeddings."""
        return int(self.train.images.shape[1])


def channel_statistics(images: Tensor, chunk: int = 4096) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in units of [0, 1] pixels.

    A channel that is constant gets the deviation 1, so that nothing is ever divided by zero.

    Args:
        images: [N, C, H, W], uint8 or floating point; N at least 1.
        chunk: Images that are widened to float32 at a time.
    """
    channels = images.shape[1]
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    for block in torch.split(images, chunk):
        flat = block.transpose(0, 1).reshape(channels, -1).to(torch.float32)
        # One float32 sum per image keeps the rounding far below what a deviation needs.
        per_image = flat.view(channels, block.shape[0], -1)
        total += per_image.sum(2).double().sum(1)
        squares += per_image.square().sum(2).double().sum(1)
    count = images.numel() / channels
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6 * scale, std, torch.full_like(std, scale))
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())

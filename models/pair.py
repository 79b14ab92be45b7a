"""Encoders of images and texts into one space of unit vectors, for training by representations.

Legend: B batch, I input channels, H height, W width, L tokens, D dimension of the space, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umbel.models.base import Model
from umbel.models.text import TextEncoder

MODALITIES = ("image", "text")
_START = 15.0  # of the scale and the shift of the soft contrast (PCME)
SHARPNESS = 128.0  # of the classifier, as the authors have it
_MARGIN, _CENTRE = 4.0, 0.5


class Encoders(nn.Module):
    """An encoder of images, one of texts, or both, each followed by a linear map into the space.

    Args:
        image: A model of the zoo; its head is replaced by the map.
        text: An encoder of texts.
        dimension: D.
        num_classes: C, for a classifier on the space; 0 for none.

    Attributes:
        classes: [C, D], weights of the classifier, or None.
        scale: a of the soft contrast, where there are both encoders.
        shift: b of the soft contrast.
    """

    def __init__(
        self,
        image: Model | None,
        text: TextEncoder | None,
        dimension: int,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if image is None and text is None:
            raise ValueError("Expected an encoder of images, of texts, or both, found neither.")
        self.image, self.text = image, text
        if image is not None:
            image.head = nn.Linear(image.num_features, dimension)
        if text is not None:
            self.text_map = nn.Linear(text.num_features, dimension)
        self.classes = nn.Parameter(torch.rand(num_classes, dimension) / dimension**0.5) if num_classes else None
        if image is not None and text is not None:
            self.scale = nn.Parameter(torch.tensor(_START))
            self.shift = nn.Parameter(torch.tensor(_START))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Which of `image` and `text` there are, in this order."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)

    def encode_image(self, images: Tensor) -> Tensor:
        """Return unit vectors [B, D] of images [B, I, H, W], or of embeddings [B, I]."""
        if self.image is None:
            raise ValueError("This client has no encoder of images.")
        return _unit(self.image(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Return unit vectors [B, D] of tokens [B, L]."""
        if self.text is None:
            raise ValueError("This client has no encoder of texts.")
        return _unit(self.text_map(self.text(tokens)))


def _unit(found_BD: Tensor) -> Tensor:
    """Return rows of length 1, in float32 at least: a length in bf16 is off by a quarter of a percent."""
    return F.normalize(found_BD if found_BD.dtype == torch.float64 else found_BD.float(), dim=1)


class Reader(nn.Module):
    """Encoders over tables of images and texts: reads rows by their number, so that any loop over numbers trains them.

    Args:
        encoders: The encoders.
        tables: `image` [N, ...] and `text` [N, L], on the encoders' device; those that the encoders have are read.
        rows: [M] int64, which rows of the tables are numbered 0..M-1 here; None numbers all of them.
        modalities: What is read; None is all that the encoders have. An encoder that is not read gets no gradient, so
            that no optimiser moves it by what it remembers.
    """

    def __init__(
        self,
        encoders: Encoders,
        tables: Mapping[str, Tensor],
        rows: Tensor | None = None,
        modalities: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.encoders = encoders
        self.modalities = encoders.modalities if modalities is None else tuple(modalities)
        self._tables, self._rows = tables, rows

    @property
    def numbers(self) -> Tensor:
        """The numbers that can be read, [M] int64."""
        table = self._tables[self.modalities[0]]
        return torch.arange(len(table if self._rows is None else self._rows), device=table.device)

    def forward(self, numbers_B: Tensor) -> Tensor:
        """Return representations [M, B, D] of the rows, one for each of the M modalities that are read."""
        encode = {"image": self.encoders.encode_image, "text": self.encoders.encode_text}
        rows_B = numbers_B if self._rows is None else self._rows[numbers_B]
        return torch.stack([encode[name](self._tables[name][rows_B]) for name in self.modalities])

    @torch.no_grad()
    def all(self, batch_size: int = 512) -> dict[str, Tensor]:
        """Return the representations [N, D] of all rows by modality, in evaluation mode, without augmentation."""
        self.eval()
        representations = torch.cat([self(part) for part in torch.split(self.numbers, batch_size)], dim=1)
        return dict(zip(self.modalities, representations, strict=True))


def class_logits(unit_BD: Tensor, weight_CD: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Return the logits [B, C] of a classifier of which only the positive part counts, `sharpness` times as large."""
    return sharpness * unit_BD @ weight_CD.relu().T


def soft_contrast(distance_BB: Tensor, same_BB: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return PCME's soft contrast of images and texts, mean over rows of the sum over columns.

    Each pair is one with the probability sigmoid(2 (shift - scale * distance)); the loss is the negative log-likelihood
    of all pairs of a batch.

    Args:
        distance_BB: Euclidean distance of image i and text j.
        same_BB: bool, whether they belong together.
        scale: a.
        shift: b.
    """
    logits = 2 * (shift - scale * distance_BB)
    return F.binary_cross_entropy_with_logits(logits, same_BB.to(logits.dtype), reduction="none").sum(1).mean()


def pair_contrast(image_BD: Tensor, text_BD: Tensor, same_BB: Tensor, temperature: float) -> Tensor:
    """Return InfoNCE of both ways; of several partners in a batch, each gets its share.

    Args:
        image_BD: Unit vectors.
        text_BD: Unit vectors.
        same_BB: bool, whether image i and text j belong together.
        temperature: tau.
    """
    logits = image_BD @ text_BD.T / temperature
    share = same_BB.to(logits.dtype)
    forth = F.cross_entropy(logits, share / share.sum(1, keepdim=True))
    back = F.cross_entropy(logits.T, share.T / share.T.sum(1, keepdim=True))
    return (forth + back) / 2


def margin_loss(unit_BD: Tensor, weight_CD: Tensor, labels_B: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Return the authors' loss of clients of one modality: a margin of 4 on sharp logits, and a centre loss.

    Args:
        unit_BD: Unit vectors.
        weight_CD: Of the classifier; only its positive part counts.
        labels_B: [B] int64.
        sharpness: Of the logits.
    """
    positive = weight_CD.relu()
    logits = class_logits(unit_BD, weight_CD, sharpness)
    margin = _MARGIN * F.one_hot(labels_B, len(weight_CD)).to(logits.dtype)
    centres = F.cross_entropy(positive @ positive.T, torch.arange(len(weight_CD), device=weight_CD.device))
    return F.cross_entropy(logits - margin, labels_B) + _CENTRE * centres

"""How the images of a CLIP model are prepared, as tensor operations: its preprocessor_config.json says how.

Resized, cut to the middle, divided, normalised; in that order, each where the file asks for it.

Shapes: B batch, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from umbel.data.encoders.resize import resize
from umbel.data.errors import DataError

_MODES = {2: "bilinear", 3: "bicubic"}  # the numbers are PIL's
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # where nothing is written


@dataclass(frozen=True)
class Preprocess:
    """Maps uint8 [B, 3, H, W] to what the model takes, float32 [B, 3, S, S].

    Attributes:
        shortest: Side in pixels that the shorter side is resized to; 0 where `exact` says both.
        exact: Height and width to resize to, or None.
        crop: Height and width of the middle to keep, or None.
        mode: bilinear or bicubic.
        factor: What pixels are multiplied by.
        mean: Subtracted from each channel.
        std: Each channel is divided by it.
    """

    shortest: int
    exact: tuple[int, int] | None
    crop: tuple[int, int] | None
    mode: str
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any], side: int) -> Preprocess:
        """Read the settings.

        Args:
            settings: The content of preprocessor_config.json.
            side: S, the size of the model's images; used where a setting is not written down.

        Raises:
            DataError: A setting that is not understood, or images of another size than the model's.
        """
        size = settings.get("size", {"shortest_edge": side})
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
        shortest, exact = int(size.get("shortest_edge", 0)), _pair(size)
        if not settings.get("do_resize", True):
            shortest, exact = 0, None
        elif bool(shortest) == (exact is not None):
            raise DataError(
                f"preprocessor_config.json: expected size with shortest_edge, or height and width; {size}.",
                key="data.encoder",
            )
        crop = settings.get("crop_size", side)
        crop = (crop, crop) if isinstance(crop, int) else _pair(dict(crop))
        crop = crop if settings.get("do_center_crop", True) else None
        resample = settings.get("resample", 3)
        if resample not in _MODES:
            raise DataError(
                f"preprocessor_config.json: expected resample to be 2 or 3, found {resample!r}.", key="data.encoder"
            )
        result = crop or exact
        if result is not None and result != (side, side):
            raise DataError(
                f"preprocessor_config.json makes images of {result[0]} x {result[1]} pixels, and config.json says that "
                f"the model takes {side} x {side}. They are not of one model.",
                key="data.encoder",
            )
        normalises = settings.get("do_normalize", True)
        return cls(
            shortest,
            exact,
            crop,
            _MODES[resample],
            float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
            tuple(settings.get("image_mean", _MEAN)) if normalises else (0.0,) * 3,
            tuple(settings.get("image_std", _STD)) if normalises else (1.0,) * 3,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare a batch.

        Raises:
            DataError: The images are smaller than what is to be cut out of them.
        """
        x, (height, width) = images.float(), images.shape[-2:]
        if self.shortest:
            short = min(height, width)
            height, width = (int(self.shortest * side / short) for side in (height, width))
        elif self.exact is not None:
            height, width = self.exact
        # Rounded after each pass, as PIL does: these models were trained on pictures that were resized as bytes.
        x = resize(x, x.shape[-2], width, self.mode).round().clamp(0, 255)
        x = resize(x, height, width, self.mode).round().clamp(0, 255)
        if self.crop is not None:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            if top < 0 or left < 0:
                raise DataError(
                    f"The CLIP model cuts {self.crop[0]} x {self.crop[1]} pixels out of images that are {height} x "
                    f"{width}.",
                    key="data.options.image_size",
                    remedy="preprocessor_config.json must resize them to more, or data.options.image_size be larger.",
                )
            x = x[..., top : top + self.crop[0], left : left + self.crop[1]]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (x * self.factor - mean) / std


def _pair(size: Mapping[str, int]) -> tuple[int, int] | None:
    return (int(size["height"]), int(size["width"])) if "height" in size and "width" in size else None

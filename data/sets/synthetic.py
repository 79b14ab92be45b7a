"""`synthetic`: class prototypes plus Gaussian noise, any size, made from the seed; nothing is downloaded.

x = 1/2 + 1/4 (prototype of its class + noise * standard normal), in units of [0, 1] pixels and not clipped.
A prototype is standard normal and smooth over a few pixels, so that convolutions have something to see.

With `attributes` A, each example has about half of A attributes: the pattern of each is added to its image and its name
stands in its caption, so that images and captions can be matched beyond their class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.core.rng import generator
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.texts import Texts
from umbel.data.types import DataSet, Examples, channel_statistics

DESCRIPTION = "class prototypes plus Gaussian noise, any size, made from the seed"
OPTIONS: dict[str, Any] = {
    "num_examples": 6400,
    "num_test": 1000,
    "num_classes": 10,
    "image_size": 28,
    "in_channels": 1,
    "noise": 0.5,
    "num_domains": 0,
    "attributes": 0,
}


def check(config: DataConfig) -> None:
    """Raise `DataError` for a size that is no size."""
    options = OPTIONS | config.options
    for name in ("num_examples", "num_test", "num_classes", "image_size", "in_channels"):
        value = options[name]
        if not isinstance(value, int) or value < 1:
            raise DataError(
                f"data.options.{name} must be a whole number of at least 1, found {value!r}.",
                key=f"data.options.{name}",
            )
    noise = options["noise"]
    if not isinstance(noise, (int, float)) or noise < 0:
        raise DataError(
            f"data.options.noise must be a number of at least 0, found {noise!r}.", key="data.options.noise"
        )
    for name in ("num_domains", "attributes"):
        value = options[name]
        if not isinstance(value, int) or value < 0:
            raise DataError(
                f"data.options.{name} must be a whole number of at least 0, found {value!r}.",
                key=f"data.options.{name}",
            )


def load(config: DataConfig, seed: int) -> DataSet:
    """Make the set; with `num_domains` D, example i is of domain i mod D, whose offset is added to it."""
    check(config)
    options = OPTIONS | config.options
    num_classes, num_domains = int(options["num_classes"]), int(options["num_domains"])
    size, channels, noise = (
        int(options["image_size"]),
        int(options["in_channels"]),
        options["noise"],
    )
    prototypes = _smooth(num_classes, channels, size, seed, "prototypes")
    offsets = _smooth(num_domains, channels, size, seed, "domains") if num_domains else None
    num_attributes = int(options["attributes"])
    patterns = _smooth(num_attributes, channels, size, seed, "attributes") if num_attributes else None

    def make(count: int, purpose: str) -> Examples:
        random = generator(seed, purpose=f"synthetic {purpose}")
        # Balanced classes in random order; domains by turns.
        labels = (torch.arange(count) % num_classes)[torch.randperm(count, generator=random)]
        images = torch.randn(count, channels, size, size, generator=random).mul_(noise)
        images += prototypes[labels]
        domains = None
        if offsets is not None:
            domains = torch.arange(count) % num_domains
            images += offsets[domains]
        texts = None
        if patterns is not None:
            has = torch.rand(count, num_attributes, generator=random) < 0.5
            images += torch.einsum("na,achw->nchw", has.float(), patterns)
            texts = Texts.of(_caption(*each) for each in zip(labels.tolist(), has.tolist(), strict=True))
        return Examples(images.mul_(0.25).add_(0.5), labels, domains, texts=texts)

    train = make(int(options["num_examples"]), "train")
    mean, std = channel_statistics(train.images)
    return DataSet(
        name="synthetic",
        train=train,
        test=make(int(options["num_test"]), "test"),
        class_names=tuple(f"class {index}" for index in range(num_classes)),
        domain_names=tuple(f"domain {index}" for index in range(num_domains)),
        mean=mean,
        std=std,
        licence="none needed: made from random numbers",
        natural_ids=train.domains,
    )


def _caption(label: int, has: list[bool]) -> str:
    return " ".join([f"class{label}", *(f"attribute{number}" for number, held in enumerate(has) if held)])


def _smooth(count: int, channels: int, size: int, seed: int, purpose: str) -> Tensor:
    """Return [count, channels, size, size] standard normal images that are smooth over about four pixels."""
    coarse = max(2, size // 4)
    random = generator(seed, purpose=f"synthetic {purpose}")
    small = torch.randn(count, channels, coarse, coarse, generator=random)
    images = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False)
    centred = images - images.mean(dim=(1, 2, 3), keepdim=True)
    return centred / centred.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)

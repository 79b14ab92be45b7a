"""Normalisation, augmentation, and permuted pixels."""

from __future__ import annotations

import pytest
import torch

from umbel import data
from umbel.core.names import UnknownNameError
from umbel.core.rng import generator

torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normalize(dtype: torch.dtype) -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), generator=generator(1), dtype=torch.uint8)
    mean, std = (0.2, 0.5, 0.7), (0.1, 0.2, 0.4)
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1).double()) / torch.tensor(std).view(3, 1, 1)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    for given in (images, images.float() / 255):
        normalized = data.normalize(given, mean, std, dtype)
        assert normalized.dtype == dtype
        assert torch.allclose(normalized.double(), expected.double(), atol=tolerance)


def test_augmentations_are_named() -> None:
    assert data.augmentations() == ("none", "flip", "crop", "flip_crop")
    with pytest.raises(UnknownNameError, match=r"\(key data\.augment\)"):
        data.augment(torch.zeros(1, 1, 4, 4), "rotate", generator(0))


@pytest.mark.parametrize("kind", data.augmentations())
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augment_keeps_shape_and_input_and_follows_its_generator(kind: str, dtype: torch.dtype) -> None:
    images = torch.randint(1, 256, (64, 2, 16, 16), generator=generator(2), dtype=torch.uint8).to(dtype)
    before = images.clone()
    augmented = data.augment(images, kind, generator(3))
    assert augmented.shape == images.shape and augmented.dtype == dtype and torch.equal(images, before)
    assert torch.equal(augmented, data.augment(images, kind, generator(3)))
    assert torch.equal(augmented, data.augment(images, kind, generator(4))) == (kind == "none")


def test_flip_is_by_sample() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    augmented = data.augment(image.repeat(400, 1, 1, 1), "flip", generator(5))
    straight = (augmented == image).flatten(1).all(1)
    mirrored = (augmented == image.flip(-1)).flatten(1).all(1)
    assert bool((straight ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_crop_is_by_sample_and_every_shift_occurs() -> None:
    size, pad = 16, 2
    image = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
    augmented = data.augment(image.repeat(600, 1, 1, 1), "crop", generator(6))
    padded = torch.nn.functional.pad(image, (pad,) * 4)
    seen: set[tuple[int, int]] = set()
    for sample in augmented:
        shifts = [
            (top, left)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            if torch.equal(sample, padded[0, :, top : top + size, left : left + size])
        ]
        assert len(shifts) == 1, "not a shift with zeros from outside"
        seen.update(shifts)
    assert len(seen) == (2 * pad + 1) ** 2


def test_permute_pixels() -> None:
    images = torch.randn(3, 2, 6, 6, generator=generator(7))
    assert torch.equal(data.permute_pixels(images, 0, seed=1), images)
    first, second = data.permute_pixels(images, 1, seed=1), data.permute_pixels(images, 2, seed=1)
    assert torch.equal(data.permute_pixels(images, 1, seed=1), first)
    assert not torch.equal(first, second) and not torch.equal(data.permute_pixels(images, 1, seed=2), first)
    assert torch.equal(first.flatten(2).sort(2).values, images.flatten(2).sort(2).values)
    # All images and channels in the same order.
    assert torch.equal(data.permute_pixels(images[1:, 1:], 1, seed=1), first[1:, 1:])

"""The sets that need no files: digits and synthetic."""

from __future__ import annotations

import torch

from umbel import data
from umbel.data.config import DataConfig

torch.set_num_threads(1)


def test_digits() -> None:
    loaded = data.load(DataConfig(), 0)
    assert (len(loaded.train), len(loaded.test)) == (1438, 359)
    assert loaded.train.images.shape == (1438, 1, 8, 8) and loaded.train.images.dtype == torch.uint8
    assert int(loaded.train.images.max()) == 255
    assert (loaded.num_classes, loaded.image_size, loaded.in_channels) == (10, 8, 1)
    share = torch.bincount(loaded.test.labels) / torch.bincount(torch.cat([loaded.train.labels, loaded.test.labels]))
    assert float((share - 0.2).abs().max()) < 0.01
    assert torch.equal(data.load(DataConfig(), 9).test.images, loaded.test.images)  # one test set for ever


def test_synthetic_follows_its_seed_and_can_be_learnt() -> None:
    config = DataConfig(name="synthetic", options={"image_size": 8})
    data_set, again, other = (data.load(config, seed) for seed in (0, 0, 1))
    assert torch.equal(data_set.train.images, again.train.images)
    assert not torch.equal(data_set.train.images, other.train.images)
    assert torch.bincount(data_set.train.labels).tolist() == [640] * 10
    flat = data_set.train.images.flatten(1)
    means = torch.stack([flat[data_set.train.labels == label].mean(0) for label in range(10)])
    guess = torch.cdist(data_set.test.images.flatten(1), means).argmin(1)
    assert float((guess == data_set.test.labels).float().mean()) > 0.95
    noisy = data.load(DataConfig(name="synthetic", options={"image_size": 8, "noise": 20.0}), 0)
    flat = noisy.train.images.flatten(1)
    means = torch.stack([flat[noisy.train.labels == label].mean(0) for label in range(10)])
    guess = torch.cdist(noisy.test.images.flatten(1), means).argmin(1)
    assert float((guess == noisy.test.labels).float().mean()) < 0.5


def test_synthetic_at_its_defaults() -> None:
    assert data.load(DataConfig(name="synthetic"), 0).train.images.shape == (6400, 1, 28, 28)

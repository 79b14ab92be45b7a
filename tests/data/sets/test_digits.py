"""The digits that scikit-learn carries, read from its file."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from umbel.data.config import DataConfig
from umbel.data.sets import digits


def test_they_are_those_of_scikit_learn() -> None:
    source, data = load_digits(), digits.load(DataConfig(), 0)
    pixels = torch.cat([data.train.images, data.test.images])
    labels = torch.cat([data.train.labels, data.test.labels])
    theirs = torch.from_numpy(source.images).mul(255 / 16).round().to(torch.uint8).flatten(1)
    ours = torch.cat([labels[:, None].to(torch.uint8), pixels.flatten(1)], 1)
    known = torch.cat([torch.from_numpy(source.target)[:, None].to(torch.uint8), theirs], 1)
    assert sorted(ours.tolist()) == sorted(known.tolist())
    assert (len(data.train), len(data.test)) == (1438, 359)

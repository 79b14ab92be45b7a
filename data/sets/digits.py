"""`digits`: the 1,797 handwritten digits that scikit-learn carries; nothing is downloaded.

8 x 8 grey, 10 classes, 0..16 in the source and 0..255 here. A fifth of each class is the test set, always the
same one, whatever the seed of a run.
"""

from __future__ import annotations

from typing import Any

import torch

from umbel.data.config import DataConfig
from umbel.data.split import stratified
from umbel.data.types import DataSet, Examples, channel_statistics

DESCRIPTION = "1,797 handwritten digits, 8 x 8 grey, 10 classes; bundled in scikit-learn"
OPTIONS: dict[str, Any] = {}

_SPLIT_SEED = 20_240_101
_TEST_FRACTION = 0.2


def check(_config: DataConfig) -> None:
    """Nothing can be missing: scikit-learn is a dependency."""


def load(_config: DataConfig, _seed: int) -> DataSet:
    """Return the set; the seed changes nothing in it."""
    from sklearn.datasets import load_digits  # here: 1.5 s that other sets do without

    source = load_digits()
    images = torch.from_numpy(source.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    everything = Examples(images, torch.from_numpy(source.target).long())
    train_index, test_index = stratified(everything.labels, _TEST_FRACTION, _SPLIT_SEED, "digits test")
    train = everything.take(train_index)
    mean, std = channel_statistics(train.images)
    return DataSet(
        name="digits",
        train=train,
        test=everything.take(test_index),
        class_names=tuple(str(digit) for digit in range(10)),
        domain_names=(),
        mean=mean,
        std=std,
        licence="BSD-3-Clause (scikit-learn); UCI Optical Recognition of Handwritten Digits, CC BY 4.0",
        attribution="E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository",
    )

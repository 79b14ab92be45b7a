"""`digits`: the 1,797 handwritten digits that scikit-learn carries; nothing is downloaded.

8 x 8 grey, 10 classes, 0..16 in the source and 0..255 here. A fifth of each class is the test set, always the
same one, whatever the seed of a run.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umbel.data.config import DataConfig
from umbel.data.split import stratified
from umbel.data.types import DataSet, Examples, channel_statistics

DESCRIPTION = "1,797 handwritten digits, 8 x 8 grey, 10 classes; bundled in scikit-learn"
OPTIONS: dict[str, Any] = {}

_SPLIT_SEED = 20_240_101
_TEST_FRACTION = 0.2


def check(_config: DataConfig) -> None:
    """Nothing can be missing: scikit-learn is a dependency."""


def _read() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's pixels [N, 1, 8, 8] and labels [N], float64, without importing it."""
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = torch.from_numpy(np.loadtxt(file, delimiter=","))
    return table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1]


def load(_config: DataConfig, _seed: int) -> DataSet:
    """Return the set; the seed changes nothing in it."""
    pixels, labels = _read()
    everything = Examples(pixels.mul(255 / 16).round().to(torch.uint8), labels.long())
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

"""What these data are: little pictures of bars, upright or across."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from umbel.data import DataConfig, DataSet
from umbel.data.assemble import data_set


def rows() -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """Return images [N, C, S, S], and for each the name of its class and a key that no other has.

    Read your own here: from files, a table, a database. It has to be the same in every process and on every machine.
    """
    noise = np.random.default_rng(0)
    images, classes = [], []
    for number in range(240):
        picture = noise.integers(0, 100, (8, 8))
        place = noise.integers(0, 8)
        across = number % 2 == 0
        picture[place if across else slice(None), slice(None) if across else place] = 255
        images.append(picture[None].astype(np.uint8))
        classes.append("across" if across else "upright")
    return np.stack(images), classes, [f"bar {number}" for number in range(len(classes))]


def load(config: DataConfig, seed: int) -> DataSet:
    """Return the data; a fifth, chosen by the keys, is the server's test set.

    Args:
        config: The section `data`: `config.path` and `config.options` are for you.
        seed: The seed of the data, for what is drawn.
    """
    images, classes, keys = rows()
    return data_set("bars", classes=classes, keys=keys, images=images, licence="")

"""`sites`: each site has its own examples, and the server none; they are opened by `umbel.conf.federation`."""

from __future__ import annotations

from typing import Any, Never

from umbel.data.config import DataConfig
from umbel.data.errors import DataError

NAME = "sites"
DESCRIPTION = "each site its own pictures; needs data.classes, data.image_size and data.channels"
OPTIONS: dict[str, Any] = {}


def check(config: DataConfig) -> None:
    """Accept: what the experiment says is checked with it, and the data lie elsewhere."""


def load(config: DataConfig, _seed: int) -> Never:
    """Refuse: there is no set that holds all of it.

    Raises:
        DataError: Always.
    """
    raise DataError(
        "data.name=sites: the examples lie at the sites, and there is no one set of them.",
        key="data.name",
        remedy="Name a set that is here, such as data.name=image_folder data.path=FOLDER.",
    )

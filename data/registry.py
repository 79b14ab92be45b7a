"""Data sets by name: an explicit table, each module imported when its set is first asked for.

A module of a set has `DESCRIPTION`, `OPTIONS` (name -> default), `check(config)` and `load(config, seed)`; if more
than `load` is needed to get the set onto this machine, also `fetch(config, say)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from core.names import unknown
from data.config import DataConfig
from data.errors import DataError
from data.types import DataSet

HUB = "hub:<owner/name>"

# name -> module, or module:object, with the attributes above
_TABLE: Mapping[str, str] = {
    "ag_news": "data.papers:AG_NEWS",
    "cifar10": "data.papers:CIFAR10",
    "cifar100": "data.papers:CIFAR100",
    "coco_captions": "data.papers:COCO_CAPTIONS",
    "digits": "data.digits",
    "digits4": "data.papers:DIGITS4",
    "digits_domains": "data.digits_domains",
    "emoji_domains": "data.emoji_domains",
    "emoji_pairs": "data.emoji_pairs",
    "fashion_mnist": "data.fashion_mnist",
    "flickr30k": "data.papers:FLICKR30K",
    HUB: "data.hub",
    "image_folder": "data.image_folder",
    "imagenet_lt": "data.papers:IMAGENET_LT",
    "inaturalist": "data.papers:INATURALIST",
    "mnist": "data.mnist",
    "movie_reviews": "data.movie_reviews",
    "office_caltech": "data.papers:OFFICE_CALTECH",
    "office_home": "data.papers:OFFICE_HOME",
    "openclipart": "data.openclipart",
    "openclipart_pairs": "data.openclipart_pairs",
    "pacs": "data.papers:PACS",
    "stamps": "data.stamps",
    "synthetic": "data.synthetic",
    "tiny_imagenet": "data.papers:TINY_IMAGENET",
    "wordnet_glosses": "data.wordnet_glosses",
}


def names() -> tuple[str, ...]:
    """Return the names that `data.name` takes; `hub:<owner/name>` stands for any set of the hub."""
    return tuple(_TABLE)


def describe(name: str) -> str:
    """Return one line about a data set."""
    if _is_path(name):
        return f"a function of yours: {name}"
    return str(_module(name).DESCRIPTION)


def options(name: str) -> dict[str, Any]:
    """Return what `data.options` takes for a data set: name -> default."""
    return {} if _is_path(name) else dict(_module(name).OPTIONS)


def check(config: DataConfig) -> None:
    """Raise before anything starts when the set cannot be loaded.

    Raises:
        UnknownNameError: The set, or one of its options, is in no table.
        MissingDataError: The set is not on this machine; the message says how to get it.
        DataError: An option has a value that it cannot have.
    """
    if _is_path(config.name):
        _function(config.name)
        return
    check_options(config)
    _module(config.name).check(config)


def check_options(config: DataConfig) -> None:
    """Raise `UnknownNameError` for an option that the set does not have; the data are not looked for."""
    known = options(config.name)
    for option in [] if _is_path(config.name) else config.options:
        if option not in known:
            raise unknown(f"option of data set {config.name}", option, known, key=f"data.options.{option}")


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Get a set onto this machine, where that is possible without the user's password.

    Args:
        config: Which set, and its options.
        say: Told what is being done, a line at a time.

    Raises:
        MissingDataError: Something has to be installed first; the message gives the exact command.
    """
    module = None if _is_path(config.name) else _module(config.name)
    if hasattr(module, "fetch"):
        module.fetch(config, say)  # type: ignore[union-attr]


def load(config: DataConfig, seed: int) -> DataSet:
    """Load the data set that a configuration names.

    Args:
        config: Which set, where it is, and its options.
        seed: The seed of the data, for sets that are made from one.
    """
    check(config)
    function = _function(config.name) if _is_path(config.name) else _module(config.name).load
    found = function(config, seed)
    if not isinstance(found, DataSet):
        raise DataError(f"data.name={config.name}: expected a data.DataSet, found {type(found).__name__}.")
    return found


def _is_path(name: str) -> bool:
    """Say whether a name is `package.module:function`."""
    return ":" in name and not name.startswith("hub:")


def _module(name: str) -> Any:
    if name.startswith("hub:"):
        name = HUB
    if name not in _TABLE:
        raise unknown("data set", name, _TABLE, key="data.name")
    path, _, attribute = _TABLE[name].partition(":")
    module = importlib.import_module(path)
    return getattr(module, attribute) if attribute else module


def _function(path: str) -> Callable[[DataConfig, int], DataSet]:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise DataError(
            f"data.name={path}: module {error.name!r} is not installed. On a real federation it must be "
            f"installed on every node."
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise DataError(f"data.name={path}: {module_name} has no function {attribute!r}.")
    return cast(Callable[[DataConfig, int], DataSet], function)

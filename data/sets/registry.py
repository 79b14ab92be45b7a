"""Data sets by name: an explicit table, each module imported when its set is first asked for.

A module of a set has `DESCRIPTION`, `OPTIONS` (name -> default), `check(config)` and `load(config, seed)`; if more
than `load` is needed to get the set onto this machine, also `fetch(config, say)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from umbel.core.names import unknown
from umbel.core.outside import find, guarded
from umbel.core.refusal import Refusal
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.sets import checks
from umbel.data.types import DataSet

HUB = "hub:<owner/name>"

# name -> module, or module:object, with the attributes above
_TABLE: Mapping[str, str] = {
    "ag_news": "umbel.data.sets.papers:AG_NEWS",
    "cifar10": "umbel.data.sets.papers:CIFAR10",
    "cifar100": "umbel.data.sets.papers:CIFAR100",
    "coco_captions": "umbel.data.sets.papers:COCO_CAPTIONS",
    "digits": "umbel.data.sets.digits",
    "digits4": "umbel.data.sets.papers:DIGITS4",
    "digits_domains": "umbel.data.sets.digits_domains",
    "emoji_domains": "umbel.data.sets.emoji.domains",
    "emoji_pairs": "umbel.data.sets.emoji.pairs",
    "fashion_mnist": "umbel.data.sets.fashion_mnist",
    "flickr30k": "umbel.data.sets.papers:FLICKR30K",
    HUB: "umbel.data.sources.hub",
    "image_folder": "umbel.data.sets.image_folder",
    "imagenet_lt": "umbel.data.sets.papers:IMAGENET_LT",
    "inaturalist": "umbel.data.sets.papers:INATURALIST",
    "mnist": "umbel.data.sets.mnist",
    "movie_reviews": "umbel.data.sets.movie_reviews",
    "office_caltech": "umbel.data.sets.papers:OFFICE_CALTECH",
    "office_home": "umbel.data.sets.papers:OFFICE_HOME",
    "openclipart": "umbel.data.sets.openclipart",
    "openclipart_pairs": "umbel.data.sets.openclipart_pairs",
    "pacs": "umbel.data.sets.papers:PACS",
    "sites": "umbel.data.sites.named",
    "stamps": "umbel.data.sets.stamps",
    "synthetic": "umbel.data.sets.synthetic",
    "tiny_imagenet": "umbel.data.sets.papers:TINY_IMAGENET",
    "wordnet_glosses": "umbel.data.sets.wordnet_glosses",
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

    Raises:
        DataError: The set cannot be loaded, or is none that can be learnt from.
    """
    check(config)
    loaded = _called(config, seed) if _is_path(config.name) else _module(config.name).load(config, seed)
    checks.check(loaded)
    if _is_path(config.name):
        checks.check_units(loaded)
    # What others made may lack a class; what is made here says so on its page.
    foreign = _is_path(config.name) or config.name.startswith("hub:") or config.name == "image_folder"
    return replace(loaded, notices=(*loaded.notices, *checks.notices(loaded))) if foreign else loaded


def _called(config: DataConfig, seed: int) -> DataSet:
    """Return what a function of the user's own makes.

    Raises:
        DataError: It raises something, or returns something else than a data set.
    """
    function = _function(config.name)
    try:
        with guarded("the function raised", "data.name", "Mend the function."):
            loaded = function(config, seed)
    except Refusal as error:
        raise DataError(
            f"data.name={config.name}: {error.reason}", key=error.key or "data.name", remedy=error.remedy
        ) from error
    if not isinstance(loaded, DataSet):
        raise DataError(
            f"data.name={config.name}: expected a data.DataSet, found {type(loaded).__name__}.",
            key="data.name",
            remedy="Let the function return one.",
        )
    return loaded


def module_of(name: str) -> str | None:
    """Return the module that the table has for a data set; None for a name that it does not have."""
    name = HUB if name.startswith("hub:") else name
    return _TABLE[name].partition(":")[0] if name in _TABLE else None


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
    try:
        function = find(path, "data function", "data.name")
    except Refusal as error:
        raise DataError(error.reason, key=error.key, remedy=error.remedy) from error
    if not callable(function):
        raise DataError(f"data.name={path} is no function.", key="data.name", remedy="Name one of (config, seed).")
    return cast(Callable[[DataConfig, int], DataSet], function)

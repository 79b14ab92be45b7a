"""Which code a run was made with: hashes of what it used of umbel and of a user's modules, to tell when one changed.

Comments and the places of lines are no part of it. A strategy, model, data set, encoder or operator counts for the runs
that use it; the rest of umbel that decides about numbers, for all; engines give the same bits, and reports only read.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import umbel
from umbel.conf.schema import Experiment
from umbel.core.code import Modules, hash_of
from umbel.data.encoders import registry as encoders
from umbel.data.sets import registry as data_sets
from umbel.models import registry as models
from umbel.models.operators import registry as operators
from umbel.strategies import registry as strategies

_ALWAYS = ("umbel.server.main", "umbel.client.worker")  # what all runs go through, with all that these import
_TABLES = (strategies.module_of, models.module_of, operators.module_of, data_sets.module_of, encoders.module_of)
_VERSIONS = ("torch", "numpy", "scikit-learn")
_OWN = re.compile(r"([A-Za-z_][\w.]*):\w+")  # package.module:name


def sources(experiment: Experiment) -> dict[str, str]:
    """Return what a run's code is.

    Returns:
        The SHA-256 of what all runs use of umbel (`umbel`), of each module of umbel that this one uses beyond it, with
        what that imports, and of each module that the experiment names, by its name; and versions of what computes. A
        module of a user's that lies in a package stands for all of that package.
    """
    common = _needed(_ALWAYS)
    found = {"umbel": _hash(common)}
    for module in sorted(_used(experiment) - common.keys()):
        found[module] = _hash({name: path for name, path in _needed((module,)).items() if name not in common})
    own = {name: hash_of(files) for name in _own_modules(experiment) if (files := _module_files(name))}
    return found | own | _versions()


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of what is not the same in two answers of `sources`."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _used(experiment: Experiment) -> set[str]:
    """Return the modules of umbel's tables that an experiment names, anywhere in it."""
    words = set(_words(dataclasses.asdict(experiment)))
    return {module for word in words for find in _TABLES if (module := find(word)) is not None}


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _words(key)
            yield from _words(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _words(each)


@cache
def _modules() -> Modules:
    roots = [Path(root) for root in umbel.__path__]
    return Modules("umbel", next(root for root in roots if (root / "core").is_dir()))


@cache
def _needed(roots: tuple[str, ...]) -> dict[str, Path]:
    return _modules().needed(roots)


def _hash(modules: Mapping[str, Path]) -> str:
    return hash_of(modules.values())


@cache
def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: metadata.version(name) for name in _VERSIONS}}


def _own_modules(experiment: Experiment) -> Iterator[str]:
    options = (value for value in experiment.strategy.options.values() if isinstance(value, str))
    own = (
        experiment.strategy.name,
        *options,
        experiment.model.name,
        experiment.data.name,
        *experiment.evaluate.metrics,
    )
    for name in own:
        if (match := _OWN.fullmatch(name)) and match[1] != "flwr":
            yield match[1]


def _module_files(name: str) -> list[Path]:
    """Return the files of a module, or of the package that it lies in; none where it has none, as in a notebook."""
    if (module := sys.modules.get(name)) is not None:
        origin, package = getattr(module, "__file__", None), getattr(module, "__package__", "")
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        origin, package = (spec.origin, spec.parent) if spec is not None else (None, "")
    if origin is None or not Path(origin).is_file():
        return []
    return list(Path(origin).parent.rglob("*.py")) if package else [Path(origin)]

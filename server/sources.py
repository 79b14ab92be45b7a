"""Which code a run was made with: hashes of umbel's own and of modules of a user's, to tell when either has changed."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import umbel
from umbel.conf.schema import Experiment

# What decides about a run's numbers; engines give the same bits, and reports only read.
_PACKAGES = ("core", "models", "data", "strategies", "conf", "server", "client")
_OWN = re.compile(r"([A-Za-z_][\w.]*):\w+")  # package.module:name


def sources(experiment: Experiment) -> dict[str, str]:
    """Return the SHA-256 of umbel's source (`umbel`) and of each module that the experiment names, by its name.

    A module that lies in a package stands for all of that package.
    """
    own = {name: _hash_of(files) for name in _own_modules(experiment) if (files := _module_files(name))}
    return {"umbel": _umbel(), **own}


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of what is not the same in two answers of `sources`."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


@cache
def _umbel() -> str:
    roots = [Path(root) for root in umbel.__path__]
    root = next(root for root in roots if (root / "core").is_dir())
    return _hash_of(path for package in _PACKAGES for path in (root / package).rglob("*.py"))


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


def _hash_of(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

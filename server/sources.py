"""Which code a run was made with: hashes of what it used of umbel and of a user's modules, to tell when one changed.

Comments and the places of lines are no part of it. A strategy, model, data set, encoder or operator counts for the runs
that use it; the rest of umbel that decides about numbers, for all; engines give the same bits, and reports only read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import platform
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import umbel
from umbel.conf.schema import Experiment
from umbel.data.encoders import registry as encoders
from umbel.data.sets import registry as data_sets
from umbel.models import registry as models
from umbel.models.operators import registry as operators
from umbel.strategies import registry as strategies

_ALWAYS = ("umbel.server.main", "umbel.client.worker")  # what all runs go through, with all that these import
_TABLES = (strategies.module_of, models.module_of, operators.module_of, data_sets.module_of, encoders.module_of)
_CACHE_SECONDS = 3.0  # a file is this old before Python's cache is asked for it
_VERSIONS = ("torch", "numpy", "scikit-learn")
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]+)|import[ \t]+([^\n]+))", re.M)
_NAME = re.compile(r"([\w.]+)(?:[ \t]+as[ \t]+\w+)?")
_OWN = re.compile(r"([A-Za-z_][\w.]*):\w+")  # package.module:name


def sources(experiment: Experiment) -> dict[str, str]:
    """Return what a run's code is.

    Returns:
        The SHA-256 of what all runs use of umbel (`umbel`), of each module of umbel that this one uses beyond it, with
        what that imports, and of each module that the experiment names, by its name; and versions of what computes. A
        module of a user's that lies in a package stands for all of that package; what it imports of umbel counts.
    """
    common = _needed(_ALWAYS)
    found = {"umbel": _hash(common)}
    files = {name: _module_files(name) for name in _own_modules(experiment)}
    builds_on = {each for paths in files.values() for path in paths for each in imported(path)}
    for module in sorted((_used(experiment) | builds_on) - common.keys()):
        if beyond := {name: path for name, path in _needed((module,)).items() if name not in common}:
            found[module] = _hash(beyond)
    own = {name: hash_of(paths) for name, paths in files.items() if paths}
    flower = {"flwr": metadata.version("flwr")} if experiment.strategy.name.startswith("flwr:") else {}
    return found | own | _versions() | flower


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


def hash_of(files: Iterable[Path]) -> str:
    """Return the SHA-256 of what some files' code does; other lines and comments are the same code."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(bytes.fromhex(_hash_of_file(path, path.stat().st_mtime_ns)))
    return digest.hexdigest()


def _code(loader: SourceFileLoader, path: Path, changed: int) -> CodeType | None:
    """Return a file's code, as a rule out of Python's cache.

    That goes by whole seconds and the file's size: of a file that was just written it may have what stood there before.
    """
    if time.time() - changed / 1e9 < _CACHE_SECONDS:
        made: CodeType = loader.source_to_code(path.read_bytes(), str(path))
        return made
    return loader.get_code(path.stem)


@cache
def _hash_of_file(path: Path, changed: int) -> str:
    try:
        code = _code(SourceFileLoader(path.stem, str(path)), path, changed)
    except (SyntaxError, ValueError):  # a file beside those that are imported
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(repr(_plain(code)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return a constant of code, or code, as what has the same text in every process."""
    if isinstance(value, CodeType):
        constants = [_plain(each) for each in value.co_consts]
        if "__firstlineno__" in value.co_names:  # a class says where it begins, from Python 3.13 on
            constants = ["line" if each == _plain(value.co_firstlineno) else each for each in constants]
        counts = (value.co_flags, value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        names = (value.co_name, value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        return ("code", *counts, *names, value.co_code, constants)
    if isinstance(value, tuple):
        return ("tuple", [_plain(each) for each in value])
    if isinstance(value, frozenset):  # whose order is another in each process
        return ("frozenset", sorted(repr(_plain(each)) for each in value))
    return (type(value).__name__, repr(value))


class Modules:
    """The modules of a package, and what each needs of it.

    Args:
        name: Of the package.
        root: Its folder.
    """

    def __init__(self, name: str, root: Path) -> None:
        self._name, self._root = name, root

    def needed(self, roots: Iterable[str]) -> dict[str, Path]:
        """Return modules with all that they import of the package, wherever in them, by name: the files.

        What is imported by a name that is made up while it runs is not seen. A package's own file counts with each of
        its modules.
        """
        found: dict[str, Path] = {}
        waiting = list(roots)
        while waiting:
            module = waiting.pop()
            path = self._file(module)
            if path is None or module in found:
                continue
            found[module] = path
            waiting += _imported(path, path.stat().st_mtime_ns, self._name)
            waiting.append(module.rpartition(".")[0])
        return found

    def _file(self, module: str) -> Path | None:
        parts = module.split(".")
        if parts[0] != self._name or len(parts) == 1:
            return None
        path = self._root.joinpath(*parts[1:])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
        return None


def imported(path: Path) -> tuple[str, ...]:
    """Return what a file of a user's imports of umbel, modules and names."""
    return _imported(path, path.stat().st_mtime_ns, "umbel")


@cache
def _imported(path: Path, changed: int, package: str) -> tuple[str, ...]:
    """Return what a file imports of a package; of names that it takes from a module, those may be modules too."""
    found: dict[str, None] = {}
    for source, names, plain in _IMPORT.findall(path.read_text(encoding="utf-8")):
        if source:
            if source.partition(".")[0] == package:
                listed = re.sub(r"#[^\n]*", "", names).strip("()")
                found |= dict.fromkeys(
                    [source, *(f"{source}.{match[0]}" for match in map(_first, listed.split(",")) if match)]
                )
        else:
            modules = [match[0] for match in map(_first, plain.split(",")) if match]
            found |= dict.fromkeys(each for each in modules if each.partition(".")[0] == package)
    return tuple(found)


def _first(text: str) -> list[str]:
    match = _NAME.match(text.strip())
    return [match[1]] if match else []

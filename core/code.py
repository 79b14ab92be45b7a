"""What a module's code is, whatever its comments and lines: hashes that change when what it does may have changed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n]+)|import[ \t]+([^\n]+))", re.M)
_NAME = re.compile(r"([\w.]+)(?:[ \t]+as[ \t]+\w+)?")


def hash_of(files: Iterable[Path]) -> str:
    """Return the SHA-256 of what some files' code does; other lines and comments are the same code."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(bytes.fromhex(_hash_of_file(path, path.stat().st_mtime_ns)))
    return digest.hexdigest()


@cache
def _hash_of_file(path: Path, changed: int) -> str:
    try:
        code = SourceFileLoader(path.stem, str(path)).get_code(path.stem)
    except (SyntaxError, ValueError):  # a file beside those that are imported
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(repr(_plain(code)).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Return a constant of code, or code, as what has the same text in every process."""
    if isinstance(value, CodeType):
        counts = (value.co_flags, value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
        names = (value.co_name, value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        return ("code", *counts, *names, value.co_code, [_plain(each) for each in value.co_consts])
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

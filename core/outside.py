"""Code from outside of the project, named `package.module:name`: whatever goes wrong in it is a refusal.

A module of somebody else's can raise anything while it is imported or called, and can even end the process. Who named
it is told in one message what it did, and in which line.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from umbel.core.names import check_own, nearest
from umbel.core.refusal import Refusal

_LONGEST = 500  # characters of somebody else's message
WHERE = (
    "It must be installed, or lie in a folder that PYTHONPATH names, here and for a real federation on the server and "
    "on every node."
)


def find(path: str, kind: str, key: str) -> Any:
    """Return what `package.module:name` stands for.

    Args:
        path: As it was given.
        kind: What it should be, in the singular ("strategy").
        key: The configuration key that says it.

    Raises:
        Refusal: There is no such module or name, or the module cannot be imported, for whatever reason.
    """
    check_own(key, path)
    module_name, _, attribute = path.partition(":")
    with guarded(f"Cannot import {kind} {path!r} (key {key})", key):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise _missing(path, module_name, error.name or "", kind, key) from error
    if not hasattr(module, attribute):
        guesses = nearest(attribute, (name for name in vars(module) if not name.startswith("_")))
        raise Refusal(
            f"Cannot import {kind} {path!r} (key {key}): module {module_name!r} has no {attribute!r}.",
            key=key,
            remedy=f"Did you mean {' or '.join(map(repr, guesses))}?" if guesses else "Name something that it defines.",
        )
    return getattr(module, attribute)


@contextmanager
def guarded(what: str, key: str, remedy: str = "") -> Iterator[None]:
    """Make whatever the code inside raises a `Refusal`; refusals and Ctrl-C pass as they are.

    Args:
        what: What could not be done, as the message begins.
        key: The configuration key that named the code.
        remedy: What to do about an error, in a sentence; empty is to put it right.
    """
    try:
        yield
    except (Refusal, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise Refusal(
            f"{what}: it ends the process{_line(error)}.",
            key=key,
            remedy='Leave out the exit; what a script does belongs under `if __name__ == "__main__":`.',
        ) from error
    except BaseException as error:  # anything at all may come out of somebody else's code
        said = _text(error)
        raise Refusal(
            f"{what}: {type(error).__name__}{f': {said}' if said else ''}{_line(error)}.",
            key=key,
            remedy=remedy or "Put it right there.",
        ) from error


def _missing(path: str, wanted: str, missing: str, kind: str, key: str) -> Refusal:
    """Return the refusal of a module that is not there, or that imports one that is not there."""
    what = f"Cannot import {kind} {path!r} (key {key})"
    if wanted != missing and not wanted.startswith(f"{missing}."):
        return Refusal(
            f"{what}: module {wanted!r} needs {missing!r}, which is not installed.", key=key, remedy="Install it."
        )
    here = Path(*wanted.split("."))
    beside = here.with_suffix(".py").is_file() or (here / "__init__.py").is_file()
    remedy = f'It lies in this folder, where nobody looks: export PYTHONPATH="$PWD". {WHERE}' if beside else WHERE
    return Refusal(f"{what}: there is no module {missing!r}.", key=key, remedy=remedy)


def _text(error: BaseException) -> str:
    """Return what an error says in one line, without the place that `_line` tells."""
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception as another:  # noqa: BLE001 - the text of somebody else's error is somebody else's code
        return f"its text raises {type(another).__name__}"
    text = " ".join(text[: 2 * _LONGEST].split()).rstrip(".")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _line(error: BaseException) -> str:
    """Return where in somebody else's code an error came up; "" if no line of theirs was reached."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    places = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not _is_known(frame.f_globals.get("__name__", ""), frame.f_code.co_filename)
    ]
    return f" ({places[-1][0]}, line {places[-1][1]})" if places else ""


def _is_known(module: str, file: str) -> bool:
    """Say whether a module is of this project, of Python or of an installed package."""
    top = module.partition(".")[0]
    return top == "umbel" or top in sys.stdlib_module_names or "site-packages" in Path(file).parts

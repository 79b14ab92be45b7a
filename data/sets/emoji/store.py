"""What is kept of the emoji: the list of concepts, and one cache entry of pixels for each style and size.

Shapes: M emoji that a style draws, S pixels on a side.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.core.names import unknown
from umbel.data.errors import DataError, MissingDataError
from umbel.data.sets.emoji.alike import look_alike
from umbel.data.sets.emoji.concepts import DATA_NAME, PACKAGES, WORDS, Concept, read_concepts
from umbel.data.sets.emoji.drawing import STYLES, check_renderer, draw
from umbel.data.sources import cache, npm
from umbel.data.sources.cache import Entry, Maker
from umbel.data.split import hashed
from umbel.data.texts import Texts
from umbel.data.types import Examples

TEST_FRACTION = 0.2

_FORMAT = 2  # raise it when the same packages give other arrays
_USUAL_SIZE = 64
# A picture that a style uses for more emoji than this shows none of them: openmoji-black has one empty frame for
# nearly all flags. The largest true look-alikes are nine circles.
_MOST_ALIKE = 16


def styles_of(value: object) -> tuple[str, ...]:
    """Return the styles that `data.options.domains` names.

    Args:
        value: Names with commas between them, or a list of names.

    Raises:
        UnknownNameError: There is no such style.
        DataError: None is named, or one twice.
    """
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"data.options.domains must be names with commas between them, found {value!r}.",
            key="data.options.domains",
        )
    styles = tuple(name.strip() for name in names if name.strip())
    for name in styles:
        if name not in STYLES:
            raise unknown("style of emoji", name, STYLES, key="data.options.domains")
    if not styles or len(set(styles)) < len(styles):
        raise DataError(
            f"data.options.domains must name at least one style, and none twice, found {value!r}.",
            key="data.options.domains",
            remedy=f"Known: {', '.join(STYLES)}.",
        )
    return styles


def choice(options: Mapping[str, Any], name: str, known: Iterable[str]) -> str:
    """Return an option that is one of a few words.

    Raises:
        UnknownNameError: It is another one; the message has the nearest.
    """
    if options[name] not in (known := tuple(known)):
        raise unknown(name, str(options[name]), known, key=f"data.options.{name}")
    return str(options[name])


def flag(options: Mapping[str, Any], name: str) -> bool:
    """Return an option that is true or false; raise `DataError` where it is neither."""
    if not isinstance(options[name], bool):
        raise DataError(
            f"data.options.{name} must be true or false, found {options[name]!r}.", key=f"data.options.{name}"
        )
    return bool(options[name])


def concepts() -> tuple[Concept, ...]:
    """Return all emoji in Unicode's order; read from the packages once, then from the cache."""
    return tuple(Concept.of(facts) for facts in _words_entry(_write_concepts).facts["concepts"])


def pictures(name: str, size: int) -> Entry:
    """Return what a style draws; rendered once, then from the cache.

    Returns:
        `images` [M, 3, S, S] uint8; its facts have `codes`, the emoji of each row, `package` and `versions`.

    Raises:
        MissingDataError: The package, or what renders it, is not there.
        DamagedDataError: A picture cannot be read; the message names its file.
    """
    return _style_entry(name, size, lambda maker: _write_pictures(maker, name, size))


def require(names: Sequence[str], size: int) -> None:
    """Raise `MissingDataError` unless the pictures are in the cache, or can be made."""
    try:
        _require_packages(WORDS)
    except MissingDataError:
        if not _is_there(_words_entry):
            raise
    for name in names:
        try:
            _require_packages([*WORDS, STYLES[name].package])
            if STYLES[name].vector:
                check_renderer()
        except MissingDataError:
            if not _is_there(lambda make, name=name: _style_entry(name, size, make)):  # type: ignore[misc]
                raise


def fetch(names: Sequence[str], size: int, say: Callable[[str], None]) -> None:
    """Fetch the packages of some styles and render them.

    Args:
        names: The styles.
        size: Pixels on a side.
        say: Told what is being done, a line at a time.
    """
    if any(STYLES[name].vector for name in names):
        check_renderer()
    needed = dict.fromkeys([*WORDS, *(STYLES[name].package for name in names)])
    npm.fetch([PACKAGES[package] for package in needed], say)
    for name in names:
        started = time.perf_counter()
        entry = pictures(name, size)
        seconds = time.perf_counter() - started
        say(f"{name}: {len(entry.facts['codes'])} emoji at {size} pixels, {seconds:.1f} s")


def fetch_all(say: Callable[[str], None]) -> None:
    """Fetch every package and render every style at the usual size."""
    fetch(tuple(STYLES), _USUAL_SIZE, say)


def licence_of(entries: Mapping[str, Entry]) -> str:
    """Return the licences of some styles' artwork in one line."""
    return "; ".join(f"{entry.facts['package']['licence']} ({name})" for name, entry in entries.items())


def attribution_of(entries: Mapping[str, Entry], words: Sequence[str]) -> str:
    """Return whom the licences of styles and words ask to name, a line each."""
    artwork = [str(entry.facts["package"]["attribution"]) for entry in entries.values()]
    return "\n".join(dict.fromkeys([*artwork, *(PACKAGES[word].attribution for word in words)]))


def is_test(code: str) -> bool:
    """Say whether a concept is in the test set; the same on every machine, whatever the options."""
    return hashed(code, TEST_FRACTION)


def examples(
    concepts: Sequence[Concept],
    entries: Mapping[str, Entry],
    picks: Mapping[str, Sequence[int]],
    columns: Mapping[str, Tensor],
    texts: Sequence[str],
) -> Examples:
    """Gather pictures and what belongs to them.

    Args:
        concepts: All concepts.
        entries: By style; a style's place here is its domain.
        picks: By style, the numbers of the concepts whose pictures are wanted.
        columns: `labels` and `concepts` of every concept, int64.
        texts: The text of every concept.
    """
    images: list[NDArray[np.uint8]] = []
    chosen: list[int] = []
    domains: list[int] = []
    for domain, (name, entry) in enumerate(entries.items()):
        row = {code: index for index, code in enumerate(entry.facts["codes"])}
        rows = np.array([row[concepts[number].code] for number in picks[name]], dtype=np.int64)
        images.append(entry["images"][rows])  # a copy: what is mapped stays as it is
        chosen += picks[name]
        domains += [domain] * len(rows)
    index = torch.tensor(chosen, dtype=torch.int64)
    return Examples(
        images=torch.from_numpy(np.concatenate(images)),
        labels=columns["labels"][index],
        domains=torch.tensor(domains, dtype=torch.int64),
        concepts=columns["concepts"][index],
        texts=Texts.of(texts[number] for number in chosen),
    )


def drawn(entry: Entry, blanks: bool = False) -> frozenset[str]:
    """Return the codes of the emoji that a style draws.

    Args:
        entry: The style.
        blanks: Count those too that are drawn as one and the same empty frame.
    """
    codes = frozenset(entry.facts["codes"])
    return codes if blanks else codes - frozenset(entry.facts["blanks"])


def numbered(codes: Sequence[str]) -> Tensor:
    """Return a number for each code, int64 [N], the same for the same code, in the order of their first."""
    place = {code: number for number, code in enumerate(dict.fromkeys(codes))}
    return torch.tensor([place[code] for code in codes], dtype=torch.int64)


def alike_codes(concepts: Sequence[Concept]) -> list[str]:
    """Return for each concept the code that stands for all that look like it."""
    return [look_alike(concept.code) for concept in concepts]


def _pins(packages: Iterable[str]) -> list[str]:
    return [f"{PACKAGES[package].spec} {PACKAGES[package].integrity}" for package in packages]


def _words_entry(make: Callable[[Maker], None]) -> Entry:
    return cache.cached("sets", "emoji-words", {"format": _FORMAT, "packages": _pins(WORDS)}, make)


def _style_entry(name: str, size: int, make: Callable[[Maker], None]) -> Entry:
    key = {"format": _FORMAT, "style": name, "size": size, "packages": _pins([STYLES[name].package, *WORDS])}
    return cache.cached("sets", f"emoji-{name}-{size}", key, make)


def _write_concepts(maker: Maker) -> None:
    maker.note(
        concepts=[concept.facts for concept in read_concepts()],
        packages={word: _facts_of(word) for word in WORDS},
    )


def _write_pictures(maker: Maker, name: str, size: int) -> None:
    style = STYLES[name]
    if style.vector:
        check_renderer()
    sources = style.find(style, concepts())
    drawn = {code: draw(style, source, size) for code, source in sources.items()}
    uses = Counter(image.tobytes() for image in drawn.values())
    images = maker.empty("images", (len(drawn), 3, size, size), np.uint8)
    for row, image in enumerate(drawn.values()):
        images[row] = image
    maker.note(
        codes=list(drawn),
        blanks=[code for code, image in drawn.items() if uses[image.tobytes()] > _MOST_ALIKE],
        package=_facts_of(style.package),
        versions={package: _version(package) for package in ("pillow", *(["resvg-py"] if style.vector else []))},
    )


def _facts_of(package: str) -> dict[str, str]:
    npm_package = PACKAGES[package]
    return {
        "name": npm_package.name,
        "version": npm_package.version,
        "integrity": npm_package.integrity,
        "licence": npm_package.licence,
        "attribution": npm_package.attribution,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _require_packages(packages: Iterable[str]) -> None:
    for package in packages:
        npm.folder(PACKAGES[package], DATA_NAME)


def _is_there(entry: Callable[[Callable[[Maker], None]], Entry]) -> bool:
    """Say whether an entry is in the cache and whole, without making it."""

    def refuse(_maker: Maker) -> None:
        raise DataError("not to be made")

    try:
        entry(refuse)
    except DataError:
        return False
    return True

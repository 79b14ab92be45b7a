"""Emoji packages of a few emoji, in the form of the real ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sets.emoji.concepts import PACKAGES, code_of
from umbel.data.types import DataSet

FACES = [f"{0x1F600 + number:x}" for number in range(30)]
BEASTS = [f"{0x1F410 + number:x}" for number in range(12)]
FLAGS = [f"1f1e6-1f1{0xE6 + number:x}" for number in range(24)]
SURFERS = ["1f3c4", "1f3c4-200d-2642-fe0f", "1f3c4-200d-2640-fe0f"]
GROUPS = {"Smileys & Emotion": FACES, "People & Body": SURFERS, "Animals & Nature": BEASTS, "Flags": FLAGS}
CODES = [code for codes in GROUPS.values() for code in codes]
RASTER = "google,twitter,fluent"


def colour(style: str, code: str) -> tuple[int, int, int]:
    red, green, blue = hashlib.sha256(f"{style} {code_of(code)}".encode()).digest()[:3]
    return red, green, blue


def text_of(code: str) -> str:
    return "".join(chr(int(part, 16)) for part in code.split("-"))


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def picture(path: Path, style: str, code: str, size: tuple[int, int] = (64, 64)) -> None:
    """Write a picture that is transparent but for a square in the middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    width, height = size
    image.paste((*colour(style, code), 255), (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    image.save(path, lossless=True) if path.suffix == ".webp" else image.save(path)


def svg(style: str, code: str) -> str:
    fill = "#{:02x}{:02x}{:02x}".format(*colour(style, code))
    return (
        f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg"><path fill="{fill}" d="M18 18h36v36H18z"/></svg>'
    )


def at(folder: Path, package: str) -> Path:
    return folder / "npm" / PACKAGES[package].spec.replace("/", "--")


def make_packages(folder: Path) -> None:
    """Write what the packages would hold of a few emoji."""
    rows = [
        {"unified": code.upper(), "category": group, "subcategory": f"{group} {number % 2}", "sort_order": 99 - number}
        for group, codes in GROUPS.items()
        for number, code in enumerate(codes)
    ]
    rows.append({"unified": "1F3FB", "category": "Component", "subcategory": "skin-tone", "sort_order": 1})
    write(at(folder, "google") / "emoji.json", rows)
    labels = [{"hexcode": code.upper(), "label": f"Thing {code}", "tags": ["thing", code]} for code in CODES]
    labels += [{"hexcode": "1F3FB", "label": "light skin tone"}]
    write(at(folder, "emojibase") / "en/data.json", labels)
    words = {text_of(code): ["some_thing", code] for code in CODES}
    words[text_of(FACES[1])] = words[text_of(FACES[0])] = ["the_same", "words"]
    words[text_of(FACES[2])] = ["The_Same", "WORDS"]
    write(at(folder, "emojilib") / "dist/emoji-en-US.json", words)
    annotations = {text_of(code): {"default": [code], "tts": ["x"]} for code in FACES}
    write(
        at(folder, "cldr") / "annotations/en/annotations.json", {"annotations": {"annotations": annotations, "v": "48"}}
    )
    for code in [*CODES, "1f3c4-1f3fb", "1f3fb"]:
        picture(at(folder, "google") / f"img/google/64/{code}.png", "google", code)
        picture(at(folder, "twitter") / f"img/twitter/64/{code}.png", "twitter", code)
        picture(at(folder, "fluent") / f"assets/{code}.webp", "fluent", code, (32, 32))
        write(at(folder, "openmoji") / f"color/svg/{code.upper()}.svg", svg("openmoji", code))
        flag = code in FLAGS  # all of them one empty frame, as in the real package
        write(at(folder, "openmoji") / f"black/svg/{code.upper()}.svg", svg("black", "frame" if flag else code))
    for code in BEASTS[:4]:
        (at(folder, "fluent") / f"assets/{code}.webp").unlink()
    icons = {f"thing-{code_of(code)}": {"body": svg("noto", code).split(">", 1)[1][:-6]} for code in FACES[2:]}
    icons["a-thing-of-another-name"] = icons.pop(f"thing-{FACES[2]}")
    icons["dashing-thing"] = {"body": svg("noto", "other").split(">", 1)[1][:-6]}
    aliases = {
        f"thing-{FACES[2]}": {"parent": "a-thing-of-another-name"},
        f"thing-{FACES[0]}": {"parent": f"thing-{FACES[3]}"},  # two claim one picture: neither gets it
        f"thing-{FACES[1]}": {"parent": f"thing-{FACES[4]}", "hFlip": True},
    }
    write(at(folder, "noto-v1") / "icons.json", {"icons": icons, "aliases": aliases, "width": 72, "height": 72})
    write(at(folder, "noto-v1") / "chars.json", {})


def domains(**options: object) -> DataSet:
    given: dict[str, Any] = {"domains": RASTER, "image_size": 8, "min_concepts": 1} | options
    return data.load(DataConfig(name="emoji_domains", options=given), 0)


def pairs(**options: object) -> DataSet:
    return data.load(DataConfig(name="emoji_pairs", options={"image_size": 8} | options), 0)


def both(loaded: DataSet, column: str) -> torch.Tensor:
    return torch.cat([getattr(loaded.train, column), getattr(loaded.test, column)])


def captions(loaded: DataSet) -> tuple[list[str], list[str]]:
    assert loaded.train.texts is not None and loaded.test.texts is not None
    return list(loaded.train.texts), list(loaded.test.texts)

"""Packages of emoji that are missing, damaged or fetched."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.sets.emoji.tiny_packages import CODES, FACES, at, domains, pairs, write
from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sets.emoji import domains as emoji_domains
from umbel.data.sets.emoji import pairs as emoji_pairs
from umbel.data.sets.emoji.concepts import PACKAGES
from umbel.data.sets.emoji.drawing import STYLES
from umbel.data.sources import npm
from umbel.data.sources.npm import Package

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["emoji_domains", "emoji_pairs"])
def test_missing_packages_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "empty"))
    with pytest.raises(
        data.MissingDataError, match=r"emoji-datasource-google@16\.0\.0 .*\n    umbel data fetch emoji$"
    ):
        data.check(DataConfig(name=name, options={"domains": "google"}))


def test_a_missing_style_is_named_and_the_cache_is_enough(tiny: Path) -> None:
    loaded = domains()
    shutil.rmtree(at(tiny, "twitter"))
    assert torch.equal(domains().train.images, loaded.train.images)
    with pytest.raises(data.MissingDataError, match=r"emoji-datasource-twitter@16\.0\.0 is not there"):
        domains(image_size=9)
    shutil.rmtree(tiny / "npm")
    assert torch.equal(domains().train.images, loaded.train.images)
    with pytest.raises(data.MissingDataError, match=r"umbel data fetch emoji"):
        pairs(domains="openmoji")


def test_without_a_renderer(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "resvg_py":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert len(domains().train)  # pixels need none
    for call in (data.check, lambda config: emoji_domains.fetch(config, print)):
        with pytest.raises(data.MissingDataError, match=r"\n    pip install resvg-py$"):
            call(DataConfig(name="emoji_domains", options={"domains": "google,openmoji"}))


@pytest.mark.parametrize(
    ("package", "name", "content"),
    [
        ("google", "emoji.json", "[{"),
        ("google", f"img/google/64/{FACES[4]}.png", "no picture"),
        ("fluent", f"assets/{FACES[4]}.webp", ""),
        ("emojilib", "dist/emoji-en-US.json", None),
        ("openmoji", f"color/svg/{FACES[4].upper()}.svg", "<svg"),
        ("noto-v1", "icons.json", "{}"),
        ("twitter", "img/twitter/64", None),
    ],
)
def test_damaged_files_are_named(tiny: Path, package: str, name: str, content: str | None) -> None:
    style = package if package in STYLES else "google"
    if style in ("openmoji", "noto-v1"):
        pytest.importorskip("resvg_py", reason="pip install resvg-py")
    path = at(tiny, package) / name
    if content is not None:
        path.write_text(content)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    with pytest.raises(data.DamagedDataError, match=r"rm -r .* && umbel data fetch emoji") as caught:
        domains(domains=style)
    assert str(path) in str(caught.value)
    assert not list((tiny / "sets").glob(f"emoji-{style}-8-*"))  # nothing half made


def test_an_emoji_without_a_name(tiny: Path) -> None:
    write(at(tiny, "emojibase") / "en/data.json", [{"hexcode": "1F600", "label": "grinning face"}])
    with pytest.raises(data.DamagedDataError, match=r"expected a label for each emoji, found none for 1f"):
        domains()


def test_fetch_gets_packages_and_renders(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[Package] = []
    said: list[str] = []
    monkeypatch.setattr(npm, "fetch", lambda packages, _: fetched.extend(packages))
    emoji_domains.fetch(DataConfig(name="emoji_domains", options={"domains": "twitter", "image_size": 8}), said.append)
    assert [package.name for package in fetched] == [
        "emoji-datasource-google",  # has the list of emoji
        "emojibase-data",
        "emojilib",
        "cldr-annotations-full",
        "emoji-datasource-twitter",
    ]
    assert said[0].startswith(f"twitter: {len(CODES)} emoji at 8 pixels") and len(said) == 1
    assert [path.name.rsplit("-", 1)[0] for path in sorted((tiny / "sets").glob("emoji-*"))] == [
        "emoji-twitter-8",
        "emoji-words",
    ]
    emoji_pairs.fetch(DataConfig(name="emoji_pairs", options={"image_size": 8}), said.append)
    assert said[1].startswith("google: ")


def test_no_artwork_that_may_not_be_used() -> None:
    assert not [
        each for each in PACKAGES.values() if any(bad in each.name for bad in ("apple", "facebook", "joypixels"))
    ]
    assert all(each.licence and each.attribution and each.integrity.startswith("sha512-") for each in PACKAGES.values())
    assert all(PACKAGES[name].keep for name in ("google", "twitter"))  # the sheets of other vendors stay out

"""Emoji as domains and as pairs: on tiny packages of the same form, and on the real ones where they are."""

from __future__ import annotations

import builtins
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from umbel import data
from umbel.core.names import UnknownNameError
from umbel.data.config import DataConfig
from umbel.data.sets.emoji import domains as emoji_domains
from umbel.data.sets.emoji import pairs as emoji_pairs
from umbel.data.sets.emoji import store
from umbel.data.sets.emoji.alike import look_alike
from umbel.data.sets.emoji.concepts import PACKAGES, code_of, code_of_text, has_tone, slug
from umbel.data.sets.emoji.drawing import STYLES
from umbel.data.sources import cache, npm
from umbel.data.sources.npm import Package
from umbel.data.types import DataSet

torch.set_num_threads(1)

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


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    make_packages(folder)
    return folder


@pytest.fixture
def tiny(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own with the tiny packages in it."""
    shutil.copytree(packages, tmp_path / "cache")
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def domains(**options: object) -> DataSet:
    given: dict[str, Any] = {"domains": RASTER, "image_size": 8, "min_concepts": 1} | options
    return data.load(DataConfig(name="emoji_domains", options=given), 0)


def pairs(**options: object) -> DataSet:
    return data.load(DataConfig(name="emoji_pairs", options={"image_size": 8} | options), 0)


def both(found: DataSet, column: str) -> torch.Tensor:
    return torch.cat([getattr(found.train, column), getattr(found.test, column)])


# --- names and codes ------------------------------------------------------------------------------


def test_codes_and_slugs() -> None:
    assert code_of("1F468-200D-2764-FE0F-200D-1F468") == "1f468-200d-2764-200d-1f468"
    assert code_of("0023-fe0f-20e3") == "0023-20e3" == code_of_text("#\ufe0f\u20e3")
    assert has_tone("1f44b-1f3fd") and has_tone("1f3fb") and not has_tone("1f44b")
    assert slug("flag: Côte d’Ivoire") == "flag-cote-divoire"
    assert slug("Heard & McDonald") == "heard-and-mcdonald"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1f3c4-200d-2642", "1f3c4"),  # a man who surfs
        ("1f6b6-200d-2640-200d-27a1", "1f6b6"),  # a woman who walks to the right
        ("1f469-200d-1f33e", "1f9d1-200d-1f33e"),  # a farmer
        ("1f468-200d-1f467-200d-1f466", "1f9d1-200d-1f9d2-200d-1f9d2"),  # a family
        ("1f468-200d-1f469-200d-1f466", "1f46a"),  # what twitter draws like any family
        ("1f468", "1f471"),  # in black and white, hair is white
        ("1f1f8-1f1ef", "1f1e7-1f1fb"),  # the flag of Norway
        ("2764-200d-1f525", "2764-200d-1f525"),
        ("2642", "2642"),  # the sign itself
        ("1f600", "1f600"),
    ],
)
def test_look_alikes(code: str, expected: str) -> None:
    assert look_alike(code) == expected
    assert look_alike(expected) == expected


# --- emoji_domains --------------------------------------------------------------------------------


def test_domains_classes_and_pictures(tiny: Path) -> None:
    found = domains()
    assert found.domain_names == ("google", "twitter", "fluent")
    # In the order of `sort_order`, which runs backwards within each group of the tiny list; no skin tones.
    assert set(found.class_names) == set(GROUPS)
    assert len(found.train) + len(found.test) == 3 * len(CODES) - 4
    assert torch.bincount(both(found, "domains")).tolist() == [len(CODES), len(CODES), len(CODES) - 4]
    sizes = dict(zip(found.class_names, torch.bincount(both(found, "labels")).tolist(), strict=True))
    assert sizes == {"Smileys & Emotion": 90, "People & Body": 9, "Animals & Nature": 32, "Flags": 72}
    assert found.train.texts is not None and found.train.domains is not None
    for index in range(0, len(found.train), 17):
        code = found.train.texts[index].removeprefix("Thing ")
        style = found.domain_names[int(found.train.domains[index])]
        image = found.train.images[index]
        assert image[:, 4, 4].tolist() == list(colour(style, code)), (style, code)
        assert image[:, 0, 0].tolist() == [255, 255, 255]  # transparent is white
        assert code in GROUPS[found.class_names[int(found.train.labels[index])]]
    assert found.natural_ids is not None and torch.equal(found.natural_ids, found.train.domains)
    assert "CC-BY-4.0 (twitter)" in found.licence and "Twemoji" in found.attribution


def test_the_split_goes_by_concept_and_never_changes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = domains()

    def texts(examples: data.Examples) -> set[str]:
        assert examples.texts is not None
        return set(examples.texts)

    train, test = texts(found.train), texts(found.test)
    assert not train & test and 0.1 < len(test) / (len(train) + len(test)) < 0.3
    other = domains(domains="fluent,google", image_size=5, labels="subgroups")
    assert texts(other.train) == train and texts(other.test) == test  # whatever the options
    surfers = {f"Thing {code}" for code in SURFERS}
    assert surfers <= train or surfers <= test  # look-alikes stay together
    assert len(both(found, "concepts").unique()) == len({look_alike(code_of(code)) for code in CODES})
    apart = domains(concepts="codepoints")
    assert len(both(apart, "concepts").unique()) == len(CODES)
    # Made again from nothing, it is the same.
    shutil.rmtree(tiny / "sets")
    again = domains()
    for column in ("images", "labels", "domains", "concepts"):
        assert torch.equal(both(again, column), both(found, column))


def test_complete_and_min_concepts(tiny: Path) -> None:
    complete = domains(complete=True)
    assert torch.bincount(both(complete, "domains")).tolist() == [len(CODES) - 4] * 3
    assert domains(min_concepts=4).num_classes == 3  # without the three surfers
    assert len(domains(labels="subgroups").class_names) == 8
    assert len(domains(labels="subgroups", min_concepts=7).class_names) == 4
    with pytest.raises(data.DataError, match=r"no class has 99 concepts\. Lower data\.options\.min_concepts"):
        domains(min_concepts=99)


def test_vector_styles(tiny: Path) -> None:
    pytest.importorskip("resvg_py", reason="pip install resvg-py")
    found = domains(domains="openmoji,openmoji-black,noto-v1", image_size=16)
    counts = torch.bincount(both(found, "domains")).tolist()
    # An empty frame for every flag is no picture of a flag; the icons of two faces are ambiguous, one is mirrored.
    assert counts == [len(CODES), len(CODES) - len(FLAGS), len(FACES) - 3]
    assert store.pictures("openmoji-black", 16).facts["blanks"] == [*reversed([code_of(code) for code in FLAGS])]
    frames = domains(domains="openmoji-black", image_size=16, blanks=True)
    assert len(frames.train) + len(frames.test) == len(CODES)
    noto = store.pictures("noto-v1", 16)
    assert FACES[2] in noto.facts["codes"] and not {FACES[0], FACES[1], FACES[3]} & set(noto.facts["codes"])
    row = noto.facts["codes"].index(FACES[2])
    assert noto["images"][row, :, 8, 8].tolist() == list(colour("noto", FACES[2]))
    assert noto["images"][row, :, 0, 0].tolist() == [255, 255, 255]
    assert set(noto.facts["versions"]) == {"pillow", "resvg-py"}
    assert noto.facts["package"]["integrity"] == PACKAGES["noto-v1"].integrity


def test_icons_with_a_table_and_pictures_that_are_not_square(tiny: Path) -> None:
    pytest.importorskip("resvg_py", reason="pip install resvg-py")
    tall = '<path fill="#ff0000" d="M0 0h32v64H0z"/>'
    icons = {"any-name": {"body": tall, "height": 64}, "unknown": {"body": tall}}
    write(at(tiny, "fluent-flat") / "icons.json", {"icons": icons, "width": 32, "height": 32})
    write(at(tiny, "fluent-flat") / "chars.json", {FACES[5]: "any-name", FACES[6]: "no-such-icon", "abcd": "unknown"})
    found = store.pictures("fluent-flat", 8)
    assert found.facts["codes"] == [FACES[5]]
    image = torch.from_numpy(found["images"][0].copy())
    assert image[:, 4, 4].tolist() == [255, 0, 0] and image[:, 4, 0].tolist() == [255, 255, 255]  # not stretched
    picture(at(tiny, "fluent") / f"assets/{FACES[7]}.webp", "fluent", FACES[7], (32, 16))
    wide = store.pictures("fluent", 8)
    image = torch.from_numpy(wide["images"][wide.facts["codes"].index(FACES[7])].copy())
    assert image[:, 4, 4].tolist() != [255] * 3 and image[:, 1, 4].tolist() == [255] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": "gogle"}, r"style of emoji 'gogle' \(key data\.options\.domains\)\. Did you mean 'google'"),
        ({"labels": "group"}, r"'group' \(key data\.options\.labels\)\. Did you mean 'groups'"),
        ({"concepts": "codepoint"}, r"Did you mean 'codepoints'"),
    ],
)
def test_unknown_words_get_the_nearest(options: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        data.check(DataConfig(name="emoji_domains", options=options))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("emoji_domains", {"domains": " , "}, r"must name at least one style, and none twice, found ' , '"),
        ("emoji_domains", {"domains": "google,google"}, r"none twice, found 'google,google'"),
        ("emoji_domains", {"domains": 3}, r"must be names with commas between them, found 3"),
        ("emoji_domains", {"complete": "yes"}, r"data\.options\.complete must be true or false, found 'yes'"),
        ("emoji_domains", {"min_concepts": 0}, r"min_concepts must be a whole number of at least 1, found 0"),
        ("emoji_domains", {"image_size": 0}, r"image_size must be a whole number"),
        ("emoji_pairs", {"captions": "name"}, r"'name' \(key data\.options\.captions\)\. Did you mean 'names'"),
        ("emoji_pairs", {"keywords_from": "emojlib"}, r"Did you mean 'emojilib'"),
        ("emoji_pairs", {"every_domain": 1}, r"data\.options\.every_domain must be true or false"),
    ],
)
def test_impossible_options(tiny: Path, name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.check(DataConfig(name=name, options=options))


# --- what is missing or damaged -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["emoji_domains", "emoji_pairs"])
def test_missing_packages_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "empty"))
    with pytest.raises(
        data.MissingDataError, match=r"emoji-datasource-google@16\.0\.0 .*\n    umbel data fetch emoji$"
    ):
        data.check(DataConfig(name=name, options={"domains": "google"}))


def test_a_missing_style_is_named_and_the_cache_is_enough(tiny: Path) -> None:
    found = domains()
    shutil.rmtree(at(tiny, "twitter"))
    assert torch.equal(domains().train.images, found.train.images)
    with pytest.raises(data.MissingDataError, match=r"emoji-datasource-twitter@16\.0\.0 is not there"):
        domains(image_size=9)
    shutil.rmtree(tiny / "npm")
    assert torch.equal(domains().train.images, found.train.images)
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


# --- emoji_pairs ----------------------------------------------------------------------------------


def captions(found: DataSet) -> tuple[list[str], list[str]]:
    assert found.train.texts is not None and found.test.texts is not None
    return list(found.train.texts), list(found.test.texts)


def test_pairs_have_each_caption_once(tiny: Path) -> None:
    train, test = captions(pairs())
    assert len(train) + len(test) == len(CODES) == len({*train, *test})
    # Three faces have the same words but for upper case: one is left.
    found = pairs(captions="keywords")
    train, test = captions(found)
    assert len(train) + len(test) == len(CODES) - 2
    assert Counter(text.casefold() for text in train + test).most_common(1)[0][1] == 1
    assert [text for text in train + test if text.casefold() == "the same, words"] == ["The Same, WORDS"]
    # Only faces have words in the annotations.
    train, test = captions(pairs(captions="keywords", keywords_from="cldr"))
    assert sorted(train + test) == FACES


def test_pairs_share_neither_concept_nor_caption(tiny: Path) -> None:
    for every in (False, True):
        found = pairs(domains=RASTER, every_domain=every)
        train, test = captions(found)
        assert not {text.casefold() for text in train} & {text.casefold() for text in test}
        assert found.train.concepts is not None and found.test.concepts is not None
        assert not set(found.train.concepts.tolist()) & set(found.test.concepts.tolist())
        most = max(Counter(train).values())
        assert (most, len(train + test)) == ((3, 3 * len(CODES) - 4) if every else (1, len(CODES)))
        assert len(both(found, "domains").unique()) == 3
        for index in range(0, len(train), 9):
            assert found.train.domains is not None
            style = found.domain_names[int(found.train.domains[index])]
            code = train[index].removeprefix("Thing ")
            assert found.train.images[index, :, 4, 4].tolist() == list(colour(style, code))


# --- the real ones --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> None:
    try:
        store.require(tuple(STYLES), 64)
    except data.MissingDataError as error:
        pytest.skip(f"{str(error).splitlines()[0]} ({cache.folder()})")


@pytest.mark.usefixtures("real")
def test_the_real_counts() -> None:
    found = store.concepts()
    groups = Counter(concept.group for concept in found)
    subgroups = Counter(concept.subgroup for concept in found)
    assert len(found) == 1906 and len(groups) == 9 and len(subgroups) == 98
    assert (max(groups.values()), min(groups.values())) == (386, 85)
    assert (max(subgroups.values()), min(subgroups.values())) == (259, 1)
    drawn = {name: len(store.drawn(store.pictures(name, 64))) for name in STYLES}
    assert drawn == {
        "google": 1906,
        "twitter": 1906,
        "fluent": 1852,
        "openmoji": 1906,
        "openmoji-black": 1647,
        "emojione": 1323,
        "noto-v1": 1219,
        "fluent-flat": 1594,
    }


@pytest.mark.usefixtures("real")
def test_no_real_picture_is_in_train_and_in_test() -> None:
    for style in STYLES:
        entry = store.pictures(style, 64)
        sides: dict[bytes, set[bool]] = {}
        shown = store.drawn(entry)
        for code, image in zip(entry.facts["codes"], entry["images"], strict=True):
            if code not in shown:
                continue
            sides.setdefault(image.tobytes(), set()).add(store.is_test(look_alike(code)))
        shared = sum(len(side) > 1 for side in sides.values())
        assert shared == 0, f"{style}: {shared} pictures are on both sides"


@pytest.mark.usefixtures("real")
def test_the_real_sets_load() -> None:
    found = data.load(DataConfig(name="emoji_domains"), 0)
    assert (len(found.train), len(found.test)) == (7469, 1748)
    assert found.class_names[0] == "Smileys & Emotion" and found.class_names[-1] == "Flags"
    assert found.train.texts is not None and found.train.texts[0] == "grinning face"
    assert len(data.load(DataConfig(name="emoji_pairs"), 0).test) == 362

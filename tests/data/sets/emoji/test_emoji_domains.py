"""Emoji as domains, on tiny packages of the form of the real ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.data.sets.emoji.tiny_packages import (
    CODES,
    FACES,
    FLAGS,
    GROUPS,
    SURFERS,
    at,
    both,
    colour,
    domains,
    picture,
    write,
)
from umbel import data
from umbel.core.names import UnknownNameError
from umbel.data.config import DataConfig
from umbel.data.sets.emoji import store
from umbel.data.sets.emoji.alike import look_alike
from umbel.data.sets.emoji.concepts import PACKAGES, code_of, code_of_text, has_tone, slug

torch.set_num_threads(1)


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
    loaded = domains()
    assert loaded.domain_names == ("google", "twitter", "fluent")
    # In the order of `sort_order`, which runs backwards within each group of the tiny list; no skin tones.
    assert set(loaded.class_names) == set(GROUPS)
    assert len(loaded.train) + len(loaded.test) == 3 * len(CODES) - 4
    assert torch.bincount(both(loaded, "domains")).tolist() == [len(CODES), len(CODES), len(CODES) - 4]
    sizes = dict(zip(loaded.class_names, torch.bincount(both(loaded, "labels")).tolist(), strict=True))
    assert sizes == {"Smileys & Emotion": 90, "People & Body": 9, "Animals & Nature": 32, "Flags": 72}
    assert loaded.train.texts is not None and loaded.train.domains is not None
    for index in range(0, len(loaded.train), 17):
        code = loaded.train.texts[index].removeprefix("Thing ")
        style = loaded.domain_names[int(loaded.train.domains[index])]
        image = loaded.train.images[index]
        assert image[:, 4, 4].tolist() == list(colour(style, code)), (style, code)
        assert image[:, 0, 0].tolist() == [255, 255, 255]  # transparent is white
        assert code in GROUPS[loaded.class_names[int(loaded.train.labels[index])]]
    assert loaded.natural_ids is not None and torch.equal(loaded.natural_ids, loaded.train.domains)
    assert "CC-BY-4.0 (twitter)" in loaded.licence and "Twemoji" in loaded.attribution


def test_the_split_goes_by_concept_and_never_changes(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = domains()

    def texts(examples: data.Examples) -> set[str]:
        assert examples.texts is not None
        return set(examples.texts)

    train, test = texts(loaded.train), texts(loaded.test)
    assert not train & test and 0.1 < len(test) / (len(train) + len(test)) < 0.3
    other = domains(domains="fluent,google", image_size=5, labels="subgroups")
    assert texts(other.train) == train and texts(other.test) == test  # whatever the options
    surfers = {f"Thing {code}" for code in SURFERS}
    assert surfers <= train or surfers <= test  # look-alikes stay together
    assert len(both(loaded, "concepts").unique()) == len({look_alike(code_of(code)) for code in CODES})
    apart = domains(concepts="codepoints")
    assert len(both(apart, "concepts").unique()) == len(CODES)
    # Made again from nothing, it is the same.
    shutil.rmtree(tiny / "sets")
    again = domains()
    for column in ("images", "labels", "domains", "concepts"):
        assert torch.equal(both(again, column), both(loaded, column))


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
    loaded = domains(domains="openmoji,openmoji-black,noto-v1", image_size=16)
    counts = torch.bincount(both(loaded, "domains")).tolist()
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
    entry = store.pictures("fluent-flat", 8)
    assert entry.facts["codes"] == [FACES[5]]
    image = torch.from_numpy(entry["images"][0].copy())
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

"""Emoji of the real packages, where they are."""

from __future__ import annotations

from collections import Counter

import pytest

from umbel import data
from umbel.data.config import DataConfig
from umbel.data.sets.emoji import store
from umbel.data.sets.emoji.alike import look_alike
from umbel.data.sets.emoji.drawing import STYLES
from umbel.data.sources import cache


@pytest.fixture(scope="module")
def real() -> None:
    try:
        store.require(tuple(STYLES), 64)
    except data.MissingDataError as error:
        pytest.skip(f"{str(error).splitlines()[0]} ({cache.folder()})")


@pytest.mark.usefixtures("real")
def test_the_real_counts() -> None:
    concepts = store.concepts()
    groups = Counter(concept.group for concept in concepts)
    subgroups = Counter(concept.subgroup for concept in concepts)
    assert len(concepts) == 1906 and len(groups) == 9 and len(subgroups) == 98
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
    loaded = data.load(DataConfig(name="emoji_domains"), 0)
    assert (len(loaded.train), len(loaded.test)) == (7469, 1748)
    assert loaded.class_names[0] == "Smileys & Emotion" and loaded.class_names[-1] == "Flags"
    assert loaded.train.texts is not None and loaded.train.texts[0] == "grinning face"
    assert len(data.load(DataConfig(name="emoji_pairs"), 0).test) == 362

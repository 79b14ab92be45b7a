"""Emoji as pairs of picture and caption."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.data.sets.emoji.tiny_packages import CODES, FACES, RASTER, both, captions, colour, pairs


def test_pairs_have_each_caption_once(tiny: Path) -> None:
    train, test = captions(pairs())
    assert len(train) + len(test) == len(CODES) == len({*train, *test})
    # Three faces have the same words but for upper case: one is left.
    loaded = pairs(captions="keywords")
    train, test = captions(loaded)
    assert len(train) + len(test) == len(CODES) - 2
    assert Counter(text.casefold() for text in train + test).most_common(1)[0][1] == 1
    assert [text for text in train + test if text.casefold() == "the same, words"] == ["The Same, WORDS"]
    # Only faces have words in the annotations.
    train, test = captions(pairs(captions="keywords", keywords_from="cldr"))
    assert sorted(train + test) == FACES


def test_pairs_share_neither_concept_nor_caption(tiny: Path) -> None:
    for every in (False, True):
        loaded = pairs(domains=RASTER, every_domain=every)
        train, test = captions(loaded)
        assert not {text.casefold() for text in train} & {text.casefold() for text in test}
        assert loaded.train.concepts is not None and loaded.test.concepts is not None
        assert not set(loaded.train.concepts.tolist()) & set(loaded.test.concepts.tolist())
        most = max(Counter(train).values())
        assert (most, len(train + test)) == ((3, 3 * len(CODES) - 4) if every else (1, len(CODES)))
        assert len(both(loaded, "domains").unique()) == 3
        for index in range(0, len(train), 9):
            assert loaded.train.domains is not None
            style = loaded.domain_names[int(loaded.train.domains[index])]
            code = train[index].removeprefix("Thing ")
            assert loaded.train.images[index, :, 4, 4].tolist() == list(colour(style, code))

"""Tokens of texts: a vocabulary by hand, the same bits in any process, and texts that are no captions."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.data import DataError, MissingDataError, tokens
from umbel.data.encoders.base import installed
from umbel.data.texts import Texts
from umbel.data.tokens import PAD, UNKNOWN, Tokenizer

needs_tokenizers = pytest.mark.skipif(not installed("tokenizers"), reason="pip install tokenizers")

CAPTIONS = ("a dog in the park", "a cat in the house", "the dog and the cat", "a house in the park, and a dog")


def train(captions: Sequence[str] = CAPTIONS, vocabulary: int = 64, length: int = 8) -> Tokenizer:
    return Tokenizer.train(Texts.of(captions), vocabulary, length)


def words(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens in the order of their numbers."""
    vocabulary: dict[str, int] = json.loads(tokenizer.definition)["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    return sorted(vocabulary, key=vocabulary.__getitem__)


def rows(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    embeddings: list[list[int]] = tokenizer.encode(Texts.of(texts)).tolist()
    return embeddings


@needs_tokenizers
def test_a_vocabulary_by_hand() -> None:
    tokenizer = train(["low", "low low"], length=4)
    # " low" thrice: all pairs are as frequent, and the pair of lowest numbers goes first.
    assert words(tokenizer) == ["[PAD]", "[UNK]", " ", "l", "o", "w", " l", "ow", " low"]
    assert tokenizer.vocabulary == 9
    assert rows(tokenizer, "low", "slow low", "owl") == [[8, 0, 0, 0], [2, 1, 3, 7], [2, 7, 3, 0]]


@needs_tokenizers
def test_what_is_seen_once_makes_no_token() -> None:
    assert words(train(["ab", "ba"])) == ["[PAD]", "[UNK]", " ", "a", "b"]
    assert " secret" not in words(train([*CAPTIONS, "a secret"]))


@needs_tokenizers
def test_texts_of_one_form_are_one_text() -> None:
    tokenizer = train()
    plain, *others = rows(tokenizer, "a dog", "A DOG", "  a\t\n dog ", "ａ ｄｏｇ", "a\u00a0dog")
    assert all(other == plain for other in others)
    assert rows(tokenizer, "ad og")[0] != plain
    dogs = rows(tokenizer, "the park, the park", "the park , the park")
    assert dogs[0] != dogs[1]  # a comma has the space before it, as a word has


@needs_tokenizers
def test_length_cuts_and_pads_at_the_end() -> None:
    long, short = (train(length=length) for length in (12, 3))
    assert long.definition == short.definition
    text = Texts.of(["the dog and the cat in the park", "a dog"])
    assert long.encode(text).shape == (2, 12)
    assert torch.equal(long.encode(text)[:, :3], short.encode(text))
    assert (long.encode(text)[1, 2:] == PAD).all()
    assert (long.encode(text)[1, :2] != PAD).all()


@needs_tokenizers
def test_a_text_without_a_character_is_one_unknown() -> None:
    assert rows(train(length=2), "", " \n", "a") == [[UNKNOWN, PAD], [UNKNOWN, PAD], rows(train(length=2), "a")[0]]
    assert train().encode(Texts.of([])).shape == (0, 8)
    assert train().encode(Texts.of([])).dtype == torch.int64


@needs_tokenizers
def test_a_text_that_names_a_special_token_has_none() -> None:
    tokenizer = train([*CAPTIONS, "[pad] [unk]"] * 2, vocabulary=128, length=16)
    embeddings = tokenizer.encode(Texts.of(["[PAD] a [UNK] dog [PAD]"]))
    used = int((embeddings != PAD).sum())
    assert used > 5
    assert (embeddings[0, used:] == PAD).all()
    assert UNKNOWN not in embeddings


@needs_tokenizers
def test_half_of_a_vocabulary_is_characters_at_most() -> None:
    many = [chr(0x4E00 + number) for number in range(100)]
    tokenizer = train([*CAPTIONS, " ".join(many)], vocabulary=64)
    single = [word for word in words(tokenizer)[2:] if len(word) == 1]
    assert len(single) == 31
    letters = set("".join(CAPTIONS)) - {" "}
    kept = sorted(set(single) - letters - {" "})
    assert letters < set(single)
    assert kept == many[: len(kept)]  # equally rare: the lowest code points
    assert rows(tokenizer, many[-1])[0][:2] == [words(tokenizer).index(" "), UNKNOWN]


SCRIPT = """
import json, sys
from umbel.data.texts import Texts
from umbel.data.tokens import Tokenizer
captions = json.loads(sys.argv[1])
tokenizer = Tokenizer.train(Texts.of(captions), 100, 6)
print(json.dumps([tokenizer.definition, tokenizer.encode(Texts.of(captions)).tolist()]))
"""


@needs_tokenizers
def test_the_same_bits_in_any_process_and_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(0)
    captions = ["".join(noise.choices("abcdefghij ", k=30)) for _ in range(200)] + list(map(chr, range(0x4E00, 0x4F00)))
    tokenizer = train(captions, vocabulary=100, length=6)
    assert tokenizer.vocabulary == 100
    for parallel in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        for _ in range(5):  # a hash table of the library is in another order each time
            noise.shuffle(captions)
            assert train(captions, vocabulary=100, length=6) == tokenizer
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(captions)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == [tokenizer.definition, rows(tokenizer, *captions)]


@needs_tokenizers
def test_order_changes_nothing_and_repetition_does() -> None:
    shuffled = random.Random(1).sample(CAPTIONS, len(CAPTIONS))
    assert train(shuffled) == train()
    assert hash(train(shuffled)) == hash(train())
    assert train([*CAPTIONS, *["zebra zebra"] * 9]) != train()


@needs_tokenizers
def test_a_tokenizer_travels() -> None:
    tokenizer = train()
    assert tokenizer.vocabulary == len(words(tokenizer))  # a cached value is no part of what it is
    for other in (pickle.loads(pickle.dumps(tokenizer)), Tokenizer(tokenizer.definition, tokenizer.length)):
        assert other == tokenizer
        assert rows(other, *CAPTIONS) == rows(tokenizer, *CAPTIONS)


@needs_tokenizers
def test_a_text_is_encoded_alike_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train()
    whole = rows(tokenizer, *CAPTIONS)
    assert whole == [rows(tokenizer, caption)[0] for caption in CAPTIONS]
    monkeypatch.setattr(tokens, "CHUNK", 3)
    assert rows(tokenizer, *CAPTIONS) == whole


@needs_tokenizers
@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text(text: str) -> None:
    tokenizer = train()
    (row,) = rows(tokenizer, text)
    used = sum(token != PAD for token in row)
    assert used >= 1
    assert all(1 <= token < tokenizer.vocabulary for token in row[:used])
    assert row[used:] == [PAD] * (8 - used)


@pytest.mark.parametrize(
    ("vocabulary", "length", "message"),
    [
        (63, 8, r"data\.vocabulary should be a whole number of at least 64 tokens, found 63"),
        (True, 8, r"data\.vocabulary .* found True"),
        (100.0, 8, r"data\.vocabulary .* found 100\.0"),
        (64, 0, r"data\.text_length should be a whole number of at least 1 tokens, found 0"),
    ],
)
def test_numbers_out_of_range(vocabulary: int, length: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(vocabulary=vocabulary, length=length)


@needs_tokenizers
@pytest.mark.parametrize("captions", [[], ["", " "]])
def test_no_captions(captions: list[str]) -> None:
    with pytest.raises(DataError, match=f"found {len(captions)} of them without a character"):
        train(captions)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDataError, match="pip install tokenizers"):
        train()
    with pytest.raises(MissingDataError, match="pip install tokenizers"):
        Tokenizer("{}", 5).encode(Texts.of(["a"]))

"""Texts as rows of token numbers, by a vocabulary that is learnt from captions.

The vocabulary is byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): it starts from characters and joins the
most frequent neighbours within a word. Texts are first brought to one form (NFKC, lower case, one space between words)
and cut at spaces and at each mark that is neither letter nor digit; a word keeps the space before it, so that "to day"
and "today" differ.

The same captions give the same vocabulary in any process and in any order. Those of WordPiece would not: its trainer
numbers characters as a hash table happens to hold them (huggingface/tokenizers issue 1794; seen with 0.23.3).

A vocabulary spells out words of the captions that it was trained on, and everyone who encodes has it. Train it on
public captions only; a client's own are encoded by it and never train it.

Shapes: N texts, L tokens of a text.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from umbel.data.encoders.base import imported, installed
from umbel.data.errors import DataError, MissingDataError
from umbel.data.texts import Texts

PAD, UNKNOWN = 0, 1
MIN_VOCABULARY = 64

_SPECIAL = ("[PAD]", "[UNK]")
_WORDS = r" ?[\p{L}\p{M}\p{N}]+| ?[^\s\p{L}\p{M}\p{N}]"
_MIN_COUNT = 2  # what is seen once is no part of a language, and is what a single caption gives away
CHUNK = 4096


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary, and the length that texts are brought to.

    It is a string and a number, and travels as both; two that are equal encode alike.

    Attributes:
        definition: The vocabulary and how texts are cut, as JSON of the library `tokenizers`.
        length: L; longer texts are cut, shorter ones padded.
    """

    definition: str = field(repr=False)
    length: int

    @classmethod
    def train(cls, texts: Texts, vocabulary: int, length: int) -> Tokenizer:
        """Learn a vocabulary from captions, which must be public: the vocabulary repeats their words.

        Args:
            texts: Captions, in any order.
            vocabulary: Most tokens that there may be; few captions give fewer. Up to half are single characters,
                the most frequent of the captions; the others become [UNK].
            length: L.

        Raises:
            MissingDataError: The library `tokenizers` is not installed.
            DataError: A number is out of range, or the captions are empty.
        """
        _check("data.vocabulary", "tokens", vocabulary, MIN_VOCABULARY)
        _check("data.text_length", "tokens", length, 1)
        tokenizer, library = _untrained(), _library()
        captions = sorted(texts)
        characters: Counter[str] = Counter()
        for caption in captions:
            characters.update(tokenizer.normalizer.normalize_str(caption))
        if not characters:
            raise DataError(
                f"Expected captions to learn a vocabulary from, found {len(captions)} of them without a character.",
                key="data.public",
            )
        frequent = sorted(characters, key=lambda character: (-characters[character], character))
        alphabet = frequent[: (vocabulary - len(_SPECIAL)) // 2]
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=_MIN_COUNT,
            special_tokens=list(_SPECIAL),
            # Named here: the trainer's own limit drops equally rare characters as a hash table happens to hold them.
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer.to_str(), length)

    @cached_property
    def vocabulary(self) -> int:
        """Number of tokens with [PAD] = 0 and [UNK] = 1; an embedding needs so many rows."""
        return len(json.loads(self.definition)["model"]["vocab"])

    def encode(self, texts: Texts) -> Tensor:
        """Return tokens [N, L] int64 where the texts are: cut at L, padded with 0 at the end.

        A text without a character is one [UNK], so that no row is empty.

        Raises:
            MissingDataError: The library `tokenizers` is not installed.
        """
        library = _opened(self.definition, self.length)
        tokens = torch.full((len(texts), self.length), PAD, dtype=torch.int64)
        captions = list(texts)
        for start in range(0, len(captions), CHUNK):
            # One by one: the library's batches take every core there is, and no less time.
            rows = [library.encode(caption).ids for caption in captions[start : start + CHUNK]]
            tokens[start : start + CHUNK] = torch.tensor(rows)
        tokens[tokens[:, 0] == PAD, 0] = UNKNOWN
        return tokens.to(texts.offsets.device)


def _library() -> Any:
    """Import the library, or say how to install it."""
    if not installed("tokenizers"):
        raise MissingDataError(
            "Texts are cut into tokens by the Python module tokenizers, and it is not installed.",
            remedy="Install with\n    pip install tokenizers",
        )
    return imported("tokenizers")


def _untrained() -> Any:
    """Return the library's tokenizer before it has a vocabulary."""
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE(unk_token=_SPECIAL[UNKNOWN]))
    forms = library.normalizers
    spaces = library.Regex(r"\s+")
    tokenizer.normalizer = forms.Sequence(
        [forms.NFKC(), forms.Lowercase(), forms.Replace(spaces, " "), forms.Strip(), forms.Prepend(" ")]
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(_WORDS), "isolated")
    return tokenizer


@lru_cache(maxsize=4)
def _opened(definition: str, length: int) -> Any:
    """Return the library's tokenizer; reading its JSON takes longer than a batch of captions."""
    tokenizer = _library().Tokenizer.from_str(definition)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=PAD, pad_token=_SPECIAL[PAD])
    tokenizer.encode_special_tokens = True  # a caption that says "[PAD]" has four words and no padding
    return tokenizer


def _check(key: str, unit: str, value: object, least: int) -> None:
    # bool is an int to Python, but `true` in a YAML file is a slip.
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{key} should be a whole number of at least {least} {unit}, found {value!r}", key=key)

"""What the server and all clients have in common: a public set, and how texts are read.

Shapes: N examples, L tokens, E features of a frozen encoder of texts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from umbel.core.rng import generator
from umbel.data import encoders
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.split import stratified, stratified_concepts
from umbel.data.tokens import MIN_VOCABULARY, Tokenizer
from umbel.data.types import DataSet, Examples

BPE = "bpe"


def split_public(pool: Examples, rest: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Take the public examples out of those that clients would share.

    Where examples have concepts, a fraction of the concepts becomes public, each with one example drawn by the seed;
    the other examples of such a concept are nobody's, so that no client knows more about a public pair than another.

    Args:
        pool: The training examples.
        rest: Example numbers that are not held out, int64.
        fraction: `data.public`.
        seed: The seed of the data.

    Returns:
        The example numbers that are left for clients and those of the public set, both ascending.

    Raises:
        DataError: The fraction of no class is as much as one example or concept.
    """
    if not fraction:
        return rest, rest[:0]
    concepts, labels = None if pool.concepts is None else pool.concepts[rest], pool.labels[rest]
    if concepts is None:
        left, public = stratified(labels, fraction, seed, "public")
    else:
        left, public = stratified_concepts(concepts, labels, fraction, seed, "public")
    if not len(public):
        held = f"{len(rest)} examples" if concepts is None else f"{len(torch.unique(concepts))} concepts"
        raise DataError(
            f"data.public={fraction:g} of the {held} that data.server_validation leaves is none of any class.",
            key="data.public",
            remedy="Raise data.public.",
        )
    if concepts is None:
        return rest[left], rest[public]
    shuffled = public[torch.randperm(len(public), generator=generator(seed, purpose="public example"))]
    _, member = torch.unique(concepts[shuffled], return_inverse=True)
    first = torch.full((int(member.max()) + 1,), len(shuffled), dtype=torch.int64)
    first.scatter_reduce_(0, member, torch.arange(len(shuffled)), "amin")
    return rest[left], rest[shuffled[first]].sort().values


def caption_concepts(pool: Examples, config: DataConfig) -> Examples:
    """Return examples that have texts and no concepts with a concept for each caption, where the setting uses texts.

    Examples of the same caption, to the letter, are then held out together, and are right for one another. The test
    examples of such a set are numbered by `caption_concepts_of_test`.

    Args:
        pool: The training examples.
        config: Without `data.text_encoder` and `data.public` nothing changes, so that partitions are as ever.
    """
    if pool.texts is None or pool.concepts is not None or not (config.text_encoder or config.public):
        return pool
    number: dict[str, int] = {}
    concepts = [number.setdefault(text, len(number)) for text in pool.texts]
    return replace(pool, concepts=torch.tensor(concepts, dtype=torch.int64))


def caption_concepts_of_test(test: Examples, pool: Examples) -> Examples:
    """Return the test examples with a concept for each caption, where the training examples' concepts are captions.

    One numbering for both: a caption that was trained on has the number that it has there, others go on from the
    highest. So examples of the same caption are right for one another in the test as well, be it one that was trained
    on: unlike a set that comes with concepts, such a set is not split by them.

    Args:
        test: The test examples. Nothing changes where they came with concepts, as the training examples then did too.
        pool: The training examples, as `caption_concepts` returns them.
    """
    if pool.texts is None or pool.concepts is None or test.texts is None or test.concepts is not None:
        return test
    number = dict(zip(pool.texts, pool.concepts.tolist(), strict=True))
    concepts = [number.setdefault(text, len(number)) for text in test.texts]
    return replace(test, concepts=torch.tensor(concepts, dtype=torch.int64))


def check(config: DataConfig) -> None:
    """Raise `DataError` for a public set or a reading of texts that cannot be.

    Raises:
        UnknownNameError: There is no such encoder.
        DataError: A value is out of range, or the encoder is not here.
    """
    if config.text_encoder == BPE:
        for key, least in (("vocabulary", MIN_VOCABULARY), ("text_length", 1)):
            if (value := getattr(config, key)) < least:
                raise DataError(
                    f"data.{key} should be a whole number of at least {least} tokens, found {value}", key=f"data.{key}"
                )
        if not config.public:
            raise DataError(
                "data.text_encoder=bpe learns its vocabulary from the public captions, which everybody has, and there "
                "are none.",
                key="data.public",
                remedy="Set data.public.",
            )
    elif config.text_encoder:
        encoders.check(config.text_encoder, 0)


def embed_texts(data_set: DataSet, name: str) -> DataSet:
    """Return the set with what a frozen encoder makes of its texts as `tokens`.

    Raises:
        DataError: The set has no texts.
    """
    train, test = data_set.train, data_set.test
    if train.texts is None or test.texts is None:
        raise _no_texts(data_set.name, name)
    made = [encoders.encode_texts(each.texts, name, data_set.name) for each in (train, test) if each.texts is not None]
    return replace(data_set, train=replace(train, tokens=made[0]), test=replace(test, tokens=made[1]))


def tokenize(pool: Examples, test: Examples, public: Tensor, config: DataConfig) -> tuple[Examples, Examples, int]:
    """Return both with token ids of a vocabulary learned from the public captions alone, and how many tokens it has.

    Args:
        pool: The training examples.
        test: The test examples.
        public: Example numbers of the public set in the pool.
        config: Size of the vocabulary, tokens of a text.

    Raises:
        DataError: The set has no texts.
    """
    if pool.texts is None or test.texts is None:
        raise _no_texts(config.name, config.text_encoder)
    tokenizer = Tokenizer.train(pool.texts.take(public), config.vocabulary, config.text_length)
    pool, test = replace(pool, tokens=tokenizer.encode(pool.texts)), replace(test, tokens=tokenizer.encode(test.texts))
    return pool, test, tokenizer.vocabulary


def _no_texts(name: str, encoder: str) -> DataError:
    return DataError(f"{name} has no texts.", key="data.text_encoder", remedy=f"Remove data.text_encoder={encoder}.")

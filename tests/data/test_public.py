"""The public set, and how texts are read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.data.test_concepts import drawings, drawn
from umbel import data
from umbel.core.metrics.matching import match
from umbel.data.config import DataConfig
from umbel.data.federation import Federation
from umbel.data.public import caption_concepts, caption_concepts_of_test, check, split_public
from umbel.data.texts import Texts
from umbel.data.types import DataSet


def federation(**options) -> Federation:
    config = DataConfig(
        **{
            "name": "drawings",
            "num_clients": 5,
            "partition": "iid",
            "server_validation": 0.1,
            "client_test": 0.2,
            "text_encoder": "bpe",
            "vocabulary": 80,
            "text_length": 8,
            "public": 0.3,
            **options,
        }
    )
    return Federation.cut(drawings(), config, 3)


def concepts_of(*parts) -> set[int]:
    return {int(concept) for part in parts for concept in part.concepts}


def test_no_concept_is_public_and_anybodys():
    federated = federation()
    clients = [federated.client(client) for client in range(5)]
    others = [federated.server.validation, federated.server.test]
    for each in clients:
        others += [each.train, each.validation, each.test]
    assert concepts_of(federated.public).isdisjoint(concepts_of(*others))
    assert len(federated.public) == len(concepts_of(federated.public)) == 4 * round(0.3 * 36)  # of each class


def test_the_drawing_of_a_public_concept_is_drawn():
    domains = federation().public.domains
    assert set(domains.tolist()) == {0, 1, 2}


def test_the_public_set_is_the_seeds():
    one, same = federation(), federation()
    assert torch.equal(one.public_index, same.public_index)
    other = Federation.cut(drawings(), DataConfig(name="d", num_clients=5, partition="iid", public=0.3), 4)
    assert not torch.equal(one.public_index, other.public_index)


def test_without_concepts_it_is_stratified_and_nothing_is_lost():
    pool = replace(drawn(), concepts=None)
    rest = torch.arange(10, len(pool))
    left, public = split_public(pool, rest, 0.25, 0)
    assert torch.equal(torch.cat([left, public]).sort().values, rest)
    counts = torch.bincount(pool.labels[public])
    assert int(counts.max() - counts.min()) <= 1


def test_no_fraction_no_public_set():
    pool = drawn()
    rest = torch.arange(len(pool))
    left, public = split_public(pool, rest, 0.0, 0)
    assert torch.equal(left, rest)
    assert not len(public)


def test_partitions_are_as_before_without_one():
    config = DataConfig(name="d", num_clients=5, partition="dirichlet", alpha=0.5)
    plain = Federation.cut(drawings(), config, 3)
    assert not len(plain.public)
    assert plain.vocabulary == 0
    assert plain.client(0).train.tokens is None


def test_the_vocabulary_knows_public_captions_only():
    """A word that only clients have is spelt by its letters, one of the public captions is a token."""
    federated = federation(vocabulary=400)
    whole = drawings()
    public = concepts_of(federated.public)
    texts = [f"secretword{int(c)}" if int(c) not in public else "commonword" for c in whole.train.concepts]
    spiked = replace(whole, train=replace(whole.train, texts=Texts.of(texts)))
    made = Federation.cut(spiked, DataConfig(name="d", num_clients=5, partition="iid", server_validation=0.1,
                                             client_test=0.2, text_encoder="bpe", vocabulary=400, text_length=24,
                                             public=0.3), 3)  # fmt: skip
    assert concepts_of(made.public) == public
    assert int((made.public.tokens > 0).sum(1).max()) <= 2
    assert int((made.client(0).train.tokens > 0).sum(1).min()) > 4


def test_tokens_go_where_examples_go():
    federated = federation()
    assert federated.vocabulary <= 80
    tokens = federated.pool.tokens
    assert tokens.shape == (len(federated.pool), 8)
    index = federated.client_indices(2)[0]
    assert torch.equal(federated.client(2).train.tokens, tokens[index])
    again = Federation.from_arrays(federated.arrays(), federated.meta)
    assert torch.equal(again.client(2).train.tokens, tokens[index])
    assert torch.equal(again.public.tokens, federated.public.tokens)
    assert again.vocabulary == federated.vocabulary
    moved = federated.public.to("cpu")
    assert torch.equal(moved.tokens, federated.public.tokens)


def test_tokens_are_read_on_the_device_and_in_the_dtype():
    pool = drawn()
    with pytest.raises(data.DataError, match=r"data\.text_encoder"):
        pool.read_tokens("cpu", torch.float32)
    ids = replace(pool, tokens=torch.ones(len(pool), 3, dtype=torch.int64))
    assert ids.read_tokens("cpu", torch.float64).dtype == torch.int64
    embedded = replace(pool, tokens=torch.ones(len(pool), 3))
    assert embedded.read_tokens("cpu", torch.float64).dtype == torch.float64
    with pytest.raises(data.DataError, match="tokens"):
        replace(pool, tokens=torch.ones(2, 3))


def test_identities_are_concepts_or_numbers():
    pool = drawn()
    assert torch.equal(pool.identities(), pool.concepts)
    assert torch.equal(replace(pool, concepts=None).identities(), torch.arange(len(pool)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_encoder": "bpe"}, r"Set data\.public"),
        ({"text_encoder": "minilmo", "public": 0.1}, "minilm"),
        ({"text_encoder": "bpe", "public": 0.1, "vocabulary": 63}, r"data\.vocabulary .* at least 64 tokens, found 63"),
        ({"text_encoder": "bpe", "public": 0.1, "text_length": 0}, r"data\.text_length .* at least 1 tokens, found 0"),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        check(DataConfig(**options))


def test_a_public_set_of_nothing_is_refused():
    with pytest.raises(data.DataError, match=r"data\.public=0\.01 of the 144 concepts .* Raise data\.public"):
        federation(public=0.01)
    pool = replace(drawn(), concepts=None)
    with pytest.raises(data.DataError, match=r"data\.public=0\.001 of the 600 examples"):
        split_public(pool, torch.arange(len(pool)), 0.001, 0)


# Captions in place of concepts --------------------------------------------------------------------------------


def captioned() -> DataSet:
    """Drawings that only their captions tell to be of one concept; of the test's, 140 to 159 are trained on as well."""
    whole = drawings()
    test = replace(whole.test, concepts=None, texts=Texts.of(f"concept {140 + n % 40}" for n in range(len(whole.test))))
    return replace(whole, train=replace(whole.train, concepts=None), test=test)


def test_whole_captions_are_held_out():
    config = DataConfig(name="d", num_clients=5, partition="iid", public=0.3, server_validation=0.1, client_test=0.2)
    federated = Federation.cut(captioned(), config, 3)
    clients = [federated.client(client) for client in range(5)]
    sides = (
        [federated.public],
        [federated.server.validation],
        [each.train for each in clients],
        [each.test for each in clients],
    )
    captions = [{text for part in side for text in part.texts} for side in sides]
    assert all(captions)
    assert all(one.isdisjoint(other) for n, one in enumerate(captions) for other in captions[:n])
    assert len(federated.public) == len(captions[0])  # one of each
    ids = federated.server.validation.identities().tolist()
    texts = list(federated.server.validation.texts)
    assert len(ids) > len(set(ids)) == len(set(texts)) == len(set(zip(ids, texts, strict=True)))


def test_captions_are_what_concepts_would_be():
    """In the order of their first examples captions are numbered as these concepts are, and dealt alike."""
    config = DataConfig(name="d", num_clients=5, partition="iid", public=0.3)
    derived, given = (Federation.cut(each, config, 3) for each in (captioned(), drawings()))
    assert torch.equal(derived.pool.concepts, given.pool.concepts)
    assert torch.equal(derived.public_index, given.public_index)
    assert torch.equal(derived.partition.indices, given.partition.indices)


BPE = {"text_encoder": "bpe", "vocabulary": 80, "text_length": 8}


@pytest.mark.parametrize("reads", [BPE, {"text_encoder": "minilm"}, {}], ids=["bpe", "frozen", "none"])
def test_equal_captions_share_a_number_in_training_and_test(reads):
    config = DataConfig(name="d", num_clients=5, partition="iid", public=0.3, **reads)
    federated = Federation.cut(captioned(), config, 3)
    numbers = {
        side: dict(zip(examples.texts, examples.concepts.tolist(), strict=True))
        for side, examples in (("training", federated.pool), ("test", federated.test_pool))
    }
    assert len(federated.test_pool) == len(drawings().test)
    pairs = {*numbers["training"].items(), *numbers["test"].items()}
    assert len(pairs) == len({text for text, _ in pairs}) == len({number for _, number in pairs}) == 180
    assert numbers["training"].keys() & numbers["test"].keys() == {f"concept {n}" for n in range(140, 160)}
    assert [numbers["test"][f"concept {n}"] for n in (159, 160, 179)] == [159, 160, 179]
    plain = Federation.cut(captioned(), replace(config, text_encoder=""), 3)
    assert torch.equal(plain.partition.indices, federated.partition.indices)
    assert torch.equal(plain.public_index, federated.public_index)
    again = Federation.from_arrays(federated.arrays(), federated.meta)
    for side in ("pool", "test_pool"):
        assert torch.equal(getattr(again, side).concepts, getattr(federated, side).concepts)


def test_a_drawing_of_the_test_is_right_for_each_text_that_is_its_caption():
    """Who knows captions and nothing else finds all."""
    config = DataConfig(name="d", num_clients=5, partition="iid", public=0.3, **BPE)
    test = Federation.cut(captioned(), config, 3).server.test
    order = sorted(set(test.texts))
    said = torch.tensor([order.index(text) for text in test.texts])
    known = torch.eye(len(order))

    def measured(ids: torch.Tensor) -> dict[str, float]:
        return match(lambda x: x, lambda tokens: known[tokens[:, 0]], known[said], said[:, None], ids)

    assert measured(test.identities())["rsum"] == 600
    assert (
        measured(torch.arange(len(test)))["i2t_recall@1"] == 0
    )  # three drawings of each caption are wrong for another


def test_a_test_that_needs_no_captions_stays_as_it_is():
    whole, pool = drawings(), caption_concepts(captioned().train, DataConfig(public=0.1))
    assert caption_concepts_of_test(whole.test, whole.train) is whole.test  # concepts of its own
    test = captioned().test
    assert caption_concepts_of_test(test, captioned().train) is test  # no setting uses texts
    bare = replace(test, texts=None)
    assert caption_concepts_of_test(bare, pool) is bare
    assert caption_concepts_of_test(test, pool).concepts.tolist() == [140 + n % 40 for n in range(len(test))]
    assert test.concepts is None


def test_captions_are_texts_like_any_without_a_setting_that_uses_them():
    federated = Federation.cut(captioned(), DataConfig(name="d", num_clients=5, partition="iid"), 3)
    assert federated.pool.concepts is None
    assert caption_concepts(drawn(), DataConfig(public=0.1)).concepts.tolist() == drawn().concepts.tolist()
    bare = replace(drawn(), concepts=None, texts=None)
    assert caption_concepts(bare, DataConfig(public=0.1)).concepts is None
    exact = replace(drawn(), concepts=None, texts=Texts.of("Aa" if n % 2 else "aa" for n in range(600)))
    assert caption_concepts(exact, DataConfig(text_encoder="minilm")).concepts.tolist() == [0, 1] * 300


def test_captions_are_needed():
    bare = drawings()
    bare = replace(bare, train=replace(bare.train, texts=None), test=replace(bare.test, texts=None))
    config = DataConfig(name="bare", num_clients=2, partition="iid", text_encoder="bpe", public=0.3)
    with pytest.raises(data.DataError, match="bare has no texts"):
        Federation.cut(bare, config, 0)

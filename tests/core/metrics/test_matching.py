"""Matching images and texts: every expected recall is counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers import tree as T
from umbel.client.evaluation import evaluate_client
from umbel.core.evaluation import evaluation_fold
from umbel.core.metrics import retrieval
from umbel.core.metrics.matching import (
    NAME,
    RECALLS,
    are_counts,
    as_counts,
    distinct_texts,
    from_counts,
    match,
    too_few,
)
from umbel.core.records import Payload, Reply
from umbel.data.types import Examples
from umbel.server.evaluation import of_clients
from umbel.strategies.base import Predictor

# Three concepts, drawn once, five times and twice; the token says whose caption it is.
IDS = torch.tensor([4, 7, 7, 7, 7, 7, 9, 9])
TOKENS = torch.tensor([0, 1, 1, 1, 1, 1, 2, 2])[:, None]
TEXTS = torch.eye(3)
IMAGES = torch.tensor(
    [
        [0.5, 0.9, 0.0],  # its own text is second, after concept 7's
        [0.0, 1.0, 0.0],
        [0.0, 1.0, 0.1],
        [0.0, 1.0, 0.2],
        [0.0, 1.0, 0.3],
        [0.9, 0.5, 0.0],  # second, after concept 4's
        [0.1, 0.0, 1.0],
        [0.9, 0.8, 0.1],  # third
    ]
)


def encode_text(tokens):
    return TEXTS[tokens[:, 0]]


def measures(images=IMAGES, tokens=TOKENS, ids=IDS, batch_size=4):
    return match(lambda x: x, encode_text, images, tokens, ids, batch_size)


def test_a_caption_of_several_drawings_counts_once():
    measured = measures()
    # The images' ranks are 2, 1, 1, 1, 1, 2, 1, 3.
    assert measured["i2t_recall@1"] == 62.5 and measured["i2t_median_rank"] == 1
    assert measured["i2t_recall@5"] == measured["i2t_recall@10"] == 100
    # Of the three texts, the first has two wrong images before its own.
    assert measured["t2i_recall@1"] == pytest.approx(100 * 2 / 3)
    repeated = retrieval(IMAGES, encode_text(TOKENS), IDS, IDS)
    assert repeated["t2i_recall@1"] == 87.5  # each caption asks as often as it was drawn
    assert repeated["i2t_recall@5"] == 75  # five times the same wrong caption: the ranks 2 and 3 are 6 and 7


def test_nothing_changes_where_nothing_is_there_twice():
    random = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 4, generator=random), torch.randn(30, 4, generator=random)
    tokens, ids = torch.arange(30)[:, None], torch.arange(30) // 2  # two captions each, all different
    plain = retrieval(images, texts, ids, ids)
    assert match(lambda x: x, lambda t: texts[t[:, 0]], images, tokens, ids, 7) == plain


def test_texts_are_one_where_tokens_and_ids_are():
    tokens = torch.tensor([[3, 0], [3, 0], [3, 0], [5, 1], [3, 0]])
    assert distinct_texts(tokens, torch.tensor([8, 1, 8, 8, 1])).tolist() == [0, 1, 3]
    embeddings = torch.tensor([[0.5, 0.25], [0.5, 0.25], [0.5, 0.5]])
    assert distinct_texts(embeddings, torch.tensor([2, 2, 2])).tolist() == [0, 2]
    assert distinct_texts(embeddings, torch.tensor([0, 1, 2])).tolist() == [0, 1, 2]


def test_counts_are_the_recalls():
    measured = measures()
    counts = as_counts(measured, 8, 3)
    assert counts.tolist() == [[5, 8, 8, 2, 3, 3], [8, 8, 8, 3, 3, 3]]
    assert are_counts(counts) and from_counts(counts) == {name: pytest.approx(measured[name]) for name in RECALLS}
    assert from_counts(counts + as_counts(measured, 8, 3))["t2i_recall@1"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(
    "asked", [[6, 6, 5, 3, 3, 3], [6, 6, 6, 3, 3, 2], [6, 6, 6, 0, 0, 0], [0] * 6, [3, 3, 3, 6, 6, 6]]
)
def test_counts_that_cannot_be(asked):
    assert not are_counts(torch.tensor([[0] * 6, asked]))


def test_few_texts_are_found_whatever_is_learned():
    counts = as_counts(measures(), 8, 3)
    assert [too_few(counts, name) for name in RECALLS] == [False, True, True] * 2
    assert [too_few(as_counts(measures(), 11, 11), name) for name in RECALLS] == [False] * 6


# Of clients ---------------------------------------------------------------------------------------------------


class Folder:
    """Takes what would be written."""

    def add(self, *row):
        pass


def measured_by(*clients):
    fold = evaluation_fold(4)
    accumulator = fold.zero()
    for client, counts in enumerate(clients):
        reply = Reply({"counts": T(**{f"test/{NAME}": counts, f"test/{NAME}/loss": 0.0})})
        fold.check(reply, Payload())
        accumulator = fold.add(accumulator, client, reply)
    return of_clients(fold.finish(accumulator), 1, Folder(), 0.0)


def test_a_client_with_few_pairs_is_no_part_of_the_mean():
    few = [[1.0, 4, 4, 2, 4, 4], [4.0] * 6]
    some = [[2.0, 6, 8, 4, 8, 8], [8.0] * 6]
    one, other = (torch.tensor(each, dtype=torch.float64) for each in (few, some))
    metrics = measured_by(one, other)
    start = f"clients/test/{NAME}"
    assert metrics[f"{start}/i2t_recall@1_mean"] == 25 and metrics[f"{start}/t2i_recall@1_mean"] == 50
    assert metrics[f"{start}/i2t_recall@5_mean"] == 75  # the other's alone
    assert f"{start}/i2t_recall@10_mean" not in metrics
    assert metrics[f"{start}/num_pairs_mean"] == 6
    assert metrics[f"{start}/i2t_recall@5"] == pytest.approx(100 * 10 / 12)  # pooled over all that asked


class Stub:
    """As much of a strategy and of a client as an evaluation uses."""

    device, num_classes, task = torch.device("cpu"), 3, 0
    local = type("Local", (), {"precision": "fp32"})

    def __init__(self, predictor, examples):
        self._predictors = {NAME if predictor.family == NAME else "text": predictor}
        self.test_data, self.validation_data, self.prepared = examples, examples.take(torch.arange(0)), 0

    def personal(self, payload, client):
        return self._predictors

    def prepare(self, examples):
        self.prepared += 1
        return examples.images, examples.labels


PAIRS = Examples(IMAGES, TOKENS[:, 0], concepts=IDS, tokens=TOKENS)


def test_who_reads_texts_prepares_no_image():
    stub = Stub(Predictor(encode_text, reads="tokens"), PAIRS)
    counts = evaluate_client(stub, Payload(), stub, 2).trees["counts"]
    assert counts["test/text"].tolist() == [[1, 5, 2], [1, 5, 2]] and not stub.prepared
    evaluation_fold(3).check(Reply({"counts": counts}), Payload())


def test_a_clients_pairs_are_counted():
    stub = Stub(Predictor(lambda x: x, family=NAME, texts=encode_text), PAIRS)
    counts = evaluate_client(stub, Payload(), stub, 4).trees["counts"]
    assert counts[f"test/{NAME}"].tolist() == [[5, 8, 8, 2, 3, 3], [8, 8, 8, 3, 3, 3]] and stub.prepared == 1
    evaluation_fold(3).check(Reply({"counts": counts}), Payload())
    stub = Stub(replace(Predictor(lambda x: x, family=NAME), texts=None), PAIRS)
    with pytest.raises(ValueError, match="needs an encoder of texts"):
        evaluate_client(stub, Payload(), stub, 4)

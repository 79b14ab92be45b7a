"""What CreamFL sends: representations as unit vectors in few bytes, of one public set, and never a weight."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.strategies.creamfl.halves import Halves, unit
from tests.strategies.creamfl.pairs import DIMENSION, PAIRS, PUBLIC, go
from umbel.conf.load import load
from umbel.core.records import BadReplyError, Payload
from umbel.server.session import Session
from umbel.strategies.creamfl.public import fingerprint
from umbel.strategies.creamfl.representations import Representations, from_wire, to_wire


@pytest.mark.parametrize(("wire", "size", "off"), [("float32", 4, 1e-6), ("float16", 2, 1e-3), ("int8", 1, 0.02)])
def test_the_wire_keeps_directions(wire, size, off):
    vectors = unit(50)
    sent = to_wire(vectors, wire)
    assert sent.element_size() == size
    back = from_wire(sent)
    torch.testing.assert_close(torch.linalg.norm(back, dim=1), torch.ones(50))
    assert float((back - vectors).abs().max()) < off


def test_int8_uses_its_whole_range_in_each_row():
    sent = to_wire(unit(20), "int8")
    assert (sent.abs().amax(1) == 127).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_a_model_that_diverged_does_not_hide_in_int8(wire, bad):
    vectors = unit(4)
    vectors[2] = bad
    with pytest.raises(ValueError, match="diverged"):
        to_wire(vectors, wire)


def payload(rows: int = 5, wire: str = "float32") -> Payload:
    sent = {name: to_wire(unit(rows, seed), wire) for seed, name in enumerate(("image", "text"))}
    return Payload({"representations": sent})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "expected image, text or both"),
        ({"sound": unit(5)}, "expected image, text or both"),
        ({"image": unit(4)}, r"expected image as torch.float32 \[5, 8\]"),
        ({"image": unit(5)[:, :4]}, r"expected image as"),
        ({"image": unit(5).double()}, r"expected image as torch.float32"),
        ({"image": 2 * unit(5)}, "no unit vectors"),
        ({"text": torch.zeros(5, DIMENSION)}, "no unit vectors"),
        ({"text": torch.full((5, DIMENSION), math.nan)}, "NaN"),
    ],
)
def test_representations_that_lie_are_refused(tree, message):
    with pytest.raises(BadReplyError, match=message):
        Representations("float32").check("representations", tree, payload())


def test_representations_that_are_true_are_taken():
    for wire in ("float32", "float16", "int8"):
        Representations(wire).check("representations", {"text": to_wire(unit(5), wire)}, payload(wire=wire))


@pytest.mark.parametrize(("wire", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_tensor_bytes_are_the_formula(tmp_path, wire, size):
    summary = go(tmp_path, f"strategy.wire={wire}").summary
    rounds, clients, senders = 2, 6, 8  # two clients send both modalities
    matrix = PUBLIC * DIMENSION * size
    assert summary["bytes_down"]["tensors"] == rounds * clients * (2 * matrix + 4 * PUBLIC)
    assert summary["bytes_up"]["tensors"] == rounds * senders * matrix
    assert summary["num_failures"] == 0


def test_a_part_of_the_public_set_costs_its_part(tmp_path):
    summary = go(tmp_path, "strategy.public_per_round=40", "run.rounds=1").summary
    assert summary["bytes_up"]["tensors"] == 8 * 40 * DIMENSION * 4
    assert summary["bytes_down"]["tensors"] == 6 * (2 * 40 * DIMENSION * 4 + 4 * 40)


def test_no_message_holds_a_weight(tmp_path):
    halves = Halves(tmp_path)
    state = halves.said()
    sent = halves.payload(state)
    messages = [sent, halves.strategy.evaluated(state, halves.session.context(1))]
    messages += [halves.phase.local(sent, halves.client(number)) for number in range(6)]
    names = {f"{tree}/{name}" for message in messages for tree, tensors in message.trees.items() for name in tensors}
    assert names == {"representations/image", "representations/text", "index/rows"}


def test_the_fingerprint_sees_images_texts_and_labels():
    public = Session(load("digits", [*PAIRS])).data.public
    whole = replace(public, images=(255 * public.images.clamp(0, 1)).to(torch.uint8))
    prints = [
        fingerprint(each)
        for each in (
            whole,
            replace(whole, images=255 - whole.images),
            replace(whole, labels=whole.labels.flip(0)),
            replace(whole, tokens=whole.tokens.flip(0)),
            replace(whole, texts=whole.texts.take(torch.arange(len(whole)).flip(0))),
        )
    ]
    assert len(set(prints)) == 5
    assert fingerprint(whole) == prints[0]


def test_another_public_set_is_noticed(tmp_path):
    halves = Halves(tmp_path)
    payload, client = halves.payload(halves.said()), halves.client(4)
    other = replace(client, public=replace(client.public, labels=client.public.labels.flip(0)))
    with pytest.raises(ValueError, match="another public set"):
        halves.phase.local(payload, other)
    assert 4 not in halves.remembered
    assert halves.phase.local(payload, client).num_examples == client.num_examples

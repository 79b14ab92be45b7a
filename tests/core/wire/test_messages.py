"""Messages: everything comes back as it was sent, and nothing else is accepted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from umbel.core.folds import Partial
from umbel.core.memory import Version
from umbel.core.records import Payload, Reply
from umbel.core.spent import Passes, Spent
from umbel.core.wire.heads import HEAD, JSON, MessageError, reply_framing, work_framing
from umbel.core.wire.messages import (
    decode_json,
    decode_outcome,
    decode_work,
    encode_json,
    encode_outcome,
    encode_payload,
    encode_work,
    framing_bytes,
)
from umbel.core.wire.work import Outcome, Work, held_by, share

ODD = {
    "bf16": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.bfloat16),
    "f16": torch.tensor([0.5], dtype=torch.float16),
    "f64": torch.tensor([1 / 3], dtype=torch.float64),
    "i64": torch.tensor([[2**40]]),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(2.5),
    "bf16 scalar": torch.tensor(2.5, dtype=torch.bfloat16),
    "none": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "strided": torch.arange(10)[::3],
    "trained": torch.ones(2, requires_grad=True),
    "with/slash.and.dot": torch.ones(1),
}
V = Version(2, 0, "a0")
WORK = Work(
    run="digits-1",
    attempt="a1",
    round=3,
    step=1,
    phase="train",
    config_hash="c0ffee",
    checkpoint_round=2,
    num_leaves=4,
    leaves={0: 0, 7: 3},
    memories={7: V},
    squads=((0, 3), (6, 7)),
)


def same(left, right):
    assert left.keys() == right.keys()
    for name, tensor in right.items():
        assert left[name].dtype == tensor.dtype and left[name].shape == tensor.shape, name
        assert torch.equal(left[name], tensor.detach()), name
    return True


def work_message(work=WORK, payload=None):
    payload = payload or Payload({"model": ODD, "empty": {}}, {"mu": 0.25})
    return encode_work(work, payload, encode_payload(payload))


def test_work_round_trip():
    work, payload = decode_work(work_message())
    assert work == WORK
    assert payload.numbers == {"mu": 0.25} and list(payload.trees) == ["model", "empty"]
    assert same(payload.trees["model"], ODD) and payload.trees["empty"] == {}
    payload.trees["model"]["scalar"].add_(1)  # owns its memory
    assert ODD["scalar"].item() == 2.5
    assert decode_work(work_message(payload=Payload()))[1] == Payload()


@pytest.mark.parametrize("trees", [{}, {"model": {}}, {"model": ODD, "more": {"w": torch.ones(10**5)}}], ids=len)
def test_framing_is_known_without_encoding(trees):
    payload = Payload(trees, {"mü": 0.25})
    for work in (WORK, replace(WORK, phase="évaluer", agreed={"classes": ["a"]})):
        assert work_framing(work, payload) == framing_bytes(work_message(work, payload))


def test_outcome_round_trip():
    outcome = Outcome(
        nodes=[
            (2, 1, Partial({"delta": {"w": torch.ones(2).double()}, "c": ODD}, {"loss": 1.5}, 12, 3)),
            (0, 9, Partial()),
        ],
        singles={5: Reply({"delta": ODD, "empty": {}}, {"loss": 0.1}, 4)},
        failures={6: "ValueError: ünicode"},
        seconds={5: 0.25, 6: 1.0},
        remembered=[5],
        bytes_up=100,
        framing_up=7,
        spent=Spent(3, 11, {"a model": Passes(11, 8, 3)}),
        fallbacks=["client.together=4: ünicode", *("x" * 600 for _ in range(20))],
    )
    decoded = decode_outcome(encode_outcome(outcome))
    (level, index, partial), (*place, hole) = decoded.nodes
    assert (level, index) == (2, 1) and place == [0, 9] and hole == Partial()
    assert same(partial.trees["delta"], {"w": torch.ones(2).double()}) and same(partial.trees["c"], ODD)
    assert (partial.numbers, partial.num_examples, partial.num_replies) == ({"loss": 1.5}, 12, 3)
    assert same(decoded.singles[5].trees["delta"], ODD) and decoded.singles[5].trees["empty"] == {}
    assert (decoded.singles[5].numbers, decoded.singles[5].num_examples) == ({"loss": 0.1}, 4)
    assert decoded.fallbacks[0] == outcome.fallbacks[0] and len(decoded.fallbacks) == 16
    assert all(len(text) <= 500 for text in decoded.fallbacks)
    for name in ("failures", "seconds", "remembered", "bytes_up", "framing_up", "spent"):
        assert getattr(decoded, name) == getattr(outcome, name)
    assert decode_outcome(encode_outcome(Outcome())) == Outcome()


def test_numbers_keep_their_bits():
    values = {"third": 1 / 3, "tiny": 5e-324, "large": 1.7976931348623157e308}
    outcome = Outcome(singles={0: Reply({}, values, 1)})
    assert decode_outcome(encode_outcome(outcome)).singles[0].numbers == values


def alone(reply):
    """A reply in a message of its own."""
    head = json.dumps({"num_examples": reply.num_examples, "numbers": reply.numbers})
    content = RecordDict({HEAD: ConfigRecord({JSON: head})})
    for name, record in encode_payload(Payload(reply.trees)).items() if reply.trees else ():
        content[name] = record
    return content


def test_framing_is_what_is_left_without_the_values():
    small = alone(Reply({"delta": {"w": torch.zeros(10)}}, {"loss": 0.5}, 3))
    large = alone(Reply({"delta": {"w": torch.zeros(1000)}}, {"loss": 0.5}, 3))
    total = sum(len(array.data) for record in large.array_records.values() for array in record.values())
    names = sum(len(name) + len(key) for name, record in large.array_records.items() for key in record)
    head = sum(len(key) + len(str(v)) for record in large.config_records.values() for key, v in record.items())
    assert framing_bytes(large) == total + names + head - 4 * 1000
    assert abs(framing_bytes(large) - framing_bytes(small)) < 32  # no more than the digits of a shape
    assert 0 < framing_bytes(encode_json({"hello": "x"})) < 100


@pytest.mark.parametrize(
    "trees",
    [
        {},
        {"none": {}},
        {"delta": {"w": torch.zeros(10), "b": torch.tensor(1.0).half()}, "more": {"ä": torch.zeros(3, 0)}},
    ],
)
def test_framing_of_a_reply_is_known_without_encoding_it(trees):
    reply = Reply(trees, {"loss": 1 / 3}, 31)
    assert reply_framing(reply) == framing_bytes(alone(reply))


def test_json_round_trip():
    value = {"partitions": [0, 1], "config_hash": "ü"}
    assert decode_json(encode_json(value)) == value


def with_head(head, content=None):
    text = head if isinstance(head, str) else json.dumps(head)
    message = RecordDict({"umbel": ConfigRecord({"json": text})})
    for name, record in (content.array_records if content else {}).items():
        message[name] = record
    return message


@pytest.mark.parametrize(
    "change",
    [
        {"work": None},
        {"work": {}},
        {"work": {"round": 1}},
        {"trees": None},
        {"leaves": [[1]]},
        {"leaves": [1]},
        {"leaves": 3},
        {"surprise": 1},
    ],
    ids=str,
)
def test_malformed_work(change):
    content = work_message()
    head = decode_json(content)
    if change.keys() & {"leaves", "surprise"}:
        head["work"] |= change
    else:
        head |= change
    with pytest.raises(MessageError):
        decode_work(with_head(head, content))


def test_share():
    whole = replace(WORK, num_leaves=5, leaves={}, memories={0: V, 7: V}, most_examples={1: 3.0, 4: 2.0})
    whole = replace(whole, squads=((0, 1), (4, 6)))
    mine = share(whole, [0, 1, 4, 6, 7], {1, 7, 9})
    assert mine == replace(whole, leaves={1: 1, 7: 4}, memories={7: V}, most_examples={1: 3.0}, squads=((0, 1),))


def test_every_client_is_held_by_one_node():
    for num_nodes, num_clients in ((1, 5), (4, 10), (3, 3), (5, 2), (4, 100_000)):
        held = [client for node in range(num_nodes) for client in held_by(node, num_nodes, num_clients)]
        assert held == list(range(num_clients))
        sizes = {len(held_by(node, num_nodes, num_clients)) for node in range(num_nodes)}
        assert max(sizes) - min(sizes) <= 1

"""Answers of anybody: what is of another form, says what is not so, or is more than it may be, is refused in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from umbel.core.records import Reply
from umbel.core.wire.limits import Limits
from umbel.core.wire.messages import MessageError, decode_json, decode_outcome, encode_json, encode_outcome
from umbel.core.wire.work import Outcome


def with_head(head):
    return RecordDict({"umbel": ConfigRecord({"json": head if isinstance(head, str) else json.dumps(head)})})


def outcome_head(**changes):
    head = decode_json(encode_outcome(Outcome(singles={5: Reply({"d": {"w": torch.ones(2)}}, {"loss": 0.0}, 4)})))
    return head | changes


SINGLE = {"client": 5, "num_examples": 4, "numbers": {}, "trees": []}
NODE = {"level": 0, "index": 0, "num_examples": 1, "num_replies": 1, "numbers": {}, "trees": []}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"umbel": ConfigRecord({"other": "{}"})}),
        with_head("{not json"),
        with_head("[1, 2]"),
        with_head({}),
        with_head(outcome_head(nodes=None)),
        with_head(outcome_head(nodes=[{"level": 0}])),
        with_head(outcome_head(nodes=[{**NODE, "level": "high"}])),
        with_head(outcome_head(nodes=[{**NODE, "index": None}])),
        with_head(outcome_head(singles="all of them")),
        with_head(outcome_head(singles=[{**SINGLE, "client": "five"}])),
        with_head(outcome_head(failures=[[1]])),
        with_head(outcome_head(failures={"a": 1})),
        with_head(outcome_head(seconds=[[1, "slow"]])),
        with_head(outcome_head(bytes_up="lots")),
        with_head(outcome_head(remembered=7)),
        with_head(outcome_head(remembered=[True])),
        with_head(outcome_head(singles=[{**SINGLE, "client": "5"}])),
        with_head(outcome_head(singles=[{**SINGLE, "client": 5.0}])),
        with_head(outcome_head(singles=[{**SINGLE, "client": 10**400}])),
        with_head(outcome_head(nodes=[{**NODE, "level": True}])),
        with_head(outcome_head(failures=[[5, 7]])),
        with_head(outcome_head(failures=[[5, "x", "y"]])),
        with_head(outcome_head(framing_up=0.5)),
        with_head(outcome_head(steps="many")),
        with_head(outcome_head(examples=1.5)),
        with_head("[" * 200_000),
        with_head('{"nodes":' * 50_000),
        with_head('{"x": ' + "[" * 40 + "]" * 40 + "}"),
        with_head(json.dumps(outcome_head())[:-1] + ', "nodes": []}'),
        with_head(json.dumps(outcome_head(bytes_up=7)).replace("7", "9" * 5000)),
        RecordDict({"umbel": ConfigRecord({"json": 7})}),
        RecordDict({"umbel": ConfigRecord({"json": "{}", "more": "x"})}),
        RecordDict({"umbel": MetricRecord({"json": 7})}),
    ],
    ids=range(34),
)
def test_malformed_answers(content):
    with pytest.raises(MessageError):
        decode_outcome(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"num_examples": "many"}, "num_examples should be a whole number of at most 19 digits, found 'many' (str)"),
        ({"num_examples": "5"}, "found '5' (str)"),
        ({"num_examples": 2.5}, "found '2.5' (float)"),
        ({"num_examples": True}, "found 'True' (bool)"),
        ({"num_examples": 10**400}, "found 'inf' (float)"),
        ({"num_examples": 10**308}, "found '1e+308' (float)"),
        ({"num_examples": float("inf")}, "found 'inf' (float)"),
        ({"numbers": {"loss": "low"}}, "the number 'loss' should be a number, found 'low' (str)"),
        ({"numbers": {"loss": False}}, "the number 'loss' should be a number"),
        ({"numbers": [1]}, "numbers should be a mapping"),
        ({"numbers": None}, "numbers should be a mapping"),
        ({"trees": "delta"}, "trees should be a list of names"),
        ({"trees": [["delta"]]}, "trees should be a list of names"),
    ],
    ids=str,
)
def test_what_cannot_be_read_of_one_reply_or_sum_is_its_own_fault(change, reason):
    outcome = decode_outcome(with_head(outcome_head(singles=[{**SINGLE, **change}, {**SINGLE, "client": 6}])))
    assert outcome.singles.keys() == {6} and outcome.failures.keys() == {5} and reason in outcome.failures[5]
    nodes = [{**NODE, "level": 1, "index": 3, **change}, NODE]
    outcome = decode_outcome(with_head(outcome_head(singles=[], nodes=nodes)))
    assert [place for *place, _ in outcome.nodes] == [[0, 0]]
    assert outcome.flaws.keys() == {(1, 3)} and reason in outcome.flaws[1, 3]


def test_the_first_answer_for_a_client_stays():
    content = with_head(outcome_head(singles=[SINGLE, {**SINGLE, "num_examples": 9}], failures=[[6, "a"], [6, "b"]]))
    outcome = decode_outcome(content)
    assert outcome.singles[5].num_examples == 4 and outcome.failures == {6: "a"}


LIMITS = Limits(head_bytes=500, header_bytes=200, value_bytes=8, num_tensors=1, num_entries=3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (with_head(outcome_head(more="x" * 500)), "of which at most 500 are read"),
        (with_head(outcome_head(singles=[], remembered=[1, 2, 3, 4])), "'remembered' has 4 entries"),
        (encode_outcome(Outcome(singles={5: Reply({"d": {"w": torch.ones(3)}})})), "12 bytes, where 8 are the most"),
        (encode_outcome(Outcome(singles={5: Reply({"d": {"w" * 300: torch.ones(2)}})})), "at most 200 are read"),
        (encode_outcome(Outcome(singles={5: Reply({"d": {"w": torch.ones(1), "v": torch.ones(1)}})})), "they are 2"),
    ],
    ids=range(5),
)
def test_more_than_a_message_may_have(content, reason):
    assert decode_outcome(content)
    decode_outcome(encode_outcome(Outcome(singles={5: Reply({"d": {"w": torch.ones(2)}})})), LIMITS)
    with pytest.raises(MessageError, match=reason):
        decode_outcome(content, LIMITS)


def with_records(**records):
    content = encode_outcome(Outcome(singles={5: Reply({"d": {"w": torch.ones(2)}}, {}, 4)}))
    for name, record in records.items():
        content[name] = record
    return content


BYTES = Array(torch.zeros(40, dtype=torch.uint8).numpy())


@pytest.mark.parametrize(
    "records",
    [
        {"more": ArrayRecord({"safetensors": BYTES})},
        {"more": ConfigRecord({"json": "{}"})},
        {"more": MetricRecord({"loss": 0.5})},
        {"tensors": ArrayRecord({"safetensors": BYTES, "more": BYTES})},
        {"tensors": ArrayRecord({})},
        {"tensors": ConfigRecord({"safetensors": b"x"})},
        {"umbel": ArrayRecord({"json": BYTES})},
    ],
    ids=range(7),
)
def test_other_records(records):
    with pytest.raises(MessageError, match="and no other"):
        decode_outcome(with_records(**records))


def damaged(change):
    content = encode_outcome(Outcome(singles={5: Reply({"d": {"w": torch.ones(2)}}, {}, 4)}))
    ((name, record),) = content.array_records.items()
    ((key, array),) = record.items()
    content[name] = ArrayRecord({key: change(array)})
    return content


def renamed(array, old, new):
    assert old in array.data
    return Array(array.dtype, array.shape, array.stype, array.data.replace(old, new, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda array: Array(array.dtype, array.shape, array.stype, array.data[:-9]),
        lambda array: Array(array.dtype, array.shape, array.stype, array.data[:3]),
        lambda array: Array(array.dtype, array.shape, array.stype, b""),
        lambda array: Array(array.dtype, array.shape, "torch.pickle", array.data),
        lambda array: Array(array.numpy()[:-1].copy()),
        lambda array: Array(array.numpy()[:4].copy()),
        lambda array: Array(array.numpy()[:0].copy()),
        lambda array: Array(torch.full((40,), 255, dtype=torch.uint8).numpy()),
        lambda array: Array(array.numpy().reshape(1, -1)),
        lambda array: Array(array.numpy().astype("float64")),
        lambda array: renamed(array, b"|u1", b"|i1"),
        lambda array: renamed(array, b"'|u1'", b"'|O' "),
        lambda array: renamed(array, b"False", b"True "),
        lambda array: renamed(array, b"(", b"(9"),
        lambda array: renamed(array, b"\x93NUMPY\x01", b"\x93NUMPY\x02"),
        lambda array: renamed(array, b"{'descr'", b"(((((((("),
    ],
    ids=range(16),
)
def test_damaged_tensors(change):
    with pytest.raises(MessageError):
        decode_outcome(damaged(change))


def forged(entry, values=b"\0" * 8, name="single5.d/w"):
    """An array whose safetensors' header says what it likes."""
    header = entry if isinstance(entry, str) else json.dumps({name: entry})
    return Array(np.frombuffer(len(header).to_bytes(8, "little") + header.encode() + values, dtype=np.uint8))


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "array",
    [
        forged({**ENTRY, "shape": [2**62, 4]}),
        forged({**ENTRY, "shape": [2**61, 8]}),  # times four bytes, it is nothing in 64 bits
        forged({**ENTRY, "shape": [0, 2**63], "data_offsets": [0, 0]}, b""),
        forged({**ENTRY, "shape": [0, 10**30], "data_offsets": [0, 0]}, b""),
        forged({**ENTRY, "shape": [-2]}),
        forged({**ENTRY, "shape": [2.0]}),
        forged({**ENTRY, "shape": ["2"]}),
        forged({**ENTRY, "shape": [True, 2]}),
        forged({**ENTRY, "shape": [2, *[1] * 70]}),
        forged({**ENTRY, "shape": None}),
        forged({**ENTRY, "data_offsets": [0, 4]}),
        forged({**ENTRY, "data_offsets": [8, 0]}),
        forged({**ENTRY, "data_offsets": [0, 2**63]}),
        forged({**ENTRY, "dtype": "C64", "shape": [1]}),
        forged({**ENTRY, "dtype": "F8_E4M3", "shape": [8]}),
        forged({**ENTRY, "dtype": "BOOL", "shape": [8]}, b"\0\1\2\0\0\0\0\0"),
        forged({**ENTRY, "dtype": ["F32"]}),
        forged(ENTRY, name="x" * 600),
        forged("[" * 5000),
        forged('{"a": ' * 5000),
        forged(json.dumps({"__metadata__": {"a": "b"}, "single5.d/w": ENTRY})),
        forged(json.dumps({"single5.d/w": TWO, "single5.d/v": TWO})),  # one upon the other
        forged(json.dumps({"single5.d/w": ENTRY})[:-1] + ", " + json.dumps({"single5.d/w": ENTRY})[1:]),
        forged(ENTRY, b"\0" * 9),
        forged(ENTRY, b"\0" * 7),
    ],
    ids=range(25),
)
def test_headers_that_lie(array):
    assert torch.equal(decode_outcome(damaged(lambda _: forged(ENTRY))).singles[5].trees["d"]["w"], torch.zeros(2))
    with pytest.raises(MessageError):
        decode_outcome(damaged(lambda _: array))


def test_a_greeting_is_no_longer_than_anybody_needs():
    assert len(decode_json(encode_json({"partitions": list(range(100_000))}))["partitions"]) == 100_000
    with pytest.raises(MessageError, match="of which at most 16,777,216 are read"):
        decode_json(encode_json({"partitions": "x" * (1 << 24)}))

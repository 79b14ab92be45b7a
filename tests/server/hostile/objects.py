"""Flower's objects, of which a message is made on its way: their bytes, and the tree that names them, changed."""

from __future__ import annotations

import json
import random

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree

from tests.server.hostile.mutations import ESCAPES


def mutated_objects(objects: dict[str, bytes], source: random.Random) -> dict[str, bytes]:
    """Return the bytes of a message's objects, by id, with one of them changed."""
    changed = dict(objects)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        name = source.choice(list(changed))
        change = source.choice((_flip, _flip, _flip_head, _cut, _other_type, _other_json, _no_bytes))
        changed[name] = change(changed[name] or b"\0", source)
    if source.random() < 0.05:
        changed.pop(source.choice(list(changed)))
    return changed


def mutated_tree(tree: ObjectTree, source: random.Random) -> ObjectTree:
    """Return a tree of a message's objects, which says what is fetched, with a change."""
    changed = ObjectTree()
    changed.CopyFrom(tree)
    act = source.randrange(6)
    if act == 0:
        changed.ClearField("children")
    elif act == 1:
        changed.children.extend([tree] * 1000)
    elif act == 2:
        changed.object_id = source.choice(("", "x", ESCAPES.encode("ascii", "ignore").decode(), "0" * 64))
    elif act == 3:
        changed.children.add(object_id="0" * 64)
    elif act == 4:
        for _ in range(80):
            changed = ObjectTree(object_id=tree.object_id, children=[changed])
    else:
        changed = changed.children[source.randrange(len(changed.children))]
    return changed


def with_objects_changed(content: RecordDict, source: random.Random) -> None:
    """Have Flower make of a content what a SuperLink takes, and what can be read where it is, but not be pulled."""
    piece = content.array_records["tensors"]["safetensors"]
    more = source.choice(
        (
            None,
            MetricRecord({"loss": 0.5}),
            ConfigRecord({"json": "x" * (4 << 20)}),
            ArrayRecord({str(number): Array("uint8", (number, 1), "x", piece.data) for number in range(1000)}),
        )
    )
    if more is None:
        _change_body(content, source)
    else:
        content["more"] = more


def _change_body(content: RecordDict, source: random.Random) -> None:
    """Change the bytes of one of the records: the SuperLink looks at nothing inside of what has an object's form."""
    records = [content.config_records["umbel"], *content.array_records.values()]
    arrays = [array for record in content.array_records.values() for array in record.values()]
    chosen = source.choice([*records, *arrays])
    honest = chosen.deflate()
    head, _, body = honest.partition(b"\0")
    changed = _other_json(honest, source) if chosen in arrays else head + b"\0" + bytes(reversed(body))
    chosen.__dict__["deflate"] = lambda: changed


def _flip(content: bytes, source: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(source.choice((1, 1, 3))):
        changed[source.randrange(len(changed))] = source.randrange(256)
    return bytes(changed)


def _flip_head(content: bytes, source: random.Random) -> bytes:
    changed = bytearray(content)
    changed[source.randrange(min(len(changed), 90))] = source.randrange(256)
    return bytes(changed)


def _cut(content: bytes, source: random.Random) -> bytes:
    return content[: source.randrange(len(content))]


def _no_bytes(content: bytes, source: random.Random) -> bytes:
    return source.choice((b"", b"\0", b"Message  0\0", content * 2))


def _other_type(content: bytes, source: random.Random) -> bytes:
    rest = content.partition(b" ")[2]
    names = (b"Message", b"RecordDict", b"ArrayRecord", b"Array", b"ArrayChunk", b"ConfigRecord", b"MetricRecord", b"X")
    return source.choice(names) + b" " + rest


def _other_json(content: bytes, source: random.Random) -> bytes:
    head, _, body = content.partition(b"\0")
    try:
        value = json.loads(body)
    except ValueError:
        return content + b"x"
    if not isinstance(value, dict):
        return content[::-1]
    if "arraychunk_ids" in value:
        value |= source.choice(
            (
                {"arraychunk_ids": [0] * 100_000},
                {"arraychunk_ids": [-1, 0]},
                {"arraychunk_ids": "0"},
                {"arraychunk_ids": []},
                {"shape": ["x"]},
                {"shape": None},
                {"dtype": 3},
                {"stype": None},
            )
        )
    else:
        value = source.choice(({}, {"x": next(iter(value.values()), "")}, [], None, {**value, "more": "x"}))
    text = json.dumps(value).encode()
    return b" ".join([*head.split(b" ")[:2], str(len(text)).encode()]) + b"\0" + text

"""Our records as Flower's, and back. The only file of `core` that knows Flower.

A tree becomes one ArrayRecord; everything that is no tensor becomes one JSON string in a ConfigRecord. bfloat16
travels as the bits of int16, since numpy has no such type. What comes back owns its memory: arrays out of a
message are read-only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from core.blocks import Block
from core.folds import Partial
from core.records import Payload, Reply
from core.tree import Tree
from core.work import Outcome, Work

_BF16 = "#bf16"
HEAD = "umbel"  # name of the ConfigRecord that holds everything but tensors


class MessageError(ValueError):
    """A message that is not of this project's form."""


def _encode_tree(tree: Tree) -> ArrayRecord:
    record = ArrayRecord()
    for name, tensor in tree.items():
        host = tensor.detach().cpu().contiguous()
        if host.dtype == torch.bfloat16:
            record[name + _BF16] = Array(host.view(torch.int16).numpy())
        else:
            record[name] = Array(host.numpy())
    return record


def _decode_tree(record: ArrayRecord) -> dict[str, Tensor]:
    tree: dict[str, Tensor] = {}
    for name, array in record.items():
        values = array.numpy()
        tensor = torch.from_numpy(values if values.flags.writeable else np.array(values))
        if name.endswith(_BF16):
            tree[name.removesuffix(_BF16)] = tensor.view(torch.bfloat16)
        else:
            tree[name] = tensor
    return tree


def framing_bytes(record: RecordDict) -> int:
    """Return how many bytes of a record are not tensor values: names, array headers and the JSON head."""
    total = 0
    for record_name, arrays in record.array_records.items():
        for name, array in arrays.items():
            values = int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize
            total += len(record_name) + len(name) + len(array.data) - values
    for config in record.config_records.values():
        total += sum(len(key) + len(str(value)) for key, value in config.items())
    return total


def _record(head: dict[str, Any], trees: dict[str, Tree]) -> RecordDict:
    content = RecordDict({HEAD: ConfigRecord({"json": json.dumps(head)})})
    for name, tree in trees.items():
        content[name] = _encode_tree(tree)
    return content


def _head(content: RecordDict) -> dict[str, Any]:
    try:
        head = json.loads(str(content.config_records[HEAD]["json"]))
    except (KeyError, json.JSONDecodeError) as error:
        raise MessageError(f"The message has no readable record {HEAD!r}: {error}") from error
    if not isinstance(head, dict):
        raise MessageError(f"The record {HEAD!r} should be a mapping, found {type(head).__name__}.")
    return head


def _tree(content: RecordDict, name: str) -> dict[str, Tensor]:
    if name not in content.array_records:
        raise MessageError(f"The message lacks the arrays {name!r}.")
    return _decode_tree(content.array_records[name])


def encode_payload(payload: Payload) -> dict[str, ArrayRecord]:
    """Turn a payload's tensors into records, once a phase for all nodes."""
    return {f"payload.{name}": _encode_tree(tree) for name, tree in payload.trees.items()}


def encode_work(work: Work, payload: Payload, arrays: dict[str, ArrayRecord]) -> RecordDict:
    """Turn a node's work into the content of its message; `arrays` are shared between messages."""
    head = {
        "work": {
            "run": work.run,
            "attempt": work.attempt,
            "round": work.round,
            "step": work.step,
            "phase": work.phase,
            "config_hash": work.config_hash,
            "checkpoint_round": work.checkpoint_round,
            "blocks": [[block.index, list(block.clients)] for block in work.blocks],
            "num_blocks": work.num_blocks,
            "clients": sorted(work.clients),
        },
        "numbers": dict(payload.numbers),
        "trees": list(payload.trees),
    }
    content = _record(head, {})
    for name, record in arrays.items():
        content[name] = record
    return content


def decode_work(content: RecordDict) -> tuple[Work, Payload]:
    """Read what `encode_work` wrote."""
    head = _head(content)
    try:
        fields = head["work"]
        blocks = tuple(Block(index, tuple(clients)) for index, clients in fields["blocks"])
        work = Work(**{**fields, "blocks": blocks, "clients": frozenset(fields["clients"])})
        payload = Payload(
            {name: _tree(content, f"payload.{name}") for name in head["trees"]}, head["numbers"]
        )
    except (KeyError, TypeError) as error:
        raise MessageError(f"The work in this message cannot be read: {error}") from error
    return work, payload


@dataclass(frozen=True)
class Pieces:
    """A message taken apart: one block's head, and the arrays that all blocks of a phase share.

    Attributes:
        head: The head as JSON.
        arrays: Records by name.
        clients: The block's clients.
    """

    head: str
    arrays: dict[str, ArrayRecord]
    clients: tuple[int, ...] = ()

    def content(self) -> RecordDict:
        """Put the content of a message together."""
        content = RecordDict({HEAD: ConfigRecord({"json": self.head})})
        for name, record in self.arrays.items():
            content[name] = record
        return content


def split_work(content: RecordDict) -> list[Pieces]:
    """Split a node's work into one piece a block, without touching the arrays; a message without work is one."""
    head = _head(content)
    if "work" not in head:
        return [Pieces(json.dumps(head), {})]
    work, held = head["work"], set(head["work"]["clients"])
    pieces = []
    for index, clients in work["blocks"]:
        mine = [client for client in clients if client in held]
        part = {**work, "blocks": [[index, clients]], "clients": mine}
        pieces.append(Pieces(json.dumps({**head, "work": part}), {}, tuple(mine)))
    return pieces


def encode_reply(reply: Reply) -> RecordDict:
    """Turn one client's reply into a content of its own, as it would travel alone."""
    head = {"num_examples": reply.num_examples, "numbers": dict(reply.numbers)}
    return _record(head, {name: tree for name, tree in reply.trees.items()})


def encode_outcome(outcome: Outcome) -> RecordDict:
    """Turn a node's answer into the content of its message."""
    trees: dict[str, Tree] = {}
    nodes, singles = [], []
    for number, (level, index, partial) in enumerate(outcome.nodes):
        nodes.append(
            {
                "level": level,
                "index": index,
                "num_examples": partial.num_examples,
                "num_replies": partial.num_replies,
                "numbers": partial.numbers,
                "trees": list(partial.trees),
            }
        )
        trees |= {f"node{number}.{name}": tree for name, tree in partial.trees.items()}
    for client, reply in outcome.singles.items():
        entry = {"client": client, "num_examples": reply.num_examples, "numbers": dict(reply.numbers)}
        singles.append({**entry, "trees": list(reply.trees)})
        trees |= {f"single{client}.{name}": tree for name, tree in reply.trees.items()}
    head = {
        "nodes": nodes,
        "singles": singles,
        "failures": [[client, reason] for client, reason in outcome.failures.items()],
        "seconds": [[client, round(seconds, 6)] for client, seconds in outcome.seconds.items()],
        "bytes_up": outcome.bytes_up,
        "framing_up": outcome.framing_up,
    }
    return _record(head, trees)


def decode_outcome(content: RecordDict) -> Outcome:
    """Read what `encode_outcome` wrote.

    Raises:
        MessageError: It is of another form.
    """
    head = _head(content)
    outcome = Outcome()
    try:
        for number, entry in enumerate(head["nodes"]):
            trees = {name: _tree(content, f"node{number}.{name}") for name in entry["trees"]}
            partial = Partial(
                trees, dict(entry["numbers"]), int(entry["num_examples"]), int(entry["num_replies"])
            )
            outcome.nodes.append((int(entry["level"]), int(entry["index"]), partial))
        for entry in head["singles"]:
            client = int(entry["client"])
            reply_trees = {name: _tree(content, f"single{client}.{name}") for name in entry["trees"]}
            outcome.singles[client] = Reply(reply_trees, dict(entry["numbers"]), int(entry["num_examples"]))
        outcome.failures = {int(client): str(reason) for client, reason in head["failures"]}
        outcome.seconds = {int(client): float(seconds) for client, seconds in head["seconds"]}
        outcome.bytes_up, outcome.framing_up = int(head["bytes_up"]), int(head["framing_up"])
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError(f"The answer in this message cannot be read: {error}") from error
    return outcome


def encode_json(value: dict[str, Any]) -> RecordDict:
    """Turn a JSON-able mapping into a content without tensors."""
    return _record(value, {})


def decode_json(content: RecordDict) -> dict[str, Any]:
    """Read what `encode_json` wrote."""
    return _head(content)

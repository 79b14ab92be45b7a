"""Our records as Flower's, and back. The only file of `core` that knows Flower.

All tensors of a message travel as one array of bytes in the safetensors format, everything else as one JSON string
in a ConfigRecord. One array, because Flower moves each array as objects of its own, with several calls each: a
model of sixty tensors for ten clients took twenty seconds a round that way, and takes a fraction of one this way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from umbel.core.blocks import Block
from umbel.core.files import tensors_to_bytes
from umbel.core.folds import Partial
from umbel.core.memory import Version
from umbel.core.records import Payload, Reply
from umbel.core.tree import Tree
from umbel.core.work import Outcome, Work

TENSORS, BLOB = "tensors", "safetensors"
HEAD = "umbel"  # name of the ConfigRecord that holds everything but tensors


class MessageError(ValueError):
    """A message that is not of this project's form."""


def _encode_trees(trees: Mapping[str, Tree]) -> ArrayRecord:
    flat = {f"{tree}/{name}": tensor for tree, tensors in trees.items() for name, tensor in tensors.items()}
    blob = np.frombuffer(tensors_to_bytes(flat), dtype=np.uint8)
    return ArrayRecord({BLOB: Array(blob)})


def _decode_trees(content: RecordDict, record_name: str) -> dict[str, dict[str, Tensor]]:
    try:
        flat = load(content.array_records[record_name][BLOB].numpy().tobytes())
    except (KeyError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise MessageError(f"The message has no readable tensors {record_name!r}: {error}") from error
    trees: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        tree, _, key = name.partition("/")
        trees.setdefault(tree, {})[key] = tensor
    return trees


def framing_bytes(content: RecordDict) -> int:
    """Return how many bytes of a content are not tensor values: names, shapes, headers and the JSON head."""
    total = 0
    for record_name, arrays in content.array_records.items():
        for name, array in arrays.items():
            (blob_bytes,) = array.shape
            npy_header = len(array.data) - blob_bytes
            safetensors_header = 8 + int.from_bytes(array.data[npy_header : npy_header + 8], "little")
            total += len(record_name) + len(name) + npy_header + safetensors_header
    for config in content.config_records.values():
        total += sum(len(key) + len(str(value)) for key, value in config.items())
    return total


def _record(head: dict[str, Any], trees: Mapping[str, Tree]) -> RecordDict:
    content = RecordDict({HEAD: ConfigRecord({"json": json.dumps(head)})})
    if trees:
        content[TENSORS] = _encode_trees(trees)
    return content


def _head(content: RecordDict) -> dict[str, Any]:
    try:
        head = json.loads(str(content.config_records[HEAD]["json"]))
    except (KeyError, json.JSONDecodeError) as error:
        raise MessageError(f"The message has no readable record {HEAD!r}: {error}") from error
    if not isinstance(head, dict):
        raise MessageError(f"The record {HEAD!r} should be a mapping, found {type(head).__name__}.")
    return head


def encode_payload(payload: Payload) -> dict[str, ArrayRecord]:
    """Turn a payload's tensors into records, once a phase for all nodes."""
    return {TENSORS: _encode_trees(payload.trees)}


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
            "memories": [[c, v.round, v.step, v.attempt] for c, v in sorted(work.memories.items())],
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
        memories = {client: Version(*version) for client, *version in fields["memories"]}
        work = Work(**{**fields, "blocks": blocks, "clients": frozenset(fields["clients"]), "memories": memories})
        trees = _decode_trees(content, TENSORS)
        payload = Payload({name: trees.get(name, {}) for name in head["trees"]}, head["numbers"])
    except MessageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, EOFError) as error:
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
        memories = [entry for entry in work["memories"] if entry[0] in mine]
        part = {**work, "blocks": [[index, clients]], "clients": mine, "memories": memories}
        pieces.append(Pieces(json.dumps({**head, "work": part}), {}, tuple(mine)))
    return pieces


def split_clients(pieces: Pieces) -> list[Pieces]:
    """Split one block's work into one piece a client: the block is then added up where all of its replies meet."""
    head = json.loads(pieces.head)
    work = head["work"]
    parts = []
    for client in pieces.clients:
        memories = [entry for entry in work["memories"] if entry[0] == client]
        part = {**work, "clients": [client], "memories": memories}
        parts.append(Pieces(json.dumps({**head, "work": part}), pieces.arrays, (client,)))
    return parts


def encode_reply(reply: Reply) -> RecordDict:
    """Turn one client's reply into a content of its own, as it would travel alone."""
    head = {"num_examples": reply.num_examples, "numbers": dict(reply.numbers)}
    return _record(head, reply.trees)


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
        "remembered": outcome.remembered,
        "bytes_up": outcome.bytes_up,
        "framing_up": outcome.framing_up,
    }
    return _record(head, trees)


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in entry["numbers"].items()}


def decode_outcome(content: RecordDict) -> Outcome:
    """Read what `encode_outcome` wrote.

    Raises:
        MessageError: It is of another form.
    """
    head = _head(content)
    found = _decode_trees(content, TENSORS) if TENSORS in content.array_records else {}
    outcome = Outcome()
    try:
        for number, entry in enumerate(head["nodes"]):
            trees = {name: found.get(f"node{number}.{name}", {}) for name in entry["trees"]}
            partial = Partial(trees, _numbers(entry), int(entry["num_examples"]), int(entry["num_replies"]))
            outcome.nodes.append((int(entry["level"]), int(entry["index"]), partial))
        for entry in head["singles"]:
            client = int(entry["client"])
            reply_trees = {name: found.get(f"single{client}.{name}", {}) for name in entry["trees"]}
            outcome.singles[client] = Reply(reply_trees, _numbers(entry), int(entry["num_examples"]))
        outcome.failures = {int(client): str(reason) for client, reason in head["failures"]}
        outcome.seconds = {int(client): float(seconds) for client, seconds in head["seconds"]}
        outcome.remembered = [int(client) for client in head["remembered"]]
        outcome.bytes_up, outcome.framing_up = int(head["bytes_up"]), int(head["framing_up"])
    except MessageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, EOFError, OverflowError) as error:
        raise MessageError(f"The answer in this message cannot be read: {error}") from error
    return outcome


def encode_json(value: dict[str, Any]) -> RecordDict:
    """Turn a JSON-able mapping into a content without tensors."""
    return _record(value, {})


def decode_json(content: RecordDict) -> dict[str, Any]:
    """Read what `encode_json` wrote."""
    return _head(content)

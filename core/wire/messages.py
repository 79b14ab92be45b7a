"""Our records as Flower's, and back. The only file of `core` that knows Flower.

All tensors of a message travel as one array of bytes in the safetensors format, everything else as one JSON string
in a ConfigRecord. One array, because Flower moves each array as objects of its own, with several calls each: a
model of sixty tensors for ten clients took twenty seconds a round that way, and takes a fraction of one this way.

A message may come from anybody. What is read of it has limits (`umbel.core.wire.limits`), and no value is taken for
another that it could be made of: a client's number is a whole number, not a text that could be read as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from umbel.core.files import tensors_to_bytes
from umbel.core.folds import Partial
from umbel.core.memory import Version
from umbel.core.names import shortened
from umbel.core.records import Payload, Reply
from umbel.core.spent import Passes, Spent
from umbel.core.tree import Tree
from umbel.core.wire import fields
from umbel.core.wire.fields import FormError
from umbel.core.wire.heads import BLOB, HEAD, JSON, TENSORS, MessageError, flat_names, work_head
from umbel.core.wire.limits import Limits
from umbel.core.wire.tensors import TensorsError, inside, read_tensors
from umbel.core.wire.text import TextError, read_json
from umbel.core.wire.work import MOST_FALLBACKS, Outcome, Work

_NUMPY = "numpy.ndarray"  # how Flower calls what `numpy.save` writes
_GREETING_BYTES = 1 << 24  # of a head without tensors: a million numbers of clients take eight


def _encode_trees(trees: Mapping[str, Tree]) -> ArrayRecord:
    blob = np.frombuffer(tensors_to_bytes(flat_names(trees)), dtype=np.uint8)
    return ArrayRecord({BLOB: Array(blob)})


def _decode_trees(content: RecordDict, limits: Limits) -> dict[str, dict[str, Tensor]]:
    try:
        array = content.array_records[TENSORS][BLOB]
        if array.stype != _NUMPY:
            raise MessageError(f"The message's tensors are of the type {shortened(array.stype)}.")
        flat = read_tensors(array.data, limits)
    except (KeyError, TensorsError) as error:
        raise MessageError(f"The message's tensors cannot be read: {error}") from error
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
            blob = inside(array.data)
            safetensors_header = 8 + int.from_bytes(blob[:8], "little")
            total += len(record_name) + len(name) + len(array.data) - len(blob) + safetensors_header
    for config in content.config_records.values():
        total += sum(len(key) + len(str(value)) for key, value in config.items())
    return total


def _record(head: dict[str, Any], trees: Mapping[str, Tree]) -> RecordDict:
    content = RecordDict({HEAD: ConfigRecord({JSON: json.dumps(head)})})
    if trees:
        content[TENSORS] = _encode_trees(trees)
    return content


def _head(content: RecordDict, most_bytes: int = Limits.head_bytes) -> dict[str, Any]:
    """Return the JSON head of a message that has nothing but it and tensors."""
    configs, arrays = content.config_records, content.array_records
    if configs.keys() != {HEAD} or configs[HEAD].keys() != {JSON} or content.metric_records:
        raise MessageError(f"The message should have the record {HEAD!r} and tensors, and no other.")
    if not arrays.keys() <= {TENSORS} or any(record.keys() != {BLOB} for record in arrays.values()):
        raise MessageError(f"The message should have its tensors as {TENSORS!r}, and no others.")
    text = configs[HEAD][JSON]
    if not isinstance(text, str):
        raise MessageError(f"The record {HEAD!r} should hold a text, found {type(text).__name__}.")
    try:
        head = read_json(text, most_bytes)
    except TextError as error:
        raise MessageError(f"The record {HEAD!r} cannot be read: {error}.") from error
    if not isinstance(head, dict):
        raise MessageError(f"The record {HEAD!r} should be a mapping, found {type(head).__name__}.")
    return head


def encode_payload(payload: Payload) -> dict[str, ArrayRecord]:
    """Turn a payload's tensors into records, once a phase for all nodes."""
    return {TENSORS: _encode_trees(payload.trees)}


def encode_work(work: Work, payload: Payload, arrays: dict[str, ArrayRecord]) -> RecordDict:
    """Turn a node's work into the content of its message; `arrays` are shared between messages."""
    content = _record(work_head(work, payload), {})
    for name, record in arrays.items():
        content[name] = record
    return content


def decode_work(content: RecordDict) -> tuple[Work, Payload]:
    """Read what `encode_work` wrote."""
    head = _head(content)
    try:
        fields = head["work"]
        memories = {client: Version(*version) for client, *version in fields["memories"]}
        own = {name: dict(fields[name]) for name in ("leaves", "most_examples")}
        squads = tuple(tuple(squad) for squad in fields.get("squads", ()))
        work = Work(**{**fields, **own, "memories": memories, "squads": squads})
        trees = _decode_trees(content, Limits())
        payload = Payload({name: trees.get(name, {}) for name in head["trees"]}, head["numbers"])
    except MessageError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, EOFError) as error:
        raise MessageError(f"The work in this message cannot be read: {error}") from error
    return work, payload


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
        "steps": outcome.spent.steps,
        "examples": outcome.spent.examples,
        "passes": [[spec, each.forward, each.backward, each.head] for spec, each in outcome.spent.passes.items()],
    }
    if outcome.fallbacks:
        head["fallbacks"] = [shortened(text) for text in outcome.fallbacks[:MOST_FALLBACKS]]
    return _record(head, trees)


def decode_outcome(content: RecordDict, limits: Limits | None = None) -> Outcome:
    """Read what `encode_outcome` wrote.

    A reply or accumulator whose own numbers cannot be read is left out, and why is noted: the rest is good.

    Args:
        content: Of the message.
        limits: The most that is read of it.

    Raises:
        MessageError: It is of another form, or more than is read.
    """
    limits = limits or Limits()
    head = _head(content, limits.head_bytes)
    trees = _decode_trees(content, limits) if TENSORS in content.array_records else {}
    outcome = Outcome()
    try:
        for number, entry in enumerate(fields.entries(head, "nodes", limits)):
            place = (fields.whole(entry, "level"), fields.whole(entry, "index"))
            try:
                numbers, names = fields.numbers(entry), fields.names(entry)
                partial = Partial({}, numbers, fields.whole(entry, "num_examples"), fields.whole(entry, "num_replies"))
            except FormError as error:
                outcome.flaws[place] = str(error)
                continue
            partial.trees = {name: trees.get(f"node{number}.{name}", {}) for name in names}
            outcome.nodes.append((*place, partial))
        for entry in fields.entries(head, "singles", limits):
            client = fields.whole(entry, "client")
            try:
                numbers, names = fields.numbers(entry), fields.names(entry)
                num_examples = fields.whole(entry, "num_examples")
            except FormError as error:
                outcome.failures.setdefault(client, str(error))
                continue
            reply_trees = {name: trees.get(f"single{client}.{name}", {}) for name in names}
            outcome.singles.setdefault(client, Reply(reply_trees, numbers, num_examples))
        for client, reason in fields.pairs(head, "failures", limits):
            outcome.failures.setdefault(client, fields.as_text(reason, "a reason"))
        for client, seconds in fields.pairs(head, "seconds", limits):
            outcome.seconds[client] = fields.as_real(seconds, "seconds")
        outcome.remembered = [fields.as_whole(each, "a client") for each in fields.items(head, "remembered", limits)]
        outcome.bytes_up, outcome.framing_up = fields.whole(head, "bytes_up"), fields.whole(head, "framing_up")
        outcome.spent = Spent(fields.whole(head, "steps"), fields.whole(head, "examples"))
        for spec, *counts in fields.rows(head, "passes", 4, limits):
            passes = Passes(*(fields.as_whole(each, "images") for each in counts))
            outcome.spent.passes[fields.as_text(spec, "a model")] = passes
        told = fields.items(head, "fallbacks", limits)[:MOST_FALLBACKS] if "fallbacks" in head else []
        outcome.fallbacks = [shortened(fields.as_text(each, "a fallback")) for each in told]
    except FormError as error:
        raise MessageError(f"The answer in this message cannot be read: {error}.") from error
    return outcome


def encode_json(value: dict[str, Any]) -> RecordDict:
    """Turn a JSON-able mapping into a content without tensors."""
    return _record(value, {})


def decode_json(content: RecordDict, most_bytes: int = _GREETING_BYTES) -> dict[str, Any]:
    """Read what `encode_json` wrote.

    Args:
        content: The content.
        most_bytes: The most that is read.

    Raises:
        MessageError: It is of another form, or longer than is read.
    """
    return _head(content, most_bytes)

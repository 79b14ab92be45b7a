"""What stands in a message beside its tensors, and how long it is.

Nothing here knows Flower, so that engines which encode nothing do without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from umbel.core.records import Payload, Reply
from umbel.core.tree import Tree
from umbel.core.wire.tensors import NUMPY_HEADER, header_bytes
from umbel.core.wire.work import Work

TENSORS, BLOB = "tensors", "safetensors"  # names of the record that holds all tensors, and of the one array in it
HEAD, JSON = "umbel", "json"  # names of the record that holds everything but tensors, and of the text in it
_TENSORS_FRAMING = len(TENSORS) + len(BLOB) + NUMPY_HEADER


class MessageError(ValueError):
    """A message that is not of this project's form."""


def flat_names(trees: Mapping[str, Tree]) -> dict[str, Tensor]:
    """Return the tensors of all trees by `tree/name`."""
    return {f"{tree}/{name}": tensor for tree, tensors in trees.items() for name, tensor in tensors.items()}


def work_head(work: Work, payload: Payload) -> dict[str, Any]:
    """Return what a work's message says beside its tensors."""
    return {
        "work": {
            "run": work.run,
            "attempt": work.attempt,
            "round": work.round,
            "step": work.step,
            "phase": work.phase,
            "config_hash": work.config_hash,
            "checkpoint_round": work.checkpoint_round,
            "num_leaves": work.num_leaves,
            "leaves": list(work.leaves.items()),
            "memories": [[c, v.round, v.step, v.attempt] for c, v in sorted(work.memories.items())],
            **({"agreed": dict(work.agreed)} if work.agreed else {}),
            "most_examples": [[client, most] for client, most in sorted(work.most_examples.items())],
            **({"squads": [list(squad) for squad in work.squads]} if work.squads else {}),
        },
        "numbers": dict(payload.numbers),
        "trees": list(payload.trees),
    }


def work_framing(work: Work, payload: Payload) -> int:
    """Return what `framing_bytes` says of a work's message, without encoding its tensors."""
    head = json.dumps(work_head(work, payload))
    return _TENSORS_FRAMING + header_bytes(flat_names(payload.trees)) + len(JSON) + len(head)


def reply_framing(reply: Reply) -> int:
    """Return what `framing_bytes` would say of a reply that travels alone, without encoding tensors."""
    head = json.dumps({"num_examples": reply.num_examples, "numbers": dict(reply.numbers)})
    tensors = _TENSORS_FRAMING + header_bytes(flat_names(reply.trees)) if reply.trees else 0
    return tensors + len(JSON) + len(head)

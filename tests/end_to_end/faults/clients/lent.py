"""What a client may do with what it was lent, which others do not get, and with what it gave away."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from tests.end_to_end.faults.clients.acts import Act, Honest, after, replying
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.models.base import Model
from umbel.strategies.base import ClientContext


def with_model(change: Callable[[Model, Payload], object]) -> Act:
    """Answer honestly, and then do something to the model, or to what came."""

    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        reply = honest()
        change(client.model(payload.trees["model"]), payload)
        return reply

    return act


def freeze(model: Model, payload: Payload) -> None:
    model.requires_grad_(False)


def point_at_payload(model: Model, payload: Payload) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = payload.trees["model"][name]


def replace_head(model: Model, payload: Payload) -> None:
    model.head = torch.nn.utils.skip_init(torch.nn.Linear, model.num_features, 3)


def hook_model(model: Model, payload: Payload) -> None:
    model.register_forward_hook(lambda module, args, output: output * 0)


def patch_model(model: Model, payload: Payload) -> None:
    model.__dict__["forward"] = lambda x: x


def empty_payload(model: Model, payload: Payload) -> None:
    for tree in payload.trees.values():
        for tensor in tree.values():
            tensor.requires_grad_(True).detach_().set_(torch.zeros(1))
        tree.clear()  # type: ignore[attr-defined]
    payload.trees.clear()  # type: ignore[attr-defined]


def ignore_signals(model: Model, payload: Payload) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 60)


def state(copied: bool) -> Act:
    """Answer with the state that the model has after training, which is that of the next client soon."""

    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        reply = honest()
        known = client.load_model(payload.trees["model"]).state_dict()
        live = {name: known[name] for name in reply.trees["delta"]}
        return replace(reply, trees={"delta": {k: t.clone() for k, t in live.items()} if copied else live})

    return act


def memory(copied: bool) -> Act:
    """Remember the model's state in one round and answer with it in the next."""

    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        reply = honest()
        known = client.load_model(payload.trees["model"]).state_dict()
        live = {name: known[name] for name in reply.trees["delta"]}
        client.remember(MemoryRecord({"state": {k: t.clone() for k, t in live.items()} if copied else live}))
        return reply if client.memory is None else replace(reply, trees={"delta": client.memory.trees["state"]})

    return act


def change_memory(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
    reply = honest()
    client.remember(MemoryRecord({"count": {"w": torch.ones(1)}}))
    if client.memory is not None:
        client.memory.trees["count"]["w"].add_(1)
    return reply


def interrupted(swallowed: bool) -> Act:
    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            if not swallowed:
                raise
        return honest()

    return act


HARMLESS: dict[str, Act] = {  # what a client may do with what it was lent: others do not get it
    "an honest answer": lambda payload, client, honest: honest(),
    "numpy's number of examples": replying(num_examples=np.int64),
    "a tensor of a loss": replying(
        numbers=lambda numbers: {"loss": torch.tensor(numbers["loss"], dtype=torch.float64)}
    ),
    "a fork": after(lambda: os.fork()),
    "a frozen model": with_model(freeze),
    "a model of doubles": with_model(lambda model, payload: model.double()),
    "a model in the payload": with_model(point_at_payload),
    "another head": with_model(replace_head),
    "a hook": with_model(hook_model),
    "a patch": with_model(patch_model),
    "a model in evaluation": with_model(lambda model, payload: model.eval()),
    "an empty payload": with_model(empty_payload),
    "signals": with_model(ignore_signals),
}
OTHERS: dict[str, Act] = {
    "live state": state(copied=False),
    "copied state": state(copied=True),
    "live memory": memory(copied=False),
    "copied memory": memory(copied=True),
    "memory in place": change_memory,
    "Ctrl-C": interrupted(swallowed=False),
    "Ctrl-C swallowed": interrupted(swallowed=True),
}

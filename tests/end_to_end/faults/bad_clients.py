"""What a client may do wrong, by name, and a strategy one of whose clients does it.

Each takes the payload, the client, and a function that answers honestly, and returns or raises what the client does.
"""

from __future__ import annotations

import asyncio
import ctypes
import decimal
import gc
import itertools
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.models.base import Model
from umbel.server.errors import StopRequested
from umbel.strategies import fedavg
from umbel.strategies.base import ClientContext

BAD = 1  # the client: one runs before it, others after it
Honest = Callable[[], Reply]
Act = Callable[[Payload, ClientContext, Honest], Any]


def replying(**changes: Callable[[Any], Any]) -> Act:
    """Answer honestly but for fields of the reply."""

    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        reply = honest()
        return replace(reply, **{name: change(getattr(reply, name)) for name, change in changes.items()})

    return act


def delta(change: Callable[[Tensor], Any]) -> Act:
    """Answer honestly but for each tensor of the change."""
    return replying(trees=lambda trees: {"delta": {name: change(tensor) for name, tensor in trees["delta"].items()}})


def named(change: Callable[[dict[str, Tensor]], Any]) -> Act:
    """Answer honestly but for the tree of the change."""
    return replying(trees=lambda trees: {"delta": change(dict(trees["delta"]))})


def loss(value: Any) -> Act:
    return replying(numbers=lambda numbers: {"loss": value})


def examples(value: Any) -> Act:
    return replying(num_examples=lambda number: value)


def returning(value: Any) -> Act:
    return lambda payload, client, honest: value


def raising(make: Callable[[], BaseException]) -> Act:
    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        raise make()

    return act


def after(change: Callable[..., object]) -> Act:
    """Answer honestly, and do something besides; what it does is given the payload and the client if it asks."""

    def act(payload: Payload, client: ClientContext, honest: Honest) -> Reply:
        reply = honest()
        change(*((payload, client)[: change.__code__.co_argcount] if hasattr(change, "__code__") else ()))
        return reply

    return act


class Lying(Tensor):
    """A tensor that answers nothing."""

    @classmethod
    def __torch_function__(cls, *_: object, **__: object) -> object:
        raise LookupError("it does not say")


class Float:
    """What is no number."""

    def __float__(self) -> float:
        raise OSError("out of numbers")


class NoNumber(Fraction):
    """A number that does not say what it is."""

    def __float__(self) -> float:
        raise OSError("out of numbers")


class SpeechlessError(Exception):
    """An error whose text is one as well."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class _Nameless(type):
    @property
    def __name__(cls) -> str:
        raise RuntimeError("no name")


class NamelessError(Exception, metaclass=_Nameless):
    """An error whose class has no name."""


class EndlessError(Exception):
    """An error whose text has no end."""

    def __str__(self) -> str:
        while True:
            pass


class Endless(dict[str, Any]):
    """A mapping that has no end."""

    def items(self) -> Any:
        return ((f"w{i}", torch.zeros(1)) for i in itertools.count())


def recurse() -> None:
    recurse()


def change_payload(payload: Payload) -> None:
    next(iter(payload.trees["model"].values())).add_(1.0)


def change_behind_torch(payload: Payload) -> None:
    for tensor in payload.trees["model"].values():
        tensor.data.mul_(0.5)


def change_by_numpy(payload: Payload) -> None:
    next(iter(payload.trees["model"].values())).numpy()[...] = 0.0


def change_examples(payload: Payload, client: ClientContext) -> None:
    client.train_data.labels.zero_()


def change_prepared(payload: Payload, client: ClientContext) -> None:
    client.prepare(client.train_data)[0].zero_()


def leave_mode() -> None:
    kept.append(torch.inference_mode())
    kept[-1].__enter__()


def leave_autocast() -> None:
    kept.append(torch.autocast("cpu", torch.bfloat16))
    kept[-1].__enter__()


def other_kernels() -> None:
    torch.backends.mkldnn.set_flags(not torch.backends.mkldnn.enabled)


def hook_everything() -> None:
    torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 0)


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


kept: list[Any] = []  # what a client does not let go

FORMS: dict[str, Act] = {
    "nothing": returning(None),
    "a mapping": returning({"delta": {}}),
    "a pair": returning((1, 2)),
    "a class": returning(Reply),
    "the payload": lambda payload, client, honest: payload,
    "no trees": replying(trees=lambda trees: None),
    "a list of trees": replying(trees=lambda trees: [trees]),
    "no tree": replying(trees=lambda trees: {}),
    "a tree too many": replying(trees=lambda trees: {**trees, "more": {}}),
    "a tree that is a tensor": replying(trees=lambda trees: {"delta": torch.zeros(3)}),
    "a tree called 1": replying(trees=lambda trees: {1: trees["delta"]}),
    "a key is missing": named(lambda tree: dict(list(tree.items())[1:])),
    "a key too many": named(lambda tree: {**tree, "more": torch.zeros(1)}),
    "a key of the fold's": named(lambda tree: {**tree, "#weight": torch.tensor(1.0)}),
    "a key that is no text": named(lambda tree: {**tree, "\ud800": torch.zeros(1)}),
    "another shape": delta(lambda t: t.reshape(-1)[:1]),
    "one number": delta(lambda t: t.sum()),
    "no values": delta(lambda t: t[..., :0]),
    "NaN": delta(lambda t: t * float("nan")),
    "infinity": delta(lambda t: t + float("inf")),
    "minus infinity": delta(lambda t: t - float("inf")),
    "1e308": delta(lambda t: torch.full_like(t, 1e308, dtype=torch.float64)),
    "-1e308": delta(lambda t: torch.full_like(t, -1e308, dtype=torch.float64)),
    "beyond float32": delta(lambda t: torch.full_like(t, 1e39, dtype=torch.float64)),
    "whole numbers": delta(lambda t: t.to(torch.int64)),
    "truth values": delta(lambda t: t > 0),
    "complex numbers": delta(lambda t: t.to(torch.complex64)),
    "sparse": delta(lambda t: t.to_sparse()),
    "of no device": delta(lambda t: t.to("meta")),
    "arrays": delta(lambda t: t.numpy()),
    "lists": delta(lambda t: t.tolist()),
    "tensors of another class": delta(lambda t: t.as_subclass(Lying)),
}
NUMBERS: dict[str, Act] = {
    "no number": replying(numbers=lambda numbers: {}),
    "a number too many": replying(numbers=lambda numbers: {**numbers, "more": 1.0}),
    "a list of numbers": replying(numbers=lambda numbers: [1.0]),
    "loss NaN": loss(float("nan")),
    "loss infinity": loss(float("inf")),
    "loss 1e308": loss(1e308),
    "loss 10**400": loss(10**400),
    "loss of text": loss("0.5"),
    "loss None": loss(None),
    "loss complex": loss(1j),
    "loss of two": loss(torch.zeros(2)),
    "loss of no number": loss(Float()),
    "loss that raises": loss(NoNumber(1)),
    "0 examples": examples(0),
    "-5 examples": examples(-5),
    "NaN examples": examples(float("nan")),
    "infinitely many examples": examples(float("inf")),
    "2.5 examples": examples(2.5),
    "1e300 examples": examples(1e300),
    "10**400 examples": examples(10**400),
    "2**60 examples": examples(2**60),
    "examples of text": examples("7"),
    "no examples": examples(None),
    "examples of two": examples(torch.ones(2, dtype=torch.int64)),
}
RAISED: dict[str, Act] = {
    "an error": raising(lambda: ValueError("out of data")),
    "an error without words": raising(SpeechlessError),
    "an error without a name": raising(NamelessError),
    "50 MB of text": raising(lambda: ValueError("x" * 50_000_000)),
    "text that is none": raising(lambda: ValueError("\ud800 \x1b[2J \0")),
    "sys.exit(0)": raising(lambda: SystemExit(0)),
    "sys.exit with text": raising(lambda: SystemExit("bye")),
    "KeyboardInterrupt": raising(KeyboardInterrupt),
    "GeneratorExit": raising(GeneratorExit),
    "StopIteration": raising(StopIteration),
    "BaseException": raising(BaseException),
    "a cancellation": raising(asyncio.CancelledError),
    "a request to stop": raising(StopRequested),
    "recursion": lambda payload, client, honest: recurse(),
    "memory": lambda payload, client, honest: torch.empty(2**60),
}
SHARED: dict[str, Act] = {
    "payload in place": after(change_payload),
    "payload behind torch": after(change_behind_torch),
    "payload by numpy": after(change_by_numpy),
    "its examples": after(change_examples),
    "its prepared examples": after(change_prepared),
    "threads": after(lambda: torch.set_num_threads(torch.get_num_threads() + 1)),
    "default dtype": after(lambda: torch.set_default_dtype(torch.float64)),
    "default device": after(lambda: torch.set_default_device("meta")),
    "gradients off": after(lambda: torch.set_grad_enabled(False)),
    "inference": after(leave_mode),
    "autocast": after(leave_autocast),
    "deterministic": after(lambda: torch.use_deterministic_algorithms(True)),
    "precision": after(lambda: torch.set_float32_matmul_precision("medium")),
    "kernels": after(other_kernels),
    "anomalies": after(lambda: torch.set_anomaly_enabled(True)),
    "tiny numbers": after(lambda: torch.set_flush_denormal(True)),
    "hooks of all modules": after(hook_everything),
    "torch's generator": after(lambda: torch.manual_seed(0)),
    "numpy's generator": after(lambda: np.random.seed(0)),  # noqa: NPY002
    "random's generator": after(lambda: random.seed(0)),
    "numpy's errors": after(lambda: np.seterr(all="raise")),
    "a variable": after(lambda: os.environ.update(UMBEL_BAD="1")),
    "no variables": after(lambda: os.environ.clear()),
    "the path": after(lambda: sys.path.insert(0, "/")),
    "another path": after(lambda: setattr(sys, "path", [])),
    "finders": after(lambda: sys.meta_path.clear()),
    "the folder": after(lambda: os.chdir("/")),
    "warnings are errors": after(lambda: warnings.simplefilter("error")),
    "how warnings are shown": after(lambda: setattr(warnings, "showwarning", print)),
    "the streams": after(lambda: setattr(sys, "stdout", None)),
    "umask": after(lambda: os.umask(0o777)),
    "recursion limit": after(lambda: sys.setrecursionlimit(400)),
    "switch interval": after(lambda: sys.setswitchinterval(1.0)),
    "digits": after(lambda: sys.set_int_max_str_digits(0)),
    "no collection": after(lambda: gc.disable()),
    "sockets": after(lambda: socket.setdefaulttimeout(1e-6)),
    "decimals": after(lambda: setattr(decimal.getcontext(), "prec", 2)),
    "no messages": after(lambda: logging.disable(logging.CRITICAL)),
}
TIMES: dict[str, Act] = {
    "a loop": lambda payload, client, honest: [None for _ in itertools.count()],
    "a loop past errors": lambda payload, client, honest: stubborn(),
    "sleep": lambda payload, client, honest: time.sleep(1e6),
    "a lock": lambda payload, client, honest: [lock.acquire() for lock in [threading.Lock()] for _ in range(2)],
    "a mapping without end": named(lambda tree: Endless(tree)),
    "text without end": raising(EndlessError),
}
ENDS: dict[str, Act] = {
    "os._exit": lambda payload, client, honest: os._exit(0),
    "a signal": lambda payload, client, honest: os.kill(os.getpid(), signal.SIGKILL),
    "a null pointer": lambda payload, client, honest: ctypes.string_at(0),
}
BAD_KINDS = {**FORMS, **NUMBERS, **RAISED, **SHARED, **TIMES, **ENDS}
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
KINDS = {**BAD_KINDS, **HARMLESS, **OTHERS}


def stubborn() -> None:
    while True:
        try:
            time.sleep(1e-3)
        except Exception:  # noqa: BLE001 - that is what is wrong with it
            continue


@dataclass(frozen=True)
class Config(fedavg.Config):
    """Of a federation one of whose clients is bad.

    Attributes:
        kinds: What it does in each round; an empty one, and none, is to be absent.
        evaluates: It does so when it evaluates, and trains honestly.
    """

    kinds: tuple[str, ...] = ()
    evaluates: bool = False


class Bad(fedavg.FedAvg):
    """Federated averaging with a bad client."""

    config_class = Config
    config: Config

    def every_phase(self) -> tuple[Any, ...]:
        (train,) = super().every_phase()

        def local(payload: Payload, client: ClientContext) -> Any:
            if client.id != BAD or self.config.evaluates:
                return train.local(payload, client)
            return self._act(payload, client, lambda: train.local(payload, client))

        return (replace(train, local=local),)

    def personal(self, payload: Payload, client: ClientContext) -> Any:
        honest = super().personal
        if client.id != BAD or not self.config.evaluates:
            return honest(payload, client)
        return self._act(payload, client, lambda: honest(payload, client))

    def _act(self, payload: Payload, client: ClientContext, honest: Callable[[], Any]) -> Any:
        kind = self.config.kinds[client.round - 1] if client.round <= len(self.config.kinds) else ""
        if not kind:
            raise RuntimeError("absent")
        return KINDS[kind](payload, client, honest)

"""What a client may do to those who share its process: change what is theirs as well, never end, end it."""

from __future__ import annotations

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
from typing import Any

import numpy as np
import torch
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.end_to_end.faults.clients.acts import Act, after, named, raising
from umbel.core.records import Payload
from umbel.strategies.base import ClientContext


class EndlessError(Exception):
    """An error whose text has no end."""

    def __str__(self) -> str:
        while True:
            pass


class Endless(dict[str, Any]):
    """A mapping that has no end."""

    def items(self) -> Any:
        return ((f"w{i}", torch.zeros(1)) for i in itertools.count())


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


def leave(context: Any) -> None:
    kept.append(context)
    context.__enter__()


def bf16_convolutions() -> None:
    torch.backends.mkldnn.conv.fp32_precision = "bf16"


def other_kernels() -> None:
    torch.backends.mkldnn.set_flags(not torch.backends.mkldnn.enabled)


def hook_everything() -> None:
    torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: output * 0)


kept: list[Any] = []  # what a client does not let go

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
    "inference": after(lambda: leave(torch.inference_mode())),
    "autocast": after(lambda: leave(torch.autocast("cpu", torch.bfloat16))),
    "autocast, but off": after(lambda: leave(torch.autocast("cpu", enabled=False))),
    "autocast left twice": after(lambda: torch.autocast_decrement_nesting()),
    "a mode of functions": after(lambda: leave(BaseTorchFunctionMode())),
    "a mode of operations": after(lambda: leave(TorchDispatchMode())),
    "saved tensors": after(lambda: leave(torch.autograd.graph.save_on_cpu())),
    "deterministic": after(lambda: torch.use_deterministic_algorithms(True)),
    "precision": after(lambda: torch.set_float32_matmul_precision("medium")),
    "precision of convolutions": after(bf16_convolutions),
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


def stubborn() -> None:
    while True:
        try:
            time.sleep(1e-3)
        except Exception:  # noqa: BLE001 - that is what is wrong with it
            continue


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

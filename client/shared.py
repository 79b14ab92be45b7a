"""What all clients of a process share: looked at after each of them, and put back when it is not as it was.

Settings of torch, generators, the environment: whoever changes one of them changes the results of those who come after
it. What is not in the table, such as a function of a library that a client replaces, is not noticed: clients that do
not trust each other need processes of their own, which is what nodes are.
"""

from __future__ import annotations

import ctypes
import decimal
import gc
import locale
import logging
import os
import random
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from torch.nn.modules import module as modules

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_TINY = 1e-310  # below the normal numbers of float64
_NUMPY_KEYS = 624  # of a Mersenne twister
_HOOKS = [hooks for name, hooks in vars(modules).items() if name.startswith("_global_") and isinstance(hooks, dict)]
_LIMITS = [] if resource is None else [resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_AS]
_RNG = " (draw from client.rng(purpose))"
_TORCH_RNG = " (draw from client.rng(purpose); modules that know no other, within umbel.core.rng.forked of it)"


@dataclass(frozen=True)
class _Setting:
    """Something of which a process has one.

    Attributes:
        name: What a failure calls it.
        get: Returns it, or a copy that compares by value.
        put: Sets it.
        imported: A module that is imported may change it as well: then nobody is blamed.
    """

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    imported: bool = False


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def autocast_depth() -> int:
    """Return within how many autocasts this is; torch keeps casts of weights until it is within none."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())


def _autocast() -> tuple[int, list[tuple[str, bool, torch.dtype]]]:
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    each = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    return autocast_depth(), each


def _set_autocast(before: tuple[int, list[tuple[str, bool, torch.dtype]]]) -> None:
    depth, each = before
    for kind, enabled, dtype in each:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)
    while (now := autocast_depth()) != depth:
        (torch.autocast_decrement_nesting if now > depth else torch.autocast_increment_nesting)()
    torch.clear_autocast_cache()


_MKLDNN: Any = torch.backends.mkldnn
_PRODUCTS = (_MKLDNN.conv, _MKLDNN.matmul, _MKLDNN.rnn)


def _products() -> tuple[str, ...]:
    return torch.get_float32_matmul_precision(), *(kind.fp32_precision for kind in _PRODUCTS)


def _set_products(before: tuple[str, ...]) -> None:
    torch.set_float32_matmul_precision(before[0])
    for kind, precision in zip(_PRODUCTS, before[1:], strict=True):
        kind.fp32_precision = precision


def _modes() -> tuple[int, int]:
    """Return how many of torch's modes are entered that see each function, and each operation."""
    return torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()


def _set_modes(before: tuple[int, int]) -> None:
    while torch._C._len_torch_function_stack() > before[0]:
        torch._C._pop_torch_function_stack()
    while torch._C._len_torch_dispatch_stack() > before[1]:
        torch._C._pop_torch_dispatch_stack(None)


def _tensor_hooks() -> Any:
    """Return what packs tensors that are saved for a backward pass."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _set_tensor_hooks(before: Any) -> None:
    while (now := _tensor_hooks()) is not None and now != before:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(before: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _kernels() -> tuple[Any, ...]:
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    asked: list[Callable[[], bool]] = [cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled]
    asked += [cuda.math_sdp_enabled, cuda.cudnn_sdp_enabled, torch.backends.mha.get_fastpath_enabled]
    return (
        *(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.backends.mkldnn.enabled),
        *(ask() for ask in asked),
    )


def _set_kernels(before: tuple[Any, ...]) -> None:
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before[:4]
    told: list[Callable[[bool], object]] = [torch.backends.mkldnn.set_flags, cuda.enable_flash_sdp]
    told += [cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp, cuda.enable_cudnn_sdp]
    for tell, value in zip([*told, torch.backends.mha.set_fastpath_enabled], before[4:], strict=True):
        tell(value)


def _numpy_state() -> tuple[Any, bytes]:
    """Return numpy's global generator and the bytes of its state; its own way takes a quarter of a millisecond."""
    generator = mtrand.get_bit_generator()
    if not isinstance(generator, np.random.MT19937):
        return generator, b""
    return generator, ctypes.string_at(generator.ctypes.state_address, _NUMPY_KEYS * 4 + 4)


def _set_numpy_state(before: tuple[Any, bytes]) -> None:
    generator, state = before
    if mtrand.get_bit_generator() is not generator:
        mtrand.set_bit_generator(generator)
    if state:
        words = np.frombuffer(state, np.uint32)
        mtrand.set_state(("MT19937", words[:-1], int(words[-1]), 0, 0.0))


def _torch_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_torch_state(before: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(before), dtype=torch.uint8))


def _cuda_state(device: torch.device) -> bytes:
    return torch.cuda.get_rng_state(device).numpy().tobytes()


def _set_cuda_state(device: torch.device, before: bytes) -> None:
    torch.cuda.set_rng_state(torch.frombuffer(bytearray(before), dtype=torch.uint8), device)


def _set_variables(before: dict[Any, Any]) -> None:
    now = _variables()
    for name in now.keys() - before.keys():
        del os.environ[os.fsdecode(name)]
    for name, value in before.items():
        if now.get(name) != value:
            os.environ[os.fsdecode(name)] = os.fsdecode(value)


def _set_path(before: list[str]) -> None:
    sys.path = list(before)


def _set_finders(before: list[Any]) -> None:
    sys.meta_path = list(before)


def _set_filters(before: list[Any]) -> None:
    warnings.simplefilter("default")  # what was already shown counts anew
    warnings.filters = list(before)


def _set_show(before: Any) -> None:
    warnings.showwarning = before


def _set_streams(before: tuple[Any, Any, Any]) -> None:
    sys.stdin, sys.stdout, sys.stderr = before


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _decimal() -> tuple[int, str, int, int]:
    context = decimal.getcontext()
    return context.prec, context.rounding, context.Emin, context.Emax


def _set_decimal(before: tuple[int, str, int, int]) -> None:
    context = decimal.getcontext()
    context.prec, context.rounding, context.Emin, context.Emax = before


def _hooks() -> list[dict[int, Any]]:
    """Return the hooks of all of torch's modules."""
    return [dict(hooks) for hooks in _HOOKS]


def _set_hooks(before: list[dict[int, Any]]) -> None:
    for hooks, own in zip(_HOOKS, before, strict=True):
        hooks.clear()
        hooks.update(own)


def _limits() -> list[tuple[int, int]]:
    return [resource.getrlimit(kind) for kind in _LIMITS]


def _set_limits(before: list[tuple[int, int]]) -> None:
    for kind, limit in zip(_LIMITS, before, strict=True):
        resource.setrlimit(kind, limit)


def _variables() -> dict[Any, Any]:
    """Return a copy of the environment; its own way of copying decodes each value."""
    return dict(vars(os.environ)["_data"])


def _collecting(before: bool) -> None:
    (gc.enable if before else gc.disable)()


_SETTINGS = (
    _Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("torch's default device", torch.get_default_device, _set_device),
    _Setting("whether torch keeps gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    # A guard around each client puts it back: see `gradients_on`.
    _Setting("torch's mode of inference", torch.is_inference_mode_enabled, lambda before: None),
    _Setting("torch's autocast", _autocast, _set_autocast),
    _Setting("torch's autocast cache", torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    _Setting("torch's deterministic algorithms", _deterministic, _set_deterministic),
    _Setting("torch's precision of products", _products, _set_products),
    _Setting("torch's modes of functions and operations", _modes, _set_modes),
    _Setting("the hooks of tensors that torch saves", _tensor_hooks, _set_tensor_hooks),
    _Setting("torch's choice of kernels", _kernels, _set_kernels),
    _Setting("torch's detection of anomalies", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    _Setting("the hooks of all modules", _hooks, _set_hooks),
    _Setting("torch's rounding of tiny numbers", lambda: _TINY * 0.5 == 0.0, torch.set_flush_denormal),
    _Setting(f"torch's global generator{_TORCH_RNG}", _torch_state, _set_torch_state),
    _Setting(f"numpy's global generator{_RNG}", _numpy_state, _set_numpy_state),
    _Setting(f"the global generator of `random`{_RNG}", random.getstate, random.setstate),
    _Setting("what numpy does about errors", np.geterr, lambda before: np.seterr(**before)),
    _Setting("the environment", _variables, _set_variables, imported=True),
    _Setting("sys.path", lambda: list(sys.path), _set_path, imported=True),
    _Setting("sys.meta_path", lambda: list(sys.meta_path), _set_finders, imported=True),
    _Setting("the filters of warnings", lambda: list(warnings.filters), _set_filters, imported=True),
    _Setting("how warnings are shown", lambda: warnings.showwarning, _set_show, imported=True),
    _Setting("the standard streams", lambda: (sys.stdin, sys.stdout, sys.stderr), _set_streams),
    _Setting("the current folder", os.getcwd, os.chdir),
    _Setting("the mode of new files", _umask, os.umask),
    _Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting("the interpreter's switch interval", sys.getswitchinterval, sys.setswitchinterval),
    _Setting("how long a whole number may be as text", sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    _Setting("whether garbage is collected", gc.isenabled, _collecting),
    _Setting("the sockets' timeout", socket.getdefaulttimeout, socket.setdefaulttimeout),
    _Setting("the context of decimal numbers", _decimal, _set_decimal),
    _Setting("the locale", partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
    _Setting("which messages are logged", lambda: logging.root.manager.disable, logging.disable),
    _Setting("the limits of this process", _limits, _set_limits),
)


class Shared:
    """What the clients of a process share as it is now.

    Args:
        device: Where they compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._settings = list(_SETTINGS)
        if hasattr(os, "sched_getaffinity"):
            get, put = partial(os.sched_getaffinity, 0), partial(os.sched_setaffinity, 0)
            self._settings.append(_Setting("the processors that it may use", get, put))
        if device.type == "cuda":
            get_state, put_state = partial(_cuda_state, device), partial(_set_cuda_state, device)
            self._settings.append(_Setting(f"the generator of {device}{_TORCH_RNG}", get_state, put_state))
        self._before = [_look(setting) for setting in self._settings]
        self._num_modules = len(sys.modules)

    def put_back(self) -> list[str]:
        """Put back what is not as it was, and return what that is; what a module did that was imported is no change."""
        changed = []
        imported = len(sys.modules) > self._num_modules
        self._num_modules = len(sys.modules)
        for setting, before in zip(self._settings, self._before, strict=True):
            if _look(setting) == before:
                continue
            try:
                setting.put(before)
            except (OSError, RuntimeError, TypeError, ValueError) as error:
                changed.append(f"{setting.name}, which cannot be put back ({error})")
                continue
            if not (imported and setting.imported):
                changed.append(setting.name)
        return changed


@contextmanager
def gradients_on() -> Iterator[None]:
    """Begin with gradients on; afterwards torch's modes of gradients and inference are what they were before."""
    with torch.inference_mode(mode=False):
        yield


def _look(setting: _Setting) -> Any:
    try:
        return setting.get()
    except OSError as error:  # the current folder is gone
        return type(error), error.errno

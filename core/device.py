"""Where and in which precision the arithmetic runs."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch

from umbel.core.refusal import Refusal

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp64", "fp32", "bf16", "fp16")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # what a container has of the machine's CPUs
_LARGEST_KEPT = (32 << 20) - (64 << 10)  # bytes; of larger blocks glibc learns nothing
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve(name: str) -> torch.device:
    """Return the device for `auto | cpu | cuda | cuda:<i> | mps`.

    Raises:
        Refusal: The device is not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Refusal(
            "client.device=cuda: this machine has no CUDA device that torch can use.",
            key="client.device",
            remedy="Say cpu or auto.",
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise Refusal(
            "client.device=mps: this machine has no Metal device.", key="client.device", remedy="Say cpu or auto."
        )
    return torch.device(name)


def parameter_dtype(precision: str) -> torch.dtype:
    """Return the dtype of parameters and data: float64 for fp64, else float32 (low precision is autocast)."""
    return torch.float64 if precision == "fp64" else torch.float32


def autocast(device: torch.device, precision: str, kept: bool = True) -> AbstractContextManager[object]:
    """Return the context in which the forward pass runs; casts of weights are kept for the rest of it, or not.

    Casts from before are let go: within an autocast of somebody else's torch would keep them, and train on weights
    that are no longer.
    """
    dtype = _AUTOCAST.get(precision)
    if dtype is None:
        return nullcontext()
    if kept:
        torch.clear_autocast_cache()
    return torch.autocast(device.type, dtype=dtype, cache_enabled=kept)


def num_cpus() -> int:
    """Return the CPUs that this process may use, by its affinity and a container's limit; at least one."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        most, period = _QUOTA.read_text(encoding="ascii").split()
        return max(min(there, int(most) // int(period)), 1)
    except (OSError, ValueError):  # no such group, or "max"
        return there


def set_threads(threads: int) -> None:
    """Fix the number of threads of torch's arithmetic.

    1 and 2 threads give different bits, and threads of several processes on the same cores cost an order of
    magnitude, so the number is configuration and never what the machine happens to have.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def keep_memory() -> None:
    """Have the C library keep what training frees, in place of giving it back to the system after each step.

    glibc learns from the largest block that was freed what it should keep. A process that has mapped its data has freed
    none, and every step would have its activations from the system again, page by page. Elsewhere it does nothing.
    """
    np.empty(_LARGEST_KEPT, np.uint8)


def give_back_memory() -> None:
    """Have the C library give free memory back to the system, also between what is in use.

    glibc keeps what was freed of blocks below 32 MB, and what has come and gone between such blocks leaves holes: the
    tensors of a large model are many of them. Elsewhere it does nothing.
    """
    if _TRIM is not None:
        _TRIM(0)


def make_repeatable(device: torch.device) -> None:
    """Ask a GPU's libraries for algorithms that give the same bits twice.

    An operation that has none warns and goes on; TF32 stays off, so that fp32 means fp32.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Fused attention repeats its bits only under warn_only=False, which other operations would not stand.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)

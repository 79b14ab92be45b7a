"""Which arithmetic a process computes with: the kernels that its libraries chose, and bits that tell them apart.

PyTorch, oneDNN, MKL and LAPACK pick their kernels by what the processor can do and by variables of the environment.
Two kernels of one operation agree to rounding only, so "same bits" holds among processes whose `bits` are equal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Variables that change which kernel runs, and with it rounding.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_CORETYPE",
)


def kernels() -> dict[str, str]:
    """Return what decides about this process's rounding on the CPU.

    Returns:
        `aten`: the vector instructions that PyTorch's own kernels were chosen for; each of `VARIABLES` that is set;
        `bits`: 16 hexadecimal digits of a hash over the results of a fixed computation. Equal bits say that the
        operations of that computation round alike; they are those that models here are made of, at a few sizes.
    """
    chosen = {name: value for name in VARIABLES if (value := os.environ.get(name))}
    return {"aten": torch.backends.cpu.get_cpu_capability(), **chosen, "bits": bits()}


def bits() -> str:
    """Hash the results of a fixed computation, forwards and backwards; no random number is drawn."""
    digest = hashlib.sha256()
    with torch.enable_grad():
        for tensor in _results():
            digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in (-1, 1) whose binary fractions do not end, the same on every machine."""
    size = torch.Size(shape).numel()
    whole = torch.arange(1, size + 1, dtype=torch.int64) * 7919 % 10007
    return (whole.to(dtype) / 5004 - 1).view(shape)  # one division: IEEE 754 fixes its result


def _results() -> Iterator[Tensor]:
    for rows, inner, columns in ((5, 7, 3), (33, 65, 17), (64, 256, 100)):
        for dtype in (torch.float32, torch.float64):
            yield _numbers(rows, inner, dtype=dtype) @ _numbers(inner, columns, dtype=dtype)
    yield _numbers(3, 17, 24) @ _numbers(3, 24, 17)
    x = _numbers(4, 8, 13, 13).requires_grad_()
    parameters = [_numbers(16, 8, 3, 3), _numbers(16, 1, 5, 5), _numbers(10, 16), _numbers(16)]
    kernel, depthwise, linear, scale = (each.clone().requires_grad_() for each in parameters)
    maps = F.gelu(F.batch_norm(F.conv2d(x, kernel, padding=1), None, None, scale, training=True))
    maps = F.conv2d(maps, depthwise, padding=2, groups=16)
    tokens = F.layer_norm(maps.flatten(2).mT, (16,), scale)
    mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
    loss = F.cross_entropy(F.linear(F.silu(mixed).mean(1), linear), torch.tensor([0, 3, 7, 9]))
    yield loss
    yield from torch.autograd.grad(loss, [x, kernel, depthwise, linear, scale])
    square = _numbers(12, 12, dtype=torch.float64)
    yield from torch.linalg.eigh(square + square.mT)
    yield torch.linalg.svdvals(_numbers(20, 9))

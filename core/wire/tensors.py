"""Tensors that came from anybody, as one array of bytes in the safetensors format with NumPy's header around it.

Both headers are read here before a library reads the rest, so that nothing is set aside for what was only claimed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from umbel.core.wire.limits import MOST_DIMENSIONS, Limits
from umbel.core.wire.text import TextError, read_json

_LENGTH = 8  # bytes that say how long the header of safetensors is
_METADATA = "__metadata__"
_MOST_NAME = 512  # letters
# What `numpy.save` writes before an array of bytes with one dimension; anything else is no message of ours.
_NUMPY = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '\|u1', 'fortran_order': False, 'shape': \(([0-9]{1,15}),\), \} *\n", re.DOTALL
)
NUMPY_HEADER = 128  # bytes of it in all
_NUMPY_START = 10  # bytes before NumPy's header
_CALLED = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_ORDER = list(_CALLED)  # as safetensors ranks them
_KINDS = {name: dtype.itemsize for dtype, name in _CALLED.items()}
_PADDED = 8  # bytes, of which the header's length is a multiple


class TensorsError(ValueError):
    """Bytes that are no tensors, or are more than are read."""


def header_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return how long the header of safetensors is, with its length, without writing the tensors.

    Args:
        tensors: By name, in any order: safetensors has wider types first, and names in order.
    """
    entries, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-_ORDER.index(tensors[name].dtype), name)):
        tensor = tensors[name]
        place = [end, end + tensor.nbytes]
        entries[name] = {"dtype": _CALLED[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        end = place[1]
    length = len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
    return _LENGTH + -(-length // _PADDED) * _PADDED


def inside(data: bytes) -> memoryview:
    """Return what is inside NumPy's header, without a copy.

    Raises:
        TensorsError: It is no array of bytes of one dimension, or has another size than it says.
    """
    match = _NUMPY.match(data)
    if match is None or match.end() != _NUMPY_START + int.from_bytes(match[1], "little"):
        raise TensorsError("they are no array of bytes")
    if len(data) - match.end() != int(match[2]):
        raise TensorsError(f"they should be {int(match[2]):,} bytes, found {len(data) - match.end():,}")
    return memoryview(data)[match.end() :]


def read_tensors(data: bytes, limits: Limits) -> dict[str, Tensor]:
    """Return the tensors in what `numpy.save` made of safetensors' bytes, in memory of their own.

    Args:
        data: The bytes.
        limits: The most that is read.

    Raises:
        TensorsError: They are more, or no tensors.
    """
    blob = inside(data)
    _check(blob, limits)
    try:
        tensors = load(bytes(blob))
    except (SafetensorError, ValueError, TypeError, KeyError, AssertionError, RuntimeError, OverflowError) as error:
        raise TensorsError(str(error)) from error
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
            raise TensorsError(f"{name!r} is neither true nor false")
    return tensors


def _check(blob: memoryview, limits: Limits) -> None:
    """Check what the header says against what there is and what may be."""
    length = int.from_bytes(blob[:_LENGTH], "little")
    num_bytes = len(blob) - _LENGTH - length
    if len(blob) < _LENGTH or num_bytes < 0:
        raise TensorsError("their header is longer than they are")
    if length > limits.header_bytes:
        raise TensorsError(f"their header has {length:,} bytes, of which at most {limits.header_bytes:,} are read")
    if num_bytes > limits.value_bytes:
        raise TensorsError(f"they have {num_bytes:,} bytes, where {limits.value_bytes:,} are the most that can be")
    try:
        header = read_json(bytes(blob[_LENGTH : _LENGTH + length]).decode(), limits.header_bytes)
    except (UnicodeDecodeError, TextError) as error:
        raise TensorsError(f"their header cannot be read: {error}") from error
    if not isinstance(header, dict) or _METADATA in header:
        raise TensorsError("their header is none of ours")
    if len(header) > limits.num_tensors:
        raise TensorsError(f"they are {len(header):,}, where {limits.num_tensors:,} are the most that can be")
    if sum(_size(name, entry) for name, entry in header.items()) != num_bytes:
        raise TensorsError("they have other sizes than their header says")


def _size(name: str, entry: Any) -> int:
    """Return the bytes that a tensor takes by what its header says of it."""
    kind, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or kind not in _KINDS or not isinstance(shape, list) or len(name) > _MOST_NAME:
        raise TensorsError(f"{name[:_MOST_NAME]!r} is of no kind that is sent")
    if len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size < 1 << 62 for size in shape):
        raise TensorsError(f"{name!r} has no shape that can be")
    return math.prod(shape) * _KINDS[kind]

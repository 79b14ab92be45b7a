"""Trees of named tensors: a flat mapping from a name to a tensor, as a model's state is.

Shapes are whatever the model has; two trees in one operation must have the same names and shapes.
No function changes what it was given, but where it says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tree = Mapping[str, Tensor]


class TreeMismatchError(ValueError):
    """Two trees that should have the same names and shapes do not."""


def check_same(tree: Tree, expected: Tree, what: str = "tree") -> None:
    """Raise `TreeMismatchError` unless `tree` has the names and shapes of `expected`."""
    missing, extra = expected.keys() - tree.keys(), tree.keys() - expected.keys()
    if missing or extra:
        raise TreeMismatchError(
            f"{what}: expected the keys of the model; missing {sorted(missing)[:5]}, unexpected {sorted(extra)[:5]}"
        )
    for name, tensor in expected.items():
        if tree[name].shape != tensor.shape:
            raise TreeMismatchError(
                f"{what}: {name!r} should have shape {tuple(tensor.shape)}, found {tuple(tree[name].shape)}"
            )


def map_tree(function: Callable[..., Tensor], first: Tree, *others: Tree) -> dict[str, Tensor]:
    """Apply `function` to tensors of the same name, in the order of `first`."""
    for other in others:
        check_same(other, first)
    return {name: function(tensor, *(other[name] for other in others)) for name, tensor in first.items()}


def add(left: Tree, right: Tree) -> dict[str, Tensor]:
    """Return left + right."""
    return map_tree(torch.add, left, right)


def subtract(left: Tree, right: Tree) -> dict[str, Tensor]:
    """Return left - right."""
    return map_tree(torch.sub, left, right)


def subtract_from(left: dict[str, Tensor], right: Tree) -> dict[str, Tensor]:
    """Return left - right, as `subtract`, in the memory of `left`, which is used up."""
    check_same(right, left)
    for name, tensor in left.items():
        other = right[name]
        is_same = tensor.dtype == other.dtype and tensor.device == other.device
        left[name] = tensor.sub_(other) if is_same else tensor - other
    return left


def scale(tree: Tree, factor: float) -> dict[str, Tensor]:
    """Return factor * tree."""
    return {name: tensor * factor for name, tensor in tree.items()}


def zeros_like(tree: Tree) -> dict[str, Tensor]:
    """Return zeros of the same names, shapes and dtypes."""
    return {name: torch.zeros_like(tensor) for name, tensor in tree.items()}


def clone(tree: Tree) -> dict[str, Tensor]:
    """Return a deep copy."""
    return {name: tensor.detach().clone() for name, tensor in tree.items()}


def cast_like(tree: Tree, like: Tree) -> dict[str, Tensor]:
    """Return `tree` with the dtype of each tensor of `like`."""
    return map_tree(lambda tensor, reference: tensor.to(reference.dtype), tree, like)


def to_device(tree: Tree, device: torch.device) -> dict[str, Tensor]:
    """Return the tree on `device`; tensors that are there already are not copied."""
    return {name: tensor.to(device) for name, tensor in tree.items()}


def num_bytes(tree: Tree) -> int:
    """Return the size of all tensors in bytes, without any framing."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tree.values())


def first_non_finite(tree: Tree) -> str | None:
    """Return the name of the first floating-point tensor that holds a NaN or an infinity, or None."""
    for name, tensor in tree.items():
        if tensor.is_floating_point() and tensor.numel() and not math.isfinite(largest(tensor)):
            return name
    return None


def largest(tensor: Tensor) -> float:
    """Return max |x| of a floating-point tensor that is not empty; NaN where there is one.

    By the least and the greatest value, which are found in one pass and without a copy.
    """
    low, high = torch.aminmax(tensor.detach())
    return max(-float(low), float(high))


def raw_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's little-endian bytes in row-major order, for any dtype."""
    return bytes(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the same without a copy, where the tensor lies so in memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def sha256(tree: Tree) -> str:
    """Hash name, dtype, shape and little-endian bytes of each tensor in the order of the sorted names."""
    digest = hashlib.sha256()
    for name in sorted(tree):
        tensor = tree[name]
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\x00{dtype}\x00{tuple(tensor.shape)}\x00".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()

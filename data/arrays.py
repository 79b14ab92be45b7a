"""Examples as plain tensors by name, for an object store, and back without a copy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.data.texts import Texts
from umbel.data.types import Examples

_COLUMNS = ("images", "labels", "domains", "tasks", "concepts", "tokens")


def columns_of(examples: Examples) -> dict[str, Tensor]:
    """Return the tensors that examples have, by name; texts are two of them."""
    columns = {name: getattr(examples, name) for name in _COLUMNS}
    if examples.texts is not None:
        columns |= {"texts": examples.texts.content, "text_offsets": examples.texts.offsets}
    return {name: tensor for name, tensor in columns.items() if tensor is not None}


def examples_of(tensors: Mapping[str, Tensor], prefix: str) -> Examples:
    """Return the examples that `columns_of` took apart.

    Args:
        tensors: The tensors, among others.
        prefix: What stands before the name of each.
    """
    columns: dict[str, Any] = {column: tensors.get(f"{prefix}{column}") for column in _COLUMNS}
    if f"{prefix}texts" in tensors:
        columns["texts"] = Texts(tensors[f"{prefix}texts"], tensors[f"{prefix}text_offsets"])
    return Examples(**columns)


def shared(array: NDArray[Any]) -> Tensor:
    """Return a tensor over the memory of an array, which may be read-only; nobody may write into it then."""
    with warnings.catch_warnings():
        # torch warns that one could write into a read-only array through the tensor; nobody here does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))

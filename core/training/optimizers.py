"""torch's optimisers, without torch's compiler.

The first thing that an optimiser of torch does is to import `torch._dynamo`, so as to tell it that it should leave the
optimiser out: time and memory of each process, also of one that compiles nothing.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch

_METHODS = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


@cache
def eager(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """Return an optimiser class that does the same to the last bit, and is nothing that torch compiles.

    Args:
        kind: A class of `torch.optim`, or one derived from its base.
    """
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in _METHODS}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))  # without gradients, as what it wraps has it
    return type(kind.__name__, (kind,), methods | {"__doc__": kind.__doc__, "__module__": kind.__module__})

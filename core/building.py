"""Build a model so that it starts the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from umbel.core.rng import forked, generator

M = TypeVar("M", bound=nn.Module)


def build_seeded(
    factory: Callable[[], M], seed: int, dtype: torch.dtype = torch.float32, client: int = -1, purpose: str = "model"
) -> M:
    """Call `factory` with torch's global generator seeded for initialisation, and restore it afterwards.

    Args:
        factory: Makes the model; module initialisation knows only the global generator.
        seed: The run's seed.
        dtype: Dtype of the parameters.
        client: Whose model it is; -1 for the one that all share.
        purpose: Sets apart models that one party has several of.
    """
    with forked(generator(seed, 0, "", client, purpose)):
        return factory().to(dtype)

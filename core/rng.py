"""Random numbers that depend on what they are for, never on when or where they are drawn.

Every draw in the project comes from `generator(...)`: the same words give the same numbers on every engine,
in any order of clients, and after a resume. Dropout, stochastic depth and module initialisation know only
torch's global generator; `forked` seeds that from such a generator and puts it back afterwards. `forked` is
called at two places of `core` (building a model, one local run) and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def seed_of(seed: int, *words: str | int) -> int:
    """Hash a run's seed and any words into a seed of 63 bits.

    Words are separated and typed before hashing, so that ("a", "bc") and ("ab", "c"), or 1 and "1", differ.
    """
    text = "\x1f".join([f"int:{seed}", *(f"{type(word).__name__}:{word}" for word in words)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(
    seed: int,
    round_: int = 0,
    phase: str = "",
    client: int = -1,
    purpose: str = "",
) -> torch.Generator:
    """Return a CPU generator for one purpose.

    Args:
        seed: The run's seed.
        round_: Round number; 0 before the first.
        phase: Name of the phase.
        client: Partition number; -1 for the server.
        purpose: What the numbers are for ("batches", "augment", "sample", ...).
    """
    return torch.Generator().manual_seed(seed_of(seed, round_, phase, client, purpose))


@contextmanager
def forked(source: torch.Generator, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global generator from `source` inside the block and restore it afterwards.

    Args:
        source: Generator whose next number becomes the global seed.
        device: Also fork this device's generator when it is a CUDA device.
    """
    seed = int(torch.randint(0, 2**62, (), generator=source).item())
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield


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

"""Random numbers that depend on what they are for, never on when or where they are drawn.

Every draw in the project comes from `generator(...)` or `numpy_generator(...)`: the same words give the same numbers on
every engine, in any order of clients, and after a resume. Words are hashed to a key of 128 bits, and the key is that of
Philox, a generator by counter (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405), so that two purposes have
one stream only where all bits agree. torch's own generator of the CPU is a Mersenne Twister, of whose seed 32 bits
count: its whole state is filled with Philox's numbers instead.

Dropout, stochastic depth and module initialisation know only torch's global generator; `forked` fills that from such a
generator and puts it back afterwards. `forked` is called at two places of `core` (building a model, one local run) and
nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
KEY_BYTES = 16
_WORDS = 624  # of 32 bits, the state of a Mersenne Twister
_WORDS_AT = 24  # bytes before them in torch's state, where each takes eight
_SEED_BYTES = 8  # the first ones, for whoever asks a generator for its seed
_SEED_MASK = (1 << 63) - 1


def key_of(seed: int, *words: str | int) -> int:
    """Hash a run's seed and any words into a key of 128 bits.

    Words are separated and typed before hashing, so that ("a", "bc") and ("ab", "c"), or 1 and "1", differ.
    """
    text = "\x1f".join([f"int:{seed}", *(f"{type(word).__name__}:{word}" for word in words)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:KEY_BYTES], "little")


def numpy_generator(key: int) -> np.random.Generator:
    """Return numpy's generator for a key; it has distributions that torch lacks."""
    return np.random.Generator(np.random.Philox(key=key))


def torch_generator(key: int) -> torch.Generator:
    """Return torch's generator of the CPU for a key."""
    made = torch.Generator()
    made.set_state(_state(key))
    return made


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
    return torch_generator(key_of(seed, round_, phase, client, purpose))


def drawn_key(source: torch.Generator) -> int:
    """Return the key of a stream that begins where another one stands: 126 bits of it."""
    return int.from_bytes(torch.empty(2, dtype=torch.int64).random_(generator=source).numpy().tobytes(), "little")


@contextmanager
def forked(source: torch.Generator, device: torch.device | None = None) -> Iterator[None]:
    """Fill torch's global generator from `source` inside the block and restore it afterwards.

    Args:
        source: Generator whose next numbers are the key of what is drawn inside.
        device: Also fork this device's generator when it is a CUDA device; that takes a seed of 63 bits.
    """
    key = drawn_key(source)
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.set_state(_state(key))
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(key & _SEED_MASK)
        yield


def build_seeded(
    factory: Callable[[], M], seed: int, dtype: torch.dtype = torch.float32, client: int = -1, purpose: str = "model"
) -> M:
    """Call `factory` with torch's global generator filled for initialisation, and restore it afterwards.

    Args:
        factory: Makes the model; module initialisation knows only the global generator.
        seed: The run's seed.
        dtype: Dtype of the parameters.
        client: Whose model it is; -1 for the one that all share.
        purpose: Sets apart models that one party has several of.
    """
    with forked(generator(seed, 0, "", client, purpose)):
        return factory().to(dtype)


def _state(key: int) -> Tensor:
    """Return the state of torch's generator of the CPU that is filled with a key's numbers."""
    state = _template().copy()
    words = np.random.Philox(key=key).random_raw(_WORDS // 2).view(np.uint32)
    words[0] |= 1 << 31  # the one state that a Mersenne Twister never leaves is that of zeros
    _words(state)[:] = words
    state[:_SEED_BYTES] = np.frombuffer((key & _SEED_MASK).to_bytes(_SEED_BYTES, "little"), np.uint8)
    return torch.from_numpy(state)


@cache
def _template() -> NDArray[np.uint8]:
    """Return the state of a generator with the seed 0, of which nothing was drawn yet.

    Raises:
        RuntimeError: This torch lays a generator's state out otherwise than those that are known.
    """
    state: NDArray[np.uint8] = torch.Generator().manual_seed(0).get_state().numpy().copy()
    expected = np.random.RandomState(0).get_state(legacy=False)["state"]["key"]  # numpy's twister, seeded likewise
    if len(state) < _WORDS_AT + 8 * _WORDS or not np.array_equal(_words(state), expected):
        raise RuntimeError(f"torch {torch.__version__} keeps a generator's state in a way that is not known here.")
    return state


def _words(state: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return a view of the twister's words in a state, [624]."""
    return state[_WORDS_AT : _WORDS_AT + 8 * _WORDS].view(np.uint64)

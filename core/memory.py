"""What a client keeps between rounds: on disk, versioned, rolled back with the server's checkpoint.

A version is one safetensors file, `<folder>/<client // 1000>/<client>/<round>.<step>.<attempt>.safetensors`, where an
attempt is one start or resume of the run. The server says which version a client goes on from: the one that belongs
to the last reply it accepted. So a phase that runs twice (a worker died, a node was restarted) reads the same memory
twice, a client whose reply was late or refused forgets what it had written for it, and a resume reads what the
checkpoint knew. Processes that share a folder need no lock.

Nothing is kept that no checkpoint needs, so 100,000 clients cost 100,000 files and no memory; a small cache keeps
the most recent ones, as far as they are small. A file has a hash of all that is in it: a damaged one is refused,
never read.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from umbel.core.files import DamagedError, read_tensors, write_tensors
from umbel.core.tree import Tree, num_bytes, sha256


@dataclass(frozen=True)
class MemoryRecord:
    """Content of one client's memory.

    Attributes:
        trees: Named trees of tensors.
        numbers: Named numbers.
    """

    trees: Mapping[str, Tree] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in bytes."""
        return sum(map(num_bytes, self.trees.values()))


@dataclass(frozen=True, order=True)
class Version:
    """When a client's memory was written.

    Attributes:
        round: Round number.
        step: Position of the phase in the round.
        attempt: Which start or resume of the run.
    """

    round: int
    step: int
    attempt: str


class MissingMemoryError(RuntimeError):
    """A client has taken part before, but what it remembered is gone."""


class MemoryStore:
    """The memory of all clients that live in one place.

    Args:
        folder: Where the versions are.
        cache_size: How many records stay in memory.
        cache_bytes: How much they take at most.
    """

    def __init__(self, folder: Path, cache_size: int = 64, cache_bytes: int = 64 << 20) -> None:
        self.folder = folder
        self._cache: OrderedDict[Path, MemoryRecord] = OrderedDict()
        self._cache_size, self._cache_bytes = cache_size, cache_bytes
        self._cached_bytes = 0

    def _path(self, client: int, version: Version) -> Path:
        name = f"{version.round:06d}.{version.step:02d}.{version.attempt}.safetensors"
        return self.folder / str(client // 1000) / str(client) / name

    def read(self, client: int, version: Version) -> MemoryRecord:
        """Return a version of a client's memory.

        Raises:
            MissingMemoryError: It is not here.
            DamagedError: It is not what was written.
        """
        path = self._path(client, version)
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        if not path.is_file():
            raise MissingMemoryError(
                f"client {client} has taken part before, but its memory of round {version.round} is not here. Client "
                "memory stays with its node; bring the node's state folder back, or start a new run."
            )
        try:
            record = _read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"client {client} cannot remember round {version.round} ({error})"
            raise DamagedError.of(path, what, "Bring it back from a copy, or start a new run.") from error
        self._remember(path, record)
        return record

    def write(
        self,
        client: int,
        version: Version,
        record: MemoryRecord,
        accepted: Version | None = None,
        checkpoint_round: int = 0,
    ) -> None:
        """Write a version and drop those that can never be read again.

        Args:
            client: The client.
            version: The new version.
            record: What to remember.
            accepted: The version that belongs to the last reply that the server accepted.
            checkpoint_round: The oldest round that a resume may go back to.
        """
        path = self._path(client, version)
        tensors = {f"{name}/{key}": tensor for name, tree in record.trees.items() for key, tensor in tree.items()}
        metadata = {"trees": json.dumps(list(record.trees)), "numbers": json.dumps(dict(record.numbers))}
        write_tensors(path, tensors, {**metadata, "sha256": _hash_of(tensors, metadata)})
        self._drop(path)
        self._remember(path, record)
        for old in path.parent.glob("[0-9]*.safetensors"):
            if old != path and not self._needed(old, client, accepted, checkpoint_round):
                self._forget(old)

    def _needed(self, path: Path, client: int, accepted: Version | None, checkpoint_round: int) -> bool:
        if accepted is None:
            return False  # nothing was ever accepted of this client
        if path == self._path(client, accepted):
            return True
        # While the accepted version is newer than the checkpoint, a resume may ask for one that is older.
        return accepted.round > checkpoint_round and int(path.name.split(".")[0]) <= accepted.round

    def _remember(self, path: Path, record: MemoryRecord) -> None:
        self._cache[path] = record
        self._cached_bytes += record.num_bytes
        while len(self._cache) > self._cache_size or self._cached_bytes > self._cache_bytes:
            self._drop(next(iter(self._cache)))

    def _drop(self, path: Path) -> None:
        if path in self._cache:
            self._cached_bytes -= self._cache.pop(path).num_bytes

    def _forget(self, path: Path) -> None:
        self._drop(path)
        path.unlink(missing_ok=True)


def _read(path: Path) -> MemoryRecord:
    tensors, metadata = read_tensors(path)
    if metadata.pop("sha256", "") != _hash_of(tensors, metadata):
        raise ValueError("it does not have the hash that stands in it")
    trees: dict[str, dict[str, Tensor]] = {name: {} for name in json.loads(metadata["trees"])}
    for name, tensor in tensors.items():
        tree, key = name.split("/", 1)
        trees[tree][key] = tensor
    return MemoryRecord(trees, json.loads(metadata["numbers"]))


def _hash_of(tensors: Tree, metadata: Mapping[str, str]) -> str:
    return hashlib.sha256((sha256(tensors) + json.dumps(metadata, sort_keys=True)).encode()).hexdigest()

"""What a client keeps between rounds: on disk, versioned by round, rolled back with the server's checkpoint.

A version is one safetensors file, `<folder>/<client // 1000>/<client>/<round>.<step>.<attempt>.safetensors`. A
round's local step reads the newest version before it, so a phase that runs twice (a worker died, a node was
restarted) reads the same memory twice. An attempt is one start or resume of the run: what an earlier attempt wrote
after the checkpoint that the current one began from was never part of the run, and is forgotten when it is met.
Processes that share a folder need no lock, since they only ever forget what none of them may read.

Nothing is kept that is older than what the last checkpoint needs, so 100,000 clients cost 100,000 files and no
memory; a small cache keeps the most recent ones.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from core.files import read_tensors, write_tensors
from core.tree import Tree


@dataclass(frozen=True)
class MemoryRecord:
    """Content of one client's memory.

    Attributes:
        trees: Named trees of tensors.
        numbers: Named numbers.
    """

    trees: Mapping[str, Tree] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


class MemoryStore:
    """The memory of all clients that live in one place.

    Args:
        folder: Where the versions are.
        cache_size: How many records stay in memory.
    """

    def __init__(self, folder: Path, cache_size: int = 64) -> None:
        self.folder = folder
        self._cache: OrderedDict[Path, MemoryRecord] = OrderedDict()
        self._cache_size = cache_size
        self._attempt, self._base_round = "", 0

    def begin(self, attempt: str, base_round: int) -> None:
        """Say which attempt this is and from which checkpoint it began (0: from the beginning)."""
        self._attempt, self._base_round = attempt, base_round

    def _client_folder(self, client: int) -> Path:
        return self.folder / str(client // 1000) / str(client)

    def _versions(self, client: int) -> list[tuple[tuple[int, int], Path]]:
        """Return a client's versions, oldest first, and forget those of attempts that came to nothing."""
        found = []
        for path in self._client_folder(client).glob("[0-9]*.safetensors"):
            round_, step, attempt = path.name.split(".")[:3]
            if int(round_) > self._base_round and attempt != self._attempt:
                self._forget(path)
            else:
                found.append(((int(round_), int(step)), path))
        return sorted(found)

    def read(self, client: int, round_: int, step: int) -> MemoryRecord | None:
        """Return the newest record before step `step` of round `round_`, or None if there is none."""
        before = [path for version, path in self._versions(client) if version < (round_, step)]
        if not before:
            return None
        path = before[-1]
        if path in self._cache:
            self._cache.move_to_end(path)
            return self._cache[path]
        tensors, metadata = read_tensors(path)
        trees: dict[str, dict[str, Tensor]] = {name: {} for name in json.loads(metadata["trees"])}
        for name, tensor in tensors.items():
            tree, key = name.split("/", 1)
            trees[tree][key] = tensor
        record = MemoryRecord(trees, json.loads(metadata["numbers"]))
        self._remember(path, record)
        return record

    def write(self, client: int, round_: int, step: int, record: MemoryRecord, checkpoint_round: int) -> None:
        """Write the record of (round_, step) and drop what a resume from `checkpoint_round` cannot need."""
        path = self._client_folder(client) / f"{round_:06d}.{step:02d}.{self._attempt}.safetensors"
        tensors = {f"{name}/{key}": tensor for name, tree in record.trees.items() for key, tensor in tree.items()}
        metadata = {"trees": json.dumps(list(record.trees)), "numbers": json.dumps(dict(record.numbers))}
        write_tensors(path, tensors, metadata)
        self._cache.pop(path, None)
        self._remember(path, record)
        durable = [entry for entry in self._versions(client) if entry[0][0] <= checkpoint_round]
        for _, old in durable[:-1]:
            self._forget(old)

    def _remember(self, path: Path, record: MemoryRecord) -> None:
        self._cache[path] = record
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    def _forget(self, path: Path) -> None:
        self._cache.pop(path, None)
        path.unlink(missing_ok=True)

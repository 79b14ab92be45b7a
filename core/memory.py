"""What a client keeps between rounds: on disk, versioned by round, rolled back with the server's checkpoint.

A version is one safetensors file, `<folder>/<client // 1000>/<client>/<round>.<step>.safetensors`. A round's
local step reads the newest version before it, so a phase that runs twice (a worker died, a node was restarted)
reads the same memory twice. Nothing is kept that is older than what the last checkpoint needs, so 100,000
clients cost 100,000 files and no memory; a small cache keeps the most recent ones.
"""

from __future__ import annotations

import json
import shutil
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

    def _client_folder(self, client: int) -> Path:
        return self.folder / str(client // 1000) / str(client)

    def _versions(self, client: int) -> list[tuple[tuple[int, int], Path]]:
        found = []
        for path in self._client_folder(client).glob("*.safetensors"):
            if path.name.startswith("."):
                continue  # half-written: the process was killed
            round_, step = path.name.split(".")[:2]
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
        path = self._client_folder(client) / f"{round_:06d}.{step:02d}.safetensors"
        tensors = {
            f"{name}/{key}": tensor for name, tree in record.trees.items() for key, tensor in tree.items()
        }
        metadata = {"trees": json.dumps(list(record.trees)), "numbers": json.dumps(dict(record.numbers))}
        write_tensors(path, tensors, metadata)
        self._cache.pop(path, None)
        self._remember(path, record)
        durable = [entry for entry in self._versions(client) if entry[0][0] <= checkpoint_round]
        for _, old in durable[:-1]:
            self._cache.pop(old, None)
            old.unlink(missing_ok=True)

    def _remember(self, path: Path, record: MemoryRecord) -> None:
        self._cache[path] = record
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

    def roll_back(self, checkpoint_round: int) -> None:
        """Forget everything after `checkpoint_round`: after a kill no client may remember a later round."""
        self._cache.clear()
        for path in self.folder.glob("*/*/*.safetensors"):
            if path.name.startswith(".") or int(path.name.split(".")[0]) > checkpoint_round:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget everything."""
        self._cache.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

"""Server state that outlives the process: whole folders, written beside and renamed, never pickle."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from umbel.core import state as states
from umbel.core.files import read_json, read_tensors, write_folder, write_json, write_tensors
from umbel.core.tree import sha256
from umbel.server.errors import RunStoppedError
from umbel.strategies.base import ServerContext, Strategy

_NAME = re.compile(r"round-(\d{6})")
_KEEP = 2


@dataclass
class Progress:
    """What a run has come to, beside the strategy's State.

    Attributes:
        round: Last completed round.
        best_round: Best round so far by validation, or None.
        best_value: Its validation accuracy.
        best_metrics: All metrics of that round.
        last_metrics: Metrics of the last evaluation.
        seconds: Time by stage.
        bytes_down: `tensors` and `framing` that clients received.
        bytes_up: The same that they sent.
        num_failures: Replies that were left out.
        tasks: In a sequence of tasks, for each split the accuracies on all tasks: `before` training, and a row of
            `matrix` after each task.
        memories: For each client that has one, the version of its memory as (round, step, attempt).
    """

    round: int = 0
    best_round: int | None = None
    best_value: float = float("-inf")
    best_metrics: dict[str, float] = field(default_factory=dict)
    last_metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=lambda: {"tensors": 0, "framing": 0})
    bytes_up: dict[str, int] = field(default_factory=lambda: {"tensors": 0, "framing": 0})
    num_failures: int = 0
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    memories: dict[str, tuple[int, int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        progress: What the run had come to.
        skeleton: The strategy's State without its tensors.
        tensors: Its tensors.
        best_model: The best model so far, if there is one.
        folder: Where it was read from.
    """

    progress: Progress
    skeleton: Any
    tensors: dict[str, Tensor]
    best_model: dict[str, Tensor] | None
    folder: Path


def write(folder: Path, progress: Progress, state: Any, best_model: dict[str, Tensor] | None) -> Path:
    """Write a checkpoint and drop all but the last two.

    Args:
        folder: The run's folder of checkpoints.
        progress: What the run has come to.
        state: The strategy's State.
        best_model: The best model so far.

    Raises:
        OSError: The disk is full, say; older checkpoints are untouched.
    """
    skeleton, tensors = states.pack(state)
    path = folder / f"round-{progress.round:06d}"

    def fill(temporary: Path) -> None:
        write_tensors(temporary / "state.safetensors", tensors)
        if best_model is not None:
            write_tensors(temporary / "best.safetensors", best_model)
        content = {"progress": asdict(progress), "state": skeleton, "sha256": sha256(tensors)}
        write_json(temporary / "checkpoint.json", content)

    write_folder(path, fill)
    for old in _folders(folder)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("round-*") if _NAME.fullmatch(path.name))


def latest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that is whole, or return None if there is none.

    Raises:
        RunStoppedError: There are checkpoints, but none can be read.
    """
    damaged = []
    for path in reversed(_folders(folder)):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"{path}: {error}")
    if damaged:
        raise RunStoppedError("No checkpoint can be read:\n" + "\n".join(damaged))
    return None


def _read(path: Path) -> Checkpoint:
    content = read_json(path / "checkpoint.json")
    tensors, _ = read_tensors(path / "state.safetensors")
    if sha256(tensors) != content["sha256"]:
        raise ValueError("state.safetensors does not have the hash that checkpoint.json says")
    best = path / "best.safetensors"
    best_model = read_tensors(best)[0] if best.is_file() else None
    return Checkpoint(Progress(**content["progress"]), content["state"], tensors, best_model, path)


def restore(found: Checkpoint, strategy: Strategy[Any], server: Callable[[], ServerContext]) -> Any:
    """Return the strategy's State of a checkpoint.

    Args:
        found: The checkpoint.
        strategy: The strategy.
        server: Gives the server before the first round, where the State's classes are known only from one.
    """
    classes = _state_classes(strategy)
    if not states.named_classes(found.skeleton) <= classes.keys():
        # Of a module that the strategy's own does not name. To make a State may cost much: a frame, trials.
        classes |= states.state_classes(strategy.initial(server()))
    return states.unpack(found.skeleton, found.tensors, classes)


def _state_classes(strategy: Strategy[Any]) -> dict[str, type]:
    """Return the dataclasses that a strategy's State may be made of, with those of a strategy that it holds."""
    found = states.module_classes(type(strategy))
    for held in vars(strategy).values():
        if isinstance(held, Strategy):
            found |= _state_classes(held)
    return found

"""Server state that outlives the process: whole folders, written beside and renamed, never pickle.

A checkpoint has a hash of each of its pieces, and all that a resume goes on from but the clients' memory.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from umbel.core import state as states
from umbel.core.files import (
    DamagedError,
    read_sealed,
    read_tensors,
    write_bytes,
    write_folder,
    write_sealed,
    write_tensors,
)
from umbel.core.schedule import COSTS
from umbel.core.spent import Spent
from umbel.core.tree import sha256
from umbel.server.coverage import Row, Turn
from umbel.strategies.base import ServerContext, Strategy

_NAME = re.compile(r"round-(\d{6,})")
_KEEP = 2
_CONTENT, _STATE, _BEST, _METRICS = "checkpoint.json", "state.safetensors", "best.safetensors", "metrics.parquet"


@dataclass
class Progress:
    """What a run has come to, beside the strategy's State.

    Attributes:
        round: Last completed round.
        num_rounds: Rounds that the run was to have when this one was run.
        best_round: Best round so far by validation, or None.
        best_value: Its validation accuracy.
        best_metrics: All metrics of that round.
        since_best: Evaluations since then.
        ended: Why the run ended before its last round; empty when it did not.
        last_metrics: Metrics of the last evaluation.
        confusion: What the server's test examples were taken for then (`umbel.core.metrics.confusion`); empty for none.
        seconds: Time by stage.
        bytes_down: `tensors` and `framing` that clients received.
        bytes_up: The same that they sent.
        spent: What training cost so far, `clients` and `server`: `steps` and `examples` (`umbel.core.spent`).
        passes: Images that went through models, on both sides: by the model's `spec` (`umbel.core.spent.Passes`).
        models: Specs of the models that the server has built: those that nodes may say that images went through.
        num_failures: Replies that were left out.
        coverage: Selected clients and good replies by phase and round (`umbel.server.coverage.Row`).
        turns: Of each client that was asked, when it took part last (`umbel.server.coverage.Turn`).
        tasks: In a sequence of tasks, for each split the accuracies on all tasks: `before` training, and a row of
            `matrix` after each task.
        memories: For each client that has one, the version of its memory as (round, step, attempt).
        virtual_seconds: Virtual time that the clients' devices have taken.
        num_late: Replies that were not asked for because they would have come too late in virtual time.
        fallbacks: What trained without a fast mode that was asked for, and why.
    """

    round: int = 0
    num_rounds: int = 0
    best_round: int | None = None
    best_value: float = float("-inf")
    best_metrics: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    ended: str = ""
    last_metrics: dict[str, float] = field(default_factory=dict)
    confusion: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_down: dict[str, int] = field(default_factory=lambda: {"tensors": 0, "framing": 0})
    bytes_up: dict[str, int] = field(default_factory=lambda: {"tensors": 0, "framing": 0})
    spent: dict[str, dict[str, int]] = field(
        default_factory=lambda: {side: {"steps": 0, "examples": 0} for side in ("clients", "server")}
    )
    passes: dict[str, dict[str, dict[str, int]]] = field(default_factory=lambda: {"clients": {}, "server": {}})
    models: list[str] = field(default_factory=list)
    num_failures: int = 0
    coverage: list[Row] = field(default_factory=list)
    turns: dict[str, Turn] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    memories: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    virtual_seconds: float = 0.0
    num_late: int = 0
    fallbacks: list[str] = field(default_factory=list)

    def spend(self, side: str, spent: Spent) -> None:
        """Count what training cost on a side, `clients` or `server`."""
        self.spent[side]["steps"] += spent.steps
        self.spent[side]["examples"] += spent.examples
        passes = self.passes[side]
        for spec, more in spent.passes.items():
            before = passes.get(spec, {})
            passes[spec] = {way: before.get(way, 0) + number for way, number in asdict(more).items()}

    @property
    def spent_so_far(self) -> dict[str, float]:
        """What the run has cost up to now, as its metrics keep it: the same whatever it was interrupted by.

        So bytes are those of tensors alone, for framing has the run's and the attempt's names in it; and images that
        went through a model stand there by its spec.
        """
        found = {what: self.cost(what) for what in ("steps", "examples")}
        found["bytes"] = self.bytes_down["tensors"] + self.bytes_up["tensors"]
        for side in self.passes.values():
            for spec, counts in side.items():
                for way, number in counts.items():
                    found[f"{way} {spec}"] = found.get(f"{way} {spec}", 0) + number
        return found

    @property
    def counted_costs(self) -> dict[str, float]:
        """What the run has cost so far that is counted as it goes: all but operations, which are made of passes."""
        return {what: self.cost(what) for what in COSTS if what != "flops"}

    def cost(self, what: str) -> float:
        """Return what the run has cost so far, of `umbel.core.schedule.COSTS`."""
        if what == "seconds":
            return self.seconds.get("total", 0.0)
        if what == "bytes":
            return sum(self.bytes_up.values()) + sum(self.bytes_down.values())
        if what == "flops":
            from umbel.models.facts import flops  # a second of imports, for whoever asks

            trained = any(self.passes.values()) or not any(side["steps"] for side in self.spent.values())
            return sum(map(flops, self.passes.values())) if trained else math.nan
        return sum(side[what] for side in self.spent.values())

    def copy(self) -> Progress:
        """Return another, which a round may change in place."""
        return replace(
            self,
            seconds=dict(self.seconds),
            bytes_down=dict(self.bytes_down),
            bytes_up=dict(self.bytes_up),
            spent=deepcopy(self.spent),
            passes=deepcopy(self.passes),
            memories=dict(self.memories),
            tasks=deepcopy(self.tasks),
            fallbacks=list(self.fallbacks),
        )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read.

    Attributes:
        progress: What the run had come to.
        skeleton: The strategy's State without its tensors.
        tensors: Its tensors.
        best_model: The best model so far, if there is one.
        metrics: All rows of metrics so far.
        folder: Where it was read from.
        passed_over: What is wrong with each newer checkpoint.
    """

    progress: Progress
    skeleton: Any
    tensors: dict[str, Tensor]
    best_model: dict[str, Tensor] | None
    metrics: pa.Table
    folder: Path
    passed_over: tuple[str, ...] = ()


def write(folder: Path, progress: Progress, state: Any, best_model: dict[str, Tensor] | None, metrics: bytes) -> Path:
    """Write a checkpoint and drop all but the last two.

    Args:
        folder: The run's folder of checkpoints.
        progress: What the run has come to.
        state: The strategy's State.
        best_model: The best model so far.
        metrics: A Parquet file of all rows of metrics so far.

    Raises:
        OSError: The disk is full, say; older checkpoints are untouched.
    """
    skeleton, tensors = states.pack(state)
    path = folder / f"round-{progress.round:06d}"

    def fill(temporary: Path) -> None:
        write_tensors(temporary / _STATE, tensors)
        if best_model is not None:
            write_tensors(temporary / _BEST, best_model)
        write_bytes(temporary / _METRICS, metrics)
        content = {
            "progress": asdict(progress),
            "state": skeleton,
            "state_sha256": sha256(tensors),
            "best_sha256": None if best_model is None else sha256(best_model),
            "metrics_sha256": hashlib.sha256(metrics).hexdigest(),
        }
        write_sealed(temporary / _CONTENT, content)

    write_folder(path, fill)
    by_round = _folders(folder)
    known = [round_ for round_ in by_round if round_ <= progress.round]
    for round_ in by_round.keys() - set(known[-_KEEP:]):  # a newer one was passed over: it is damaged
        shutil.rmtree(by_round[round_], ignore_errors=True)
    return path


def _folders(folder: Path) -> dict[int, Path]:
    """Return the folders of checkpoints by round, the oldest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.glob("round-*"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def last_round(folder: Path) -> int:
    """Return the round of the newest checkpoint, whole or not; 0 where there is none."""
    return max(_folders(folder), default=0)


def latest(folder: Path, check: Callable[[Checkpoint], None] = lambda _: None) -> Checkpoint | None:
    """Read the newest checkpoint that is sound, or return None if there is none.

    Args:
        folder: The run's folder of checkpoints.
        check: Raises where one cannot be gone on from although it is whole.

    Raises:
        DamagedError: There are checkpoints, but none is sound.
    """
    damaged: list[str] = []
    for path in reversed(_folders(folder).values()):
        try:
            checkpoint = _read(path)
            check(checkpoint)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, an older one may be sound
            damaged.append(f"{path}: {error}")
            continue
        return replace(checkpoint, passed_over=tuple(damaged))
    if damaged:
        raise DamagedError(
            "No checkpoint can be read:\n" + "\n".join(damaged),
            remedy=f"Bring one back from a copy, or start a new run: umbel run {folder.parent / 'config.yaml'}",
        )
    return None


def _read(path: Path) -> Checkpoint:
    content = read_sealed(path / _CONTENT)
    tensors, _ = read_tensors(path / _STATE)
    best_model = None if content["best_sha256"] is None else read_tensors(path / _BEST)[0]
    for name, tree, key in ((_STATE, tensors, "state_sha256"), (_BEST, best_model, "best_sha256")):
        if tree is not None and sha256(tree) != content[key]:
            raise ValueError(f"{name} does not have the hash that {_CONTENT} says")
    metrics = (path / _METRICS).read_bytes()
    if hashlib.sha256(metrics).hexdigest() != content["metrics_sha256"]:
        raise ValueError(f"{_METRICS} does not have the hash that {_CONTENT} says")
    rows = pq.read_table(pa.BufferReader(metrics))
    return Checkpoint(Progress(**content["progress"]), content["state"], tensors, best_model, rows, path)


def restore(checkpoint: Checkpoint, strategy: Strategy[Any], server: Callable[[], ServerContext]) -> Any:
    """Return the strategy's State of a checkpoint.

    Args:
        checkpoint: The checkpoint.
        strategy: The strategy.
        server: Gives the server before the first round, where the State's classes are known only from one.
    """
    classes = _state_classes(strategy)
    if not states.named_classes(checkpoint.skeleton) <= classes.keys():
        # Of a module that the strategy's own does not name. To make a State may cost much: a frame, trials.
        classes |= states.state_classes(strategy.initial(server()))
    return states.unpack(checkpoint.skeleton, checkpoint.tensors, classes)


def _state_classes(strategy: Strategy[Any]) -> dict[str, type]:
    """Return the dataclasses that a strategy's State may be made of, with those of a strategy that it holds."""
    classes = states.module_classes(type(strategy))
    for held in vars(strategy).values():
        if isinstance(held, Strategy):
            classes |= _state_classes(held)
    return classes

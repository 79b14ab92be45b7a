"""Which runs there are in a folder, how far each is, and what it came to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from umbel.conf.schema import Experiment
from umbel.core.refusal import Refusal
from umbel.server import coverage, lock, reading
from umbel.simulations.report.progress import headline
from umbel.simulations.runs.tale import Tale

# What reading a folder raises whose files are not what was written.
FLAWS = (OSError, KeyError, TypeError, ValueError, OverflowError, AttributeError, RuntimeError)
_DEEPEST = 3  # results/comparison/run; and one more for whoever keeps comparisons in a folder


@dataclass(frozen=True)
class Seen:
    """A run, as its folder shows it.

    Attributes:
        path: The folder.
        state: `done`; `ended`, before its last round by its own rule; `incomplete`, having lost clients; `running`;
            `stopped`, as somebody asked; `failed`, by an error; `died`, its process having gone without a word; or
            `damaged`.
        strategy: The strategy's name.
        seed: The run's seed.
        round: The last completed round.
        rounds: How many there are to be.
        result: Its result in a few words; of one that goes on, of the last evaluation.
        seconds: How long it took so far.
        began: Seconds since the epoch.
        flaw: What is wrong with a damaged one, or ended a failed one.
    """

    path: Path
    state: str
    strategy: str = ""
    seed: int | None = None
    round: int = 0
    rounds: int = 0
    result: str = ""
    seconds: float = 0.0
    began: float = 0.0
    flaw: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it has its summary."""
        return self.state in ("done", "ended", "incomplete")

    def plain(self, root: Path) -> dict[str, Any]:
        """Return it as JSON has it, the path from `root` on."""
        began = datetime.fromtimestamp(self.began).astimezone().isoformat(timespec="seconds")
        values = {name: value for name, value in vars(self).items() if name != "path"}
        return {"run": _shown(self.path, root), **values, "began": began}


def find(root: Path) -> list[Seen]:
    """Return the runs in a folder, or in those within it, the newest first.

    Raises:
        Refusal: There is no such folder.
    """
    if not root.is_dir():
        raise Refusal(f"{root} is no folder.", remedy="Give the folder of runs, such as results.")
    return sorted((look(folder) for folder in folders(root)), key=lambda seen: (-seen.began, str(seen.path)))


def folders(root: Path, within: Path | None = None, depth: int = _DEEPEST) -> Iterator[Path]:
    """Find the folders of runs, in the order of their names; what may not be read, or goes meanwhile, is left out.

    Args:
        root: Where to look.
        within: A folder, as `Path.resolve` has it, that links may not lead out of; None follows all.
        depth: How many folders deep.
    """
    if (root / "config.yaml").is_file():
        yield root
    elif depth:
        try:
            with os.scandir(root) as entries:
                found = sorted(
                    (each for each in entries if not each.name.startswith(".") and _is_folder(each)),
                    key=lambda each: each.name,
                )
        except OSError:
            return
        for each in found:
            path = root / each.name
            if within is None or not each.is_symlink() or Path(os.path.realpath(path)).is_relative_to(within):
                yield from folders(path, within, depth - 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def look(folder: Path, tale: Tale | None = None) -> Seen:
    """Return what a run's folder shows; a damaged one is no error.

    Args:
        folder: The run's folder.
        tale: What it has told so far, read on here where it has not ended; None reads it from the beginning.
    """
    try:
        began, is_held = began_at(folder), lock.is_held(folder)  # first: who ends lets go last
        if (folder / reading.SUMMARY).is_file():
            return _ended(folder, began)
        tale = tale or Tale(folder)
        tale.read_on()
        return unfinished(folder, reading.experiment(folder), tale, began, is_held)
    except FLAWS as error:
        return damaged(folder, error)


def began_at(folder: Path) -> float:
    """Return when a run began, in seconds since the epoch.

    Raises:
        OSError: There is no such run.
    """
    first = folder / "memory.json"  # written once, when a run begins
    return (first if first.is_file() else folder / "config.yaml").stat().st_mtime


def damaged(folder: Path, error: BaseException) -> Seen:
    """Return what is seen of a run whose files are not what was written."""
    text = error.reason if isinstance(error, Refusal) else str(error)
    return Seen(folder, "damaged", flaw=text.splitlines()[0] if text else type(error).__name__)


def _ended(folder: Path, began: float) -> Seen:
    content = reading.summary(folder)
    state = "incomplete" if coverage.in_words(content) else "ended" if content.get("ended") else "done"
    rounds = int(content["rounds"])
    result, seconds = headline(content["metrics"]), float(content["seconds"]["total"])
    return Seen(folder, state, content["strategy"], content["seed"], rounds, rounds, result, seconds, began)


def unfinished(folder: Path, experiment: Experiment, tale: Tale, began: float, is_held: bool) -> Seen:
    """Return what is seen of a run that has no summary.

    Args:
        folder: Its folder.
        experiment: Its experiment.
        tale: What it has told.
        began: When it began.
        is_held: Whether somebody was at work on it before the tale was read.
    """
    state, flaw = _state(tale, is_held)
    last = tale.rounds[-1] if tale.rounds else None
    return Seen(
        folder,
        state,
        experiment.strategy.name,
        experiment.run.seed,
        last.number if last else 0,
        experiment.run.rounds,
        headline(tale.measured),
        last.seconds if last else 0.0,
        began,
        flaw,
    )


def _state(tale: Tale, is_held: bool) -> tuple[str, str]:
    """Return the state of a run that has no summary, and what is wrong with it."""
    if tale.flaw:
        return "damaged", tale.flaw
    if is_held:
        return "running", ""
    if tale.ending is not None and tale.ending.get("how") != "asked":
        text = str(tale.ending.get("text") or tale.ending.get("reason") or "an error that it did not name")
        return "failed", text.splitlines()[0]
    return ("stopped" if tale.is_over or not tale.has_begun else "died"), ""


def _shown(path: Path, root: Path) -> str:
    return str(path) if path == root else str(path.relative_to(root))

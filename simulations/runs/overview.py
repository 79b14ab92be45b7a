"""Which runs there are in a folder, how far each is, and what it came to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from umbel.core.refusal import Refusal
from umbel.server import coverage, lock, reading
from umbel.server.listener import events
from umbel.simulations.report.progress import headline

_DEEPEST = 3  # results/comparison/run; and one more for whoever keeps comparisons in a folder


@dataclass(frozen=True)
class Seen:
    """A run, as its folder shows it.

    Attributes:
        path: The folder.
        state: `done`; `ended`, before its last round by its own rule; `incomplete`, having lost clients; `running`;
            `stopped`, to be resumed; or `damaged`.
        strategy: The strategy's name.
        seed: The run's seed.
        round: The last completed round.
        rounds: How many there are to be.
        result: Its result in a few words; of one that goes on, of the last evaluation.
        seconds: How long it took so far.
        began: Seconds since the epoch.
        flaw: What is wrong with a damaged one.
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
    return sorted((look(folder) for folder in _folders(root, _DEEPEST)), key=lambda seen: (-seen.began, str(seen.path)))


def _folders(root: Path, depth: int) -> Iterator[Path]:
    if (root / "config.yaml").is_file():
        yield root
    elif depth:
        try:
            within = sorted(each for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
        except OSError:  # a folder that is not ours to read, or gone meanwhile
            return
        for each in within:
            yield from _folders(each, depth - 1)


def look(folder: Path) -> Seen:
    """Return what a run's folder shows; a damaged one is no error."""
    try:
        first = folder / "memory.json"  # written once, when a run begins
        began = (first if first.is_file() else folder / "config.yaml").stat().st_mtime
        if (folder / reading.SUMMARY).is_file():
            return _ended(folder, began)
        return _unfinished(folder, began)
    except (Refusal, OSError, KeyError, TypeError, ValueError) as error:
        text = error.reason if isinstance(error, Refusal) else str(error)
        return Seen(folder, "damaged", flaw=text.splitlines()[0] if text else type(error).__name__)


def _ended(folder: Path, began: float) -> Seen:
    content = reading.summary(folder)
    state = "incomplete" if coverage.in_words(content) else "ended" if content.get("ended") else "done"
    rounds = int(content["rounds"])
    result, seconds = headline(content["metrics"]), float(content["seconds"]["total"])
    return Seen(folder, state, content["strategy"], content["seed"], rounds, rounds, result, seconds, began)


def _unfinished(folder: Path, began: float) -> Seen:
    experiment, told = reading.experiment(folder), events(folder)
    rounds = [event for event in told if event["event"] == "round"]
    last = rounds[-1] if rounds else {}
    measured: dict[str, float] = next((event["metrics"] for event in reversed(rounds) if event.get("metrics")), {})
    return Seen(
        folder,
        "stopped" if _is_free(folder) else "running",
        experiment.strategy.name,
        experiment.run.seed,
        int(last.get("round", 0)),
        experiment.run.rounds,
        headline(measured),
        float(last.get("seconds", 0.0)),
        began,
    )


def _is_free(folder: Path) -> bool:
    """Say whether nobody works on a run; of a folder that may only be read, whether its lock is not to be had."""
    try:
        return lock.is_free(folder)
    except PermissionError:
        return True


def _shown(path: Path, root: Path) -> str:
    return str(path) if path == root else str(path.relative_to(root))

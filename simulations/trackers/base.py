"""What a tracker is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker is told of it.

    Attributes:
        name: Of its folder.
        experiment: Name of the experiment.
        folder: Its folder; what a tracker writes there stays with it.
        config: The experiment, key by key, such as `client.lr`; values are as in its YAML.
        last_round: The round after which it goes on; 0 for one that begins.
    """

    name: str
    experiment: str
    folder: Path
    config: Mapping[str, object]
    last_round: int = 0

    def noted(self, tracker: str) -> str:
        """Return what a tracker has noted of this run, to go on with it; empty where it has not."""
        file = self._file(tracker)
        return file.read_text(encoding="utf-8").strip() if file.is_file() else ""

    def note(self, tracker: str, text: str) -> None:
        """Note what a tracker needs to go on with this run: its own name of it."""
        file = self._file(tracker)
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")

    def _file(self, tracker: str) -> Path:
        return self.folder / "trackers" / f"{tracker}.txt"


class Tracker(ABC):
    """Is told the numbers of one run. What it raises is said, and it is told no more; the run goes on."""

    @abstractmethod
    def open(self, run: TrackedRun) -> None:
        """The run begins, or goes on after `run.last_round`."""

    @abstractmethod
    def log(self, round_: int, values: Mapping[str, float]) -> None:
        """A round is complete.

        Args:
            round_: From 1.
            values: Metrics by name, such as `test/accuracy`, `seconds` since the run began, and `clients/failed`.
        """

    def text(self, text: str) -> None:  # noqa: B027 - a tracker may have no place for it
        """There is something to say of the run."""

    @abstractmethod
    def close(self, summary: Mapping[str, float], status: str) -> None:
        """The run is over.

        Args:
            summary: The numbers of its summary.json; none where it did not come to its end.
            status: `finished`, `stopped` or `failed`.
        """

"""The work that every contender does, as a folder of files: settings as JSON, arrays, and the model to begin with.

`prepare.py` writes it out of an experiment of umbel; contenders that know nothing of umbel's data read it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

SETTINGS, IMAGES, LABELS, INITIAL = "workload.json", "images.npy", "labels.npy", "initial.pt"


@dataclass(frozen=True)
class Workload:
    """What is to be done.

    Attributes:
        experiment: Name or path of the experiment that it was made of.
        overrides: `key=value` each, over the experiment.
        sizes: Training examples of each client; the arrays have them one client after the other.
        clients_per_round: How many clients train in a round.
        epochs: Passes of a client over its examples.
        batch_size: Examples in a batch.
        lr: Learning rate of plain SGD.
        model: Arguments of `umbel.models.assemble.assemble`.
        num_parameters: Numbers in the model's parameters.
        warm_rounds: Rounds before the clock starts.
        rounds: Rounds that count.
    """

    experiment: str
    overrides: tuple[str, ...]
    sizes: tuple[int, ...]
    clients_per_round: int
    epochs: int
    batch_size: int
    lr: float
    model: dict[str, Any] = field(default_factory=dict)
    num_parameters: int = 0
    warm_rounds: int = 2
    rounds: int = 60

    @property
    def num_steps(self) -> int | None:
        """Optimiser steps of the rounds that count; None where clients differ and it depends on who is drawn."""
        steps = {self.epochs * -(-size // self.batch_size) for size in self.sizes}
        return self.rounds * self.clients_per_round * steps.pop() if len(steps) == 1 else None

    def lasting(self, warm_rounds: int, rounds: int) -> Workload:
        """Return the same work over other numbers of rounds."""
        return replace(self, warm_rounds=warm_rounds, rounds=rounds)

    def write(self, folder: Path) -> None:
        """Write the settings."""
        (folder / SETTINGS).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Workload:
        """Read the settings."""
        fields = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        return cls(**{**fields, "overrides": tuple(fields["overrides"]), "sizes": tuple(fields["sizes"])})

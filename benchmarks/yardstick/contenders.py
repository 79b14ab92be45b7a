"""Who is measured, and how each is started."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yardstick import pfl_environment

HERE = Path(__file__).resolve().parent
BENCHMARKS, PROJECT = HERE.parent, HERE.parent.parent
FIRST = "plain"  # F1, to which all others are compared


@dataclass(frozen=True)
class Contender:
    """One of those who do the work.

    Attributes:
        name: What the table calls it.
        script: Module of `yardstick` that does the work.
        options: What the script is asked.
        needs_pfl: It runs in pfl's environment.
    """

    name: str
    script: str
    options: dict[str, Any] = field(default_factory=dict)
    needs_pfl: bool = False

    def command(self) -> list[str]:
        """Return the command, as far as the script.

        Raises:
            yardstick.pfl_environment.NoEnvironmentError: Its environment cannot be made here.
        """
        python = pfl_environment.python() if self.needs_pfl else sys.executable
        return [str(python), "-m", f"yardstick.{self.script}"]

    @property
    def path(self) -> list[Path]:
        """Folders that it imports from, besides its environment's."""
        return [HERE / "hook", BENCHMARKS, *([PROJECT] if self.needs_pfl else [])]


# umbel's modes of arithmetic, by what their contenders are called.
_ORDERS = {"": (), "-channels-last": ("client.channels_last=true",)}
_MODES = _ORDERS | {
    "-step": ("client.compile=step",),
    "-step-channels-last": ("client.compile=step", "client.channels_last=true"),
    "-together": ("client.together=auto",),
}


def _umbel(name: str, modes: Mapping[str, Sequence[str]], *overrides: str) -> list[Contender]:
    return [
        Contender(f"umbel-{name}{mode}", "umbel_simulation", {"overrides": [*overrides, *more]})
        for mode, more in modes.items()
    ]


def _on(engine: str, workers: int) -> list[Contender]:
    modes = _MODES if workers == 2 and engine == "processes" else _ORDERS
    return _umbel(f"{engine}-{workers}", modes, f"engine.name={engine}", f"engine.workers={workers}")


ALL = {
    contender.name: contender
    for contender in (
        Contender(FIRST, "plain"),
        Contender("plain-channels-last", "plain", {"channels_last": True}),
        Contender("forked-2", "forked", {"workers": 2}),
        Contender("forked-2-channels-last", "forked", {"workers": 2, "channels_last": True}),
        Contender("pfl-1", "pfl_simulation", {"processes": 1}, needs_pfl=True),
        Contender("pfl-2", "pfl_simulation", {"processes": 2}, needs_pfl=True),
        Contender("pfl-2-channels-last", "pfl_simulation", {"processes": 2, "channels_last": True}, needs_pfl=True),
        Contender("flower-2", "flower_simulation", {"workers": 2}),
        *_umbel("inline", _MODES, "engine.name=inline"),
        *(each for engine in ("processes", "ray") for workers in (1, 2, 3) for each in _on(engine, workers)),
    )
}
PROFILED = ("umbel-inline", "umbel-processes-2", "umbel-ray-2")


def chosen(names: str) -> list[Contender]:
    """Return the contenders that a list names, in the table's order; "" is all of them.

    Raises:
        ValueError: A name is not known; the message has the nearest.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(ALL)
    for name in wanted:
        if name not in ALL:
            near = difflib.get_close_matches(name, ALL, n=1, cutoff=0.0)
            raise ValueError(f"there is no contender {name!r}; the nearest is {near[0]!r} of {', '.join(ALL)}")
    return [contender for name, contender in ALL.items() if name in wanted]


def rotated(contenders: Sequence[Contender], repeat: int) -> list[Contender]:
    """Return the contenders in the order of a repeat: each is the first in turn."""
    first = repeat % len(contenders)
    return [*contenders[first:], *contenders[:first]]

"""Where the numbers of a run go beside its folder: `run.trackers=[tensorboard,mlflow,wandb]`, or one's own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from umbel.conf.schema import Experiment
from umbel.core import outside
from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.server.listener import Both, Listener
from umbel.simulations.trackers.base import Tracker
from umbel.simulations.trackers.tracking import Tracking

# Name: what is imported, what is installed for it.
_KNOWN = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
}
_KEY = "run.trackers"


def names() -> tuple[str, ...]:
    """Return the trackers that there are, installed or not."""
    return tuple(_KNOWN)


def made(experiment: Experiment) -> list[tuple[str, Tracker]]:
    """Return an experiment's trackers by name; none of them has begun.

    Raises:
        Refusal: One is unknown, or its library is not installed, or one's own is no `Tracker`.
    """
    found: list[tuple[str, Tracker]] = []
    for name in dict.fromkeys(experiment.run.trackers):
        if ":" in name:
            found.append((name, _own(name)))
            continue
        if name not in _KNOWN:
            raise unknown("tracker", name, names(), key=_KEY, own="module:name")
        module, package = _KNOWN[name]
        if find_spec(module) is None:
            raise Refusal(
                f"{_KEY}: {name} is not installed.", key=_KEY, remedy=f"pip install {package}, or leave it out."
            )
        found.append((name, import_module(f"umbel.simulations.trackers.to_{name}").tracker()))
    return found


def tracked(experiment: Experiment, listener: Listener, resuming: bool = False) -> Listener:
    """Return a listener that tells an experiment's trackers as well; the listener itself where there are none.

    Raises:
        Refusal: As `made`.
    """
    trackers: Sequence[tuple[str, Tracker]] = made(experiment)
    return Both(listener, Tracking(trackers, listener.notice, resuming)) if trackers else listener


def _own(path: str) -> Tracker:
    make = outside.find(path, "tracker", _KEY)
    with outside.guarded(f"{_KEY}: {path} cannot be called", _KEY):
        tracker = make()
    if not isinstance(tracker, Tracker):
        raise Refusal(
            f"{_KEY}: {path} should return a umbel.Tracker, found {type(tracker).__name__}.",
            key=_KEY,
            remedy="Derive its class from umbel.Tracker.",
        )
    return tracker

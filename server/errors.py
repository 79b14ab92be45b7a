"""How a run can end early; each says how to go on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from umbel.conf.schema import Experiment
from umbel.core.refusal import Refusal

_RATE = re.compile(r"(^|_)(lr|eta|rate)(_|$)")


class RunStoppedError(RuntimeError):
    """The run cannot go on; everything up to the last completed round is saved."""


class DivergedError(RunStoppedError):
    """What the server made of replies, or too many of them, holds NaN or infinity; a resume comes to the same."""


class RunFailedError(RuntimeError):
    """Something that nobody foresaw ended a run in another process; what it raised is in the message.

    Attributes:
        trace: Where it happened; empty where that is not known.
    """

    trace: str = ""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """Somebody asked the run to stop: Ctrl-C, SIGTERM, or `umbel stop`."""


def ending(error: BaseException) -> dict[str, Any]:
    """Return how a run ended, in words that travel between processes: `raise_again` makes the error of it.

    `how` is one of `refused`, `asked` (to stop), `diverged`, `stopped` (it cannot go on), `failed` (anything else).
    """
    if isinstance(error, Refusal):
        return {"how": "refused", **error.as_dict()}
    if isinstance(error, StopRequested | KeyboardInterrupt):
        return {"how": "asked"}
    if isinstance(error, RunStoppedError):
        return {"how": "diverged" if isinstance(error, DivergedError) else "stopped", "text": str(error)}
    return {"how": "failed", "text": f"{type(error).__name__}: {error}"}


def reason(error: BaseException) -> str:
    """Return why a run failed, in one line: the same words in whichever process it happened.

    What nobody foresaw has the name of its kind before it.
    """
    text = " ".join(str(error).split())
    if is_unforeseen(error):
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text or type(error).__name__


def is_unforeseen(error: BaseException) -> bool:
    """Say whether where an error was raised tells more than its words do."""
    return not isinstance(error, Refusal | RunStoppedError | RunFailedError | OSError)


def raise_again(end: dict[str, Any]) -> NoReturn:
    """Raise here what ended a run in another process.

    Raises:
        Refusal: It was refused.
        StopRequested: Somebody asked it to stop.
        DivergedError: Its model was no longer finite.
        RunStoppedError: It could not go on.
        RunFailedError: Anything else.
    """
    if end["how"] == "refused":
        raise Refusal.again(end)
    if end["how"] == "asked":
        raise StopRequested
    if end["how"] == "diverged":
        raise DivergedError(end["text"])
    if end["how"] == "stopped":
        raise RunStoppedError(end["text"])
    raise RunFailedError(end["text"])


def learning_rates(experiment: Experiment) -> dict[str, float]:
    """Return the learning rates that an experiment names, by key."""
    rates, own = {"client.lr": experiment.client.lr}, experiment.strategy.options
    inner = {f"strategy.{key}": value for key, value in own.items() if isinstance(value, Mapping)}
    for section, options in {"strategy": own, **inner}.items():
        rates |= {f"{section}.{key}": value for key, value in options.items() if _RATE.search(key)}
    return rates


def diverged(what: str, experiment: Experiment, kept_round: int) -> DivergedError:
    """Return the error of a run that has diverged.

    Args:
        what: What holds NaN or infinity, up to a space or the end of a line.
        experiment: The run's, whose learning rates are named.
        kept_round: The last completed round.
    """
    rates = ", ".join(f"{key}={value}" for key, value in learning_rates(experiment).items())
    return DivergedError(
        f"{what}The run has diverged; it is kept as it was after round {kept_round}. Learning rates in force: {rates}. "
        "Start a new run with lower ones."
    )

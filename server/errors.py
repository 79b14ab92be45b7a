"""How a run can end early; each says how to go on."""

from __future__ import annotations

from typing import Any, NoReturn

from umbel.core.refusal import Refusal


class RunStoppedError(RuntimeError):
    """The run cannot go on; everything up to the last completed round is saved."""


class RunFailedError(RuntimeError):
    """Something that nobody foresaw ended a run in another process; what it raised is in the message."""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """Somebody asked the run to stop: Ctrl-C, SIGTERM, or `umbel stop`."""


def ending(error: BaseException) -> dict[str, Any]:
    """Return how a run ended, in words that travel between processes: `raise_again` makes the error of it.

    `how` is one of `refused`, `asked` (to stop), `stopped` (it cannot go on), `failed` (anything else).
    """
    if isinstance(error, Refusal):
        return {"how": "refused", **error.as_dict()}
    if isinstance(error, StopRequested | KeyboardInterrupt):
        return {"how": "asked"}
    if isinstance(error, RunStoppedError):
        return {"how": "stopped", "text": str(error)}
    return {"how": "failed", "text": f"{type(error).__name__}: {error}"}


def raise_again(found: dict[str, Any]) -> NoReturn:
    """Raise here what ended a run in another process.

    Raises:
        Refusal: It was refused.
        StopRequested: Somebody asked it to stop.
        RunStoppedError: It could not go on.
        RunFailedError: Anything else.
    """
    if found["how"] == "refused":
        raise Refusal.again(found)
    if found["how"] == "asked":
        raise StopRequested
    if found["how"] == "stopped":
        raise RunStoppedError(found["text"])
    raise RunFailedError(found["text"])

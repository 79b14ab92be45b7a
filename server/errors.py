"""How a run can end early; each says how to go on."""

from __future__ import annotations


class RunStoppedError(RuntimeError):
    """The run cannot go on; everything up to the last completed round is saved."""


class StopRequested(Exception):  # noqa: N818 - a request, not an error
    """Somebody asked the run to stop: Ctrl-C, SIGTERM, or `umbel stop`."""

"""How a run of a comparison failed, in words."""

from __future__ import annotations

import errno
import traceback

from umbel.server.errors import RunFailedError, RunStoppedError, StopRequested, is_unforeseen, reason
from umbel.simulations.compare.comparison import Member
from umbel.simulations.compare.matrix import Failure


def failure_of(member: Member, error: Exception | None) -> Failure | None:
    """Return how a run failed, by what it ended with; None where it did not.

    Args:
        member: The run.
        error: What it ended with, if not well.

    Raises:
        StopRequested: All is to stop.
        OSError: The disk is full, and the next run would fare no better.
    """
    label, seed = member.item.label, member.seed
    if error is None:
        try:
            member.measures  # noqa: B018 - a summary that is damaged is this run's failure, and not that of the table
        except Exception as damage:  # noqa: BLE001 - as of the run itself
            error = damage
    if error is None:
        return None
    if isinstance(error, StopRequested) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        raise error
    trace = error.trace if isinstance(error, RunFailedError) else ""
    if is_unforeseen(error):
        trace = "".join(traceback.format_exception(error))
    return Failure(label, seed, reason(error), isinstance(error, RunStoppedError), trace)

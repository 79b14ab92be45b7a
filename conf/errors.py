"""The error of an experiment that cannot start."""

from __future__ import annotations

from umbel.core.refusal import Refusal


class ExperimentError(Refusal):
    """An experiment that is refused before anything starts; the message names the key to change."""

    @classmethod
    def of(cls, error: Refusal) -> ExperimentError:
        """Return what somebody refused, as the refusal of an experiment."""
        return error if isinstance(error, cls) else cls(error.reason, key=error.key, remedy=error.remedy)

"""The error of an experiment that cannot start."""

from __future__ import annotations

from umbel.core.refusal import Refusal


class ExperimentError(Refusal):
    """An experiment that is refused before anything starts; the message names the key to change."""

    @classmethod
    def of(cls, error: ValueError) -> ExperimentError:
        """Return what somebody refused, as the refusal of an experiment."""
        if isinstance(error, Refusal):
            return cls(error.reason, key=error.key, remedy=error.remedy)
        return cls(str(error))

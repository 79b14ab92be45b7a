"""The error of an experiment that cannot start."""

from __future__ import annotations

from umbel.core.refusal import Refusal


class ExperimentError(Refusal):
    """An experiment that is refused before anything starts; the message names the key to change."""

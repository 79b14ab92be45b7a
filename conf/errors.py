"""The error of an experiment that cannot start."""

from __future__ import annotations


class ExperimentError(ValueError):
    """An experiment that is refused before anything starts; the message names the key to change."""

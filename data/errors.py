"""What can go wrong with data before a run starts."""

from __future__ import annotations

from umbel.core.refusal import Refusal


class DataError(Refusal):
    """A data set or a partition cannot be what the configuration asks for."""


class MissingDataError(DataError):
    """A data set is not on this machine; the message says how to get it."""


class DamagedDataError(DataError):
    """A file of a data set cannot be read; the message names the file."""


class PartitionError(DataError):
    """The examples cannot be cut into clients as asked; the message names the key to change."""

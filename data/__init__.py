"""Data sets, partitions and transforms: whole tensors, cut and changed by tensor operations."""

from __future__ import annotations

from umbel.core.ranges import check_ranges
from umbel.data import encoders, partition, public
from umbel.data.config import DataConfig
from umbel.data.errors import DamagedDataError, DataError, MissingDataError, PartitionError
from umbel.data.federation import ClientData, Federation, ServerData
from umbel.data.holdout import check_fractions
from umbel.data.partition import Partition
from umbel.data.sets import registry
from umbel.data.sets.registry import describe, load, names, options
from umbel.data.transforms import augment, augmentations, check_augmentation, normalize, permute_pixels
from umbel.data.types import DataSet, Examples

__all__ = [
    "ClientData",
    "DamagedDataError",
    "DataConfig",
    "DataError",
    "DataSet",
    "Examples",
    "Federation",
    "MissingDataError",
    "Partition",
    "PartitionError",
    "ServerData",
    "augment",
    "augmentations",
    "check",
    "describe",
    "load",
    "names",
    "normalize",
    "options",
    "permute_pixels",
]


def check(config: DataConfig) -> None:
    """Raise before anything starts for what can be refused without loading the data.

    Raises:
        UnknownNameError: A data set, option, partition or augmentation that is in no table.
        DataError: A value that cannot be; `MissingDataError` when the set is not on this machine.
    """
    check_ranges(config, "data")
    check_augmentation(config.augment)
    if config.encoder:
        encoders.check(config.encoder, config.encoder_size)
    check_fractions(config)
    partition.check(config)
    public.check(config)
    registry.check(config)

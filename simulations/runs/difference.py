"""In what two runs differ: what they were asked for, where they ran, what they came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel.conf.load import as_dict
from umbel.server import reading

_OF_EACH_RUN = {"run.name", "run.results"}
_ENVIRONMENT = (
    "python",
    "platform",
    "processor",
    "cpus",
    "gpus",
    "threads",
    "kernels",
    "versions",
    "git_commit",
    "sources",
)
Pairs = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Difference:
    """In what two runs differ; each by name, the first one's value and the second's, None where one has none.

    Attributes:
        configuration: By key.
        environment: Versions, hardware, code.
        metrics: Of the last evaluation.
        same_bits: Whether both ended with the same weights; None where one has not ended.
    """

    configuration: Pairs
    environment: Pairs
    metrics: Pairs
    same_bits: bool | None


def difference(first: Path, second: Path) -> Difference:
    """Compare two runs' folders; what has not ended has no metrics.

    Raises:
        ExperimentError: A folder is no run's.
        DamagedError: A file of one is not what was written.
    """
    folders = (first, second)
    keys = [dict(_flat(as_dict(reading.experiment(folder)))) for folder in folders]
    places = [dict(_flat({key: reading.environment(folder).get(key) for key in _ENVIRONMENT})) for folder in folders]
    summaries = [reading.summary(folder) if (folder / reading.SUMMARY).is_file() else {} for folder in folders]
    bits = [summary.get("weights_sha256") for summary in summaries]
    return Difference(
        {key: pair for key, pair in _unlike(*keys).items() if key not in _OF_EACH_RUN},
        _unlike(*places),
        _unlike(*(summary.get("metrics", {}) for summary in summaries)),
        bits[0] == bits[1] if all(bits) else None,
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unlike(first: Mapping[str, Any], second: Mapping[str, Any]) -> Pairs:
    both = {key: (first.get(key), second.get(key)) for key in [*first, *(key for key in second if key not in first)]}
    return {key: (one, other) for key, (one, other) in both.items() if repr(one) != repr(other)}

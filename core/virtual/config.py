"""What an experiment says of its clients' devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel.core.refusal import Refusal
from umbel.core.virtual import distributions

KEY = "simulation.devices"
_INSTEAD = {"capacity": ("speed", "download", "upload"), "availability": ("on_seconds", "off_seconds")}


@dataclass(frozen=True)
class DevicesConfig:
    """The devices that clients have in virtual time.

    Attributes:
        speed: Training examples a second: a number for all, such as 50, or a distribution that each client draws from
            by the run's seed, such as `{name: lognormal, median: 50, sigma: 0.8}`; null takes no time. There are
            uniform (low, high), lognormal (median, sigma), exponential (mean) and choice (values, and shares if they
            differ).
        download: Bytes a second to a client, likewise.
        upload: Bytes a second from a client, likewise.
        capacity: A trace of speeds and bandwidths in their place, a CSV or Parquet file (docs/virtual-time.md).
        on_seconds: How long a client is there before it is away for `off_seconds`, again and again; it begins anywhere
            in that. A number or a distribution; null is always there.
        off_seconds: How long it is away, likewise.
        availability: A trace of when clients are there in their place, a CSV or Parquet file.
        sha256: Hash that the content of the traces should have; noted when a run starts.
    """

    speed: float | dict[str, Any] | None = None
    download: float | dict[str, Any] | None = None
    upload: float | dict[str, Any] | None = None
    capacity: str = ""
    on_seconds: float | dict[str, Any] | None = None
    off_seconds: float | dict[str, Any] | None = None
    availability: str = ""
    sha256: str = ""

    @property
    def is_set(self) -> bool:
        """Whether there is anything to simulate."""
        return self != DevicesConfig()

    @property
    def quantities(self) -> Mapping[str, distributions.Quantity]:
        """The numbers and distributions that are given, by key."""
        names = ("speed", "download", "upload", "on_seconds", "off_seconds")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def check(config: DevicesConfig) -> None:
    """Raise a `Refusal` where devices cannot be so; traces are not opened."""
    for name, quantity in config.quantities.items():
        distributions.check(quantity, f"{KEY}.{name}")
    for trace, others in (
        ("capacity", ("speed", "download", "upload")),
        ("availability", ("on_seconds", "off_seconds")),
    ):
        if getattr(config, trace) and (twice := [name for name in others if name in config.quantities]):
            raise Refusal(
                f"{KEY}.{trace} says what {KEY}.{twice[0]} says, too.",
                key=f"{KEY}.{twice[0]}",
                remedy=f"Leave out {' and '.join(f'{KEY}.{name}' for name in twice)}, or {KEY}.{trace}.",
            )
    if (config.on_seconds is None) != (config.off_seconds is None):
        lacking = "on_seconds" if config.on_seconds is None else "off_seconds"
        raise Refusal(
            "Clients that come and go have a time for both.",
            key=f"{KEY}.{lacking}",
            remedy=f"Set {KEY}.{lacking}, too.",
        )
    if config.sha256 and not (config.capacity or config.availability):
        raise Refusal(
            f"{KEY}.sha256 is a hash of nothing without a trace.",
            key=f"{KEY}.sha256",
            remedy=f"Set {KEY}.capacity or {KEY}.availability, or leave it out.",
        )

"""What engines need of Flower's private modules: bundles, and how its servers are started."""

from __future__ import annotations

from pathlib import Path

from umbel.core.wire.flower_versions import fleet


def build_bundle(app: Path) -> bytes:
    """Return what `flwr build` makes of an app's folder."""
    from flwr.cli.build import build_fab_from_disk  # here: it brings a web server along

    return build_fab_from_disk(app)


def superlink_ports(free: tuple[int, int]) -> tuple[int, int]:
    """Return the ports of a SuperLink's Fleet API and of its control API; where both are HTTP they are one.

    Args:
        free: Two that nobody uses.
    """
    fleet_port, control = free
    return (fleet_port if fleet() == "grpc" else control), control


def fleet_options(address: str) -> list[str]:
    """Return a SuperLink's options for its Fleet API; none where it is where the control API is.

    Args:
        address: Where to listen, `host:port`.
    """
    return ["--fleet-api-type", "grpc-rere", "--fleet-api-address", address] if fleet() == "grpc" else []


def stock_options() -> list[str]:
    """Return the options by which Flower's own SuperNode speaks what the SuperLink does."""
    return ["--grpc-rere"] if fleet() == "grpc" else []

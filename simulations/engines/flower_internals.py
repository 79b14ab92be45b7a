"""The one place that touches what Flower does not promise to keep.

Flower sets a process's identity before it runs an app, and a Message cannot be made without one. Engines of this
project run the apps in processes of their own, and so set it themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from umbel.core.records import reason
from umbel.core.wire.flower_versions import fleet

NODE = 1  # the only node of an engine that runs on one machine
CLIENT_FAILED = 3  # Flower's code for a ClientApp that raised


def identify() -> None:
    """Give this process an identity, unless Flower has given it one.

    Raises:
        Refusal: Nobody has tried the version of Flower that is installed.
    """
    fleet()
    unset: int | None = TaskIdentity._task_id
    if unset is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, NODE


def make_context(run_config: dict[str, Any], node_config: dict[str, Any]) -> Context:
    """Make the context that an app runs in."""
    return Context(1, NODE, node_config, RecordDict(), run_config)


def error_reply(message: Message, error: BaseException) -> Message:
    """Answer a message with an error."""
    return failed_reply(message, reason(error))


def failed_reply(message: Message, why: str) -> Message:
    """Answer a message with the reason for which there is no answer."""
    return Message(Error(CLIENT_FAILED, why), reply_to=message)


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

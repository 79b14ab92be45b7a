"""What a site tells its node on the command line, checked before it connects."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from umbel.client.node.connection import Address
from umbel.client.node.flower_common import node_config
from umbel.client.node.node import Rules
from umbel.core.refusal import Refusal
from umbel.core.wire.flower_versions import fleet
from umbel.core.wire.identity import read_key

_LEAST_HEARTBEAT, _MOST_HEARTBEAT = 10.0, 1800.0  # that a SuperLink takes


@dataclass(frozen=True)
class Options:
    """What a node runs by.

    Attributes:
        address: Where it connects to, and as whom.
        rules: What its site decides.
    """

    address: Address
    rules: Rules


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description="A SuperNode whose client process stays warm.")
    made.add_argument("--superlink", required=True, help="address of the SuperLink's Fleet API, host:port")
    made.add_argument("--insecure", action="store_true", help="no TLS: for one machine or a trusted network")
    made.add_argument("--root-certificates", type=Path, help="PEM file of the certificate authority")
    made.add_argument(
        "--key",
        type=Path,
        help="PEM file of this site's private key (P-384, mode 600): it signs who this node is; over TLS it is the "
        "key, too, whose public half `flwr supernode register` told the SuperLink",
    )
    made.add_argument("--trusted", type=Path, help="YAML file of names and public keys: only runs they signed are run")
    made.add_argument("--policy", type=Path, help="YAML file of what this site allows")
    made.add_argument("--node-config", default="", help='such as "partition-id=0 num-partitions=4"')
    made.add_argument("--home", type=Path, default=Path.home() / ".umbel" / "node", help="where bundles go")
    made.add_argument("--max-wait-time", type=float, help="seconds without a SuperLink after which to give up")
    made.add_argument(
        "--heartbeat-seconds",
        type=float,
        default=_LEAST_HEARTBEAT,  # Flower's 30 s would have a round wait for a minute for a node that died
        help="how often to say that this node is there; after two of these without a word it counts as gone",
    )
    return made


def read(arguments: Sequence[str] | None = None) -> Options:
    """Return what the command line says.

    Raises:
        Refusal: A file cannot be read, a key is none, or options do not go together.
        SystemExit: The command line is of another form.
    """
    fleet()
    said = parser().parse_args(arguments)
    if not _LEAST_HEARTBEAT <= said.heartbeat_seconds <= _MOST_HEARTBEAT:
        raise Refusal(
            f"--heartbeat-seconds={said.heartbeat_seconds:g}; a SuperLink takes {_LEAST_HEARTBEAT:g} to "
            f"{_MOST_HEARTBEAT:g}.",
            key="--heartbeat-seconds",
        )
    if said.insecure and said.root_certificates:
        raise Refusal("--insecure is without TLS, --root-certificates is for it.", remedy="Give one of the two.")
    certificates = said.root_certificates.read_bytes() if said.root_certificates else None
    key = read_key(said.key) if said.key else None
    address = Address(
        said.superlink,
        said.insecure,
        certificates,
        key=None if said.insecure else key,  # without TLS Flower authenticates nobody; our signature remains
        heartbeat_seconds=said.heartbeat_seconds,
        max_wait_seconds=said.max_wait_time,
        presence=said.home / "presence",
    )
    policy = None
    if said.trusted or said.policy:
        from umbel.client.node.policy import Policy  # it knows experiments, which takes a second to load

        policy = Policy.read(said.policy, said.trusted, said.home / "signatures.json")
    return Options(address, Rules(node_config(said.node_config), said.home, key, policy))

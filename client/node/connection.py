"""How a node reaches its SuperLink: what a connection offers, and which file speaks to the Flower that is installed.

`flower_139.py` speaks the Fleet API as gRPC, `flower_http.py` as HTTP; what their Flowers have in common is in
`flower_common.py`. Nothing else of a node knows Flower's private modules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message

from umbel.core.wire.flower_versions import fleet


class RunOverError(Exception):
    """The SuperLink says that a run does not run: it has ended, or was stopped."""


class LostError(Exception):
    """A message was lost on its way: a part of it is not there, or was not taken."""


@dataclass(frozen=True)
class Address:
    """Where a SuperLink is, and as whom a node comes to it.

    Attributes:
        superlink: Its Fleet API, `host:port`.
        insecure: Without TLS.
        root_certificates: Certificates of the authority in PEM; None takes those of the system.
        key: The node's private key, which the SuperLink knows; None makes one that lasts as long as the connection.
        heartbeat_seconds: How often the node says that it is there; after two of these without a word it counts as
            gone. The SuperLink takes ten or more.
        max_wait_seconds: How long to try again when no SuperLink answers; None for ever.
        presence: Folder in which the node notes that it is there, for the next one in case it is killed; None notes
            nothing.
    """

    superlink: str
    insecure: bool = False
    root_certificates: bytes | None = None
    key: EllipticCurvePrivateKey | None = None
    heartbeat_seconds: float = 10
    max_wait_seconds: float | None = None
    presence: Path | None = None


@dataclass(frozen=True)
class Bundle:
    """What a run brings along.

    Attributes:
        hash: SHA-256 of the content, as Flower names it.
        content: Flower's app bundle (FAB).
        run_config: The run's configuration.
    """

    hash: str
    content: bytes
    run_config: dict[str, Any]


class Connection(ABC):
    """A node's connection to a SuperLink: whole messages, whatever pieces they travel in.

    Attributes:
        node_id: What the SuperLink calls the node.
    """

    node_id: int

    @abstractmethod
    def receive(self) -> Message | None:
        """Return the next message for this node, or None where none waits.

        Raises:
            RunOverError: Its run ended while it was on the way.
            LostError: A part of it is not there.
        """

    @abstractmethod
    def send(self, reply: Message, seconds: float) -> None:
        """Send the reply to a message.

        Args:
            reply: The reply.
            seconds: How long the app worked at it.

        Raises:
            RunOverError: Its run has ended.
            LostError: A part of it was not taken.
        """

    @abstractmethod
    def check_running(self, run_id: int) -> None:
        """Return when a run runs.

        Raises:
            RunOverError: It does not.
        """

    @abstractmethod
    def bundle(self, run_id: int) -> Bundle:
        """Return what a run brings along.

        Raises:
            RunOverError: It does not run.
        """


class Voice(ABC):
    """What a node says of itself, over a connection that nothing else uses."""

    @abstractmethod
    def beat(self, node_id: int) -> bool:
        """Say that a node is there; return whether the SuperLink heard it."""

    @abstractmethod
    def leave(self, node_id: int, for_good: bool) -> bool:
        """Say that a node has left; return whether it counted as present.

        Args:
            node_id: The node.
            for_good: Its key does not come again.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


Adapter = Callable[[Address], AbstractContextManager[Connection]]


def adapter() -> Adapter:
    """Return what connects a node under the Flower that is installed.

    Raises:
        Refusal: Nobody has tried this version of Flower.
    """
    if fleet() == "grpc":
        from umbel.client.node import flower_139

        return flower_139.connect
    from umbel.client.node import flower_http

    return flower_http.connect


def voice(address: Address) -> Voice:
    """Return a connection for what a node says of itself, under the Flower that is installed.

    Args:
        address: Where to, and as whom: with a key.
    """
    if fleet() == "grpc":
        from umbel.client.node import flower_139

        return flower_139.GrpcVoice(address)
    from umbel.client.node import flower_http

    return flower_http.HttpVoice(address)


@contextmanager
def connect(address: Address) -> Iterator[Connection]:
    """Yield a node's connection, on which it counts as present until the end.

    Args:
        address: Where to, and as whom.

    Raises:
        Refusal: Nobody has tried the version of Flower that is installed.
        SystemExit: The SuperLink cannot be reached, or does not take the node; Flower has logged why.
    """
    with adapter()(address) as connection:
        yield connection

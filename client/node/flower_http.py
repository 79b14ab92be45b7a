"""Flower from 1.40 on: its nodes speak the Fleet API as HTTP, to the port that the control API has as well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, UnregisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from umbel.client.node.connection import Address, Connection, Voice
from umbel.client.node.flower_common import connected

# By name: the Flower that this project is checked with has no such modules.
_CLIENT = "flwr.supernode.fleet_http_client"
_CONNECTION = "flwr.supernode.fleet_http_connection"
_SIGNED = "flwr.supernode.node_auth_http_interceptor"


class HttpVoice(Voice):
    """What a node says of itself.

    Args:
        address: Where to, and as whom: with a key.
    """

    def __init__(self, address: Address) -> None:
        assert address.key is not None
        self._seconds = address.heartbeat_seconds
        self._client: Any = import_module(_CLIENT).FleetHttpClient.from_server_address(
            address.superlink,
            address.insecure,
            address.root_certificates,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                import_module(_SIGNED).NodeAuthHttpInterceptor(address.key, address.key.public_key()),
            ],
        )

    def beat(self, node_id: int) -> bool:
        """Say that a node is there; return whether the SuperLink heard it."""
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=self._seconds)
        try:
            return bool(self._client.SendNodeHeartbeat(request).success)
        except httpx.HTTPError:
            return False

    def leave(self, node_id: int, for_good: bool) -> bool:
        """Say that a node has left; return whether it counted as present."""
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
            if for_good:
                self._client.UnregisterNode(UnregisterNodeFleetRequest(node_id=node_id))
        except httpx.HTTPError:
            return False
        return True

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


@contextmanager
def connect(address: Address) -> Iterator[Connection]:
    """Yield a node's connection over HTTP."""
    connection = import_module(_CONNECTION)

    def calls() -> AbstractContextManager[tuple[Any, ...]]:
        made: AbstractContextManager[tuple[Any, ...]] = connection.http_request_response(
            address.superlink,
            address.insecure,
            address.root_certificates,
            (address.key, address.key.public_key()) if address.key else None,
            max_wait_time=address.max_wait_seconds,
        )
        return made

    with connected(address, connection, calls) as made:
        yield made

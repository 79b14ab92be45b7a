"""Flower 1.39: its nodes speak the Fleet API as gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import grpc
from flwr.client.grpc_rere_client import connection
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, UnregisterNodeFleetRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.grpc import GRPC_MAX_MESSAGE_LENGTH, create_channel
from flwr.supercore.interceptors import RuntimeVersionClientInterceptor
from flwr.supercore.retry import make_simple_grpc_retry_invoker

from umbel.client.node.connection import Address, Connection, Voice
from umbel.client.node.flower_common import connected

_CALL_SECONDS = 5.0


class GrpcVoice(Voice):
    """What a node says of itself.

    Args:
        address: Where to, and as whom: with a key.
    """

    def __init__(self, address: Address) -> None:
        assert address.key is not None
        self._seconds = address.heartbeat_seconds
        self._channel = create_channel(
            address.superlink,
            address.insecure,
            address.root_certificates,
            interceptors=[
                RuntimeVersionClientInterceptor(component_name="SuperNode"),
                NodeAuthClientInterceptor(address.key, address.key.public_key()),
            ],
        )
        self._stub = FleetStub(self._channel)

    def beat(self, node_id: int) -> bool:
        """Say that a node is there; return whether the SuperLink heard it."""
        request = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=self._seconds)
        try:
            return bool(self._stub.SendNodeHeartbeat(request, timeout=_CALL_SECONDS).success)
        except grpc.RpcError:
            return False

    def leave(self, node_id: int, for_good: bool) -> bool:
        """Say that a node has left; return whether it counted as present."""
        try:
            self._stub.DeactivateNode(DeactivateNodeRequest(node_id=node_id), timeout=_CALL_SECONDS)
            if for_good:
                self._stub.UnregisterNode(UnregisterNodeFleetRequest(node_id=node_id), timeout=_CALL_SECONDS)
        except grpc.RpcError:
            return False
        return True

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


@contextmanager
def connect(address: Address) -> Iterator[Connection]:
    """Yield a node's connection over gRPC."""
    retry = make_simple_grpc_retry_invoker()
    retry.max_time = address.max_wait_seconds

    def calls() -> AbstractContextManager[tuple[Any, ...]]:
        return connection.grpc_request_response(
            address.superlink,
            address.insecure,
            retry,
            GRPC_MAX_MESSAGE_LENGTH,
            address.root_certificates,
            (address.key, address.key.public_key()) if address.key else None,
        )

    with connected(address, connection, calls) as made:
        yield made

"""A SuperLink's Fleet API that notes who calls: nodes come, are there, and go."""

from __future__ import annotations

import sys
from concurrent import futures
from contextlib import contextmanager

import grpc
from flwr.proto import fleet_pb2 as fleet
from flwr.proto.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse

# Connects, says so, and then holds Python's lock until it is told to go on, as a large answer does for seconds.
BUSY = """
import ctypes, sys
from pathlib import Path
from umbel.client.node.connection import Address, connect

with connect(Address(sys.argv[1], insecure=True, heartbeat_seconds=0.5, presence=Path(sys.argv[2]))) as connection:
    print(connection.node_id, flush=True)
    ctypes.PyDLL(None).read(0, ctypes.create_string_buffer(1), 1)
"""


class Fleet(FleetServicer):
    """Attributes: `calls`, each (name, the caller's address, node id or public key), and `beats`, addresses."""

    def __init__(self):
        self.calls, self.beats, self.num_nodes = [], [], 0

    def note(self, context, name, what=None):
        self.calls.append((name, context.peer(), what))

    def RegisterNode(self, request, context):  # noqa: N802 - the protocol's name
        self.note(context, "register", request.public_key)
        return fleet.RegisterNodeFleetResponse()

    def ActivateNode(self, request, context):  # noqa: N802 - the protocol's name
        self.num_nodes += 1
        self.note(context, "activate", request.public_key)
        return fleet.ActivateNodeResponse(node_id=self.num_nodes)

    def DeactivateNode(self, request, context):  # noqa: N802 - the protocol's name
        self.note(context, "deactivate", request.node_id)
        return fleet.DeactivateNodeResponse()

    def UnregisterNode(self, request, context):  # noqa: N802 - the protocol's name
        self.note(context, "unregister", request.node_id)
        return fleet.UnregisterNodeFleetResponse()

    def SendNodeHeartbeat(self, request, context):  # noqa: N802 - the protocol's name
        self.beats.append(context.peer())
        return SendNodeHeartbeatResponse(success=True)


@contextmanager
def fleet_api():
    """Yield a Fleet API and its address."""
    servicer, server = Fleet(), grpc.server(futures.ThreadPoolExecutor(4))
    add_FleetServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def busy_node(address, folder):
    """The command of a node that connects and is then busy until it is written to."""
    return [sys.executable, "-c", BUSY, address, str(folder)]

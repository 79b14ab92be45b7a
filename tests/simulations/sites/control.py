"""A Control API of a test: nodes, runs and their log in memory, over HTTP under the server's certificate."""

from __future__ import annotations

import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from flwr.common.serde import user_config_to_proto
from flwr.proto import control_pb2 as control
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run, RunStatus

from umbel.simulations.sites.names import Address


class Known:
    """What a SuperLink knows, and what it is told to do with it."""

    def __init__(self) -> None:
        self.nodes: dict[int, NodeInfo] = {}
        self.runs: dict[int, Run] = {}
        self.log = ""

    def add_node(self, key: str, name: str, status: str = "online") -> int:
        """Add a node by its key, as anybody on the server can; return its number."""
        number = len(self.nodes) + 1
        self.nodes[number] = NodeInfo(node_id=number, public_key=key.encode(), name=name, status=status)
        return number

    def add_run(self, number: int, bundle_hash: str, config: Mapping[str, str]) -> None:
        """Add a run that goes on."""
        self.runs[number] = Run(
            run_id=number,
            fab_hash=bundle_hash,
            override_config=user_config_to_proto(dict(config)),
            status=RunStatus(status="running"),
        )

    def taken(self) -> dict[str, str]:
        """The keys of the nodes that it takes, by their names."""
        return {n.name: n.public_key.decode() for n in self.nodes.values() if n.status != "unregistered"}

    def stopped(self) -> set[int]:
        """The runs that were stopped."""
        return {number for number, run in self.runs.items() if run.status.status == "finished"}

    def answer(self, path: str, content: bytes) -> bytes:
        """Return the answer to a request, and do what it asks for."""
        if path == "list-nodes":
            return control.ListNodesResponse(nodes_info=self.nodes.values()).SerializeToString()
        if path == "register-node":
            asked = control.RegisterNodeRequest.FromString(content)
            if any(node.public_key == asked.public_key for node in self.nodes.values()):
                raise ValueError("it was in use")
            number = self.add_node(asked.public_key.decode(), asked.name, "registered")
            return control.RegisterNodeResponse(node_id=number).SerializeToString()
        if path == "unregister-node":
            self.nodes[control.UnregisterNodeRequest.FromString(content).node_id].status = "unregistered"
            return control.UnregisterNodeResponse().SerializeToString()
        if path == "list-runs":
            return control.ListRunsResponse(run_dict=self.runs).SerializeToString()
        if path == "stop-run":
            self.runs[control.StopRunRequest.FromString(content).run_id].status.status = "finished"
            return control.StopRunResponse(success=True).SerializeToString()
        assert path == "stream-logs"
        part = control.StreamLogsResponse(log_output=self.log, latest_timestamp=1.0).SerializeToString()
        return len(part).to_bytes(4, "big") + part


class _OnSocket(HTTPServer):
    """A server at a socket of the file system."""

    address_family = socket.AF_UNIX
    server_bind = socketserver.TCPServer.server_bind

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return super().get_request()[0], ("", 0)


@contextmanager
def served(known: Known, server: Path, place: Path | None = None) -> Iterator[Address | Path]:
    """Answer under the certificate in a server's folder.

    Args:
        known: What is known.
        server: The folder.
        place: A socket of the file system; None takes a port of loopback.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, streams = 200, self.path.endswith("stream-logs")
            try:
                content = known.answer(self.path.removeprefix("/v1/control/"), asked)
            except ValueError as error:
                status, content = 409, str(error).encode()
            self.send_response(status)
            self.send_header("content-type", f"application/{'x-protobuf-stream' if streams else 'x-protobuf'}")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.pem", server / "server.key")
    made = HTTPServer(("127.0.0.1", 0), Answers) if place is None else _OnSocket(str(place), Answers)  # type: ignore[arg-type]
    with made:
        made.socket = context.wrap_socket(made.socket, server_side=True)
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield Address("127.0.0.1", made.server_port) if place is None else place
        finally:
            made.shutdown()

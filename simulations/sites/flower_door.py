"""Flower's Control API, as its own command line speaks it: keys of nodes, runs, logs.

Flower does not promise to keep it. It is HTTP with protobuf, on the server's loopback alone, under the server's
certificate. No proxy is asked, whatever the environment says: the way there is this machine's own.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.common.serde import fab_to_proto, user_config_from_proto, user_config_to_proto
from flwr.proto import control_pb2 as control
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run
from flwr.supercore.constant import MAX_TIMESTAMP_DIFF_SECONDS, MIN_TIMESTAMP_DIFF_SECONDS
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from umbel.core.names import shortened
from umbel.simulations.sites.names import Address

AHEAD_SECONDS = -MIN_TIMESTAMP_DIFF_SECONDS  # a node's clock may be so far ahead of the server's
BEHIND_SECONDS = MAX_TIMESTAMP_DIFF_SECONDS
_FINISHED, _ONLINE = "finished", "online"
_LOOPBACK = "127.0.0.1"
_PATIENCE_SECONDS = 30.0  # as Flower has it


class ControlError(RuntimeError):
    """The Control API does not answer, or refuses; the message says why."""


@dataclass(frozen=True)
class NodeEntry:
    """A node whose key the SuperLink knows.

    Attributes:
        node_id: Flower's number of it.
        name: What it was registered as.
        key: Its public key, PEM.
        status: Flower's word: registered (never seen), online, offline, unregistered.
        last_contact: When it last said that it is there, seconds of the server's clock; None when it never did.
    """

    node_id: int
    name: str
    key: str
    status: str
    last_contact: float | None

    @property
    def online(self) -> bool:
        """Whether it is connected."""
        return self.status == _ONLINE


@dataclass(frozen=True)
class RunEntry:
    """A run that the SuperLink knows.

    Attributes:
        run_id: Flower's number of it.
        bundle_hash: SHA-256 of the bundle.
        config: What its configuration was given.
        status: Flower's words: pending, starting, running, finished:completed, ...
        pending_at: When it was submitted, as Flower writes it.
    """

    run_id: int
    bundle_hash: str
    config: Mapping[str, str]
    status: str
    pending_at: str

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.status.startswith(_FINISHED)


class Control:
    """A connection to the Control API.

    Args:
        client: Flower's client.
    """

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def register(self, public_key: str, name: str) -> int:
        """Let the SuperLink take a node by its key; return the number that it has from now on."""
        request = control.RegisterNodeRequest(public_key=public_key.encode(), name=name)
        with _in_words():
            return int(self._client.RegisterNode(request).node_id)

    def unregister(self, node_id: int) -> None:
        """Let the SuperLink take a node no longer."""
        with _in_words():
            self._client.UnregisterNode(control.UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[NodeEntry]:
        """Return the nodes whose keys the SuperLink knows, or knew."""
        with _in_words():
            answer = self._client.ListNodes(control.ListNodesRequest())
        return [_node(entry) for entry in answer.nodes_info]

    def runs(self, run_id: int | None = None, limit: int = 50) -> list[RunEntry]:
        """Return the last runs, the newest first; or one."""
        which = {"limit": limit} if run_id is None else {"run_id": run_id}
        with _in_words():
            answer = self._client.ListRuns(control.ListRunsRequest(**which))
        runs = [_run(entry) for entry in answer.run_dict.values()]
        return sorted(runs, key=lambda run: run.pending_at, reverse=True)

    def start(self, bundle: bytes, config: Mapping[str, str]) -> int:
        """Submit a run; return Flower's number of it."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        request = control.StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
        with _in_words():
            answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise ControlError(
                "The SuperLink did not take the run: its bundle is too large, or it has an error inside."
            )
        return int(answer.run_id)

    def stop(self, run_id: int) -> None:
        """End a run as it is; its checkpoint is the last one that it wrote."""
        with _in_words():
            self._client.StopRun(control.StopRunRequest(run_id=run_id))

    def log(self, run_id: int, after: float = 0.0) -> Iterator[tuple[str, float]]:
        """Yield what a run's server prints, with the time to go on after when the connection is lost."""
        request = control.StreamLogsRequest(run_id=run_id, after_timestamp=after)
        with _in_words():
            for part in self._client.StreamLogs(request):
                yield part.log_output, part.latest_timestamp


@contextmanager
def connected(place: Address | Path, authority: Path | None) -> Iterator[Control]:
    """Yield a connection to the Control API.

    Args:
        place: Where it is: an address, or the socket at this side of a tunnel.
        authority: The certificate that the server's has to be signed by; None where the server has no TLS.
    """
    verify: ssl.SSLContext | bool = False
    if authority is not None:
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        verify.load_verify_locations(cafile=authority)
    # What the certificate is checked against behind a socket: the name that every server's has.
    host = str(place) if isinstance(place, Address) else _LOOPBACK
    client = ControlHttpClient(
        f"{'http' if authority is None else 'https'}://{host}",
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        verify=verify,
    )
    client._client.close()  # it would ask a proxy, and knows no sockets
    client._client = httpx.Client(
        transport=httpx.HTTPTransport(verify=verify, uds=None if isinstance(place, Address) else str(place)),
        timeout=_PATIENCE_SECONDS,
    )
    try:
        yield Control(client)
    finally:
        client.close()


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        response = error.response
        known = FlowerError.from_json(response.text)
        details = f"{known.message} {known.public_details or ''}".strip() if known else response.text[:300]
        raise ControlError(f"The SuperLink refuses: {shortened(details) or response.status_code}") from error
    except httpx.ConnectError as error:
        if isinstance(cause := _cause(error), ssl.SSLError):
            raise ControlError(f"The SuperLink's certificate is not taken: {cause}.") from error
        raise ControlError("Nobody answers on the control port: is the server up? (umbel federate serve)") from error
    except (httpx.HTTPError, ValueError) as error:
        raise ControlError(f"The SuperLink does not answer: {error or type(error).__name__}.") from error


def _cause(error: BaseException) -> BaseException | None:
    """Return the first of an error's causes that is one of TLS, or the last of them."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _node(entry: NodeInfo) -> NodeEntry:
    contact = None
    if entry.HasField("online_until") and entry.HasField("last_activated_at"):
        contact = entry.online_until
        if entry.status == _ONLINE:
            contact -= HEARTBEAT_PATIENCE * entry.heartbeat_interval
        elif entry.HasField("last_deactivated_at") and entry.last_deactivated_at:
            contact = datetime.fromisoformat(entry.last_deactivated_at).timestamp()
    name = entry.name if entry.HasField("name") else ""
    return NodeEntry(entry.node_id, name, entry.public_key.decode(errors="replace"), entry.status, contact)


def _run(entry: Run) -> RunEntry:
    config = {key: str(value) for key, value in user_config_from_proto(entry.override_config).items()}
    status = ":".join(part for part in (entry.status.status, entry.status.sub_status) if part)
    return RunEntry(entry.run_id, entry.fab_hash, config, status, entry.pending_at)

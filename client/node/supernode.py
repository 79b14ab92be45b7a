r"""A SuperNode whose client process stays warm.

Flower's own `flower-supernode` starts a new Python process for every message and sleeps three seconds between
looks. This node speaks the same Fleet API over the same gRPC connection (Flower's own), but keeps one process for
each run, started in the folder of the run's bundle, and looks again soon after something came. It serves the same
SuperLink beside stock SuperNodes, with the same TLS and authentication options.

    python -m umbel.client.node.supernode --insecure --superlink 127.0.0.1:9092 \
        --node-config "partition-id=0 num-partitions=4"
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from flwr.app import Error, Message
from flwr.client.grpc_rere_client import connection as flower_connection
from flwr.client.grpc_rere_client.connection import grpc_request_response
from flwr.common.config import get_fused_config_from_fab, parse_config_args
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore import heartbeat
from flwr.supercore.grpc import GRPC_MAX_MESSAGE_LENGTH
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.retry import make_simple_grpc_retry_invoker
from flwr.supercore.run import RunNotRunningException

from umbel.client.node.bundle import unpack
from umbel.client.node.serve import read_frame, write_frame

_FIRST_WAIT, _LONGEST_WAIT = 0.01, 0.5
_ASK_SECONDS = 2.0  # how often to look whether anybody still waits for an answer
_HEARTBEAT_SECONDS = 10  # the SuperLink's least; after two of these without a word a node counts as gone
_PULL_SECONDS = 0.02  # first wait for an object that is still on its way up; Flower's is a second
_TIDY_SECONDS = 10.0  # how long a node is idle before it asks which of its runs are over
_GOODBYE_SECONDS = 4  # after a signal
_MAX_RUNS = 2
_NODE_FAILED = 3
log = logging.getLogger("umbel.node")


class WarmProcess:
    """The process that runs one run's ClientApp.

    Args:
        bundle: Folder of the unpacked bundle.
        start: What the app's context needs.
    """

    def __init__(self, bundle: Path, start: dict[str, Any]) -> None:
        # `-m` puts the current folder, the bundle, first on the path.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "umbel.client.node.serve"],
            cwd=bundle,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        write_frame(self._process.stdin, json.dumps(start).encode())  # type: ignore[arg-type]

    def ask(self, message: Message, on_wait: Callable[[], None]) -> Message:
        """Run a message.

        Args:
            message: The message.
            on_wait: Called every few seconds; may raise to give up, after which the process must be closed.

        Raises:
            BrokenPipeError: The process died.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        write_frame(process.stdin, message_to_proto(message).SerializeToString())  # type: ignore[arg-type]
        # One answer a message: between two, nothing waits in Python's buffer, which `select` does not see.
        while not select.select([process.stdout], [], [], _ASK_SECONDS)[0]:
            on_wait()
        answer = read_frame(process.stdout)  # type: ignore[arg-type]
        if answer is None:
            raise BrokenPipeError(f"the client process died with exit code {process.wait()}")
        return message_from_proto(ProtoMessage.FromString(answer))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was written by halves when it died
                    pipe.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None


class Node:
    """Takes messages from a SuperLink and answers them.

    Args:
        connection: What Flower's gRPC connection yields.
        node_config: The node's configuration.
        home: Where bundles are unpacked.
    """

    def __init__(self, connection: tuple[Any, ...], node_config: dict[str, Any], home: Path) -> None:
        (
            self.node_id,
            self._receive,
            self._send,
            self._get_run,
            self._get_fab,
            self._pull_object,
            self._push_object,
            self._confirm,
        ) = connection
        self._node_config = node_config
        self._home = home
        self._processes: OrderedDict[int, WarmProcess] = OrderedDict()
        self._stopped = False

    def stop(self) -> None:
        """Ask `serve` to return as soon as it can."""
        self._stopped = True

    def serve(self) -> None:
        """Look for messages until stopped."""
        wait, tidy_at = _FIRST_WAIT, time.monotonic() + _TIDY_SECONDS
        while not self._stopped:
            try:
                found = self._look()
            except RunNotRunningException:
                found = False  # the run ended while its message was on the way
            except (ObjectPullError, ObjectPushError, ObjectUnavailableError):
                log.exception("a message was lost on its way")
                found = False
            wait = _FIRST_WAIT if found else min(wait * 1.2, _LONGEST_WAIT)
            if found:
                tidy_at = time.monotonic() + _TIDY_SECONDS
            elif time.monotonic() > tidy_at:
                self._tidy()
                tidy_at = time.monotonic() + _TIDY_SECONDS
            time.sleep(wait)

    def _tidy(self) -> None:
        """End the processes of runs that are over: they hold a model, data, perhaps a GPU."""
        for run_id in list(self._processes):
            try:
                self._get_run(run_id)
            except RunNotRunningException:
                self._end(run_id)

    def _look(self) -> bool:
        received = self._receive()
        if received is None:
            return False
        message, tree = received
        run_id, message_id = message.metadata.run_id, message.metadata.message_id
        start = time.monotonic()
        identifiers = [entry.object_id for entry in iterate_object_tree(tree)]
        contents = pull_objects(
            identifiers, pull_object_fn=lambda name: self._pull_object(run_id, name), initial_backoff=_PULL_SECONDS
        )
        self._confirm(run_id, message_id)
        whole = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(whole, Message)
        whole.metadata.__dict__["_message_id"] = message_id
        self._answer(self._run(run_id, whole), start)
        return True

    def _run(self, run_id: int, message: Message) -> Message:
        end = message.metadata.created_at + message.metadata.ttl

        def look() -> None:
            """Give up what nobody waits for any more: the run has ended, or the server's deadline has passed."""
            if self._stopped:
                raise RunNotRunningException
            self._get_run(run_id)
            if time.time() > end:
                raise TimeoutError("no answer before the server's deadline")

        try:
            return self._process(run_id).ask(message, look)
        except RunNotRunningException:
            self._end(run_id)
            raise
        except (OSError, ValueError, click.ClickException) as error:
            log.exception("run %s", run_id)
            self._end(run_id)
            return Message(Error(_NODE_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)

    def _end(self, run_id: int) -> None:
        if run_id in self._processes:
            self._processes.pop(run_id).close()

    def _process(self, run_id: int) -> WarmProcess:
        """Return the run's process; start it in the unpacked bundle if there is none."""
        if run_id in self._processes and not self._processes[run_id].alive:
            self._end(run_id)  # it died between two messages
        if run_id not in self._processes:
            run = self._get_run(run_id)
            fab = self._get_fab(run.fab_hash, run_id)
            bundle = unpack(fab.content, self._home, fab.hash_str)
            start = {
                "run_id": run_id,
                "node_id": self.node_id,
                "node_config": self._node_config,
                "run_config": get_fused_config_from_fab(fab.content, run),
            }
            self._processes[run_id] = WarmProcess(bundle, start)
            while len(self._processes) > _MAX_RUNS:
                self._processes.popitem(last=False)[1].close()
        self._processes.move_to_end(run_id)
        return self._processes[run_id]

    def _answer(self, reply: Message, start: float) -> None:
        run_id = reply.metadata.run_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            tree = get_object_tree(reply)
            objects = get_all_nested_objects(reply)
            wanted, session = self._send(reply, tree, time.monotonic() - start)
            push_objects(
                objects,
                push_object_fn=lambda name, content: self._push_object(run_id, session, name, content),
                object_ids_to_push=wanted,
            )

    def close(self) -> None:
        """End all processes."""
        while self._processes:
            self._processes.popitem()[1].close()


def main() -> None:
    """Connect and serve until terminated."""
    parser = argparse.ArgumentParser(description="A SuperNode whose client process stays warm.")
    parser.add_argument("--superlink", required=True, help="address of the SuperLink's Fleet API, host:port")
    parser.add_argument("--insecure", action="store_true", help="no TLS: for one machine or a trusted network")
    parser.add_argument("--root-certificates", help="PEM file of the certificate authority")
    parser.add_argument("--node-config", default="", help='such as "partition-id=0 num-partitions=4"')
    parser.add_argument("--home", type=Path, default=Path.home() / ".umbel" / "node", help="where bundles go")
    parser.add_argument("--max-wait-time", type=float, help="seconds without a SuperLink after which to give up")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    # Flower's 30 s would have a round wait for a minute for a node that died.
    for module in (flower_connection, heartbeat):
        vars(module)["HEARTBEAT_DEFAULT_INTERVAL"] = _HEARTBEAT_SECONDS
    retry = make_simple_grpc_retry_invoker()
    retry.max_time = arguments.max_wait_time
    certificates = Path(arguments.root_certificates).read_bytes() if arguments.root_certificates else None
    with grpc_request_response(
        arguments.superlink, arguments.insecure, retry, GRPC_MAX_MESSAGE_LENGTH, certificates
    ) as connection:
        node = Node(connection, dict(parse_config_args([arguments.node_config])), arguments.home)
        log.info("node %s is connected to %s (process %s)", node.node_id, arguments.superlink, os.getpid())

        def stop(*_: object) -> None:
            # Nothing is raised from here: an exception in the midst of gRPC's locks would hang the process. What
            # does not come back to the loop in time ends without a goodbye; its children end with their pipe.
            node.stop()
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_GOODBYE_SECONDS)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        try:
            node.serve()
        finally:
            node.close()


if __name__ == "__main__":
    main()

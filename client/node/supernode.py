r"""A SuperNode whose client process stays warm.

Flower's own `flower-supernode` starts a new Python process for every message and sleeps three seconds between
looks. This node speaks the same Fleet API over the same connection (Flower's own, `connection.py`), but keeps one
process for each run, started in the folder of the run's bundle, and looks again soon after something came. It serves
the same SuperLink beside stock SuperNodes, with the same TLS and authentication options.

    python -m umbel.client.node.supernode --insecure --superlink 127.0.0.1:9092 \
        --node-config "partition-id=0 num-partitions=4"
    python -m umbel.client.node.supernode --superlink server.example:9092 --root-certificates ca.pem \
        --key site.key --node-config "partitions='0-3'"
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from umbel.client.node import options
from umbel.client.node.connection import connect
from umbel.client.node.node import Node
from umbel.core.refusal import REFUSALS

_GOODBYE_SECONDS = 4  # after a signal
_REFUSED = 2
log = logging.getLogger("umbel.node")


def main() -> None:
    """Connect and serve until terminated; ends with status 2 where it is refused before it has connected."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        told = options.read()
        with connect(told.address) as connection:
            log.info("node %s is connected to %s (process %s)", connection.node_id, told.address.superlink, os.getpid())
            _serve(Node(connection, told.rules))
    except REFUSALS as error:
        print(f"umbel: {error}", file=sys.stderr)
        sys.exit(_REFUSED)


def _serve(node: Node) -> None:
    def stop(*_: object) -> None:
        # Nothing is raised from here: an exception in the midst of gRPC's locks would hang the process. What does not
        # come back to the loop in time ends without a goodbye; its children end with their pipe.
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

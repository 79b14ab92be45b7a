"""The nodes that a run can reach."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from umbel.conf.load import portable_hash
from umbel.conf.own_data import is_own
from umbel.conf.schema import Experiment
from umbel.data import partition
from umbel.server.listener import Listener
from umbel.server.nodes import Directory, Told
from umbel.server.port import Port
from umbel.server.results import RunFolder
from umbel.server.sites import Sites

_GREETING_SECONDS = 30.0  # what a node takes to compose the experiment and answer
_LOOK_SECONDS = 0.1
_COUNT_BYTES = 24  # of a class's number of examples, and what stands around it
_CLASSES_BYTES = 1 << 17  # of the classes of a client, where nobody has said which there are


def directory_of(experiment: Experiment, port: Port, folder: RunFolder, listener: Listener) -> Directory:
    """Return the directory of a run's nodes, which have not been waited for.

    Args:
        experiment: The experiment.
        port: How nodes are reached.
        folder: The run's folder.
        listener: Told of nodes that are refused.
    """
    return Directory(
        port,
        portable_hash(experiment),
        experiment.data.num_clients,
        experiment.engine.node_timeout_seconds,
        folder.identity(),
        Sites.of_environment() if port.strangers else None,
        Told(listener.notice, folder.path if port.strangers else None),
        partition.repeats(experiment.data),
        _class_bytes(experiment),
    )


def unheld(port: Port, directory: Directory, num_clients: int, on_wait: Callable[[], None]) -> list[int]:
    """Return the clients that no node holds now; one that has just come is given the time to say what it holds.

    Args:
        port: How nodes are reached.
        directory: The nodes.
        num_clients: How many clients there are.
        on_wait: Called while waiting; may raise to stop.
    """
    deadline = time.monotonic() + _GREETING_SECONDS
    while True:
        directory.refresh()
        lacking = directory.split(range(num_clients))[1]
        if not lacking or not port.silent() or time.monotonic() > deadline:
            return lacking
        on_wait()
        time.sleep(_LOOK_SECONDS)


def _class_bytes(experiment: Experiment) -> int:
    """Return what a greeting may say of the classes of one client, where sites have data of their own."""
    if not is_own(experiment):
        return 0
    classes = experiment.data.classes
    if isinstance(classes, str):
        return _CLASSES_BYTES
    return 2 * sum(len(json.dumps(name)) + _COUNT_BYTES for name in classes)  # and a site may have others, to be named

"""The nodes that a run can reach."""

from __future__ import annotations

from collections.abc import Callable

from umbel.conf.load import portable_hash
from umbel.conf.schema import Experiment
from umbel.server.greeting import Greeting
from umbel.server.listener import Listener
from umbel.server.nodes import Directory, Told
from umbel.server.port import Port
from umbel.server.results import RunFolder
from umbel.server.sites import Sites


def directory_of(
    experiment: Experiment,
    port: Port,
    folder: RunFolder,
    listener: Listener,
    check: Callable[[Greeting], str] = lambda greeting: "",
) -> Directory:
    """Return the directory of a run's nodes, which have not been waited for.

    Args:
        experiment: The experiment.
        port: How nodes are reached.
        folder: The run's folder.
        listener: Told of nodes that are refused.
        check: Says of a greeting why its node cannot take part; "" where it can.
    """
    return Directory(
        port,
        portable_hash(experiment),
        experiment.data.num_clients,
        experiment.engine.node_timeout_seconds,
        folder.identity(),
        Sites.of_environment() if port.strangers else None,
        Told(listener.notice, folder.path if port.strangers else None),
        check,
    )

"""What a process of a node keeps and says: the worker of its run, which clients it holds, what it answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from umbel.client.greeting import greeting
from umbel.client.worker import Worker
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import OwnSite
from umbel.conf.load import load, split_overrides
from umbel.conf.own_data import is_own
from umbel.conf.schema import Experiment
from umbel.core import clients
from umbel.core.wire.work import held_by

SITE_DATA = "site-data"  # key of a node's configuration: its site's data file
STATE_FOLDER = "UMBEL_STATE"  # where a site keeps its clients' memory
HELLO, AGREE = "query", "query.agree"  # what a node is asked before it works; as Flower's types of messages


class NodeContext(Protocol):
    """What a node knows of itself and of the run, as Flower's `Context` has it."""

    @property
    def node_id(self) -> int: ...
    @property
    def run_config(self) -> Mapping[str, Any]: ...
    @property
    def node_config(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Place:
    """The same of a process that an engine on this machine runs clients in.

    Attributes:
        run_config: The run configuration, as Flower would give it.
        node_config: The node's configuration.
        node_id: The only node of such an engine.
    """

    run_config: Mapping[str, Any] = field(default_factory=dict)
    node_config: Mapping[str, Any] = field(default_factory=dict)
    node_id: int = 1


class Process:
    """What this process keeps between messages: the worker of the run that it serves."""

    def __init__(self) -> None:
        self._key: tuple[str, ...] = ()
        self._worker: Worker | None = None

    def worker(self, context: NodeContext) -> Worker:
        """Return the worker for a run's experiment; it is made once, and anew for another run's."""
        config = context.run_config
        experiment, overrides = str(config["experiment"]), str(config.get("overrides", ""))
        text = str(config.get("experiment-yaml", ""))
        folder, site = state_folder(context), site_overrides(context)
        key = (experiment, overrides, text, str(folder), *site, str(context.node_config.get(SITE_DATA, "")))
        if self._worker is None or key != self._key:
            self._worker = None  # its model and data go before others come
            composed = load(experiment, [*split_overrides(overrides), *site], text or None)
            self._key, self._worker = key, Worker(composed, folder, own_site(context, composed))
        return self._worker

    def forget(self) -> None:
        """Let the worker go: its run is over."""
        self._key, self._worker = (), None


process = Process()


def state_folder(context: NodeContext) -> Path:
    """Return the folder for client memory: the node's `state-folder`, $UMBEL_STATE, or ~/.umbel/state."""
    configured = context.node_config.get("state-folder") or os.environ.get(STATE_FOLDER)
    return Path(str(configured)) if configured else Path.home() / ".umbel" / "state"


def site_overrides(context: NodeContext) -> list[str]:
    """Return what a site decides for itself, out of its node's configuration: `device` and `data-path`."""
    keys = {"device": "client.device", "data-path": "data.path"}
    return [f"{key}={context.node_config[name]}" for name, key in keys.items() if name in context.node_config]


def own_site(context: NodeContext, experiment: Experiment) -> OwnSite | None:
    """Return the site whose data file the node's configuration names as `site-data`, with its clients.

    Raises:
        ExperimentError: The path is a relative one: the client's process runs in a folder of its own.
    """
    file = context.node_config.get(SITE_DATA)
    if file is None or not is_own(experiment):
        return None
    if not Path(str(file)).expanduser().is_absolute():
        raise ExperimentError(
            f"{SITE_DATA}={file} is a relative path.", key=SITE_DATA, remedy="Write it from the root, /, on."
        )
    return OwnSite(str(file), tuple(sorted(partitions_of(context, experiment.data.num_clients))))


def partitions_of(context: NodeContext, num_clients: int) -> list[int]:
    """Return the clients that this node holds.

    The node's configuration says `partitions` ("0-24,30") or `partition-id` and `num-partitions`, as Flower's
    simulation does.
    """
    config = context.node_config
    if "partitions" in config:
        named = clients.parse(str(config["partitions"]), "partitions")
        return [client for part in named for client in part if client < num_clients]
    index, num_nodes = int(config.get("partition-id", 0)), int(config.get("num-partitions", 1))
    return list(held_by(index, num_nodes, num_clients))


def answer(kind: str, asked: Mapping[str, Any], context: NodeContext) -> dict[str, Any]:
    """Answer what a node is asked before it works.

    Args:
        kind: `HELLO`: which clients it holds, with how many examples, and what it composed. The data are loaded for it,
            as the node's first work would do; a site's key signs it where the node's configuration has `site-key`. A
            warm node signs outside of this process, which then has no key. `AGREE`: what, of a site's own data, all
            sites have to agree on before the first round.
        asked: The question.
        context: The node's.

    Raises:
        ValueError: There is no such question.
    """
    worker = process.worker(context)
    if kind == AGREE:
        return worker.agree(dict(asked))
    if kind != HELLO:
        raise ValueError(f"Nobody answers what is called {kind!r}.")
    held = partitions_of(context, worker.experiment.data.num_clients)
    said = greeting(held, worker.config_hash, worker.declared(held))
    if key := context.node_config.get("site-key"):
        from umbel.core.wire.identity import greeting_signature, read_key  # here: most nodes do without

        said["site"] = greeting_signature(read_key(Path(str(key))), dict(asked), context.node_id, said)
    return said

"""What the ClientApp answers: which clients a node holds, and every phase of every strategy on every engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message

from umbel.client.worker import Worker
from umbel.conf.load import load, split_overrides
from umbel.core.messages import decode_work, encode_json, encode_outcome
from umbel.core.work import held_by

STATE_FOLDER = "UMBEL_STATE"  # where a site keeps its clients' memory


class Process:
    """What this process keeps between messages: the worker of the run that it serves, and who follows its clients.

    Attributes:
        on_client: Called after each client that runs in this process.
    """

    def __init__(self) -> None:
        self.on_client: Callable[[int], None] | None = None
        self._key: tuple[str, ...] = ()
        self._worker: Worker | None = None

    def worker(self, context: Context) -> Worker:
        """Return the worker for a run's experiment; it is made once, and anew for another run's."""
        config = context.run_config
        experiment, overrides = str(config["experiment"]), str(config.get("overrides", ""))
        text = str(config.get("experiment-yaml", ""))
        folder, site = state_folder(context), site_overrides(context)
        key = (experiment, overrides, text, str(folder), *site)
        if self._worker is None or key != self._key:
            self._worker = None  # its model and data go before others come
            composed = load(experiment, [*split_overrides(overrides), *site], text or None)
            self._key, self._worker = key, Worker(composed, folder)
        return self._worker


process = Process()


def state_folder(context: Context) -> Path:
    """Return the folder for client memory: the node's `state-folder`, $UMBEL_STATE, or ~/.umbel/state."""
    configured = context.node_config.get("state-folder") or os.environ.get(STATE_FOLDER)
    return Path(str(configured)) if configured else Path.home() / ".umbel" / "state"


def site_overrides(context: Context) -> list[str]:
    """Return what a site decides for itself, out of its node's configuration: `device` and `data-path`."""
    keys = {"device": "client.device", "data-path": "data.path"}
    return [f"{key}={context.node_config[name]}" for name, key in keys.items() if name in context.node_config]


def partitions_of(context: Context, num_clients: int) -> list[int]:
    """Return the clients that this node holds.

    The node's configuration says `partitions` ("0-24,30") or `partition-id` and `num-partitions`, as Flower's
    simulation does.
    """
    config = context.node_config
    if "partitions" in config:
        held: list[int] = []
        for part in str(config["partitions"]).split(","):
            first, _, last = part.partition("-")
            held.extend(range(int(first), int(last or first) + 1))
        return [client for client in held if client < num_clients]
    index, num_nodes = int(config.get("partition-id", 0)), int(config.get("num-partitions", 1))
    return list(held_by(index, num_nodes, num_clients))


def hello(message: Message, context: Context) -> Message:
    """Say which clients this node holds and what it composed."""
    worker = process.worker(context)
    answer = {
        "partitions": partitions_of(context, worker.experiment.data.num_clients),
        "config_hash": worker.config_hash,
    }
    return Message(encode_json(answer), reply_to=message)


def phase(message: Message, context: Context) -> Message:
    """Run a phase of a round for the clients that the message names; `evaluate` is one of them."""
    work, payload = decode_work(message.content)
    outcome = process.worker(context).run(work, payload, process.on_client)
    return Message(encode_outcome(outcome), reply_to=message)

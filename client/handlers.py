"""What the ClientApp answers: which clients a node holds, and every phase of every strategy on every engine."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context, Message

from umbel.client.greeting import greeting
from umbel.client.worker import Worker
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import OwnSite
from umbel.conf.load import load, split_overrides
from umbel.conf.own_data import is_own
from umbel.conf.schema import Experiment
from umbel.core import clients
from umbel.core.wire.identity import greeting_signature, read_key
from umbel.core.wire.messages import decode_json, decode_work, encode_json, encode_outcome
from umbel.core.wire.work import held_by

SITE_DATA = "site-data"  # key of a node's configuration: its site's data file
STATE_FOLDER = "UMBEL_STATE"  # where a site keeps its clients' memory


class Process:
    """What this process keeps between messages: the worker of the run that it serves."""

    def __init__(self) -> None:
        self._key: tuple[str, ...] = ()
        self._worker: Worker | None = None

    def worker(self, context: Context) -> Worker:
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


def state_folder(context: Context) -> Path:
    """Return the folder for client memory: the node's `state-folder`, $UMBEL_STATE, or ~/.umbel/state."""
    configured = context.node_config.get("state-folder") or os.environ.get(STATE_FOLDER)
    return Path(str(configured)) if configured else Path.home() / ".umbel" / "state"


def site_overrides(context: Context) -> list[str]:
    """Return what a site decides for itself, out of its node's configuration: `device` and `data-path`."""
    keys = {"device": "client.device", "data-path": "data.path"}
    return [f"{key}={context.node_config[name]}" for name, key in keys.items() if name in context.node_config]


def own_site(context: Context, experiment: Experiment) -> OwnSite | None:
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


def partitions_of(context: Context, num_clients: int) -> list[int]:
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


def hello(message: Message, context: Context) -> Message:
    """Say which clients this node holds, with how many examples, and what it composed.

    The data are loaded for it, as the node's first work would do; a site's key signs it where the node's configuration
    has `site-key`. A warm node signs outside of this process, which then has no key.
    """
    worker = process.worker(context)
    held = partitions_of(context, worker.experiment.data.num_clients)
    answer = greeting(held, worker.config_hash, worker.declared(held))
    if key := context.node_config.get("site-key"):
        asked = decode_json(message.content)
        answer["site"] = greeting_signature(read_key(Path(str(key))), asked, context.node_id, answer)
    return Message(encode_json(answer), reply_to=message)


def agree(message: Message, context: Context) -> Message:
    """Say of a site's own data what all sites have to agree on before the first round."""
    return Message(encode_json(process.worker(context).agree(decode_json(message.content))), reply_to=message)


def phase(message: Message, context: Context) -> Message:
    """Run a phase of a round for the clients that the message names; `evaluate` is one of them."""
    work, payload = decode_work(message.content)
    outcome = process.worker(context).run(work, payload)
    return Message(encode_outcome(outcome), reply_to=message)

"""The ClientApp: which clients a node holds, and what its site decides."""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from tests.flower_apps import make_context
from umbel.client import handlers
from umbel.client import process as of_process
from umbel.conf.federation import federation
from umbel.conf.load import portable_hash
from umbel.core.wire.identity import fingerprint, greeting_content, new_key, verify, write_key
from umbel.core.wire.messages import decode_json, encode_json
from umbel.server.flower.internals import identify
from umbel.simulations.engines.local import NODE

RUN = {"experiment": "digits", "overrides": "model.name=cnn data.num_clients=10 'data.max_train=100'"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, list(range(10))),
        ({"partition-id": 0, "num-partitions": 3}, [0, 1, 2]),
        ({"partition-id": 2, "num-partitions": 3}, [6, 7, 8, 9]),
        ({"partition-id": 3, "num-partitions": 20}, [1]),
        ({"partitions": "0-2,7"}, [0, 1, 2, 7]),
        ({"partitions": "8-12"}, [8, 9]),
    ],
)
def test_partitions_of_a_node(config: dict[str, int | str], expected: list[int]) -> None:
    assert of_process.partitions_of(make_context(RUN, config), 10) == expected


@pytest.mark.parametrize("num_nodes", [1, 3, 4, 7])
def test_every_client_is_held_once(num_nodes: int) -> None:
    contexts = [make_context(RUN, {"partition-id": i, "num-partitions": num_nodes}) for i in range(num_nodes)]
    held = [client for context in contexts for client in of_process.partitions_of(context, 10)]
    assert held == list(range(10))


def test_a_site_sets_its_own_device_and_path(tmp_path: Path) -> None:
    """They are not part of what server and clients must agree on."""
    plain = of_process.process.worker(make_context(RUN, {"state-folder": str(tmp_path)}))
    site = {"state-folder": str(tmp_path), "device": "cpu", "data-path": "/site/data"}
    own = of_process.process.worker(make_context(RUN, site))
    assert (own.experiment.client.device, own.experiment.data.path) == ("cpu", "/site/data")
    assert own.config_hash == plain.config_hash == portable_hash(plain.experiment)


def test_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_STATE", str(tmp_path / "environment"))
    assert of_process.state_folder(make_context(RUN, {})) == tmp_path / "environment"
    assert of_process.state_folder(make_context(RUN, {"state-folder": "/node"})) == Path("/node")


def greeted(node_config: dict[str, int | str]) -> dict[str, Any]:
    """What a node answers when it is greeted."""
    asked = Message(encode_json({"hello": "hash", "challenge": "c0ffee", "run": "a run"}), NODE, "query")
    return decode_json(handlers.hello(asked, make_context(RUN, node_config)).content)


def test_a_node_says_how_many_examples_its_clients_have(tmp_path: Path) -> None:
    identify()
    config = {"partitions": "2-3", "state-folder": str(tmp_path)}
    said = greeted(config)
    data = federation(of_process.process.worker(make_context(RUN, config)).experiment)
    assert said["examples"] == {str(client): int(data.num_train[client]) for client in (2, 3)}
    assert said["partitions"] == [2, 3] and said["version"] == metadata.version("umbel")
    assert abs(said["time"] - time.time()) < 60
    assert "site" not in said


def test_a_stock_node_signs_with_the_key_that_its_configuration_names(tmp_path: Path) -> None:
    identify()
    key = new_key()
    write_key(tmp_path / "site.key", key)
    said = greeted({"partitions": "2-3", "state-folder": str(tmp_path), "site-key": str(tmp_path / "site.key")})
    content = greeting_content("c0ffee", "a run", NODE, said)
    assert said["site"]["key"] == fingerprint(key)
    assert verify(key.public_key(), "greeting", content, said["site"]["signature"])

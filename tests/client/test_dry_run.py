"""What a site sees before anything is sent is, word for word, what its node then says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from flwr.app import Message

from tests.data.sites.makers import SIDE, folder, site
from tests.flower_apps import make_context
from umbel.client import handlers
from umbel.client.node.site_data import dry_run
from umbel.conf.load import load, portable_hash
from umbel.core.refusal import Refusal
from umbel.core.wire.messages import decode_json, encode_json
from umbel.server.flower.internals import identify
from umbel.simulations.api import run_config
from umbel.simulations.commands.main import main
from umbel.simulations.engines.local import NODE

DATA = {"name": "sites", "num_clients": 4, "image_size": SIDE, "channels": 3, "client_test": 0.2}
CLIENTS = [range(1, 2), range(3, 4)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A site of two clients with a class that the experiment does not know, and its data file with and without it."""
    folder(tmp_path / "south", {"east/ant": 4, "east/cat": 8, "west/cat": 3, "west/dog": 10})
    content = {"name": "south", "source": "image_folder", "path": "south", "layout": "client/class"}
    site(tmp_path / "strange.yaml", **content)
    site(tmp_path / "south.yaml", **content, classes={"ant": None})
    return tmp_path


def experiment(place: Path, classes: Any, **more: object) -> str:
    """Write an experiment, and return its path."""
    (place / "animals.yaml").write_text(yaml.safe_dump({"data": {**DATA, "classes": classes, **more}}))
    return str(place / "animals.yaml")


def printed(place: Path, path: str, clients: list[range]) -> tuple[list[str], list[dict[str, Any]]]:
    """What a dry run says, and of that what would be sent."""
    lines: list[str] = []
    assert dry_run(place / "south.yaml", path, say=lines.append, clients=clients) == 2
    return lines, [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.parametrize("more", [{}, {"mean": [0.5] * 3, "std": [0.2] * 3}], ids=["sums", "no sums"])
@pytest.mark.parametrize("classes", [["cat", "dog", "zebra"], "union", "intersection"], ids=str)
def test_what_is_printed_is_what_the_node_says(classes: Any, more: dict[str, Any], place: Path) -> None:
    identify()
    path = experiment(place, classes, **more)
    composed = load(path, ["engine.name=grpc"])
    config = {"partitions": "1,3", "site-data": str(place / "south.yaml"), "state-folder": str(place)}
    context = make_context(run_config(composed), config)
    lines, (greeting, counts, sums) = printed(place, path, CLIENTS)
    asked = Message(encode_json({"hello": "", "challenge": "c0ffee", "run": "a run"}), NODE, "query")
    said = decode_json(handlers.hello(asked, context).content)
    assert abs(greeting.pop("time") - said.pop("time")) < 60 and said["config_hash"] == portable_hash(composed)
    assert greeting == said and set(said) == {"partitions", "config_hash", "examples", "classes", "sites", "version"}
    assert said["partitions"] == [1, 3] and sum(said["examples"].values()) == 6 + 10
    question = {"agree": said["config_hash"], "clients": [1, 3]}
    names = ["cat", "dog"] if isinstance(classes, str) else classes
    for content, step in ((counts, {}), (sums, {"classes": names, "sums": not more})):
        asked = Message(encode_json({**question, **step}), NODE, "query.agree")
        assert decode_json(handlers.agree(asked, context).content) == content
    assert ("sums" in sums) == (not more)
    unknown = any("these sums are over all classes of this site" in line for line in lines)
    assert unknown == (classes == "intersection" and not more)
    assert any("client 1 of this site (client 3 of the federation): 10 to train" in line for line in lines)
    assert not any("counted from 0" in line for line in lines)
    assert str(place) not in json.dumps([greeting, counts, sums])


def test_without_the_clients_numbers_they_are_counted_and_that_is_said(place: Path) -> None:
    path = experiment(place, ["cat", "dog", "zebra"])
    lines, (greeting, counts, sums) = printed(place, path, [])
    assert greeting["partitions"] == [0, 1] and greeting["examples"] == {"0": 6, "1": 10}
    assert greeting["config_hash"] == portable_hash(load(path, ["engine.name=grpc"]))
    assert abs(greeting["time"] - time.time()) < 60
    assert {c: {s: sum(own.values()) for s, own in each.items()} for c, each in counts["counts"].items()} == {
        "0": {"train": 6, "validation": 0, "test": 2},
        "1": {"train": 10, "validation": 0, "test": 3},
    }
    assert int(sums["sums"]["num_pixels"]) == 16 * SIDE * SIDE
    assert any("Clients are counted from 0 here" in line for line in lines)
    assert any("the name of the key, and its signature" in line for line in lines)


def test_more_clients_than_the_experiment_has_are_refused(place: Path) -> None:
    with pytest.raises(Refusal, match=r"This site has the client 4, and the experiment data\.num_clients=4"):
        printed(place, experiment(place, "union"), [range(3, 5)])


def test_the_command_prints_it_and_refuses_by_name(place: Path) -> None:
    command, path = ["data", "check-site"], experiment(place, ["cat", "dog", "zebra"])
    done = CliRunner().invoke(main, [*command, str(place / "south.yaml"), path])
    assert done.exit_code == 0, done.output
    assert "class cat: 11" in done.output
    assert "client 1 of this site: 10 to train, 0 to validate, 3 to test with" in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("{")]) == 3
    strange = CliRunner().invoke(main, [*command, str(place / "strange.yaml"), path])
    assert strange.exit_code == 2
    assert "site south has class 'ant'" in strange.output
    alone = CliRunner().invoke(main, [*command, str(place / "strange.yaml")])
    assert alone.exit_code == 0, alone.output
    assert "class ant: 4" in alone.output

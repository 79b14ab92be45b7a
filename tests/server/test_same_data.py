"""Where all have one set, a node with another is refused by name, whatever its experiment's hash says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.data.sites.makers import SIDE, folder
from tests.server.fakes import Greeted
from umbel.client.worker import Worker
from umbel.conf.federation import federation
from umbel.conf.load import load
from umbel.conf.schema import Experiment
from umbel.data.sites.agreement import Agreement
from umbel.server.errors import RunStoppedError
from umbel.server.nodes import Directory, Told
from umbel.server.same_data import agreed_data, same_data


def experiment(place: Path, counts: Mapping[str, int]) -> Experiment:
    """Four clients of a folder; every node has its own `data-path`, which the hash does not see."""
    root = folder(place, counts)
    options = f"data.options={{image_size: {SIDE}}}"
    asked = ["data.name=image_folder", f"data.path={root}", options, "data.num_clients=4", "data.partition=iid"]
    return load("digits", [*asked, "model.name=linear", "model.sizes={}"])


def answer(asked: Experiment, memory: Path) -> dict[str, Any]:
    """What the node of an experiment says of itself."""
    worker = Worker(asked, memory)
    return {"partitions": [2, 3], "config_hash": worker.config_hash, **worker.declared([2, 3])}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"ant": 20, "cat": 20, "dog": 20}, "its class 0 is 'ant', and the server's is 'cat'"),
        ({"cat": 20, "dog": 20, "zebra": 40}, "its client 2 has "),
    ],
)
def test_a_node_with_other_data_is_refused_by_name(other: Mapping[str, int], reason: str, tmp_path: Path) -> None:
    ours = experiment(tmp_path / "ours", {"cat": 20, "dog": 20, "zebra": 20})
    same, strange = (answer(each, tmp_path / "memory") for each in (ours, experiment(tmp_path / "other", other)))
    assert same["config_hash"] == strange["config_hash"]
    data = federation(ours)
    told = Directory(Greeted({1: {**same, "partitions": [2, 3]}}), same["config_hash"], 4, 0.0)
    told.hold_to(same_data(data))
    told.refresh()
    assert told.split([2, 3]) == ({1: frozenset({2, 3})}, [])
    directory = Directory(Greeted({7: strange}), same["config_hash"], 4, 0.0)
    directory.hold_to(same_data(data))
    with pytest.raises(RunStoppedError) as stopped:
        directory.wait()
    assert f"Node 7 was refused: {reason}" in str(stopped.value)
    assert "data.name=sites" in str(stopped.value)


def test_what_a_node_does_not_say_is_not_held_against_it(tmp_path: Path) -> None:
    ours = experiment(tmp_path / "ours", {"cat": 20, "dog": 20})
    known = {"partitions": [0, 1, 2, 3], "config_hash": "hash"}
    directory = Directory(Greeted({1: known}), "hash", 4, 0.0)
    directory.hold_to(same_data(federation(ours)))
    directory.wait()
    assert directory.split([3]) == ({1: frozenset({3})}, [])


AGREED = Agreement(
    ("cat", "dog"),
    (),
    (),
    {0: "north", 1: "south"},
    {
        0: {"train": {"cat": 3, "dog": 2}, "validation": {}, "test": {"cat": 9}},
        1: {"train": {"dog": 5}, "validation": {}, "test": {}},
    },
)
HOLDS = {"classes": {"0": {"cat": 3, "dog": 2, "ox": 8}}, "sites": {"0": "north"}}  # an ox is nobody's business


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (HOLDS, ""),
        ({"classes": {"0": {"cat": 3, "dog": 2}, "1": {"dog": 5}}, "sites": {"0": "north", "1": "south"}}, ""),
        ({}, "it does not say what its clients have"),
        ({"classes": HOLDS["classes"]}, "it does not say what its clients have"),
        ({**HOLDS, "sites": {"0": "south"}}, "its client 0 is of the site south, and was of north"),
        ({**HOLDS, "sites": {}}, "its client 0 is of the site None, and was of north"),
        ({**HOLDS, "classes": {"0": {"cat": 4, "dog": 2}}}, "had 3 examples of 'cat' to train on, and has 4"),
        ({**HOLDS, "classes": {"0": {"cat": 3}}}, "had 2 examples of 'dog' to train on, and has 0"),
        ({**HOLDS, "classes": {}}, "had 3 examples of 'cat' to train on, and has 0"),
        ({**HOLDS, "classes": {"0": "cats"}}, "had 3 examples of 'cat' to train on, and has 0"),
        ({**HOLDS, "classes": {"0": {"cat": "\x1b[2J" * 300}}}, "had 3 examples of 'cat' to train on, and has"),
    ],
)
def test_own_data_stay_those_that_were_agreed_on(said: Mapping[str, Any], reason: str) -> None:
    held = sorted(map(int, said.get("sites", {}))) or [0]
    node = {"partitions": held, "config_hash": "hash", **said}
    told = list[str]()
    directory = Directory(Greeted({1: node}), "hash", 2, 0.0, told=Told(told.append))
    directory.hold_to(agreed_data(AGREED))
    directory.refresh()
    assert directory.split(held)[1] == (held if reason else [])
    assert len(told) == bool(reason)
    if reason:
        assert told[0].startswith("Node 1 was refused: ") and reason in told[0]
        assert told[0].isprintable() and len(told[0]) < 600

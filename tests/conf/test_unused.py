"""Keys of other engines: said, and by every engine in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import Notices
from umbel import run
from umbel.conf.load import load
from umbel.conf.unused import unused

SMALL = ("data.num_clients=2", "data.max_train=100", "client.max_steps=1", "run.rounds=1", "evaluate.every=0")


def test_inline_says_that_it_has_no_workers(tmp_path: Path) -> None:
    told = Notices()
    run("digits", *SMALL, "engine.workers=3", f"run.results={tmp_path}", listener=told)
    expected = "engine.workers=3 is of engine.name=processes and engine.name=ray; engine.name=inline does not read it."
    assert told.texts.count(expected) == 1


@pytest.mark.parametrize("engine", ["inline", "processes", "ray", "grpc"])
def test_a_key_is_told_where_it_is_not_read(engine: str) -> None:
    keys = {"workers": "2", "gpus_per_worker": "0.5", "ray_address": "auto", "nodes": "2"}
    read = {"processes": ["workers", "gpus_per_worker"], "ray": ["workers", "gpus_per_worker", "ray_address"]}
    read["grpc"] = ["nodes"]
    composed = load("digits", [f"engine.name={engine}", *(f"engine.{key}={value}" for key, value in keys.items())])
    told = [text.partition("=")[0].removeprefix("engine.") for text in unused(composed.engine)]
    assert told == [key for key in keys if key not in read.get(engine, [])]
    assert not unused(load("digits", [f"engine.name={engine}"]).engine)

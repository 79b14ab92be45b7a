"""The scripts of the images alone: which command they make of their variables, and what they refuse."""

from __future__ import annotations

import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.places import ROOT
from tests.project.docker.images import DOCKER, image_command, image_environment, run


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A folder with Flower commands that only print their arguments, one a line."""
    for name in ("flower-superlink", "flower-supernode"):
        fake = tmp_path / name
        fake.write_text('#!/bin/sh\nprintf \'%s\\n\' "$0" "$@"\n')
        fake.chmod(0o755)
    return tmp_path


def scripted(image: str, folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**image_environment(image), **settings, "PATH": f"{folder}:/usr/bin:/bin"}
    return run(*image_command(image, *arguments), env=environment)


def test_server_command(recorder: Path) -> None:
    words = scripted("server", recorder, "--database", "/umbel/flwr/link.db").stdout.splitlines()
    assert words[0].endswith("/flower-superlink")
    assert words[1:] == shlex.split(
        "--insecure --disable-runtime-dependency-installation --fleet-api-type grpc-rere "
        "--fleet-api-address 0.0.0.0:9092 --host 0.0.0.0 --port 8000 --health-server-address 127.0.0.1:9095 "
        "--database /umbel/flwr/link.db"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "partition-id=0 num-partitions=1"),
        ({"UMBEL_PARTITION_ID": "3", "UMBEL_NUM_PARTITIONS": "4"}, "partition-id=3 num-partitions=4"),
        ({"UMBEL_PARTITIONS": "0-24,30"}, 'partitions="0-24,30"'),
        ({"UMBEL_NODE_CONFIG": "site='a b'"}, "partition-id=0 num-partitions=1 site='a b'"),
    ],
)
def test_client_command(recorder: Path, settings: dict[str, str], expected: str) -> None:
    words = scripted("client", recorder, UMBEL_SUPERLINK="server:9092", **settings).stdout.splitlines()
    assert words[0].endswith("/flower-supernode")
    assert words[words.index("--superlink") + 1] == "server:9092"
    assert words[words.index("--node-config") + 1] == expected
    assert {"--insecure", "--grpc-rere"} <= set(words)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"UMBEL_PARTITION_ID": "one"}, "UMBEL_PARTITION_ID must be a whole number, found 'one'"),
        ({"UMBEL_NUM_PARTITIONS": ""}, "UMBEL_NUM_PARTITIONS must be a whole number, found ''"),
        ({"UMBEL_PARTITION_ID": "4", "UMBEL_NUM_PARTITIONS": "4"}, "must be below UMBEL_NUM_PARTITIONS=4"),
        ({"UMBEL_PARTITIONS": "all"}, "UMBEL_PARTITIONS must look like 0-24,30, found 'all'"),
    ],
)
def test_client_refuses(recorder: Path, settings: dict[str, str], message: str) -> None:
    result = scripted("client", recorder, **settings)
    assert result.returncode == 2
    assert message in result.stderr


def submission(folder: Path, *arguments: str, status: str = "finished:completed") -> tuple[dict[str, str], str, int]:
    """Run umbel-submit with a `flwr` that keeps the run configuration; return it, stderr and the exit code."""
    fake = folder / "flwr"
    fake.write_text(
        '#!/bin/sh\ncase $1 in\nrun) cp "$5" "$KEPT"; printf \'{\\n  "run-id": "7",\\n}\\n\' ;;\n'
        'list) printf \'{\\n  "status": "%s",\\n}\\n\' "$STATUS" ;;\nesac\n'
    )
    fake.chmod(0o755)
    kept = folder / "kept.toml"
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "UMBEL_APP": str(ROOT),
        "TMPDIR": str(folder),
        "KEPT": str(kept),
        "STATUS": status,
    }
    before = set(folder.iterdir())
    result = run("sh", DOCKER / "submit.sh", *arguments, env=environment)
    assert set(folder.iterdir()) - before <= {kept}, "the folder of its own is gone"
    content = tomllib.loads(kept.read_text()) if kept.is_file() else {}
    return content, result.stderr, result.returncode


def test_submit_passes_experiment_and_overrides(tmp_path: Path) -> None:
    content, _, code = submission(tmp_path, "digits", "run.rounds=3", 'run.name="a \\ b"')
    assert code == 0
    assert content == {
        "experiment": "digits",
        "overrides": 'run.rounds=3\nrun.name="a \\ b"\n',
        "experiment-yaml": "",
    }
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert content.keys() <= known.keys()


def test_submit_sends_the_text_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('description: "it\'s mine"\nrun: {rounds: 2}\n')
    content, _, code = submission(tmp_path, str(file))
    assert code == 0
    assert content["experiment"] == "mine"
    assert yaml.safe_load(content["experiment-yaml"]) == {"description": "it's mine", "run": {"rounds": 2}}


def test_submit_tells_a_failed_run(tmp_path: Path) -> None:
    assert submission(tmp_path, "digits", status="finished:failed")[2] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected EXPERIMENT"),
        (("digits", "rounds"), "expected KEY=VALUE, found 'rounds'"),
        (("digits", "--help=1"), "expected KEY=VALUE, found '--help=1'"),
        (("nowhere/mine.yaml",), "there is no file nowhere/mine.yaml"),
        (("digits", "run.name='''"), "three single quotes"),
    ],
)
def test_submit_refuses(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    content, error, code = submission(tmp_path, *arguments)
    assert code == 2
    assert not content
    assert message in error

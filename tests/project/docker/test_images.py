"""Images and compose file: linted, and checked against each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.project.docker.images import (
    BIN,
    COMPOSE,
    CUDA,
    DOCKER,
    IMAGES,
    NODES,
    SCRIPTS,
    STAGES,
    copied,
    image_environment,
    run,
)  # fmt: skip


def tool(name: str) -> str:
    """Return a linter beside this Python or on the path, or skip."""
    program = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        pytest.skip(f"{name} is not installed")
    return program


# --- lint ---------------------------------------------------------------------------------------------------------


def test_hadolint() -> None:
    result = run(tool("hadolint"), "--no-color", DOCKER / "Dockerfile")
    assert result.returncode == 0, result.stdout


def test_shellcheck() -> None:
    result = run(tool("shellcheck"), *SCRIPTS)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_posix(script: Path) -> None:
    assert script.read_text().startswith("#!/bin/sh\n")
    result = run("sh", "-n", script)
    assert result.returncode == 0, result.stderr


def test_compose_lint() -> None:
    """Low and medium are let pass: no digests for images built here, no limits, a writable root for now."""
    for file in ("compose.yaml", "compose.cuda.yaml"):
        result = run(tool("compose-lint"), "--fail-on", "high", DOCKER / file)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.cuda.yaml"]], ids=len)
def test_docker_compose_reads_it(files: list[str]) -> None:
    """Docker's own program checks the schema and merges the files; it needs no engine for that."""
    named = [word for file in files for word in ("-f", str(DOCKER / file))]
    result = run(tool("docker-compose"), *named, "--profile", "submit", "config", "--format", "json")
    assert result.returncode == 0, result.stderr
    merged = json.loads(result.stdout)["services"]
    assert set(merged) == {"superlink", "submit", *NODES}
    for name in NODES:
        cuda = len(files) == 2
        assert merged[name]["build"]["target"] == "client"
        assert merged[name]["image"] == f"umbel-client:{'cuda' if cuda else 'cpu'}"
        assert merged[name]["build"].get("args") == ({"TORCH_INDEX": ""} if cuda else None)
        assert bool(merged[name].get("deploy", {}).get("resources")) is cuda


# --- structure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_image_keeps_the_rules(image: str) -> None:
    stage = STAGES[image]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", stage.base)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", stage.last("USER")), "a number, so that it is seen not to be root"
    assert json.loads(stage.last("ENTRYPOINT"))[0] == "/usr/bin/tini"
    assert isinstance(json.loads(stage.last("CMD")), list)
    assert json.loads(stage.last("HEALTHCHECK").partition(" CMD ")[2]) == ["umbel-health"]
    after = [key for key, _ in stage.instructions][[key for key, _ in stage.instructions].index("USER") :]
    assert not {"RUN", "COPY"} & set(after)
    environment = image_environment(image)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["PYTHONUNBUFFERED"] == environment["OMP_NUM_THREADS"] == "1"
    assert environment["FLWR_HOME"] in json.loads(stage.last("VOLUME"))


def test_no_image_adds_builds_or_floats() -> None:
    for stage in STAGES.values():
        assert "latest" not in stage.base
        assert ":" in stage.base
        for key, value in stage.instructions:
            assert key != "ADD"
            if key == "RUN" and "pip install" in value:
                assert stage.name == "build", "pip belongs to the build stage"
                assert value.count("--no-cache-dir") == value.count("pip install")
            if key == "RUN":
                assert not re.search(r"\b(gcc|build-essential|curl|wget)\b", value)


@pytest.mark.parametrize("image", [*IMAGES, "build"])
def test_what_is_copied_is_there_and_let_through(image: str) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "everything stays out but what is named"
    allowed = {path for line in lines[1:] for path in ROOT.glob(line.removeprefix("!"))}
    assert copied(image)
    assert set(copied(image).values()) <= allowed
    assert {path.relative_to(ROOT).parts[0] for path in allowed} == {"pyproject.toml", "docker"}


def test_variables_of_the_scripts_are_documented_and_set() -> None:
    for image, script in (("server", "server.sh"), ("client", "client.sh")):
        text = (DOCKER / script).read_text()
        used = set(re.findall(r"\$\{?(UMBEL_\w+)", text))
        documented = set(re.findall(r"^#   (UMBEL_\w+) ", text, flags=re.MULTILINE))
        assert used <= documented
        assert documented <= image_environment(image).keys()


def test_compose_matches_the_images() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        build = service["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
        assert service["image"] == f"umbel-{build['target']}:cpu"
        assert build["target"] in IMAGES
        assert service["pull_policy"] == "build"
        assert set(service.get("environment", {})) <= image_environment(build["target"]).keys() | {"UMBEL_CONTROL"}
        if name != "superlink":
            assert service["depends_on"]["superlink"]["condition"] == "service_healthy"
        mounted = [v for v in service["volumes"] if isinstance(v, str)]
        assert {volume.partition(":")[0] for volume in mounted} <= COMPOSE["volumes"].keys()
        if name != "submit":
            declared = set(json.loads(STAGES[build["target"]].last("VOLUME")))
            assert {volume.partition(":")[2] for volume in mounted} == declared
            assert service["healthcheck"]["test"] == ["CMD", "umbel-health"]
    assert set(CUDA["services"]) == set(services)
    program = services["submit"]["entrypoint"][-1]
    assert f"/usr/local/bin/{program}" in copied("server")


def test_nodes_of_the_compose_file_share_all_clients() -> None:
    settings = [COMPOSE["services"][name]["environment"] for name in NODES]
    assert {each["UMBEL_NUM_PARTITIONS"] for each in settings} == {str(len(NODES))}
    assert [each["UMBEL_PARTITION_ID"] for each in settings] == [str(index) for index in range(len(NODES))]
    volumes = [volume for name in NODES for volume in COMPOSE["services"][name]["volumes"]]
    assert len(set(volumes)) == len(volumes), "a client's memory stays with its node"


def test_requirements_come_from_pyproject() -> None:
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    command = ("env", "-i", sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml")
    assert run(*command).stdout.splitlines() == expected
    assert run(*command, "torch").stdout.splitlines() == [e for e in expected if re.match(r"torch\b", e)]
    wrong = run(*command, "torchh")
    assert wrong.returncode != 0
    assert "no dependency called 'torchh'" in wrong.stderr

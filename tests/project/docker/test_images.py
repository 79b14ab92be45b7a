"""Images and compose file: linted, and checked against each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.project.docker.images import (
    COMPOSE,
    CUDA,
    DOCKER,
    IMAGES,
    SITES,
    STAGES,
    command,
    copied,
    image_environment,
    mounted,
    run,
    tool,
)
from umbel.simulations.commands.federate import federate

SERVICES = COMPOSE["services"]
TOOLS = ("init", "admin", "submit")
FILES = ("compose.yaml", "compose.cuda.yaml")
# Images that are built here have no digest, and a host with fewer cores than a limit names would not start them.
LET_PASS = {"CL-0019", "CL-0026"}
# What compose.yaml says, over which it is laid.
SAID_BELOW = {"CL-0003", "CL-0006", "CL-0007"}


# --- lint ---------------------------------------------------------------------------------------------------------


def test_hadolint() -> None:
    result = run(tool("hadolint"), "--no-color", DOCKER / "Dockerfile")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("file", FILES)
def test_compose_lint(file: str) -> None:
    result = run(tool("compose-lint"), "check", "--format", "json", DOCKER / file)
    rules = {each["rule_id"] for each in json.loads(result.stdout)["findings"] if not each.get("suppressed")}
    assert rules <= LET_PASS | (SAID_BELOW if "cuda" in file else set()), result.stdout


@pytest.mark.parametrize("file", FILES)
def test_compose_files_are_of_the_specification(file: str) -> None:
    result = run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", DOCKER / file)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("files", [FILES[:1], FILES], ids=len)
def test_docker_compose_reads_it(files: tuple[str, ...]) -> None:
    """Docker's own program checks the schema and merges the files; it needs no engine for that."""
    named = [word for file in files for word in ("-f", str(DOCKER / file))]
    result = run(tool("docker-compose"), *named, "--profile", "tools", "config", "--format", "json")
    assert result.returncode == 0, result.stderr
    merged = json.loads(result.stdout)["services"]
    assert set(merged) == {"server", *SITES, *TOOLS}
    cuda = len(files) == 2
    for name, service in merged.items():
        target = "client" if name in SITES else "server"
        assert service["build"]["target"] == target
        assert service["image"] == f"umbel-{target}:{'cuda' if cuda else 'cpu'}"
        assert service["build"].get("args") == ({"TORCH_INDEX": ""} if cuda else None)
        assert service["read_only"] is True
        reserved = service["deploy"]["resources"].get("reservations", {}).get("devices")
        assert bool(reserved) is (cuda and name not in TOOLS)
        assert service["deploy"]["resources"]["limits"]["pids"] == 512


# --- structure ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES)
def test_image_keeps_the_rules(image: str) -> None:
    stage = STAGES[image]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", stage.base)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", stage.last("USER")), "a number, so that it is seen not to be root"
    assert json.loads(stage.last("ENTRYPOINT")) == ["/usr/bin/tini", "--", "umbel", "federate"]
    name, folder = json.loads(stage.last("CMD"))
    assert name in federate.commands
    assert json.loads(stage.last("HEALTHCHECK").partition(" CMD ")[2]) == ["umbel-health", folder]
    after = [key for key, _ in stage.instructions][[key for key, _ in stage.instructions].index("USER") :]
    assert not {"RUN", "COPY"} & set(after)
    environment = image_environment(image)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["PYTHONUNBUFFERED"] == environment["OMP_NUM_THREADS"] == "1"
    assert environment["HOME"] == "/tmp"
    assert environment["UMBEL_CACHE"].startswith(f"{folder}/"), "on a disk, not in memory"


def test_ports_of_the_images() -> None:
    assert STAGES["server"].last("EXPOSE") == "9092"
    assert "EXPOSE" not in [key for key, _ in STAGES["client"].instructions]


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


def let_through() -> list[str]:
    """Return the paths that .dockerignore lets through, as it names them."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*", "everything stays out but what is named"
    return [line.removeprefix("!") for line in lines[1:] if line.startswith("!")]


@pytest.mark.parametrize("image", [*IMAGES, "build"])
def test_what_is_copied_is_there_and_let_through(image: str) -> None:
    allowed = {path for pattern in let_through() for path in ROOT.glob(pattern)}
    assert copied(image)
    assert set(copied(image).values()) <= allowed


def test_the_build_has_the_whole_project(tmp_path: Path) -> None:
    """A wheel of what COPY brings has each module and YAML file that the project has."""
    for target, source in copied("build").items():
        if target != "./requirements.py":
            (tmp_path / target).symlink_to(source)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "wheels"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "wheels").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in packages["only-include"]:
        files = [file for end in ("*.py", "*.yaml", "*.jinja") for file in (ROOT / package).rglob(end)]
        inside = "" if package == "umbel" else "umbel/"
        assert files
        assert {f"{inside}{file.relative_to(ROOT)}" for file in files} <= names
    assert {"umbel/bundle/pyproject.toml", "umbel/bundle/README.md", "umbel/bundle/LICENSE"} <= names


def test_nothing_in_the_compose_file_has_a_privilege() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert [each.partition(":")[0] for each in service["tmpfs"]] == ["/tmp"]
        assert set(service["deploy"]["resources"]["limits"]) == {"memory", "pids"}
        assert not {"privileged", "cap_add", "devices", "pid", "ipc", "user", "userns_mode"} & set(service)


def test_compose_matches_the_images() -> None:
    for name, service in SERVICES.items():
        build = service["build"]
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
        assert build["target"] == ("client" if name in SITES else "server")
        assert service["image"] == f"umbel-{build['target']}:cpu"
        assert service["pull_policy"] == "build"
        if name in TOOLS:
            assert service["profiles"] == ["tools"], "it is not started by `up`"
            assert service["healthcheck"] == {"disable": True}
        else:
            image = STAGES[build["target"]]
            health = json.loads(image.last("HEALTHCHECK").partition(" CMD ")[2])
            assert service["healthcheck"]["test"] == ["CMD", *health]
            assert set(mounted(name)) == {health[1]}, "its own folder and no other"
    assert set(CUDA["services"]) == set(SERVICES)


def test_sites_see_their_folder_and_the_server_alone() -> None:
    for name in SITES:
        assert mounted(name) == {"/umbel/site": f"federation/sites/{name}"}
        assert SERVICES[name]["networks"] == [name]
        assert COMPOSE["networks"][name] == {"internal": True}
        assert "ports" not in SERVICES[name]
        assert SERVICES[name]["depends_on"]["server"]["condition"] == "service_healthy"
    assert SERVICES["server"]["networks"] == ["outside", *SITES]
    assert mounted("server") == {"/umbel/federation": "federation/server"}
    holders = [name for name in SERVICES if "." in mounted(name).values()]
    assert holders == ["init", "admin"], "nobody else sees the authority"
    assert {SERVICES[name]["network_mode"] for name in holders} == {"none"}


def test_the_control_port_is_published_nowhere() -> None:
    assert [port.rpartition(":")[2] for port in SERVICES["server"]["ports"]] == ["9092"]
    assert SERVICES["submit"]["network_mode"] == "service:server"
    words = command("server", "submit")
    assert words[words.index("--control") + 1] == "127.0.0.1:8000"
    assert [name for name in SERVICES if "ports" in SERVICES[name]] == ["server"]


def test_variables_are_documented() -> None:
    used = {name for file in FILES for name in re.findall(r"\$\{(\w+)", (DOCKER / file).read_text())}
    used |= {name for image in IMAGES for name in image_environment(image) if name.startswith("UMBEL_")}
    documented = set(re.findall(r"`(UMBEL_\w+)[`=]", (DOCKER / "README.md").read_text()))
    assert used == {name for name in used if name.startswith("UMBEL_")}
    assert used == documented


def test_requirements_come_from_pyproject() -> None:
    expected = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    words = ("env", "-i", sys.executable, DOCKER / "requirements.py", ROOT / "pyproject.toml")
    assert run(*words).stdout.splitlines() == expected
    assert run(*words, "torch").stdout.splitlines() == [e for e in expected if re.match(r"torch\b", e)]
    wrong = run(*words, "torchh")
    assert wrong.returncode != 0
    assert "no dependency called 'torchh'" in wrong.stderr

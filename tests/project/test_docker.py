"""Images and compose file: linted, checked against each other, and their own commands run in a bare environment.

There need be no Docker engine: what an image would run is read out of the Dockerfile (ENTRYPOINT, CMD, ENV and the
scripts that COPY puts in place) and run here with the image's environment and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.places import ROOT

DOCKER = ROOT / "docker"
SCRIPTS = sorted(DOCKER.glob("*.sh"))
BIN = Path(sys.executable).parent
IMAGES = ("server", "client")
NODES = tuple(f"node-{index}" for index in range(4))


def tool(name: str) -> str:
    """Return a linter beside this Python or on the path, or skip."""
    found = shutil.which(name, path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, **options)


@dataclass
class Stage:
    """One stage of a Dockerfile: its instructions, and what a container of it would start with."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str:
        return [value for key, value in self.instructions if key == keyword][-1]


def parse(path: Path) -> dict[str, Stage]:
    """Read a Dockerfile; a stage that is built on an earlier one has its instructions first."""
    text = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    stages: dict[str, Stage] = {}
    variables: dict[str, str] = {}
    current: Stage | None = None
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        keyword, _, value = line.strip().partition(" ")
        value = value.strip()
        if keyword == "FROM":
            base, _, name = value.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], base)
            inherited = list(stages[base].instructions) if base in stages else []
            current = stages[name] = Stage(name, stages[base].base if base in stages else base, inherited)
        elif keyword and current is None:
            assert keyword == "ARG"
            key, _, variables[key] = value.partition("=")
        elif keyword:
            assert current is not None
            current.instructions.append((keyword, value))
    return stages


STAGES = parse(DOCKER / "Dockerfile")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
CUDA = yaml.safe_load((DOCKER / "compose.cuda.yaml").read_text())


def image_environment(image: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in STAGES[image].instructions:
        if key == "ENV":
            for pair in shlex.split(value):
                name, _, content = pair.partition("=")
                values[name] = content
    return values


def copied(image: str) -> dict[str, Path]:
    """Return what COPY puts into an image from the project: path in the image -> file here."""
    found = {}
    for key, value in STAGES[image].instructions:
        if key == "COPY" and "--from=" not in value:
            *sources, target = (word for word in value.split() if not word.startswith("--"))
            for source in sources:
                found[target + Path(source).name if target.endswith("/") else target] = ROOT / source
    return found


def image_command(image: str, *arguments: str) -> list[str]:
    """Return what an image runs, for this machine: tini left out, scripts taken from where COPY takes them."""
    entry = json.loads(STAGES[image].last("ENTRYPOINT"))
    assert entry[:2] == ["/usr/bin/tini", "--"]
    program, *rest = entry[2:]
    script = copied(image)[f"/usr/local/bin/{program}"]
    return ["sh", str(script), *rest, *(arguments or json.loads(STAGES[image].last("CMD")))]


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


# --- the scripts alone --------------------------------------------------------------------------------------------


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


# --- the images' own commands -------------------------------------------------------------------------------------


def free_ports(number: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]


class Container:
    """An image's command, in its environment and nothing else: HOME, volumes and ports are of this machine."""

    def __init__(self, image: str, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.environment = image_environment(image)
        for name, value in self.environment.items():
            if value.startswith("/umbel"):
                self.environment[name] = str(folder) + value.removeprefix("/umbel")
                Path(self.environment[name]).mkdir(parents=True, exist_ok=True)
        self.environment |= {"PATH": f"{BIN}:/usr/bin:/bin", **settings}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                image_command(image),
                cwd=folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable] if script.endswith(".py") else ["sh"]
        environment = {**self.environment, **settings}
        return subprocess.run(
            [*program, str(DOCKER / script), *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def wait_until_healthy(self, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while (result := self.run("health.py")).returncode:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, result.stderr + self.log.read_text()
            time.sleep(0.5)

    def wait_for(self, text: str, count: int, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while self.log.read_text().count(text) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{text!r} not seen {count} times in:\n{self.log.read_text()}"
            time.sleep(0.2)

    def stop(self) -> int:
        """Ask as `docker stop` does: SIGTERM, and after a while SIGKILL to all that the command started."""
        self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Federation:
    superlink: Container
    nodes: list[Container]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    with contextlib.ExitStack() as stack:
        fleet, control, *rest = free_ports(7)
        ports = iter(rest)

        def start(image: str, name: str, **settings: str) -> Container:
            (tmp_path / name).mkdir()
            container = Container(image, tmp_path / name, UMBEL_HEALTH_PORT=next(ports), **settings)
            stack.callback(container.stop)
            return container

        superlink = start(
            "server",
            "superlink",
            UMBEL_LISTEN="127.0.0.1",
            UMBEL_FLEET_PORT=fleet,
            UMBEL_CONTROL_PORT=control,
        )
        superlink.wait_until_healthy()
        nodes = [
            start(
                "client",
                f"node-{index}",
                UMBEL_SUPERLINK=f"127.0.0.1:{fleet}",
                UMBEL_PARTITION_ID=str(index),
                UMBEL_NUM_PARTITIONS="2",
                UMBEL_RUNTIME_PORT=next(ports),
            )
            for index in range(2)
        ]
        yield Federation(superlink, nodes)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.processes
def test_images_form_a_federation(federation: Federation) -> None:
    superlink, nodes = federation.superlink, federation.nodes
    for node in nodes:
        node.wait_until_healthy()
    superlink.wait_for("[Fleet.ActivateNode] Activated", len(nodes))

    closed = superlink.run("health.py", UMBEL_FLEET_PORT=free_ports(1)[0])
    assert closed.returncode == 1
    assert "is not open" in closed.stderr

    address = f"127.0.0.1:{superlink.environment['UMBEL_CONTROL_PORT']}"
    submitted = superlink.run(
        "submit.sh",
        *("digits", "run.rounds=1", "run.name=docker", "data.num_clients=4", "evaluate.clients=0"),
        UMBEL_APP=str(ROOT),
        UMBEL_CONTROL=address,
        TMPDIR=str(superlink.folder),
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr + superlink.log.read_text()
    summary = json.loads((superlink.folder / "results" / "docker" / "summary.json").read_text())
    assert summary["rounds"] == 1
    for node in nodes:
        bundles = list((Path(node.environment["FLWR_HOME"]) / "apps").glob("umbel.umbel.*/client/app.py"))
        assert bundles, "a node runs the code of the bundle"

    refused = superlink.run(
        "submit.sh", "nonsense", UMBEL_APP=str(ROOT), UMBEL_CONTROL=address, TMPDIR=str(superlink.folder)
    )
    assert refused.returncode == 1
    assert "Unknown experiment 'nonsense'" in refused.stdout

    for container in (*nodes, superlink):
        assert container.process.poll() is None
        assert container.stop() in (0, -signal.SIGTERM)
    assert superlink.run("health.py").returncode == 1

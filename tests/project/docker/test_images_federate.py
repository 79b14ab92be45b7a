"""The images' own commands as processes of this machine: a server and two nodes form a federation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.places import ROOT
from tests.project.docker.images import BIN, DOCKER, image_command, image_environment


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

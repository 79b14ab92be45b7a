"""What the images start forms a federation: bare, and held as the compose file and the manifests hold it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.project.docker.containers import Container, Machine, Networks, may_hold
from tests.project.docker.images import IMAGES, SITES, command, mounted, pod
from umbel.core.wire.identity import new_key, write_key
from umbel.simulations.api import run as run_here
from umbel.simulations.engines.processes import free_ports

SMALL = (
    *("run.rounds=2", "run.name=docker", "data.num_clients=8", "evaluate.clients=0"),
    *("model.name=cnn", "model.sizes={width: 8, hidden: 32}"),
)
LOOK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"


@dataclass
class Federation:
    """The containers of the compose file, or those of the manifests; none has been started."""

    machine: Machine
    folder: Path
    server: Container
    sites: dict[str, Container]
    submit: Container
    words: dict[str, list[str]]  # what a container of an image starts

    @property
    def homes(self) -> dict[str, str]:
        """Return where in a container of an image its folder is."""
        return {image: words[-1] for image, words in self.words.items()}

    def start(self, container: Container) -> None:
        container.start(*self.words[container.image])

    def health(self, container: Container) -> str:
        return container.health(self.homes[container.image])

    def wait_until_healthy(self, container: Container) -> None:
        container.wait_until_healthy(self.homes[container.image])


def composed(machine: Machine, whole: Path, service: str, image: str, at: str) -> Container:
    """Return the container of a service of the compose file."""
    return machine.container(image, {path: whole / part for path, part in mounted(service).items()}, at)


def volume(machine: Machine, folder: Path) -> Path:
    """Return the federation's volume, made by `init` as the compose file has it."""
    whole = folder / "volume"
    whole.mkdir()
    words = command("server", "init")
    if machine.links is None:  # on this machine others may have the ports
        fleet, control = map(str, free_ports(2))
        words = [word.replace("server,localhost", "localhost") for word in words]
        words += ["--port", fleet, "--control-port", control]
    else:
        os.chown(whole, 10001, 10001)  # as Docker does, after the folder of the image
    done = composed(machine, whole, "init", "server", "server").run(*words)
    assert done.returncode == 0, done.stderr
    return whole


def laid(machine: Machine, whole: Path, manifest: str, source: Path, at: str) -> Container:
    """Return the container of a pod whose Secret and ConfigMap are of a folder; its first container has ended."""
    mounts = {"/umbel/disk": whole / f"{at}-disk"}
    mounts |= {f"/umbel/{name}:ro": whole / f"{at}-{name}" for name in ("secret", "settings")}
    for path in mounts.values():
        path.mkdir()
        os.chown(path, 0, 10001)
    mounts["/umbel/disk"].chmod(0o2775)
    for file in source.iterdir():
        kind = "secret" if file.suffix == ".key" else "settings"
        copy = Path(shutil.copyfile(file, whole / f"{at}-{kind}" / file.name))
        os.chown(copy, 0, 10001)
        copy.chmod(0o440 if kind == "secret" else 0o644)
    made = machine.container("server" if manifest == "server" else "client", mounts, at)
    first = pod(manifest)["initContainers"][0]
    for _ in range(2):  # the pod is started again
        done = made.run(*first["command"], *first["args"])
        assert done.returncode == 0, done.stderr
    return made


def of_compose(machine: Machine, whole: Path) -> Federation:
    server = composed(machine, whole, "server", "server", "server")
    sites = {name: composed(machine, whole, name, "client", name) for name in SITES}
    submit = composed(machine, whole, "submit", "server", "server")
    words = {image: command(image) for image in IMAGES}
    return Federation(machine, whole / "federation", server, sites, submit, words)


def of_manifests(machine: Machine, whole: Path) -> Federation:
    folder = whole / "federation"
    server = laid(machine, whole, "server", folder / "server", "server")
    sites = {name: laid(machine, whole, "site", folder / "sites" / name, name) for name in SITES}
    # `kubectl port-forward` reaches the pod's loopback.
    submit = machine.container("server", {"/umbel/submitter": folder / "submitters" / "alice"}, "server")
    pods = {"server": pod("server"), "client": pod("site")}
    words = {image: ["umbel", "federate", *pod["containers"][0]["args"]] for image, pod in pods.items()}
    return Federation(machine, folder, server, sites, submit, words)


@pytest.fixture
def federation(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Federation]:
    kind = request.param
    if kind != "bare" and not may_hold():
        pytest.skip("no right to make namespaces")
    with contextlib.ExitStack() as stack:
        links = None if kind == "bare" else stack.enter_context(Networks.made(SITES))
        machine = Machine(tmp_path / "containers", links)
        made = (of_manifests if kind == "manifests" else of_compose)(machine, volume(machine, tmp_path))
        for container in (made.server, *made.sites.values()):
            stack.callback(container.stop)
        yield made


def stranger(federation: Federation) -> Container:
    """Return a site whose key nobody has registered, on the network of one that has not been started."""
    folder = federation.folder / "sites" / "stranger"
    shutil.copytree(federation.folder / "sites" / "south", folder)
    (folder / "site.key").unlink()
    write_key(folder / "site.key", new_key())
    if federation.machine.links is not None:
        for path in (folder, *folder.iterdir()):
            os.chown(path, 10001, 10001)
    return federation.machine.container("client", {"/umbel/site": folder}, "south")


def control(federation: Federation) -> str:
    """Return where the control port is, as the server's settings say."""
    lines = (federation.folder / "server" / "server.yaml").read_text().splitlines()
    [port] = [line.split()[1] for line in lines if line.startswith("control_port:")]
    return f"127.0.0.1:{port}"


def check_what_is_held(federation: Federation, links: Networks) -> None:
    """A site reaches the server's Fleet port and nothing else; nothing but its folder and /tmp can be written."""
    server, north = federation.server, federation.sites["north"]
    for host, port, is_open in (("server", 9092, True), ("server", 8000, False), (links.addresses["south"], 22, False)):
        done = north.run("python", "-c", LOOK, host, str(port))
        assert (done.returncode == 0) is is_open, (host, port, done.stderr)
    assert server.run("python", "-c", LOOK, "127.0.0.1", "8000").returncode == 0
    for container in (server, north):
        assert container.run("id", "-u").stdout == "10001\n"
        assert "CapBnd:\t0000000000000000" in container.run("cat", "/proc/self/status").stdout
        own = [f"{federation.homes[container.image]}/own", "/tmp/own"]
        assert container.run("touch", *own).returncode == 0
        for place in ("/umbel/other", "/usr/other", "/other"):
            assert "Read-only file system" in container.run("touch", place).stderr


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.processes
@pytest.mark.parametrize("federation", ["bare", "composed", "manifests"], indirect=True)
def test_images_form_a_federation(federation: Federation, tmp_path: Path) -> None:
    server, north, south = federation.server, federation.sites["north"], federation.sites["south"]
    assert "nothing runs" in federation.health(server)
    federation.start(north)
    assert federation.health(north)  # there is no server yet
    federation.start(server)
    for container in (server, north):
        federation.wait_until_healthy(container)

    unknown = stranger(federation)
    try:
        unknown.start(*command("client"))
        unknown.wait_for("does not know this key")
        assert "not ready" in unknown.health("/umbel/site")
    finally:
        unknown.stop()
    federation.start(south)
    federation.wait_until_healthy(south)
    if federation.machine.links is not None:
        check_what_is_held(federation, federation.machine.links)

    words = [word.replace("127.0.0.1:8000", control(federation)) for word in command("server", "submit")]
    submitted = federation.submit.run(*words, "digits", *SMALL)
    assert submitted.returncode == 0, submitted.stderr + server.log.read_text()
    [folder] = federation.folder.parent.glob("**/results/docker")
    summary = json.loads((folder / "summary.json").read_text())
    here = run_here("digits", *SMALL, f"run.results={tmp_path / 'here'}", "engine.name=inline")
    assert summary["weights_sha256"] == here.summary["weights_sha256"]

    assert server.stop() == 0
    assert "closed" in north.health(federation.homes["client"])
    assert "nothing runs" in federation.health(server)
    for site in (north, south):
        assert site.stop() == 0

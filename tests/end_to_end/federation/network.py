"""Machines of a test: network namespaces with one switch between them, made and removed by it (Linux, as root)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.places import ROOT

UMBEL = [sys.executable, "-c", "from umbel.simulations.commands.main import main; main()"]
_CAPTURE = """
import socket, sys
taken = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # every frame of every interface
taken.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
print("ready", flush=True)
with open(sys.argv[1], "wb", buffering=1 << 20) as file:
    while True:
        file.write(taken.recv(65536))
        file.flush()
"""


def missing() -> str:
    """Return why namespaces cannot be made here; nothing where they can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "there are no network namespaces on this system (iproute2)"
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    name = f"umbel-try-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"network namespaces cannot be made here: {done.stderr.strip()}"
    try:
        bridge = ["ip", "-n", name, "link", "add", "name", "switch0", "type", "bridge"]
        done = subprocess.run(bridge, capture_output=True, text=True, check=False)
        return f"the kernel has no bridges: {done.stderr.strip()}" if done.returncode else ""
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


class Network:
    """Machines by name, each with an address, on one switch.

    Args:
        machines: Their names; the first has 10.77.0.1, and so on.
        home: Where what their processes print goes.
    """

    def __init__(self, machines: Sequence[str], home: Path) -> None:
        self._prefix = f"umbel{os.getpid()}"
        self._home = home
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(machines, start=1)}
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Network:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self) -> None:
        switch = self._space("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "name", "switch0", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch0", "up")
        for number, (name, address) in enumerate(self.addresses.items()):
            space = self._space(name)
            _ip("netns", "add", space)
            port = ("type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", switch, "link", "add", f"port{number}", *port)
            _ip("-n", switch, "link", "set", f"port{number}", "master", "switch0", "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in ("switch", *self.addresses):
            subprocess.run(["ip", "netns", "delete", self._space(name)], capture_output=True, check=False)

    def _space(self, machine: str) -> str:
        return f"{self._prefix}-{machine}"

    def inside(self, machine: str, *command: object) -> list[str]:
        """Return a command line that runs on a machine."""
        return ["ip", "netns", "exec", self._space(machine), *map(str, command)]

    def run(
        self, machine: str, *command: object, environment: Mapping[str, str] | None = None, timeout: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine and return what it printed."""
        return subprocess.run(
            self.inside(machine, *command),
            capture_output=True,
            text=True,
            check=False,
            env=_environment(environment),
            cwd=self._home,
            timeout=timeout,
        )

    def umbel(self, machine: str, *arguments: object, **more: float) -> subprocess.CompletedProcess[str]:
        """Run an `umbel` command on a machine."""
        return self.run(machine, *UMBEL, *arguments, **more)  # type: ignore[arg-type]

    def start(self, machine: str, *command: object, log: str) -> Path:
        """Start a command on a machine that goes on until the network is removed; return where it prints."""
        path = self._home / f"{log}.out"
        with path.open("w") as file:
            self._processes.append(
                subprocess.Popen(
                    self.inside(machine, *command),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=_environment(None),
                    cwd=self._home,
                )
            )
        return path

    def ended(self, number: int = -1) -> int | None:
        """Return the status of a process that was started, the last one by default; None while it runs."""
        return self._processes[number].poll()

    @contextmanager
    def captured(self, machine: str, file: Path) -> Iterator[None]:
        """Write every frame that a machine, or the `switch`, sees into a file."""
        with subprocess.Popen(
            self.inside(machine, sys.executable, "-c", _CAPTURE, file), stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            try:
                yield
                time.sleep(0.5)
            finally:
                process.kill()


def until(path: Path, words: str, seconds: float = 120.0) -> str:
    """Wait until a file says something; return what it says."""
    deadline = time.monotonic() + seconds
    while words not in (text := path.read_text(errors="replace") if path.is_file() else ""):
        assert time.monotonic() < deadline, f"{path} does not say {words!r}:\n{text[-3000:]}"
        time.sleep(0.1)
    return text


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(more or {})}


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

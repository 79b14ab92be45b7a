"""A federation of real processes on this machine: one SuperLink, N SuperNodes, all over loopback."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from core.files import read_json, write_json

STATE = "federation.json"
CONNECTION = "umbel"  # name of the SuperLink in Flower's configuration
_START_SECONDS = 60.0


class FederationError(RuntimeError):
    """The federation cannot be started, found or stopped; the message says what to do."""


@dataclass(frozen=True)
class Federation:
    """A running federation.

    Attributes:
        home: Folder of its state, logs and bundles.
        fleet_port: Port of the SuperLink's Fleet API, which speaks gRPC.
        control_port: Port of its HTTP API, for `flwr run` and the ServerApp.
        superlink: Process id of the SuperLink.
        nodes: Process ids of the SuperNodes.
        stock: Whether the nodes are Flower's own.
    """

    home: str
    fleet_port: int
    control_port: int
    superlink: int
    nodes: tuple[int, ...]
    stock: bool

    def environment(self) -> dict[str, str]:
        """Return the environment for Flower's commands."""
        return flower_environment(Path(self.home))


def default_home() -> Path:
    """Return the folder of the federation that `umbel federate up` starts: $UMBEL_HOME or ~/.umbel/federation."""
    return Path(os.environ.get("UMBEL_HOME", str(Path.home() / ".umbel" / "federation")))


def flower_environment(home: Path) -> dict[str, str]:
    """Return an environment in which Flower keeps to `home`, tells nobody, and looks for tasks often."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
    }


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _alive(pid: int) -> bool:
    """Return whether a process of ours runs; one that has ended but was not waited for does not."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def find(home: Path | None = None) -> Federation | None:
    """Return the federation that is up, or None."""
    file = (home or default_home()) / STATE
    if not file.is_file():
        return None
    content = read_json(file)
    found = Federation(**{**content, "nodes": tuple(content["nodes"])})
    return found if _alive(found.superlink) else None


def start(nodes: int, home: Path, stock: bool = False, memory: Path | None = None) -> Federation:
    """Start a SuperLink and its nodes and wait until all are connected.

    Args:
        nodes: Number of SuperNodes.
        home: Folder for state, logs and bundles.
        stock: Start `flower-supernode` in place of this project's warm node.
        memory: Folder of all clients' memory, for a federation that lasts one run and ends with this process;
            None gives each node a folder of its own and lets the federation outlive this process.

    Raises:
        FederationError: One is up already, or something did not start.
    """
    if find(home) is not None:
        raise FederationError(f"A federation is up already in {home}. Stop it first: umbel federate down")
    (home / "logs").mkdir(parents=True, exist_ok=True)
    fleet, control, *runtime = _free_ports(2 + nodes)
    _write_connection(home, control)
    tied = memory is not None
    superlink = _spawn(home, "superlink", _superlink_command(fleet, control), tied)
    started = [superlink]
    try:
        _wait_for_ports(home, superlink, [fleet, control])
        for index in range(nodes):
            state = memory or home / "nodes" / str(index) / "state"
            config = f'partition-id={index} num-partitions={nodes} state-folder="{state}"'
            command = _node_command(home / "nodes" / str(index), config, fleet, runtime[index], stock)
            started.append(_spawn(home, f"node-{index}", command, tied))
        federation = Federation(str(home), fleet, control, superlink.pid, tuple(p.pid for p in started[1:]), stock)
        write_json(home / STATE, asdict(federation))
        _wait_for_nodes(home, started[1:])
    except BaseException:
        for process in started:
            _terminate(process.pid)
        (home / STATE).unlink(missing_ok=True)
        raise
    return federation


def stop(home: Path | None = None) -> bool:
    """Stop the federation; return whether there was one."""
    home = home or default_home()
    file = home / STATE
    if not file.is_file():
        return False
    content = read_json(file)
    # The nodes first, so that they can say goodbye.
    for pid in content["nodes"]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
    for pid in [*content["nodes"], content["superlink"]]:
        _terminate(pid)
    file.unlink(missing_ok=True)
    return True


def up(nodes: int, *, home: Path | None = None, stock: bool = False) -> str:
    """Start a federation and say how to use it."""
    federation = start(nodes, home or default_home(), stock)
    kind = "Flower's own" if stock else "warm"
    return (
        f"A SuperLink (gRPC on 127.0.0.1:{federation.fleet_port}) and {nodes} SuperNodes ({kind}) are up.\n"
        f"Logs: {Path(federation.home) / 'logs'}\n"
        "Run on it:  umbel run digits engine.name=grpc\n"
        "Stop it:    umbel federate down"
    )


def down(home: Path | None = None) -> str:
    """Stop the federation and say so."""
    return "The federation is down." if stop(home) else "No federation was up."


def status(home: Path | None = None) -> str:
    """Say what is up."""
    federation = find(home)
    if federation is None:
        return "No federation is up. Start one: umbel federate up --nodes 4"
    alive = sum(_alive(pid) for pid in federation.nodes)
    return (
        f"SuperLink on 127.0.0.1:{federation.fleet_port} (process {federation.superlink}), "
        f"{alive} of {len(federation.nodes)} SuperNodes alive. Logs: {Path(federation.home) / 'logs'}"
    )


def _superlink_command(fleet: int, control: int) -> list[str]:
    return [
        "flower-superlink",
        "--insecure",
        "--disable-runtime-dependency-installation",
        "--fleet-api-type",
        "grpc-rere",
        "--fleet-api-address",
        f"127.0.0.1:{fleet}",
        "--host",
        "127.0.0.1",
        "--port",
        str(control),
    ]


def _node_command(folder: Path, config: str, fleet: int, runtime: int, stock: bool) -> list[str]:
    address = f"127.0.0.1:{fleet}"
    if stock:
        return [
            *("flower-supernode", "--insecure", "--grpc-rere", "--superlink", address),
            *("--port", str(runtime), "--node-config", config),
        ]
    return [
        *(sys.executable, "-m", "client.node", "--insecure", "--superlink", address),
        *("--node-config", config, "--home", str(folder / "bundles"), "--max-wait-time", "60"),
    ]


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent does, also after a kill -9."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGTERM)


def _spawn(home: Path, name: str, command: list[str], tied: bool) -> subprocess.Popen[bytes]:
    """Start a process of its own group whose output goes to a log.

    Args:
        home: Folder of the federation.
        name: Name of the log.
        command: What to start.
        tied: End it when this process ends (on Linux).
    """
    environment = flower_environment(home)
    if command[0] == sys.executable:
        # From a neutral folder, with this project's code on the path; the run's own code comes in its bundle.
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    else:
        environment.pop("PYTHONPATH", None)
        command = [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]]
    with (home / "logs" / f"{name}.log").open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=home,
            start_new_session=True,
            preexec_fn=_end_with_parent if tied and sys.platform == "linux" else None,
        )


def _tail(home: Path, name: str, lines: int = 15) -> str:
    file = home / "logs" / f"{name}.log"
    content = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return "\n".join(content.splitlines()[-lines:])


def _wait_for_ports(home: Path, process: subprocess.Popen[bytes], ports: list[int]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    for port in ports:
        while True:
            if process.poll() is not None:
                raise FederationError(f"The SuperLink ended at once:\n{_tail(home, 'superlink')}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
                break
            if time.monotonic() > deadline:
                raise FederationError(f"The SuperLink did not open port {port}:\n{_tail(home, 'superlink')}")
            time.sleep(0.1)


def _wait_for_nodes(home: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until each node's log says that it is connected."""
    deadline = time.monotonic() + _START_SECONDS
    for index, process in enumerate(processes):
        name = f"node-{index}"
        while not any(word in _tail(home, name, 200) for word in ("is connected to", "SuperNode ID")):
            if process.poll() is not None:
                raise FederationError(f"SuperNode {index} ended at once:\n{_tail(home, name)}")
            if time.monotonic() > deadline:
                raise FederationError(f"SuperNode {index} did not connect:\n{_tail(home, name)}")
            time.sleep(0.1)


def _terminate(pid: int, patience_seconds: float = 5.0) -> None:
    """End a process group: politely, then not."""
    for kind, patience in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, 2.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, kind)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not _alive(pid):
                break
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _write_connection(home: Path, control: int) -> None:
    """Tell Flower's command line where the SuperLink is."""
    config = home / "flwr" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    address = json.dumps(f"127.0.0.1:{control}")
    config.write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = {address}\ninsecure = true\n',
        encoding="utf-8",
    )

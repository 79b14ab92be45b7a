"""A federation of real processes on this machine: one SuperLink, N SuperNodes, all over loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from umbel.conf.errors import ExperimentError
from umbel.core.files import read_json, write_json
from umbel.core.wire.flower_versions import SPOKEN, fleet
from umbel.simulations.engines.flower_internals import fleet_options, stock_options, superlink_ports
from umbel.simulations.engines.identities import KEY_FILE, make_identities, private_folder
from umbel.simulations.engines.processes import (
    MESSAGES_SECONDS,
    alive,
    birth,
    flower_environment,
    free_ports,
    opened,
    spawn,
    tail,
    terminate,
)

STATE = "federation.json"
CONNECTION = "umbel"  # name of the SuperLink in Flower's configuration
_START_SECONDS = 60.0
_TRIES = 3


class FederationError(ExperimentError):
    """The federation cannot be started, found or stopped; the message says what to do."""


@dataclass(frozen=True)
class Federation:
    """A running federation.

    Attributes:
        home: Folder of its state, logs and bundles.
        fleet_port: Port of the SuperLink's Fleet API, which speaks gRPC; from Flower 1.40 on the control port.
        control_port: Port of its HTTP API, for `flwr run` and the ServerApp.
        superlink: Process id of the SuperLink.
        nodes: Process ids of the SuperNodes.
        stock: Whether the nodes are Flower's own.
        births: When the SuperLink and the nodes began, to know them from strangers that got their number later.
    """

    home: str
    fleet_port: int
    control_port: int
    superlink: int
    nodes: tuple[int, ...]
    stock: bool
    births: tuple[float, ...]

    @property
    def superlink_alive(self) -> bool:
        """Whether the SuperLink runs."""
        return alive(self.superlink, self.births[0])

    @property
    def num_alive(self) -> int:
        """How many SuperNodes run."""
        return sum(alive(pid, born) for pid, born in zip(self.nodes, self.births[1:], strict=True))

    def environment(self) -> dict[str, str]:
        """Return the environment for Flower's commands."""
        return flower_environment(Path(self.home))


def default_home() -> Path:
    """Return the folder of the federation that `umbel federate up` starts: $UMBEL_HOME or ~/.umbel/federation."""
    return Path(os.environ.get("UMBEL_HOME", str(Path.home() / ".umbel" / "federation")))


def _read(home: Path) -> Federation | None:
    """Return what the state file says, whoever of it is alive."""
    file = home / STATE
    if not file.is_file():
        return None
    try:
        content = read_json(file)
        return Federation(**{**content, "nodes": tuple(content["nodes"]), "births": tuple(content["births"])})
    except (ValueError, TypeError, KeyError) as error:
        raise FederationError(
            f"{file} cannot be read ({error}). End its processes by hand, if there are any, and remove it."
        ) from error


def find(home: Path | None = None) -> Federation | None:
    """Return the federation that is up, or None."""
    federation = _read(home or default_home())
    return federation if federation is not None and federation.superlink_alive else None


@contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Keep others from starting or stopping the same federation at the same time."""
    private_folder(home)
    lock = FileLock(home / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FederationError(f"Another process starts or stops the federation in {home} right now.") from None
    try:
        yield
    finally:
        lock.release()


def start(
    nodes: int, home: Path, stock: bool = False, memory: Path | None = None, sites: Sequence[Path] = ()
) -> Federation:
    """Start a SuperLink and its nodes and wait until all are connected.

    Args:
        nodes: Number of SuperNodes.
        home: Folder for state, logs and bundles.
        stock: Start `flower-supernode` in place of this project's warm node.
        memory: Folder of all clients' memory, for a federation that lasts one run and ends with this process;
            None gives each node a folder of its own and lets the federation outlive this process.
        sites: The site's data file of each node, absolute, where sites have data of their own.

    Raises:
        FederationError: One is up already, or something did not start.
    """
    with _one_at_a_time(home):
        if find(home) is not None:
            raise FederationError(f"A federation is up already in {home}. Stop it first: umbel federate down")
        _stop(home)  # nodes that outlived their SuperLink
        private_folder(home / "logs")
        return _start(nodes, home, stock, memory, sites)


def _start(nodes: int, home: Path, stock: bool, memory: Path | None, sites: Sequence[Path]) -> Federation:
    tied = memory is not None
    folders = make_identities(home, nodes)
    started: list[subprocess.Popen[bytes]] = []
    try:
        superlink, fleet, control = _start_superlink(home, tied, started)
        _write_connection(home, control)
        runtime = free_ports(nodes)
        for index, folder in enumerate(folders):
            state = memory or folder / "state"
            config = f'partition-id={index} num-partitions={nodes} state-folder="{state}"'
            config += f' site-data="{sites[index]}"' if sites else ""
            command = _node_command(folder, config, fleet, runtime[index], stock)
            started.append(spawn(home, f"node-{index}", command, tied, MESSAGES_SECONDS))
        pids = tuple(process.pid for process in started if process is not superlink)
        births = tuple(birth(pid) for pid in (superlink.pid, *pids))
        federation = Federation(str(home), fleet, control, superlink.pid, pids, stock, births)
        write_json(home / STATE, asdict(federation))
        _wait_for_nodes(home, started[1:])
    except BaseException:
        terminate((process.pid, 0) for process in started)
        (home / STATE).unlink(missing_ok=True)
        raise
    return federation


def _start_superlink(
    home: Path, tied: bool, started: list[subprocess.Popen[bytes]]
) -> tuple[subprocess.Popen[bytes], int, int]:
    """Start the SuperLink; when somebody else takes one of its ports first, start it again with others."""
    for attempt in range(1, _TRIES + 1):
        first, second = free_ports(2)
        api, control = superlink_ports((first, second))
        process = spawn(home, "superlink", _superlink_command(api, control), tied)
        started[:] = [process]
        try:
            _wait_for_ports(home, process, [api, control])
        except FederationError:
            if process.poll() is None or attempt == _TRIES or "use" not in tail(home, "superlink", 200):
                raise
        else:
            break
    return process, api, control


def stop(home: Path | None = None) -> bool:
    """Stop the federation; return whether there was one."""
    home = home or default_home()
    if not (home / STATE).is_file():
        return False
    with _one_at_a_time(home):
        return _stop(home)


def _stop(home: Path) -> bool:
    federation = _read(home)
    if federation is None:
        return False
    superlink, *nodes = zip((federation.superlink, *federation.nodes), federation.births, strict=True)
    terminate(nodes)  # first, so that they can say goodbye
    terminate([superlink])
    (home / STATE).unlink(missing_ok=True)
    return True


def up(nodes: int, *, home: Path | None = None, stock: bool = False) -> str:
    """Start a federation and say how to use it."""
    federation = start(nodes, home or default_home(), stock)
    kind, spoken = "Flower's own" if stock else "warm", SPOKEN[fleet()]
    return (
        f"A SuperLink ({spoken} on 127.0.0.1:{federation.fleet_port}) and {nodes} SuperNodes ({kind}) are up.\n"
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
    return (
        f"SuperLink on 127.0.0.1:{federation.fleet_port} (process {federation.superlink}), "
        f"{federation.num_alive} of {len(federation.nodes)} SuperNodes alive. Logs: {Path(federation.home) / 'logs'}"
    )


def _superlink_command(fleet: int, control: int) -> list[str]:
    return [
        "flower-superlink",
        "--insecure",
        "--disable-runtime-dependency-installation",
        *fleet_options(f"127.0.0.1:{fleet}"),
        "--host",
        "127.0.0.1",
        "--port",
        str(control),
    ]


def _node_command(folder: Path, config: str, fleet: int, runtime: int, stock: bool) -> list[str]:
    address = f"127.0.0.1:{fleet}"
    if stock:
        return [
            *("flower-supernode", "--insecure", *stock_options(), "--superlink", address),
            *("--port", str(runtime), "--node-config", f'{config} site-key="{folder / KEY_FILE}"'),
        ]
    return [
        *(sys.executable, "-m", "umbel.client.node.supernode", "--insecure", "--superlink", address),
        *("--key", str(folder / KEY_FILE), "--node-config", config),
        *("--home", str(folder / "bundles"), "--max-wait-time", "60"),
    ]


def _wait_for_ports(home: Path, process: subprocess.Popen[bytes], ports: list[int]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    for port in ports:
        while not opened(port):
            if process.poll() is not None:
                raise FederationError(f"The SuperLink ended at once:\n{tail(home, 'superlink')}")
            if time.monotonic() > deadline:
                raise FederationError(f"The SuperLink did not open port {port}:\n{tail(home, 'superlink')}")
            time.sleep(0.1)
    if process.poll() is not None:  # the ports are somebody else's
        raise FederationError(f"The SuperLink ended at once:\n{tail(home, 'superlink')}")


def _wait_for_nodes(home: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait until each node's log says that it is connected."""
    deadline = time.monotonic() + _START_SECONDS
    for index, process in enumerate(processes):
        name = f"node-{index}"
        while not any(word in tail(home, name, 200) for word in ("is connected to", "SuperNode ID")):
            if process.poll() is not None:
                raise FederationError(f"SuperNode {index} ended at once:\n{tail(home, name)}")
            if time.monotonic() > deadline:
                raise FederationError(f"SuperNode {index} did not connect:\n{tail(home, name)}")
            time.sleep(0.1)


def _write_connection(home: Path, control: int) -> None:
    """Tell Flower's command line where the SuperLink is."""
    config = home / "flwr" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    address = json.dumps(f"127.0.0.1:{control}")
    config.write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = {address}\ninsecure = true\n',
        encoding="utf-8",
    )

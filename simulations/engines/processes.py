"""Processes of a federation: started into logs, known again after a restart, ended together with what they started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

import umbel
from umbel.client.node import parent
from umbel.server.sites import SITES
from umbel.simulations.engines.identities import SITES_FILE

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# How often Flower looks for a program to start. A SuperLink looks for runs, all day, and a look costs it some
# milliseconds (benchmarks/sites.py has what it takes idle). A stock node has a program to start for each message.
RUNS_SECONDS, MESSAGES_SECONDS = 0.8, 0.05
_CLOCK_SECONDS = 2.0  # births are by the clock, which may be set meanwhile


def flower_environment(home: Path, look_seconds: float = RUNS_SECONDS) -> dict[str, str]:
    """Return an environment in which Flower keeps to `home` and tells nobody.

    Nobody on this machine is asked through a proxy: one would be waited for, and could not reach it.

    Args:
        home: Where Flower keeps its own.
        look_seconds: How often it looks for a program to start.
    """
    scripts = str(Path(sys.executable).parent)
    direct = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY", ""), *_LOOPBACK]
    no_proxy = ",".join(part for part in direct if part)
    return {
        **os.environ,
        "PATH": scripts + os.pathsep + os.environ.get("PATH", ""),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(look_seconds),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        **dict.fromkeys(("no_proxy", "NO_PROXY"), no_proxy),
    }


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody uses at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def opened(port: int) -> bool:
    """Say whether somebody listens on a port of this machine."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
        return True
    return False


def birth(pid: int) -> float:
    """Return when a process began, in seconds of the clock; 0 when there is none.

    The number of a process that has ended is given to another some day; with its birth it is never taken for it.
    """
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def alive(pid: int, born: float = 0.0) -> bool:
    """Return whether the process that began at `born` runs; one that has ended but was not waited for does not."""
    try:
        process = psutil.Process(pid)
        ended = process.status() == psutil.STATUS_ZOMBIE
        same = not born or abs(process.create_time() - born) < _CLOCK_SECONDS
    except psutil.Error:
        return False
    if ended:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return same and not ended


def terminate(processes: Iterable[tuple[int, float]], patience_seconds: float = 5.0) -> None:
    """End process groups, each (leader, when it began), and what they started: politely all at once, then not.

    A group whose leader is not the one we started is nobody we know and is left alone.
    """
    leaders = [(pid, born) for pid, born in processes if alive(pid, born)]
    everyone = leaders + descendants(pid for pid, _ in leaders)  # some of which lead groups of their own
    for pid, _ in leaders:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_seconds
    while any(alive(pid, born) for pid, born in everyone) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid, born in everyone:
        if alive(pid, born):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    for pid, _ in leaders:  # what is left of a group whose leader has just ended
        _signal(pid, signal.SIGKILL)
    deadline = time.monotonic() + 2.0
    while any(alive(pid, born) for pid, born in everyone) and time.monotonic() < deadline:
        time.sleep(0.05)


def descendants(pids: Iterable[int]) -> list[tuple[int, float]]:
    """Return the children of processes, their children and so on, each with its birth."""
    processes: list[tuple[int, float]] = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            processes += [(child.pid, birth(child.pid)) for child in psutil.Process(pid).children(recursive=True)]
    return processes


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent does, also after a kill -9."""
    parent.signalled(signal.SIGTERM)


def spawn(
    home: Path, name: str, command: list[str], tied: bool, look_seconds: float = RUNS_SECONDS
) -> subprocess.Popen[bytes]:
    """Start a process of its own group whose output goes to a log.

    Args:
        home: Folder of the federation.
        name: Name of the log.
        command: What to start.
        tied: End it when this process ends (on Linux).
        look_seconds: How often Flower looks for a program to start.
    """
    environment = {**flower_environment(home, look_seconds), SITES: str(home / SITES_FILE)}
    if command[0] == sys.executable:
        # From a neutral folder, with this project's code on the path; the run's own code comes in its bundle.
        environment["PYTHONPATH"] = str(Path(umbel.__file__).resolve().parent.parent)
    else:
        environment.pop("PYTHONPATH", None)
        command = [shutil.which(command[0], path=environment["PATH"]) or command[0], *command[1:]]
    with log(home, name).open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=home,
            start_new_session=True,
            preexec_fn=end_with_parent if tied else None,
        )


def log(home: Path, name: str) -> Path:
    """Return where a process of the federation in `home` writes its log."""
    return home / "logs" / f"{name}.log"


def tail(home: Path, name: str, lines: int = 15) -> str:
    """Return the end of a log."""
    file = log(home, name)
    content = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return "\n".join(content.splitlines()[-lines:])

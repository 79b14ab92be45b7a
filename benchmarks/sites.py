"""What does a federation of sites cost: TLS, keys, signatures, warm nodes, an idle server?

A server and four sites on this machine, from the folders of `umbel federate init`, connected as sites are (TLS, keys,
signed submission), train `cvt_tiny32` on 200 digits, 8 clients, 1 epoch, no evaluation. Beside it, in the same run:
the same on inline, over a loopback federation of warm nodes, and over Flower's own nodes. A round's overhead is its
time less that of a round on inline: the sites share this machine's cores, so what they compute takes as long together.
The first round counts from the submission, the nodes being there; and from `join` on in a second figure. Memory is
proportional (PSS), of the process that runs clients and of all of a site's processes.

    python benchmarks/sites.py [--rounds 10] [--stock-rounds 5] [--idle 60]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from round_times import SHORT, Times, machine, measure, over_loopback

from umbel.simulations.engines.processes import free_ports

NUM_SITES, NUM_CLIENTS = 4, 8
WORKLOAD = ("model.name=cvt_tiny32", "model.sizes={}", *SHORT)
UMBEL = Path(sys.executable).with_name("umbel")
_START_SECONDS = 300.0


@dataclass(frozen=True)
class Sites:
    """What was measured of the sites.

    Attributes:
        warm: The second run of nodes that were there.
        joined: Seconds from the start of the nodes to the end of their first round, with the submission in between.
        idle: Share of a core that the server takes while nothing runs.
        busy: The same while the second run runs.
        client: PSS in bytes of the process that runs a site's clients, of each site.
        whole: PSS in bytes of all of a site's processes.
    """

    warm: Times
    joined: float
    idle: float
    busy: float
    client: list[int]
    whole: list[int]


def umbel(*words: str) -> str:
    """Run a command of `umbel federate` and return what it prints."""
    command = [str(UMBEL), "federate", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def going(*words: str) -> Iterator[psutil.Process]:
    """Keep a command of `umbel federate` going as long as the block lasts."""
    command = [str(UMBEL), "federate", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and all below it."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Return the seconds that processes have computed."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def idle_share(process: psutil.Process, seconds: float) -> float:
    """Return the share of a core that a process and all below it take for some seconds."""
    processes, start = tree(process), time.monotonic()
    before = cpu_seconds(processes)
    time.sleep(seconds)
    return (cpu_seconds(processes) - before) / (time.monotonic() - start)


def memory(process: psutil.Process) -> tuple[int, int]:
    """Return the PSS of the process that runs the clients of a site, the largest below, and of all of them."""
    sizes = []
    for each in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes.append(each.memory_full_info().pss)
    return max(sizes), sum(sizes)


def wait_until(condition: str, folder: Path) -> None:
    """Wait until the server's status has a word for every site."""
    deadline = time.monotonic() + _START_SECONDS
    while (status := umbel("status", str(folder))).count(condition) < NUM_SITES:
        if time.monotonic() > deadline:
            raise SystemExit(f"Not all sites are {condition} after {_START_SECONDS:g} s:\n{status}")
        time.sleep(0.2)


def submitted(home: Path, control: int, rounds: int, name: str) -> Times:
    """Submit the workload and follow it."""
    start = time.time()
    words = ("submit", "digits", *WORKLOAD, f"run.rounds={rounds}", f"run.name={name}", "--quiet")
    umbel(*words, "--to", str(home / "submitters" / "me"), "--control", f"127.0.0.1:{control}")
    return Times.read(next((home / "server").rglob(f"{name}/progress.jsonl")).parent, start)


def over_sites(rounds: int, idle_seconds: float) -> Sites:
    """Run it over sites."""
    port, control = free_ports(2)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home, share = Path(folder) / "fl", NUM_CLIENTS // NUM_SITES
        sites = [f"s{i}={i * share}-{(i + 1) * share - 1}" for i in range(NUM_SITES)]
        asked = [word for site in sites for word in ("--site", site)]
        ports = ("--port", str(port), "--control-port", str(control))
        umbel("init", str(home), "--name", "bench", "--server", "localhost", *asked, "--submitter", "me", *ports)
        server = stack.enter_context(going("serve", str(home / "server")))
        time.sleep(20.0)  # it starts: what follows is idle
        idle = idle_share(server, idle_seconds)
        start = time.time()
        nodes = [stack.enter_context(going("join", str(home / "sites" / f"s{i}"))) for i in range(NUM_SITES)]
        wait_until("connected", home / "server")
        first = submitted(home, control, 1, "first")
        joined = time.time() - start
        processes, before, began = tree(server), cpu_seconds(tree(server)), time.monotonic()
        warm = submitted(home, control, rounds, "second")
        busy = (cpu_seconds(processes) - before) / (time.monotonic() - began)
        sizes = [memory(node) for node in nodes]
        print(f"first run: {first.first:.1f} s to the end of its round", file=sys.stderr)
        return Sites(warm, joined, idle, busy, [size[0] for size in sizes], [size[1] for size in sizes])


def main() -> None:
    """Measure everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--stock-rounds", type=int, default=5)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds over which the idle server is looked at")
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    os.environ["UMBEL_HOME"] = "/nonexistent"  # no federation that is up already
    inline = measure(arguments.rounds, *WORKLOAD)
    sites = over_sites(arguments.rounds, arguments.idle)
    rows = {
        "inline": inline,
        f"{NUM_SITES} sites, TLS and keys": sites.warm,
        f"{NUM_SITES} warm nodes on loopback, keys": over_loopback(NUM_SITES, arguments.rounds, False, *WORKLOAD),
        f"{NUM_SITES} stock SuperNodes on loopback": over_loopback(NUM_SITES, arguments.stock_rounds, True, *WORKLOAD),
    }
    print(f"{machine(load_before)}\n")
    print("| contender | s a round (median) | range | rounds | more than inline (s) | to the end of the first (s) |")
    print("|---|---:|---:|---:|---:|---:|")
    base = statistics.median(inline.rounds)
    for name, one in rows.items():
        middle = statistics.median(one.rounds)
        span = f"{min(one.rounds):.2f}-{max(one.rounds):.2f}"
        print(f"| {name} | {middle:.2f} | {span} | {len(one.rounds)} | {middle - base:.2f} | {one.first:.1f} |")
    megabytes = [round(statistics.median(sizes) / 2**20) for sizes in (sites.client, sites.whole)]
    print(f"\nFrom the start of the nodes to the end of their first round: {sites.joined:.1f} s.")
    print(f"The server takes {sites.idle:.1%} of a core while it is idle, and {sites.busy:.0%} during the second run.")
    print(f"A site's client has {megabytes[0]} MB (PSS), all of its processes {megabytes[1]} MB.")


if __name__ == "__main__":
    main()

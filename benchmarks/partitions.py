"""How long does it take to cut a pool into thousands of clients, how much memory, and does either grow too fast?

Every scheme cuts 60,000 examples of 10 classes (5 domains, 20,000 natural ids, all in random order) over 1,000 and
over 10,000 clients, each in a process of its own. Seconds (of the clock, and `cpu`, which other work on the machine
does not change much) and megabytes count from before the first call to after it, imports included; megabytes are the
growth of the process's peak. `again` is a second call's CPU time, which imports nothing, and `growth` its exponent from
one number of clients to the next: 0 is constant, 1 linear, 2 quadratic.

    python benchmarks/partitions.py [--examples 60000] [--clients 1000,10000] [--classes 10] [--schemes iid,dirichlet]

The exit code is 1 if a cut took longer than 10 s, or more than 500 MB, with 60,000 examples or fewer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from umbel.data.partition import names

ROOT = Path(__file__).resolve().parent.parent
NUM_DOMAINS, EXAMPLES_PER_ID = 5, 3
MOST_SECONDS, MOST_MB, LIMITED_EXAMPLES = 10.0, 500.0, 60_000

# A client has six examples at 10,000 clients: where sizes are drawn, some get none unless it is asked for otherwise.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "dirichlet": {"alpha": 0.5, "top_up": True},
    "shards": {"shards_per_client": 2},
    "pathological": {"classes_per_client": 2},
    "quantity_skew": {"alpha": 0.5},
    "long_tail": {"alpha": 0.5, "imbalance": 10, "top_up": True},
    "split_tasks": {"num_tasks": 5},
    "permuted_tasks": {"num_tasks": 5},
    "domain_label": {"alpha": 0.5, "min_examples": 0},
}


def peak_mb() -> float:
    """Return the largest memory that this process has had, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def cut(scheme: str, clients: int, examples: int, classes: int = 10) -> dict[str, float]:
    """Cut once in this process; return what it cost.

    Returns:
        `seconds`, `cpu` and `mb` of the first call with its imports, `again` the CPU seconds of a second call, and
        `kept`, the number of examples that are in the partition.
    """
    import torch

    from umbel.data.config import DataConfig
    from umbel.data.partition import build

    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (examples,), generator=random)
    domains = torch.randint(NUM_DOMAINS, (examples,), generator=random)
    people = (torch.arange(examples) // EXAMPLES_PER_ID)[torch.randperm(examples, generator=random)]
    config = DataConfig(partition=scheme, num_clients=clients, **SETTINGS.get(scheme, {}))
    before, started, worked = peak_mb(), time.perf_counter(), time.process_time()
    partition = build(config, labels, domains, people, 0, classes)
    spent = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - worked, "mb": peak_mb() - before}
    worked = time.process_time()
    again = build(config, labels, domains, people, 0, classes)
    spent["again"] = time.process_time() - worked
    assert torch.equal(again.indices, partition.indices) and torch.equal(again.offsets, partition.offsets)
    assert partition.num_clients == clients and int(partition.indices.bincount().max()) == 1
    return {**spent, "kept": len(partition.indices)}


def measure(scheme: str, clients: int, examples: int, classes: int = 10) -> dict[str, Any]:
    """Cut in a fresh process."""
    command = [sys.executable, __file__, "--one", scheme, "--clients", str(clients), "--examples", str(examples)]
    command += ["--classes", str(classes)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{scheme} over {clients} clients failed:\n{done.stderr}")
    return {"scheme": scheme, "clients": clients, "examples": examples, **json.loads(done.stdout.splitlines()[-1])}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table; the growth is against the row above where it is of the same scheme."""
    lines = [
        "| scheme | settings | clients | examples | kept | seconds | cpu | again | MB | growth |",
        "|" + "---|" * 10,
    ]
    previous: dict[str, Any] = {}
    for row in rows:
        growth = ""
        if previous.get("scheme") == row["scheme"] and row["clients"] > previous["clients"]:
            ratios = [row[key] / previous[key] for key in ("again", "clients")]
            growth = f"{math.log(ratios[0]) / math.log(ratios[1]):.2f}"
        settings = " ".join(f"{key}={value}" for key, value in SETTINGS.get(row["scheme"], {}).items())
        lines.append(
            f"| {row['scheme']} | {settings} | {row['clients']:,} | {row['examples']:,} | {row['kept']:,} | "
            f"{row['seconds']:.2f} | {row['cpu']:.2f} | {row['again']:.3f} | {row['mb']:.0f} | {growth} |"
        )
        previous = row
    return "\n".join(lines)


def machine() -> str:
    """Return a line about hardware and versions."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "torch"))
    return f"{platform.machine()}, {os.cpu_count()} CPUs, one thread, Python {platform.python_version()}; {versions}"


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--clients", default="1000,10000")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--schemes", default=",".join(names()))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(cut(given.one, int(given.clients), given.examples, given.classes)))
        return 0
    rows = []
    for scheme in given.schemes.split(","):
        for clients in map(int, given.clients.split(",")):
            rows.append(measure(scheme, clients, given.examples, given.classes))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(f"{table(rows)}\n\n{machine()}\n")
    slow = [row for row in rows if row["seconds"] > MOST_SECONDS or row["mb"] > MOST_MB]
    return int(bool(slow) and given.examples <= LIMITED_EXAMPLES)


if __name__ == "__main__":
    sys.exit(main())

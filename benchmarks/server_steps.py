"""What do the methods' steps at the server cost, in seconds and memory, beside the plain way of doing the same?

    python benchmarks/server_steps.py [--tiny] [--only NAME] [--output FILE]

* GGEUR, 100 classes x 512 dimensions: statistics of 10 clients pooled; the geometry of all classes; and the draws that
  complete a class, in one matrix product, beside a multivariate normal distribution, with its own Cholesky
  decomposition, for each original example (the authors' way).
* FOT, a layer of d = 4,608 inputs: a client's residual sketch, and the expansion of the basis from a sketch of d / 2
  columns; and at d = 1,152 both together, by Gram matrices and by sketches, beside the singular value decomposition of
  all clients' inputs.
* CreamFL, 50,000 public samples, 20 clients, 256 dimensions: one client in twenty is timed and its time multiplied;
  for memory all twenty go through, with the products skipped behind the first chunks, which are as large as any; and
  at 2,000 samples whole, beside the dense K x P x P array.

Every measurement is a process of its own with one thread. `peak` is its largest resident memory (getrusage) above what
it had when everything was imported: inputs, work and results together. Both ways of a pair must agree.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from server_cases import CASES, TINY, Measured, Sizes

from umbel.server.results import environment


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        step: What is measured.
        ours: The case that is timed.
        plain: The plain way, or "".
        memory: The case whose memory counts, where it is another one.
        agree: How far the two ways' checks may be apart, relatively.
    """

    step: str
    ours: str
    plain: str = ""
    memory: str = ""
    agree: float = 0.0


def rows(s: Sizes) -> list[Row]:
    """Return the lines of the table."""
    draws = s.examples * s.draws
    return [
        Row(f"GGEUR: pool {s.clients} clients, {s.classes} classes x {s.features}", "ggeur_pool"),
        Row(f"GGEUR: geometry, {s.classes} classes x {s.features}", "ggeur_geometry"),
        Row(f"GGEUR: {draws} draws around {s.examples} examples", "ggeur_draws", "ggeur_draws_plain", agree=0.1),
        Row(f"FOT: sketch, d = {s.inputs}, {s.columns} columns, width d / 2, rank {s.rank}", "fot_sketch"),
        Row(f"FOT: expansion, d = {s.inputs}, sketch of d / 2, rank {s.rank}", "fot_expand"),
        Row(
            f"FOT: basis of {s.clients} x {s.columns // 4} columns, d = {s.small_inputs}",
            *("fot_small", "fot_small_plain"),
            agree=0.01,
        ),
        Row("FOT: the same by sketches of width d, not by Gram matrices", "fot_small_sketch"),
        Row(f"CreamFL: P = {s.public}, K = {s.parties}, D = {s.width}", "creamfl_time", memory="creamfl_memory"),
        Row(
            f"CreamFL: P = {s.small_public}, K = {s.parties}, D = {s.width}",
            *("creamfl_small", "creamfl_small_plain"),
            agree=1e-5,
        ),
    ]


def resident() -> float:
    """Return resident memory now, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6


def alone(case: str, tiny: bool) -> Measured:
    """Run a case in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--case", case, *(["--tiny"] if tiny else [])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{case}: {measured['seconds']:.2f} s, {measured['peak']:.0f} MB, check {measured['check']:.3f}",
        file=sys.stderr,
        flush=True,
    )
    return measured


def line(row: Row, tiny: bool) -> str:
    """Measure a line of the table."""
    ours = alone(row.ours, tiny)
    peak = alone(row.memory, tiny)["peak"] if row.memory else ours["peak"]
    mark = f" (one in {ours['scaled']}, scaled)" if "scaled" in ours else ""
    cells = [row.step, f"{ours['seconds']:.2f}{mark}", f"{peak:.0f}"]
    if not row.plain:
        return f"| {' | '.join([*cells, '', '', ''])} |"
    plain = alone(row.plain, tiny)
    if abs(ours["check"] - plain["check"]) > row.agree * abs(plain["check"]):
        raise SystemExit(f"{row.step}: the two ways differ, {ours['check']} and {plain['check']}.")
    ratio = f"{plain['seconds'] / ours['seconds']:.1f} / {plain['peak'] / max(ours['peak'], 0.1):.1f}"
    cells += [f"{plain['seconds']:.2f}", f"{plain['peak']:.0f}", ratio]
    return f"| {' | '.join(cells)} |"


def table(tiny: bool, only: str = "") -> str:
    """Measure everything and return the table as Markdown."""
    about = environment()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "numpy"))
    lines = [
        f"`python benchmarks/server_steps.py{' --tiny' if tiny else ''}`",
        "",
        f"{about['processor']}, {about['cpus']} CPUs, one thread; Python {about['python']}, {versions}",
        "",
        "| step | seconds | peak (MB) | the plain way (s) | its peak (MB) | ratio, time / memory |",
        "|---|---:|---:|---:|---:|---:|",
        *(line(row, tiny) for row in rows(TINY if tiny else Sizes()) if only in row.step),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure a case, or all and print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--only", default="", help="only lines with this in their name, such as FOT")
    parser.add_argument("--output", type=Path, help="also write the table here")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        torch.set_num_threads(1)
        before = resident()
        measured = CASES[given.case](TINY if given.tiny else Sizes())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024
        print(json.dumps({**measured, "peak": max(peak - before, 0.0)}))
        return
    text = table(given.tiny, given.only)
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

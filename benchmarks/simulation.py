"""How long does a simulation take beside the same arithmetic in a plain PyTorch loop, pfl-research, and stock Flower?

Workload (experiment `bench_cnn`): 100 clients x 64 synthetic images 1x28x28 of 10 classes, the CNN, 10 clients a
round, 1 epoch, batch 16, SGD 0.05, no evaluation; 60 rounds = 2,400 steps. `bench_cvt_tiny32` and `bench_cvt_13` (20 M
parameters) are the same with another model and fewer rounds; `key=value` arguments override an experiment's keys.

Each contender is a tree of processes of its own; all take turns, in an order that moves on with every repeat, after
one repeat that does not count. Two rounds warm a contender up: they are its start-up, and the clock is on the rounds
after them. docs/performance.md says how to read the tables.

    python benchmarks/simulation.py [--repeats 5] [--rounds 60] [--experiment bench_cnn] [--contenders a,b]
                                    [--json FILE] [--profile] [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yardstick import contenders, measure, pfl_environment, processes, table
from yardstick.contenders import BENCHMARKS, Contender
from yardstick.measure import Measurement
from yardstick.workload import Workload

# name -> experiment, overrides, rounds
WORKLOADS = {
    "bench_cnn": ("bench_cnn", (), 60),
    "bench_cvt_tiny32": ("bench_cnn", ("model.name=cvt_tiny32",), 15),
    "bench_cvt_13": ("bench_cnn", ("model.name=cvt_13",), 3),
}
WARM_ROUNDS, UNCOUNTED_ROUNDS = 2, 2


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="over the experiment's keys")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="rounds that count (of the experiment: 60, 15, 3; of others 60)")
    parser.add_argument("--experiment", default="bench_cnn", help=f"{', '.join(WORKLOADS)}, or an experiment of umbel")
    parser.add_argument("--contenders", default="", help=f"some of {', '.join(contenders.ALL)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement")
    parser.add_argument("--profile", action="store_true", help="a round by stages instead, inline and on two workers")
    asked = parser.parse_args(words)
    try:
        asked.chosen = contenders.chosen(asked.contenders or (",".join(contenders.PROFILED) if asked.profile else ""))
    except ValueError as error:
        parser.error(str(error))
    if asked.repeats < 1 or (asked.rounds is not None and asked.rounds < 1):
        parser.error("--repeats and --rounds are 1 or more")
    if wrong := [word for word in asked.overrides if "=" not in word]:
        parser.error(f"{wrong[0]!r} is no key=value")
    asked.experiment, own, rounds = WORKLOADS.get(asked.experiment, (asked.experiment, (), 60))
    asked.overrides, asked.rounds = [*own, *asked.overrides], asked.rounds or rounds
    return asked


def script(name: str, *words: str) -> str:
    """Run a script of the yardstick, whose memory is gone afterwards, and return what it prints."""
    env = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
    command = [sys.executable, "-m", f"yardstick.{name}", *words]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"yardstick.{name} ended with status {done.returncode}")
    return done.stdout


def repeat(number: int, asked: argparse.Namespace, folder: Path) -> list[Measurement]:
    """Measure every contender once, and judge what came of it."""
    load, others = os.getloadavg(), processes.others_cores()
    quiet = "" if others <= table.QUIET else f"; NOT QUIET: others keep {others:.2f} cores busy"
    print(f"repeat {number}: load average {load[0]:.2f} {load[1]:.2f} {load[2]:.2f}{quiet}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="yardstick-models-") as models:
        taken = contenders.rotated(asked.chosen, number)
        measured = [_measured(contender, number, asked.profile, folder, Path(models)) for contender in taken]
        left = sorted(str(path) for path in Path(models).iterdir())
        judged = json.loads(script("judge", str(folder), *left)) if left and number else {}
    for each in measured:
        each.load = load[0]
        each.loss, each.norm = judged.get(each.contender, (None, None))
    return measured


def _measured(contender: Contender, number: int, profile: bool, folder: Path, models: Path) -> Measurement:
    one = measure.run(contender, folder, models / contender.name, profile)
    one.repeat = number
    said = one.failure or f"start-up {one.startup:.2f} s, rounds {one.rounds:.2f} s, others {one.others:.2f} cores"
    print(f"repeat {number}: {contender.name}: {said}", file=sys.stderr)
    return one


def all_repeats(asked: argparse.Namespace, folder: Path) -> tuple[Workload, list[Measurement]]:
    """Measure as often as asked, after one repeat that does not count."""
    whole = Workload.read(folder).lasting(WARM_ROUNDS, asked.rounds)
    whole.lasting(WARM_ROUNDS, min(asked.rounds, UNCOUNTED_ROUNDS)).write(folder)
    repeat(0, asked, folder)
    whole.write(folder)
    measured = [each for number in range(1, asked.repeats + 1) for each in repeat(number, asked, folder)]
    order = [contender.name for contender in asked.chosen]
    return whole, sorted(measured, key=lambda each: order.index(each.contender))


def report(asked: argparse.Namespace, machine: dict[str, Any], whole: Workload, measured: list[Measurement]) -> None:
    """Print the tables."""
    has_pfl = any(each.contender.startswith("pfl") and not each.failure for each in measured)
    lines = table.machine_lines(machine, pfl_environment.versions() if has_pfl else None)
    lines += [
        f"{' '.join([whole.experiment, *whole.overrides])}: {whole.num_parameters:,} parameters, "
        f"{len(whole.sizes)} clients, {whole.clients_per_round} a round, {whole.rounds} rounds after "
        f"{whole.warm_rounds} that warm up",
        f"{asked.repeats} repeats; load average before each: {table.loads(measured)}",
        "",
    ]
    if asked.profile:
        lines += table.profile_table(measured, whole.rounds)
    else:
        lines += [*table.time_table(measured, whole.rounds), "", *table.work_table(measured)]
    print("\n".join([*lines, "", *table.remarks(measured, whole)]))


def main() -> None:
    """Measure, and print what came of it."""
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="yardstick-work-") as temporary:
        folder = Path(temporary)
        script("prepare", temporary, asked.experiment, *asked.overrides)
        machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
        whole, measured = all_repeats(asked, folder)
    if asked.json:
        content = {"machine": machine, "workload": asdict(whole), "measured": [asdict(each) for each in measured]}
        asked.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    report(asked, machine, whole, measured)
    if any(each.failure for each in measured):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""All that is asked of a GPU in one command: how many clients a second it trains, in which way best.

A client is a local run of some steps on images that are on the device. For each model and precision: `loop`, a plain
PyTorch loop, one client after the other; `plain`, umbel's training, likewise; in the order channels-last; with steps
compiled (`client.compile=step`); and so many clients at once (`client.together`). All of them warm up, which is not
counted (the compiler's seconds are printed), and take turns. What there is no time for is left out by name. Memory is
that on top of what lies on the device before: weights, activations, moments, copies for those that train at once.

Then a run whose `engine.workers=auto` finds how many workers share the GPU, and the tests that want one.

    python benchmarks/gpu.py                          # in some 480 seconds
    python benchmarks/gpu.py --seconds 120 --models cnn --together 16 --json figures.json
    python benchmarks/gpu.py --device cpu --seconds 60 --models cnn --precisions fp32 --together 4 --steps 2
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from modes import Bench
from round_times import machine

from umbel import Listener, run
from umbel.core import device as devices
from umbel.core.records import reason
from umbel.core.training import LocalConfig, compiled
from umbel.core.training.fallbacks import told_to
from umbel.data.sources.cache import folder

ROOT = Path(__file__).resolve().parents[1]
ONE_BY_ONE = ("loop", "plain", "channels-last", "step", "step-channels-last")
_SHARE_OF_FIGURES = 0.7  # of the seconds; the rest is for the run on Ray and the tests
_MILLION = 1e6


class Clock:
    """How much time is left."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()


class Contender:
    """One way of training, and what was measured of it.

    Args:
        name: Its name.
        work: Does local runs and says how many steps of clients that were.
        steps: Of a client.
        where: The device.
    """

    def __init__(self, name: str, work: Callable[[], int], steps: int, where: torch.device) -> None:
        self.name, self._work, self._steps, self._where = name, work, steps, where
        self.warm_seconds = self.peak_mb = 0.0
        self.rates: list[float] = []

    def warm_up(self) -> None:
        """Do it once: what is compiled or chosen is, and the most memory that it takes is seen."""
        before = 0
        if self._where.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._where)
            before = torch.cuda.memory_allocated(self._where)
        begin = time.perf_counter()
        self._do()
        self.warm_seconds = time.perf_counter() - begin
        if self._where.type == "cuda":
            self.peak_mb = (torch.cuda.max_memory_allocated(self._where) - before) / _MILLION

    def measure(self) -> None:
        """Take one figure: clients a second."""
        begin = time.perf_counter()
        clients = self._do() / self._steps
        self.rates.append(clients / (time.perf_counter() - begin))

    def _do(self) -> int:
        steps = self._work()
        if self._where.type == "cuda":
            torch.cuda.synchronize(self._where)
        return steps


def compare(bench: Bench, names: list[str], repeats: int, clock: Clock, where: torch.device) -> list[Contender]:
    """Measure some ways of training one model; those that fail, or for which there is no time, are left out by name."""
    there: list[Contender] = []
    for name in names:
        if clock.left < 0:
            print(f"  {name}: left out, no time")
            continue
        contender, told = Contender(name, bench.contender(name), bench.steps, where), list[str]()
        try:
            with told_to(told):
                contender.warm_up()
        except Exception as error:  # noqa: BLE001 - memory, a compiler, what vmap does not know: the others go on
            print(f"  {name}: left out, {reason(error)}")
            continue
        for text in told:
            print(f"  {name}: {text}")
        there.append(contender)
    for repeat in range(repeats):
        if clock.left < 0 and repeat:
            break
        first = repeat % max(len(there), 1)
        for contender in (*there[first:], *there[:first]):
            contender.measure()
    return there


def rows(model: str, precision: str, contenders: list[Contender]) -> list[dict[str, Any]]:
    """Return what was measured, and print it; ratios are to the plain loop, within a repeat."""
    base = next((each.rates for each in contenders if each.name == "loop"), None)
    found = []
    for each in contenders:
        ratio = median(own / plain for own, plain in zip(each.rates, base, strict=True)) if base else float("nan")
        found.append(
            {
                "model": model,
                "precision": precision,
                "way": each.name,
                "clients_per_second": median(each.rates),
                "least": min(each.rates),
                "most": max(each.rates),
                "times_the_loop": ratio,
                "peak_mb": each.peak_mb,
                "warm_up_seconds": each.warm_seconds,
            }
        )
        print(
            f"| {model} | {precision} | {each.name} | {median(each.rates):,.1f} ({min(each.rates):,.1f}-"
            f"{max(each.rates):,.1f}) | {ratio:.2f} | {each.peak_mb:,.0f} | {each.warm_seconds:.1f} |",
            flush=True,
        )
    return found


def auto_workers(name: str) -> str:
    """Run a few rounds with `engine.workers=auto`; return what it says of the number that it took."""

    class Told(Listener):
        text = ""

        def notice(self, text: str) -> None:
            if text.startswith("engine.workers=auto"):
                Told.text = text

    with tempfile.TemporaryDirectory() as results:
        where = (f"client.device={name}", "engine.name=ray", "engine.workers=auto", f"run.results={results}")
        begin = time.perf_counter()
        run("bench_cnn", *where, "run.rounds=3", listener=Told())
    return f"{Told.text} Three rounds of bench_cnn: {time.perf_counter() - begin:.1f} s with the start."


def main() -> None:
    """Measure, print, write, test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="for everything")
    parser.add_argument("--models", default="cnn,cvt_tiny32,resnet18")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--together", default="4,16,64", help="so many clients at once")
    parser.add_argument("--steps", type=int, default=8, help="of a client")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row, after each model")
    asked = parser.parse_args()
    whole, clock = Clock(asked.seconds), Clock(_SHARE_OF_FIGURES * asked.seconds)
    devices.set_threads(1)
    where = devices.resolve(asked.device)
    devices.make_repeatable(where)
    compiled.keep_in(folder() / "compiled")
    print(machine(os.getloadavg()[0]))
    print(torch.cuda.get_device_name(where) if where.type == "cuda" else "no GPU: memory is not measured")
    ways = [*ONE_BY_ONE, *(f"together-{number}" for number in asked.together.split(",") if number)]
    print("\n| model | precision | way | clients a second | times the loop | peak MB | warm-up (s) |")
    print("|---|---|---|---:|---:|---:|---:|")
    found: list[dict[str, Any]] = []
    for model in asked.models.split(","):
        for precision in asked.precisions.split(","):
            config = LocalConfig(batch_size=asked.batch, device=asked.device, precision=precision)
            bench = Bench(model, config, 32, 3, asked.steps, where)
            found += rows(model, precision, compare(bench, ways, asked.repeats, clock, where))
            if asked.json:
                asked.json.write_text(json.dumps({"machine": machine(0.0), "rows": found}, indent=1), encoding="utf-8")
            del bench
            gc.collect()
            if where.type == "cuda":
                torch.cuda.empty_cache()
    print(f"\n{auto_workers(asked.device)}", flush=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    tests = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        tests.wait(max(whole.left, 1.0))
    except subprocess.TimeoutExpired:
        os.killpg(tests.pid, signal.SIGKILL)  # with all that they have started
        print("The tests that want a GPU were not done in time.")


if __name__ == "__main__":
    main()

"""Does FOT show its paper's effects on real data? Paired seeds, one budget, tuned on validation data only.

    python benchmarks/methods.py fot [--seeds 3] [--output FILE]

Prints a Markdown table: mean ± sample deviation over seeds, and the paired difference to the first row ± its standard
error. Runs are kept in the results folder and are not run again, unless their resolved experiment is another one now; a
run of another commit or other versions is kept, with a line that says so.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from conf.load import as_yaml, load
from conf.schema import Experiment
from core.files import read_json
from server.results import environment
from simulations import run


@dataclass(frozen=True)
class Study:
    """Contenders of one method.

    Attributes:
        experiment: Their experiment.
        common: Overrides of all.
        contenders: Overrides of each by its name in the table; the first is what the others are compared with.
        metrics: What the table shows: column -> metric of summary.json, in percent.
    """

    experiment: str
    common: Sequence[str]
    contenders: Mapping[str, Sequence[str]]
    metrics: Mapping[str, str]


SEQUENCE = {"ACC": "test/acc", "FGT": "test/forgetting", "ACC, validation": "validation/acc"}
STUDIES = {
    "fot": Study(
        "fot_permuted",
        (),
        {
            "FedAvg": ("strategy.project=false",),
            "FOT, epsilon .95": ("strategy.threshold=0.95",),
            "FOT, epsilon .98": ("strategy.threshold=0.98",),
            "FOT as in the authors' code": (
                "strategy.threshold=0.95",
                "strategy.sketched=local",
                "strategy.ratio_power=1",
                "strategy.min_directions=1",
                "strategy.bias=free",
                "strategy.rest=free",
            ),
        },
        SEQUENCE,
    ),
    "fot_split": Study(
        "fot_split",
        (),
        {"FedAvg": ("strategy.project=false",), "FOT, epsilon .95": ("strategy.threshold=0.95",)},
        SEQUENCE,
    ),
    "fot_ablations": Study(
        "fot_split",
        (),
        {
            "FOT, epsilon .95": (),
            "inputs of local models": ("strategy.sketched=local",),
            "rho not squared": ("strategy.ratio_power=1",),
            "biases free": ("strategy.bias=free",),
            "Gram matrices": ("strategy.width=0",),
            "no bases sent": ("strategy.residual=server",),
        },
        SEQUENCE,
    ),
}


def measure(study: Study, name: str, options: Sequence[str], seed: int, folder: Path) -> dict[str, float]:
    """Run one contender with one seed, unless its resolved experiment was run before."""
    overrides = [*study.common, *options, f"run.seed={seed}", f"run.results={folder}"]
    identity = f"{hash_of(overrides):016x}"
    composed = load(study.experiment, [*overrides, f"run.name={identity}"])
    path = folder / identity
    if kept(path, composed):
        if differences := changed(read_json(path / "env.json"), environment_now()):
            print(f"{name}, seed {seed}: kept from {differences}", file=sys.stderr, flush=True)
    else:
        began = time.perf_counter()
        run(study.experiment, *overrides, f"run.name={identity}")
        print(f"{name}, seed {seed}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    summary = read_json(path / "summary.json")
    megabytes = (summary["bytes_up"]["tensors"] + summary["bytes_down"]["tensors"]) / 1e6 / composed.run.rounds
    return {**summary["metrics"], "megabytes": megabytes}


def hash_of(overrides: Sequence[str]) -> int:
    """Return a number for a list of overrides, the same in every process; it names the folder of the run."""
    return int(hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:16], 16)


def kept(path: Path, composed: Experiment) -> bool:
    """Say whether a finished run of this resolved experiment is at `path`, and bring it there if it was moved aside.

    A run of another resolved experiment (a YAML file or a default has changed since) is moved to `<path>-<its hash>`.
    """
    wanted = hash_of_resolved(as_yaml(composed))
    if (path / "config.yaml").is_file():
        found = hash_of_resolved((path / "config.yaml").read_text(encoding="utf-8"))
        if found != wanted:
            path.rename(path.with_name(f"{path.name}-{found}"))
            print(f"{path} is of another experiment now: moved to {path.name}-{found}", file=sys.stderr, flush=True)
    aside = path.with_name(f"{path.name}-{wanted}")
    if aside.is_dir() and not path.exists():
        aside.rename(path)
    return (path / "summary.json").is_file()


def hash_of_resolved(text: str) -> str:
    """Return a hash of a resolved experiment in YAML, without what changes no figure: texts, folders, the engine."""
    plain = yaml.safe_load(text)
    for key in ("name", "description", "engine", "checkpoint"):
        plain.pop(key, None)
    for section, key in (("data", "path"), ("client", "device"), ("run", "results"), ("run", "name")):
        plain.get(section, {}).pop(key, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


environment_now = functools.cache(environment)


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in which commit and versions two environments differ; "" where they do not."""
    found, before, after = [], then.get("git_commit"), now["git_commit"]
    if before != after:
        found.append(f"commit {short(before)}, now {short(after)}")
    elif after and after.endswith("+"):
        found.append(f"commit {short(before)} with changes that were not committed")
    versions = then.get("versions", {})
    found += [f"{name} {versions.get(name)}, now {v}" for name, v in now["versions"].items() if v != versions.get(name)]
    return "; ".join(found)


def short(commit: str | None) -> str:
    """Write the first characters of a commit, and the `+` of changes that are not in it."""
    return "unknown" if commit is None else commit.rstrip("+")[:10] + ("+" if commit.endswith("+") else "")


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Write mean ± sample deviation."""
    deviation = statistics.stdev(values) * scale if len(values) > 1 else 0.0
    return f"{statistics.fmean(values) * scale:.2f} ± {deviation:.2f}"


def table(study: Study, found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return the table as Markdown."""
    first = next(iter(found.values()))
    main = next(iter(study.metrics))
    lines = [
        f"| contender | {' | '.join(study.metrics)} | {main} against {next(iter(found))} | MB a round |",
        "|---|" + "---:|" * (len(study.metrics) + 2),
    ]
    for name, runs in found.items():
        cells = [spread([each[metric] for each in runs]) for metric in study.metrics.values()]
        paired = [100 * (a[study.metrics[main]] - b[study.metrics[main]]) for a, b in zip(runs, first, strict=True)]
        error = statistics.stdev(paired) / math.sqrt(len(paired)) if len(paired) > 1 else 0.0
        cells.append("reference" if runs is first else f"{statistics.fmean(paired):+.2f} ± {error:.2f}")
        cells.append(f"{statistics.fmean([each['megabytes'] for each in runs]):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run a study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("results/methods"))
    parser.add_argument("--output", type=Path, help="also write the table here")
    given = parser.parse_args()
    study = STUDIES[given.study]
    folder = (given.results / given.study).resolve()
    found = {
        name: [measure(study, name, options, seed, folder) for seed in range(given.seeds)]
        for name, options in study.contenders.items()
    }
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "flwr", "numpy"))
    text = (
        f"`python benchmarks/methods.py {given.study} --seeds {given.seeds}`; {platform.machine()}, Python "
        f"{platform.python_version()}, {versions}. Percent; mean ± sample deviation over seeds, paired difference ± "
        f"its standard error.\n\n{table(study, found)}\n"
    )
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

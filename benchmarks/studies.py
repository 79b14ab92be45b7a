"""What the benchmarks of the methods share: contenders run with paired seeds, kept, compared, and written down.

A run is kept in the results folder and is not run again, unless its resolved experiment is another one now; a run of
another commit or other versions is kept, with a line that says so.
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from umbel import run
from umbel.conf.load import as_yaml, load
from umbel.conf.schema import Experiment
from umbel.core.files import read_json
from umbel.server.results import environment


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


Runs = Mapping[str, Sequence[Mapping[str, float]]]  # contender -> metrics of each seed


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
        own = hash_of_resolved((path / "config.yaml").read_text(encoding="utf-8"))
        if own != wanted:
            path.rename(path.with_name(f"{path.name}-{own}"))
            print(f"{path} is of another experiment now: moved to {path.name}-{own}", file=sys.stderr, flush=True)
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
    changes, before, after = [], then.get("git_commit"), now["git_commit"]
    if before != after:
        changes.append(f"commit {short(before)}, now {short(after)}")
    elif after and after.endswith("+"):
        changes.append(f"commit {short(before)} with changes that were not committed")
    before, after = (each.get("kernels", {}).get("bits") for each in (then, now))
    if before and after and before != after:
        changes.append(f"arithmetic {before}, now {after}")
    versions = then.get("versions", {})
    changes += [
        f"{name} {versions.get(name)}, now {v}" for name, v in now["versions"].items() if v != versions.get(name)
    ]
    return "; ".join(changes)


def short(commit: str | None) -> str:
    """Write the first characters of a commit, and the `+` of changes that are not in it."""
    return "unknown" if commit is None else commit.rstrip("+")[:10] + ("+" if commit.endswith("+") else "")


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Write mean ± sample deviation; of one value no deviation."""
    mean = f"{statistics.fmean(values) * scale:.2f}"
    return f"{mean} ± {statistics.stdev(values) * scale:.2f}" if len(values) > 1 else mean


def column(runs: Sequence[Mapping[str, float]], metric: str) -> list[float]:
    """Return a metric of each seed."""
    return [each[metric] for each in runs]


def paired(left: Sequence[float], right: Sequence[float], scale: float = 100.0) -> str:
    """Write the mean of left - right over seeds ± its standard error."""
    differences = [scale * (a - b) for a, b in zip(left, right, strict=True)]
    mean = f"{statistics.fmean(differences):+.2f}"
    return f"{mean} ± {standard_error(differences):.2f}" if len(differences) > 1 else mean


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean; 0 of one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def command_line(description: str | None, studies: Iterable[str], seeds: int = 3) -> argparse.ArgumentParser:
    """Return what the scripts are asked by; `seeds` is how many are run when nothing is said."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies)
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("results") / Path(sys.argv[0]).stem)
    parser.add_argument("--output", type=Path, help="also write the tables here")
    return parser


def folder_of(given: argparse.Namespace) -> Path:
    """Return where a study's runs are kept."""
    folder: Path = (given.results / given.study).resolve()
    return folder


def measure_all(study: Study, folder: Path, given: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Run all contenders, seed by seed, so that what is there after an interruption is paired."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in study.contenders}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for name, options in study.contenders.items():
            runs[name].append(measure(study, name, options, seed, folder))
    return runs


def publish(given: argparse.Namespace, tables: Sequence[str], unit: str = "Percent") -> None:
    """Print tables under the command and the versions that they come from, and write them where they are asked for."""
    command = f"python benchmarks/{Path(sys.argv[0]).name} {given.study} --seeds {given.seeds}"
    if given.first_seed:
        command += f" --first-seed {given.first_seed}"
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "flwr", "numpy"))
    text = (
        f"`{command}`; {platform.machine()}, Python {platform.python_version()}, {versions}. {unit}; mean ± sample "
        "deviation over seeds, paired difference ± its standard error.\n\n" + "\n\n".join(tables) + "\n"
    )
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")

"""Compare strategies so that the comparison can be believed: several seeds, deviations, paired differences.

Every strategy runs with the same seeds; a seed fixes the partition, the initial weights and the cohorts, so
that differences between strategies are paired by seed. Finished runs of the same configuration are used
again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.conf.sweep import Setting
from umbel.core.files import plain, write_sealed, write_text
from umbel.core.refusal import Refusal
from umbel.server.errors import StopRequested
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare import target as targets
from umbel.simulations.compare.at_once import Course, Job, carrying_out, how_many
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.matrix import Cell, so_far
from umbel.simulations.compare.plan import states
from umbel.simulations.compare.settings import prepare_matrix, wanted
from umbel.simulations.compare.tables import frame, latex, markdown
from umbel.simulations.compare.verdict import question, verdict


def compare(
    experiment: str,
    *overrides: str,
    strategies: str | Sequence[str] = "",
    seeds: int | Sequence[int] | None = None,
    output: str | Path | None = None,
    listener: Watcher | None = None,
    fresh: bool = False,
    budget: str | None = None,
    keep: bool = False,
    tuned: str | Path | None = None,
    untuned: str | Sequence[str] = "",
    target: float | None = None,
    at_once: int | str | None = None,
) -> Comparison:
    """Run an experiment with several strategies and seeds; the command line does the same.

    What is not given is what the experiment's block `compare` says.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        overrides: `key=value` each, for all runs.
        strategies: Such as `fedavg,fedprox(mu=0.1),scaffold`, or a sequence of such names; the first is the reference.
        seeds: How many, counted from `run.seed`, or the seeds themselves; 3 where nobody says.
        output: The comparison's folder; None is `compare-<experiment>` in `run.results`.
        listener: Told of everything that happens.
        fresh: Run everything anew.
        budget: What all strategies have equally much of: `rounds`, `steps`, `examples`, `flops`, `bytes` or
            `seconds`; rounds where nobody says.
        keep: Use runs again that other code has made; else they are run anew, and what there was is put aside.
        tuned: Folder of `umbel.tune`, whose values each strategy has.
        untuned: Strategies that were not tuned and have the experiment's own values; the table says so.
        target: Say as well in which round, and at what cost, runs first came to this value of what they are judged by,
            accuracies as fractions.
        at_once: How many runs go on at once, each in a process of its own, or `auto`; one where nobody says.

    Raises:
        ExperimentError: Something is refused; nothing has started.
        RunStoppedError: A run could not go on; the same call goes on with it.
    """
    names = strategies if isinstance(strategies, str) else ",".join(strategies)
    numbers = str(seeds) if isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds or ())
    others = untuned if isinstance(untuned, str) else ",".join(untuned)
    asked_for = wanted(experiment, overrides, names, numbers, budget, at_once=at_once)
    if asked_for.settings:
        raise ExperimentError(
            f"{experiment} has a block `sweep` of {len(asked_for.settings)} settings, and `umbel.compare` takes one.",
            key="sweep",
            remedy="Use umbel.compare_settings, or set the keys of one of them.",
        )
    told = listener or Watcher()
    for notice in asked_for.notices:
        told.notice(notice)
    prepared = prepare_matrix(experiment, asked_for, overrides, output, tuned, others).aiming(target)
    comparison = prepared.cells[0].comparison
    number, said = how_many(asked_for.at_once, comparison.members, asked_for.budget, asked_for.at_once_key)
    if said:
        told.notice(said)
    return carry_out(comparison, told, fresh, keep, number)


def carry_out(
    comparison: Comparison,
    listener: Watcher | None = None,
    fresh: bool = False,
    keep: bool = False,
    at_once: int = 1,
) -> Comparison:
    """Run a comparison's runs and write its table, pictures and report; where that is stopped, those of what has ended.

    A run that is there with the same configuration is used again, or gone on with, unless other code made it.

    Args:
        comparison: From `prepare`.
        listener: Told of everything that happens.
        fresh: Run everything anew.
        keep: Use runs again that other code has made.
        at_once: How many go on at once.

    Raises:
        RunStoppedError: A run could not go on, and those beside it are stopped; the same call goes on with them.
    """
    if fresh:
        for member in comparison.members:
            shutil.rmtree(member.path, ignore_errors=True)
    comparison.path.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(member, index, len(comparison.members), comparison)
        for index, member in enumerate(comparison.members, start=1)
    ]
    course, told = _All(), listener or Watcher()
    try:
        with carrying_out(at_once, told, keep) as runs:
            runs.go(jobs, course)
    except (KeyboardInterrupt, StopRequested):
        with contextlib.suppress(Refusal, OSError):  # a damaged run, a full disk: all stops in any case
            if write_so_far(comparison, keep) is not None:
                told.page = comparison.path / "report.html"
        raise
    write(comparison)
    return comparison


def write_so_far(comparison: Comparison, keep: bool = False) -> Comparison | None:
    """Write table, pictures and report of the seeds all of whose runs have ended; return them, None where none has.

    Args:
        comparison: All runs.
        keep: What other code has made counts.
    """
    missing = so_far(comparison, states(comparison, keep=keep))
    if (there := Cell(Setting("", ()), comparison, missing=missing).whole) is not None:
        write(there)
    return there


class _All(Course):
    """All runs are to end well."""

    def __init__(self) -> None:
        self._ended: set[Path] = set()

    def is_ready(self, job: Job) -> bool:
        return job.reference is None or job.reference.path in self._ended

    def ended(self, job: Job, error: Exception | None) -> None:
        if error is not None:
            raise error
        self._ended.add(job.member.path)


def write(comparison: Comparison) -> None:
    """Write comparison.json, the table as Markdown, LaTeX and CSV, curves.png, partition.png and report.html."""
    from umbel.simulations.report.page import report, write_pictures

    runs = [
        {
            "strategy": member.item.label,
            "seed": member.seed,
            "folder": member.path.name,
            "weights_sha256": member.summary["weights_sha256"],
            "lost": member.lost,
            **{measure: member.measures[measure] for measure in comparison.shown},
        }
        for member in comparison.members
    ]
    reference, tuned = comparison.items[0].label, comparison.tuned
    table: dict[str, dict[str, Any]] = {item.label: {} for item in comparison.items}
    for measure in comparison.shown:
        differences = comparison.differences(measure)
        for label, row in table.items():
            row[measure] = comparison.numbers(label, measure, differences.get(label))
    content = {
        "experiment": comparison.members[0].experiment.name,
        "source": comparison.source,
        "overrides": list(comparison.overrides),
        "budget": comparison.budget,
        "tuned": tuned and tuned.said(comparison.untuned),
        "strategies": [dataclasses.asdict(item) for item in comparison.items],
        "seeds": list(comparison.seeds),
        "reference": reference,
        "main": comparison.main,
        "question": question(comparison),
        "verdict": verdict(comparison),
        "best": {measure: comparison.best(measure) for measure in comparison.shown},
        "table": table,
        "runs": runs,
        "failed": list(comparison.failed),
        "open_seeds": list(comparison.open_seeds),
        "target": comparison.target,
    }
    if targets.is_asked(comparison):
        content["reached"] = targets.as_dict(comparison)
    write_sealed(comparison.path / "comparison.json", plain(content))
    write_text(comparison.path / "table.md", markdown(comparison) + targets.markdown(comparison))
    write_text(comparison.path / "table.tex", latex(comparison))
    write_text(comparison.path / "table.csv", frame(comparison).to_csv(index=False))
    write_pictures(comparison)
    report([comparison.path])

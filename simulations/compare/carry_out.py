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
from umbel.core.files import plain, read_sealed, write_sealed, write_text
from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError, StopRequested
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare import target as targets
from umbel.simulations.compare.at_once import Course, Job, carrying_out, how_many
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.failures import failure_of
from umbel.simulations.compare.matrix import Cell, Failure, in_order, so_far
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
        RunStoppedError: A run could not go on. The others have ended, and the tables are of the strategies all of whose
            runs have; the same call goes on with it.
    """
    if fresh:
        for member in comparison.members:
            shutil.rmtree(member.path, ignore_errors=True)
    comparison.path.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(member, index, len(comparison.members), comparison)
        for index, member in enumerate(comparison.members, start=1)
    ]
    told = listener or Watcher()
    course = _All(told)
    try:
        with carrying_out(at_once, told, keep) as runs:
            runs.go(jobs, course)
    except (KeyboardInterrupt, StopRequested):
        with contextlib.suppress(Refusal, OSError):  # a damaged run, a full disk: all stops in any case
            if write_so_far(comparison, keep) is not None:
                told.page = comparison.path / "report.html"
        raise
    if course.error is not None:
        failures = in_order(comparison, course.failures)
        if (whole := Cell(Setting("", ()), comparison, failures).whole) is not None:
            write(whole, failures)
            told.page = comparison.path / "report.html"
        if isinstance(course.error, RunStoppedError):
            others = "" if whole is None else f" The tables in {comparison.path} are of the other strategies."
            first = f"{course.failures[0].label}, seed {course.failures[0].seed}"
            said = f"{len(failures)} of {len(comparison.members)} runs failed.{others} The first was {first}:"
            raise type(course.error)(f"{said}\n{course.error}") from course.error
        raise course.error
    write(comparison)
    return comparison


def write_so_far(comparison: Comparison, keep: bool = False) -> Comparison | None:
    """Write table, pictures and report of the seeds all of whose runs have ended; return them, None where none has.

    Args:
        comparison: All runs.
        keep: What other code has made counts.
    """
    missing = so_far(comparison, states(comparison, keep=keep))
    before = _failed_before(comparison)
    failures = in_order(comparison, [each for each in before if (each.label, each.seed) in missing])
    missing -= {(each.label, each.seed) for each in failures}
    if (there := Cell(Setting("", ()), comparison, failures, missing).whole) is not None:
        write(there, failures)
    return there


def _failed_before(comparison: Comparison) -> list[Failure]:
    """Return the runs that had failed when the tables were last written; none where that cannot be read."""
    try:
        return [Failure(**each) for each in read_sealed(comparison.path / "comparison.json").get("failures", ())]
    except (OSError, ValueError, TypeError, RecursionError):  # there is none, or it is written anew
        return []


class _All(Course):
    """All runs, whether those before have failed or not."""

    def __init__(self, listener: Watcher) -> None:
        self._listener = listener
        self._ended: set[Path] = set()
        self.failures: list[Failure] = []
        self.error: Exception | None = None  # of the first of them

    def is_ready(self, job: Job) -> bool:
        return job.reference is None or job.reference.path in self._ended

    def ended(self, job: Job, error: Exception | None) -> None:
        if failure := failure_of(job.member, error):
            self.failures.append(failure)
            self.error = self.error or error or RunStoppedError(failure.sentence)
            self._listener.run_failed(failure.label, failure.seed, failure.reason)
        self._ended.add(job.member.path)


def write(comparison: Comparison, failures: Sequence[Failure] = ()) -> None:
    """Write comparison.json, the table as Markdown, LaTeX and CSV, curves.png, partition.png and report.html.

    Args:
        comparison: Of the strategies all of whose runs have ended.
        failures: Runs of others.
    """
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
        "failures": [dataclasses.asdict(each) for each in failures],
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

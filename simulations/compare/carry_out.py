"""Compare strategies so that the comparison can be believed: several seeds, deviations, paired differences.

Every strategy runs with the same seeds; a seed fixes the partition, the initial weights and the cohorts, so
that differences between strategies are paired by seed. Finished runs of the same configuration are used
again.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.core.files import plain, write_sealed, write_text
from umbel.server import reading
from umbel.server.listener import Both, Listener
from umbel.server.lock import exclusive
from umbel.server.sources import changed, sources
from umbel.simulations import api
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare import target as targets
from umbel.simulations.compare.comparison import Comparison, Member
from umbel.simulations.compare.settings import prepare_matrix, wanted
from umbel.simulations.compare.tables import frame, latex, markdown
from umbel.simulations.compare.verdict import question, verdict

_ASIDE = "earlier"  # the folder of runs that other code made


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

    Raises:
        ExperimentError: Something is refused; nothing has started.
        RunStoppedError: A run could not go on; the same call goes on with it.
    """
    names = strategies if isinstance(strategies, str) else ",".join(strategies)
    numbers = str(seeds) if isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds or ())
    others = untuned if isinstance(untuned, str) else ",".join(untuned)
    asked_for = wanted(experiment, overrides, names, numbers, budget)
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
    return carry_out(prepared.cells[0].comparison, told, fresh, keep)


def carry_out(
    comparison: Comparison, listener: Watcher | None = None, fresh: bool = False, keep: bool = False
) -> Comparison:
    """Run a comparison's runs, one after the other, and write its table, pictures and report.

    A run that is there with the same configuration is used again, or gone on with, unless other code made it.

    Args:
        comparison: From `prepare`.
        listener: Told of everything that happens.
        fresh: Run everything anew.
        keep: Use runs again that other code has made.

    Raises:
        RunStoppedError: A run could not go on; the same call goes on with it.
    """
    comparison.path.mkdir(parents=True, exist_ok=True)
    for index, member in enumerate(comparison.members, start=1):
        if fresh:
            shutil.rmtree(member.path, ignore_errors=True)
        own = comparison.budgeted(member)
        run_member(own, index, len(comparison.members), listener or Watcher(), keep)
    write(comparison)
    return comparison


def look(member: Member, keep: bool = False, budgeted: bool = True) -> tuple[str, list[str]]:
    """Say what becomes of a run, and what has changed since it began.

    Args:
        member: The run.
        keep: What other code has made is used again.
        budgeted: It has the budget that it runs with, which one that is there has to have had.

    Returns:
        `new`, `resumed`, `reused`, or `changed`, which is begun again; and the names of what has changed.
    """
    there = (member.path / "config.yaml").is_file()
    finished = (member.path / reading.SUMMARY).is_file()
    names = changed(_sources(member.path), sources(member.experiment)) if there else []
    if budgeted and there and reading.experiment(member.path).run.budget != member.experiment.run.budget:
        names.append("run.budget")  # what the first strategy's run costs is something else now
    how = "changed" if names and not keep else "reused" if finished else "resumed" if there else "new"
    return how, names


def run_member(
    member: Member, index: int, total: int, listener: Watcher, keep: bool = False, beside: Listener | None = None
) -> str:
    """Use the run that is there, go on with it, or start it; one that other code began is begun again.

    Args:
        member: The run, with its budget.
        index: Which run it is, from 1.
        total: Of how many.
        listener: Told of everything that happens.
        keep: What other code has made is used again.
        beside: Told of the run as well.

    Returns:
        As `look`.
    """
    how, names = look(member, keep)
    told = listener if beside is None else Both(listener, beside)
    listener.member(index, total, member.item.label, member.seed, how)
    if names:
        listener.notice(_other_code(member.path, names, how))
    if how == "changed":
        _put_aside(member.path)
    if how == "reused":
        reading.metrics(member.path)  # refuses a damaged one before the others run
    elif how == "resumed":
        api.resume(member.path, listener=told)
    else:
        shutil.rmtree(member.path, ignore_errors=True)  # it was stopped before it wrote anything
        api.run(member.experiment, listener=told)
    return how


def _other_code(folder: Path, names: Sequence[str], how: str) -> str:
    began = f"{folder.name} began with other code, or another budget, than there is now ({', '.join(names)})"
    if how == "changed":
        return f"{began}: it is run anew, and the one before is kept in {_ASIDE}/. To use it all the same: --keep"
    return f"{began}, and is {how} all the same: its numbers may not be those of the others."


def _put_aside(folder: Path) -> None:
    """Move a run out of the way; nothing of it is lost.

    Raises:
        RunStoppedError: Another process is at work on it.
    """
    aside = folder.parent / _ASIDE
    aside.mkdir(exist_ok=True)
    names = (f"{folder.name}-{number}" for number in itertools.count(1))
    with exclusive(folder, 1.0):
        folder.rename(aside / next(name for name in names if not (aside / name).exists()))


def _sources(folder: Path) -> dict[str, str]:
    """Return the hashes of the code that a run began with; none where it did not say."""
    hashes = reading.environment(folder).get("sources", {})
    return hashes if isinstance(hashes, dict) else {}


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

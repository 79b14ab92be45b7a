"""One run of a comparison: it is used again, gone on with, begun, or begun anew, by what is there of it."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

from umbel.server import reading
from umbel.server.listener import Both, Listener
from umbel.server.lock import exclusive
from umbel.server.sources import changed, sources
from umbel.simulations import api
from umbel.simulations.commands.watcher import Watcher
from umbel.simulations.compare.comparison import Member

_ASIDE = "earlier"  # the folder of runs that other code made


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
    listener.member(index, total, member.item.label, member.seed, how)
    prepare(member, how, names, listener)
    told = listener if beside is None else Both(listener, beside)
    if how == "resumed":
        api.resume(member.path, listener=told)
    elif how != "reused":
        api.run(member.experiment, listener=told)
    return how


def prepare(member: Member, how: str, names: Sequence[str], listener: Listener) -> None:
    """Make a run's folder what it has to be before the run is carried out, by what `look` returned.

    Args:
        member: The run.
        how: What becomes of it.
        names: What has changed since it began.
        listener: Told where something has.

    Raises:
        DamagedError: It is to be used again, and cannot be read.
        RunStoppedError: It is to be begun again, and another process is at work on it.
    """
    if names:
        listener.notice(_other_code(member.path, names, how))
    if how == "changed":
        _put_aside(member.path)
    if how == "reused":
        reading.metrics(member.path)  # refuses a damaged one before the others run
    elif how != "resumed":
        shutil.rmtree(member.path, ignore_errors=True)  # it was stopped before it wrote anything


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

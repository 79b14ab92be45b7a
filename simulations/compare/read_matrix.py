"""Read the folder of a comparison in several settings: what it was made of, and which of its runs failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from umbel.conf.schema import Experiment
from umbel.conf.sweep import Setting
from umbel.core.files import DamagedError, read_sealed
from umbel.server import reading
from umbel.simulations.compare.comparison import Comparison, Item, Member
from umbel.simulations.compare.matrix import Cell, Failure, Matrix
from umbel.simulations.tune.tuned import Tuned

FILE = "comparison.json"


def is_matrix(folder: Path) -> bool:
    """Say whether a folder's comparison is one of several settings.

    Raises:
        DamagedError: Its file is not what was written.
    """
    return "settings" in _content(folder)


def read_matrix(folder: Path) -> Matrix:
    """Read the folder of a comparison in several settings.

    Raises:
        DamagedError: comparison.json is not what was written, or a run of it.
    """
    content = _content(folder)
    try:
        items = tuple(Item(item["label"], item["name"], tuple(item["options"])) for item in content["strategies"])
        seeds, overrides, source = tuple(content["seeds"]), tuple(content["overrides"]), str(content["source"])
        by_label, tuned = {item.label: item for item in items}, Tuned.from_said(content.get("tuned"))
        target = content.get("target")
        cells = []
        for each in content["settings"]:
            setting, place = Setting(each["label"], tuple(each["overrides"])), folder / each["folder"]
            runs = [(by_label[run["strategy"]], run["seed"], place / run["folder"], run) for run in each["runs"]]
            failures = tuple(
                Failure(item.label, seed, run["failed"], run["is_saved"])
                for item, seed, _, run in runs
                if run["failed"]
            )
            missing = frozenset((item.label, seed) for item, seed, _, run in runs if run.get("missing"))
            # What has failed, or is still to come, may have left no configuration, and nothing of it is read.
            members = tuple(
                Member(
                    item, seed, Experiment() if run["failed"] or run.get("missing") else reading.experiment(path), path
                )
                for item, seed, path, run in runs
            )
            own = (*overrides, *setting.overrides)
            comparison = Comparison(
                place, items, seeds, members, source, own, content["budget"], tuned=tuned, target=target
            )
            cells.append(Cell(setting, comparison, failures, missing))
    except (KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    return Matrix(folder, tuple(cells), source, overrides)


def failed_before(matrix: Matrix, plans: Sequence[Sequence[str]]) -> dict[Path, Failure]:
    """Return the runs that had failed when the tables of all settings were last written, by folder.

    Those that are run anew, as their code is another now, are not among them.

    Args:
        matrix: All runs.
        plans: What becomes of each, by setting, from `plan.states`.
    """
    found, folder = {}, matrix.path
    still = {
        member.path
        for cell, plan in zip(matrix.cells, plans, strict=True)
        for member, how in zip(cell.comparison.members, plan, strict=True)
        if how in ("resumed", "new")
    }
    try:
        for setting in read_sealed(folder / FILE).get("settings", ()):
            for run in setting["runs"]:
                if run["failed"] and (path := folder / setting["folder"] / run["folder"]) in still:
                    found[path] = Failure(run["strategy"], run["seed"], run["failed"], run["is_saved"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # there is none, or it is written anew
        return {}
    return found


def _content(folder: Path) -> dict[str, Any]:
    try:
        return read_sealed(folder / FILE)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> DamagedError:
    return DamagedError.of(folder / FILE, str(error), "Make it again by the command that made it.")

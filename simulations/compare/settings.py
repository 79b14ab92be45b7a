"""What is to be compared in which settings: the file and the command line are read, and every run is checked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from umbel.conf import sweep as sweeps
from umbel.conf.errors import ExperimentError
from umbel.conf.load import asked, load
from umbel.conf.sweep import Setting, key_of
from umbel.core.names import file_stem
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.matrix import Cell, Matrix
from umbel.simulations.compare.prepare import prepare
from umbel.simulations.compare.read_matrix import FILE, is_matrix

_SEEDS, _BUDGET = "3", "rounds"
_LONGEST_NAME = 120  # file systems take 255 bytes
# What a matrix writes beside its settings.
_TAKEN = {FILE, "table.md", "table.tex", "table.csv", "report.html", "settings.png", "ranks.png", "profiles.png"}


@dataclass(frozen=True)
class Wanted:
    """What file and command line together ask for.

    Attributes:
        strategies: Such as `fedavg,fedprox(mu=0.1)`.
        seeds: Such as `3` or `1,5,7`.
        budget: Such as `steps`.
        settings: Empty where there is one, as the overrides have it.
        notices: Where the command line has won over the file, a sentence each.
        at_once: Such as `2` or `auto`; empty is one.
        at_once_key: Where that was said.
    """

    strategies: str
    seeds: str
    budget: str
    settings: tuple[Setting, ...]
    notices: tuple[str, ...]
    at_once: str = ""
    at_once_key: str = "--at-once"


def wanted(
    experiment: str,
    overrides: Sequence[str] = (),
    strategies: str | None = None,
    seeds: str | None = None,
    budget: str | None = None,
    sweep: Sequence[str] = (),
    at_once: int | str | None = None,
) -> Wanted:
    """Put what the command line says before what the file says.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        overrides: `key=value` each, for all runs.
        strategies: None for what the file says.
        seeds: None for what the file says, else 3.
        budget: None for what the file says, else rounds.
        sweep: `data.alpha=0.1,1` each; none for what the file says.
        at_once: None for what the file says, else one.

    Raises:
        ExperimentError: Nobody says which strategies, or what is said cannot be, or contradicts itself.
    """
    file = asked(experiment)
    notices, runs = [], None if at_once in (None, "") else str(at_once)
    for option, given, own in (
        ("strategies", strategies, file.strategies),
        ("seeds", seeds, file.seeds),
        ("budget", budget, file.budget),
        ("at-once", runs, file.at_once),
    ):
        if given and own and given != own:
            key = option.replace("-", "_")
            notices.append(f"--{option} {given} takes the place of `compare.{key}` of the file, {own.rstrip(',')}.")
    chosen = strategies or file.strategies
    if not chosen:
        raise ExperimentError(
            "Nobody says which strategies.",
            key="--strategies",
            remedy="Such as --strategies fedavg,scaffold, or `compare: {strategies: [fedavg, scaffold]}` in the file.",
        )
    settings, said = _settings(file.settings, sweeps.parse(sweep), overrides)
    numbers, equal = seeds or file.seeds or _SEEDS, budget or file.budget or _BUDGET
    key = "compare.at_once" if runs is None and file.at_once else "--at-once"
    return Wanted(chosen, numbers, equal, settings, (*notices, *said), runs or file.at_once, key)


def prepare_matrix(
    experiment: str,
    asked_for: Wanted,
    overrides: Sequence[str] = (),
    output: str | Path | None = None,
    tuned: str | Path | None = None,
    untuned: str = "",
) -> Matrix:
    """Compose and check every run of every setting; nothing is started or written.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        asked_for: From `wanted`; without settings there is one, in the very folder.
        overrides: `key=value` each, for all runs.
        output: The folder; None is `matrix-<experiment>` in `run.results`, of one setting `compare-<experiment>`.
        tuned: Folder of `umbel tune`, whose values each strategy has in all settings; None is the experiment's own.
        untuned: Strategies that have the experiment's own all the same.

    Raises:
        ExperimentError: A setting is refused, or two of them are the same.
    """
    words = (asked_for.strategies, asked_for.seeds)
    if not asked_for.settings:
        one = prepare(experiment, *words, overrides, output, asked_for.budget, tuned, untuned)
        _check_place(one.path, several=False)
        return Matrix(one.path, (Cell(Setting("", ()), one),), one.source, tuple(overrides))
    folder = _folder(experiment, overrides, asked_for.settings[0], output)
    _check_place(folder, several=True)
    comparisons: list[Comparison] = []
    refused: list[tuple[Setting, ExperimentError]] = []
    for setting in asked_for.settings:
        try:
            own = [*overrides, *setting.overrides]
            place = folder / folder_of(setting)
            comparisons.append(prepare(experiment, *words, own, place, asked_for.budget, tuned, untuned))
        except ExperimentError as error:
            refused.append((setting, error))
    if refused:
        raise _refusal(refused, len(asked_for.settings))
    _check_distinct(asked_for.settings, comparisons)
    cells = tuple(Cell(setting, each) for setting, each in zip(asked_for.settings, comparisons, strict=True))
    return Matrix(folder, cells, comparisons[0].source, tuple(overrides))


def folder_of(setting: Setting) -> str:
    """Return the name of a setting's folder: its label where that can be one, else as much of it and a digest."""
    stem = re.sub(r"[^\w.=,+-]+", "-", setting.label)
    if stem == setting.label and len(stem) <= _LONGEST_NAME and stem[0] not in ".-" and stem not in _TAKEN:
        return stem
    digest = hashlib.sha256("\n".join([setting.label, *setting.overrides]).encode()).hexdigest()[:8]
    return f"{stem[:_LONGEST_NAME].strip('.-')}-{digest}"


def _settings(
    of_file: tuple[Setting, ...], of_line: tuple[Setting, ...], overrides: Sequence[str]
) -> tuple[tuple[Setting, ...], list[str]]:
    """Return which settings there are, and where the command line has won."""
    said = {key_of(each): each for each in overrides}
    if of_line:
        if twice := sorted(of_line[0].keys & said.keys()):
            raise ExperimentError(
                f"{said[twice[0]]} and --sweep {twice[0]}=... contradict each other.",
                key=twice[0],
                remedy="Leave one of them out.",
            )
        return of_line, ["--sweep takes the place of the file's block `sweep`."] if of_file else []
    fixed = sorted(frozenset[str]().union(*(each.keys for each in of_file)) & said.keys())
    if not fixed:
        return of_file, []
    words = " ".join(said[key] for key in fixed)
    if any(each.keys <= said.keys() for each in of_file):
        return (), [f"{words} on the command line: one setting, in place of the file's `sweep`."]
    if len({each.keys for each in of_file}) > 1 or any(each.label != ",".join(each.overrides) for each in of_file):
        raise ExperimentError(
            f"{words} is what the settings of the file's `sweep` say.",
            key=fixed[0],
            remedy="Leave it out, or set all keys of one of the settings.",
        )
    left: dict[tuple[str, ...], None] = {}
    for each in of_file:
        left[tuple(one for one in each.overrides if key_of(one) not in fixed)] = None
    settings = tuple(Setting(",".join(each), each) for each in left)
    return settings, [f"{words} on the command line takes the place of its values in the file's `sweep`."]


def _folder(experiment: str, overrides: Sequence[str], first: Setting, output: str | Path | None) -> Path:
    if output is None:
        base = load(experiment, [*overrides, *first.overrides], swept=True)
        output = Path(base.run.results) / f"matrix-{file_stem(base.name)}"
    return Path(output).expanduser().resolve()


def _check_place(folder: Path, several: bool) -> None:
    """Refuse a folder whose comparison is of the other kind: its tables would be lost."""
    if (folder / FILE).is_file() and is_matrix(folder) != several:
        kind = "one setting, and these are several" if several else "several settings, and this is one"
        raise ExperimentError(
            f"{folder} holds a comparison in {kind}.", key="--output", remedy="Give another folder by --output."
        )


def _refusal(refused: Sequence[tuple[Setting, ExperimentError]], total: int) -> ExperimentError:
    """Return one refusal of all settings that are refused; what holds for all of them is said once."""
    setting, first = refused[0]
    if len(refused) == total and len({each.reason for _, each in refused}) == 1:
        return first
    reason = f"Setting {setting.label}: {first.reason}"
    if len(refused) > 1:
        others = "; ".join(f"{each.label}: {error.reason.rstrip('.')}" for each, error in refused[1:4])
        more = f"; and {len(refused) - 4} more" if len(refused) > 4 else ""
        reason = f"{reason.rstrip('.')}. Of {total} settings {len(refused)} are refused, also {others}{more}"
    return ExperimentError(reason, key=first.key, remedy=first.remedy)


def _check_distinct(settings: Sequence[Setting], comparisons: Sequence[Comparison]) -> None:
    """Refuse settings whose runs would be the same: those of equal results have equal names."""
    seen: dict[tuple[str, ...], Setting] = {}
    for setting, comparison in zip(settings, comparisons, strict=True):
        names = tuple(member.path.name for member in comparison.members)
        if names in seen:
            raise ExperimentError(
                f"The settings {seen[names].label} and {setting.label} give the same runs.",
                key="sweep",
                remedy="Leave one of them out.",
            )
        seen[names] = setting

"""What tuning chose: values for each contender, in a file that people read and `umbel compare --tuned` takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_dict
from umbel.conf.schema import Experiment
from umbel.conf.written import Scalar, Tree, read_yaml, resolve, write_yaml
from umbel.core.files import DamagedError, hash_of, write_text
from umbel.simulations.trackers.tracking import flat

if TYPE_CHECKING:
    from umbel.simulations.compare.comparison import Item

NAME = "tuned.yaml"
_SEAL = "sha256"
_HEAD = """\
# Chosen by `umbel tune`, by validation data only. `umbel compare EXPERIMENT --tuned FOLDER` takes it. Do not edit it:
# values of your own are overrides, and a comparison would say of them that they had been found by trials.
"""
_NO_SETTING = ("name", "description", "engine", "checkpoint", "tune", "client", "strategy")
_NO_KEYS = ("run.results", "run.name", "run.trackers", "run.seed", "data.path")


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a contender.

    Attributes:
        label: As the contender was written.
        values: The chosen values by key, as overrides have them.
        value: The metric of validation data that they came to, the mean over seeds.
        trial: The number of the trial, from 0.
        diverged: How many trials came to no number: their models diverged, or nothing was measured of them.
        fixed: The keys of `client` and of the strategy that were not searched.
        edges: For each key whose value lies at an end of its range, what to know of it.
        costs: What all trials took, by `umbel.core.schedule.COSTS`.
    """

    label: str
    values: Mapping[str, str]
    value: float
    trial: int
    diverged: int = 0
    fixed: Mapping[str, str] = field(default_factory=dict)
    edges: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        """`key=value` each."""
        return [f"{key}={value}" for key, value in self.values.items()]

    @property
    def in_words(self) -> str:
        """The values in a line."""
        return ", ".join(self.overrides)


@dataclass(frozen=True)
class Tuned:
    """What tuning chose.

    Attributes:
        path: The folder.
        source: The experiment's name, or the path of its file.
        overrides: `key=value` each, of all trials.
        metric: What the choice went by.
        is_more: Whether more of it is better.
        trials: Trials of each contender.
        seeds: Seeds of each trial.
        sampler: What proposed the trials, with its version and seed.
        space: For each contender the values that its keys could have, as they were written.
        setting: All else of the experiment, which contenders have in common, by key.
        chosen: For each contender what was chosen.
    """

    path: Path
    source: str
    overrides: tuple[str, ...]
    metric: str
    is_more: bool
    trials: int
    seeds: tuple[int, ...]
    sampler: str
    space: Mapping[str, Mapping[str, str]]
    setting: Mapping[str, str]
    chosen: tuple[Chosen, ...]

    def of(self, label: str) -> Chosen | None:
        """Return what was chosen for a contender; None for one that was not tuned."""
        return next((each for each in self.chosen if each.label == label), None)

    def check(
        self, items: Sequence[Item], untuned: Sequence[str], seeds: Sequence[int], overrides: Iterable[str]
    ) -> None:
        """Refuse a comparison that this does not belong to.

        Args:
            items: The strategies that are compared.
            untuned: Labels of those that are to run with the experiment's own values.
            seeds: The comparison's seeds.
            overrides: Those of all of its runs.

        Raises:
            ExperimentError: A contender was not tuned and is not said to be; a seed is one of the trials'; or an
                override sets what was tuned.
        """
        labels = {item.label for item in items}
        if strange := [label for label in untuned if label not in labels]:
            raise ExperimentError(f"--untuned names {strange[0]}, which is not compared.", key="--untuned")
        if both := [label for label in untuned if self.of(label)]:
            raise ExperimentError(
                f"--untuned names {both[0]}, which was tuned in {self.path}.",
                key="--untuned",
                remedy="Leave it out, or compare without --tuned.",
            )
        if lacking := [item.label for item in items if item.label not in untuned and not self.of(item.label)]:
            raise ExperimentError(
                f"{', '.join(lacking)} was not tuned in {self.path}, which has "
                f"{', '.join(each.label for each in self.chosen)}: a comparison with it would not be fair.",
                key="--tuned",
                remedy="Tune all together (umbel tune), or name it in --untuned; the table then says so.",
            )
        if shared := sorted(set(seeds) & set(self.seeds)):
            raise ExperimentError(
                f"Seed {shared[0]} was one of the seeds of tuning: its data have had a say in what is compared.",
                key="--seeds",
                remedy="Choose others.",
            )
        keys = {key for label in labels if (chosen := self.of(label)) for key in chosen.values}
        if fixed := [override for override in overrides if override.partition("=")[0] in keys]:
            raise ExperimentError(
                f"{fixed[0]} would set what was tuned.", key=fixed[0].partition("=")[0], remedy="Leave it out."
            )

    def elsewhere(self, experiments: Mapping[str, Experiment]) -> dict[str, tuple[str, str]]:
        """Return in what a comparison is not what was tuned: by key what it was, and what it is.

        Args:
            experiments: A run of each contender; the first has what all have in common.
        """
        found = _unlike(self.setting, setting(next(iter(experiments.values()))))
        for label, experiment in experiments.items():
            if chosen := self.of(label):
                found |= _unlike(chosen.fixed, fixed(experiment, chosen.values))
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return what `from_dict` makes the same of; the folder is left out."""
        content = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "path"}
        chosen = {each.label: dataclasses.asdict(each) for each in self.chosen}
        for each in chosen.values():
            del each["label"]
        return {**content, "overrides": list(self.overrides), "seeds": list(self.seeds), "chosen": chosen}

    @staticmethod
    def from_dict(content: Mapping[str, Any], path: Path) -> Tuned:
        """Return what `as_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: Something is missing or has another form.
        """
        chosen = tuple(Chosen(label, **each) for label, each in content["chosen"].items())
        own = dict(content) | {"chosen": chosen, "path": path}
        return Tuned(**own | {"overrides": tuple(content["overrides"]), "seeds": tuple(content["seeds"])})

    def said(self, untuned: Sequence[str]) -> dict[str, Any]:
        """Return what a comparison keeps of it, with the labels of those that were not tuned."""
        return {"folder": str(self.path), "chosen": self.as_dict(), "untuned": list(untuned)}

    @classmethod
    def from_said(cls, said: Mapping[str, Any] | None) -> Tuned | None:
        """Return what a comparison has kept, None if nothing."""
        return cls.from_dict(said["chosen"], Path(said["folder"])) if said else None

    def write(self) -> None:
        """Write tuned.yaml, with a hash of what stands in it."""
        content = self.as_dict()
        write_text(self.path / NAME, _HEAD + write_yaml({**content, _SEAL: hash_of(content)}))


def read(folder: str | Path) -> Tuned:
    """Read what tuning chose.

    Args:
        folder: Its folder, or the file in it.

    Raises:
        ExperimentError: There is none.
        DamagedError: It is not what was written.
    """
    path = Path(folder).expanduser().resolve()
    file = path if path.name == NAME else path / NAME
    if not file.is_file():
        raise ExperimentError(
            f"{folder} has no {NAME}.", key="--tuned", remedy="Give the folder that umbel tune ended with."
        )
    remedy = "Bring it back from a copy, or tune again by the command that made it, which uses what is there."
    try:
        content = _plain(read_yaml(file.read_text(encoding="utf-8"), NAME))
        if content.pop(_SEAL, "") != hash_of(content):
            raise ValueError("it does not have the hash that stands in it")
        return Tuned.from_dict(content, file.parent)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError.of(file, str(error), remedy) from error


def _plain(tree: Tree) -> Any:
    """Return Python of YAML: text stays text, where what was written plainly is a number or a truth value it is one."""
    if isinstance(tree, Scalar):
        return resolve(tree, NAME)
    if isinstance(tree, list):
        return [_plain(each) for each in tree]
    return {key: _plain(each) for key, each in tree.items()}


def setting(experiment: Experiment) -> dict[str, str]:
    """Return what all contenders of an experiment have in common, by key, as text."""
    plain = {section: values for section, values in as_dict(experiment).items() if section not in _NO_SETTING}
    return {key: str(value) for key, value in flat(plain).items() if key not in _NO_KEYS}


def fixed(experiment: Experiment, searched: Container[str]) -> dict[str, str]:
    """Return the keys of `client` and of the strategy that are not searched, as text."""
    plain = {section: as_dict(experiment)[section] for section in ("client", "strategy")}
    left_out = ("client.device", "strategy.name")
    return {key: str(each) for key, each in flat(plain).items() if key not in left_out and key not in searched}


def _unlike(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the keys in which two mappings differ, each with both values; a dash for none."""
    both = {key: (first.get(key, "–"), second.get(key, "–")) for key in dict.fromkeys([*first, *second])}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}

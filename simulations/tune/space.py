"""What is searched: for each contender the keys and the values that each may have, as they were written.

client.lr=log:0.001..0.3       a number, evenly by its logarithm
client.momentum=0..0.95        a number, evenly; whole where the key takes whole numbers only
client.optimizer=choice:sgd,adam
strategy.mu=log:1e-4..1        of all contenders that have this option
fedprox.mu=log:1e-4..1         of one of them; fedprox.client.lr likewise
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.conf.keys import is_ours
from umbel.conf.typed import hints_of
from umbel.conf.written import FLOAT, INTEGER
from umbel.core.names import unknown
from umbel.core.training import LocalConfig
from umbel.simulations.compare.comparison import Item
from umbel.strategies import registry

_RANGE = re.compile(r"(log:)?([^.:][^:]*?|\.[^.:][^:]*?)\.\.([^:]+)")
_CHOICE = "choice:"
_FORM = "Write a range such as log:0.001..0.3 or 1..5, or choice:sgd,adam."
_DIGITS = 4  # of a number that is tried, so that it can be read and given again
_EDGE = 0.05  # share of a range at either end
_CLIENT, _STRATEGY = "client.", "strategy."
_NOT_SEARCHED = ("device",)  # where, not what


@dataclass(frozen=True)
class Dimension:
    """The values that a key may have.

    Attributes:
        key: As in an experiment: `client.lr`, `strategy.mu`.
        text: The values as they were written.
        options: The values of a choice; empty for a range.
        low: Smallest value of a range.
        high: Largest value of it.
        is_log: Whether its values are spread evenly by their logarithm.
        is_whole: Whether they are whole numbers.
    """

    key: str
    text: str
    options: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """All values of a choice, or the ends of a range, as text."""
        return self.options or tuple(str(int(end)) if self.is_whole else repr(end) for end in (self.low, self.high))

    def written(self, value: float | str) -> str:
        """Return a value as an override has it: a number with four digits, within the range."""
        if isinstance(value, str):
            return value
        if self.is_whole:
            return str(int(value))
        return repr(min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high))

    def holds(self, value: Any) -> bool:
        """Say whether a value, as configurations have it, is one of these."""
        if self.options:
            return _plain(value) in self.options
        kinds = int if self.is_whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high

    def edge(self, text: str) -> str:
        """Say at which end of the range a value lies, `lower` or `upper`: within a twentieth of it; "" at neither.

        Of a choice of three numbers or more, the smallest and the largest are its ends.
        """
        if self.options:
            if len(self.options) < 3 or not all(FLOAT.fullmatch(option) for option in self.options):
                return ""
            numbers = sorted(map(float, self.options))
            return {numbers[0]: "lower", numbers[-1]: "upper"}.get(float(text), "")
        low, high, value = self.low, self.high, float(text)
        place = math.log(value / low) / math.log(high / low) if self.is_log else (value - low) / (high - low)
        return "lower" if place <= _EDGE else "upper" if place >= 1 - _EDGE else ""


@dataclass(frozen=True)
class Contender:
    """A strategy and what is searched for it.

    Attributes:
        item: The strategy.
        dimensions: What is searched.
    """

    item: Item
    dimensions: tuple[Dimension, ...]


def split(arguments: Iterable[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the overrides that hold for all trials, and the ranges and choices by their keys.

    Raises:
        ExperimentError: A key is searched twice.
    """
    overrides: list[str] = []
    space: dict[str, str] = {}
    for argument in arguments:
        key, _, text = argument.rpartition("=")  # options in a contender's brackets have one of their own
        if not is_searched(text):
            overrides.append(argument)
        elif key in space:
            raise ExperimentError(f"{key} is searched twice.", key=key, remedy="Leave one of them out.")
        else:
            space[key] = text
    return tuple(overrides), space


def is_searched(text: str) -> bool:
    """Say whether a value is a range or a choice, whatever it is made of."""
    return text.startswith((_CHOICE, "log:")) or (
        (match := _RANGE.fullmatch(text)) is not None and all(map(FLOAT.fullmatch, match.groups()[1:]))
    )


def contenders(items: Sequence[Item], space: Mapping[str, str]) -> tuple[Contender, ...]:
    """Return what is searched for each strategy; what names one of them comes before what all have.

    Raises:
        ExperimentError: A key that there is not or that cannot be searched, a range that is none, or nothing to search
            for one of the strategies.
    """
    shared = {key: text for key, text in space.items() if key.startswith((_CLIENT, _STRATEGY))}
    own = {key: text for key, text in space.items() if key not in shared}
    found: dict[str, dict[str, Dimension]] = {item.label: {} for item in items}
    for key, text in shared.items():
        having = [item for item in items if _has(item, key)]
        if not having:
            raise _no_such(key, items)
        for item in having:
            found[item.label][key] = _dimension(item, key, text)
    for written, text in own.items():
        for item, key in _named(written, items):
            if not _has(item, key, is_named=True):
                raise _no_such(key, (item,))
            found[item.label][key] = _dimension(item, key, text)
    for item in items:
        if not found[item.label]:
            raise ExperimentError(
                f"Nothing is searched for {item.label}, so that it would have no trials where others have.",
                key="tune.space",
                remedy="Search something that all have, such as client.lr=log:0.001..0.3, or leave it out here and "
                "name it in --untuned where you compare.",
            )
    return tuple(Contender(item, tuple(found[item.label].values())) for item in items)


def _named(written: str, items: Sequence[Item]) -> list[tuple[Item, str]]:
    """Return those that `fedprox.mu` or `fedprox.client.lr` names, by label or name, each with the key meant."""
    written = written.replace(" ", "")
    names = {item: (item.label.replace(" ", ""), item.name) for item in items}
    starts = sorted({name for both in names.values() for name in both}, key=len, reverse=True)
    start = next((name for name in starts if written.startswith(f"{name}.")), None)
    if start is None:
        raise _no_such(written, items)
    key = written.removeprefix(f"{start}.")
    key = key if key.startswith((_CLIENT, _STRATEGY)) else f"{_STRATEGY}{key}"
    return [(item, key) for item in items if start in names[item]]


def _has(item: Item, key: str, is_named: bool = False) -> bool:
    """Say whether a strategy's runs have a key; which options those of Flower's have is known when they are made."""
    section, _, name = key.partition(".")
    if section == "client":
        return name in hints_of(LocalConfig) and name not in _NOT_SEARCHED
    if not is_ours(item.name):
        return is_named
    return name in hints_of(registry.find(item.name).config_class)


def _no_such(key: str, items: Sequence[Item]) -> ExperimentError:
    known = [f"{_CLIENT}{name}" for name in hints_of(LocalConfig) if name not in _NOT_SEARCHED]
    for item in items:
        if is_ours(item.name):
            options = hints_of(registry.find(item.name).config_class)
            known += [f"{start}{option}" for start in (_STRATEGY, f"{item.name}.") for option in options]
    return ExperimentError.of(unknown("key to search", key, dict.fromkeys(known), key="tune.space"))


def _dimension(item: Item, key: str, text: str) -> Dimension:
    section, _, name = key.partition(".")
    if section == "strategy" and any(option.partition("=")[0] == name for option in item.options):
        raise ExperimentError(
            f"{key} is searched, and fixed in the brackets of {item.label}.", key=key, remedy="Leave one of them out."
        )
    hints: Mapping[str, Any] = {}
    if section == "client":
        hints = hints_of(LocalConfig)
    elif is_ours(item.name):
        hints = hints_of(registry.find(item.name).config_class)
    return parsed(key, text, hints.get(name))


def parsed(key: str, text: str, hint: Any = None) -> Dimension:
    """Read the values that a key may have.

    Args:
        key: The key.
        text: A range or a choice.
        hint: The type that the key's field declares; None where nobody says.

    Raises:
        ExperimentError: It is none, or no range of numbers that the key takes.
    """
    if text.startswith(_CHOICE):
        options = tuple(part.strip() for part in text.removeprefix(_CHOICE).split(","))
        if len(set(options)) < max(len(options), 2) or not all(options):
            raise _refused(key, text, "a choice has two values or more, none twice and none empty")
        return Dimension(key, text, options)
    match = _RANGE.fullmatch(text)
    if match is None or not all(map(FLOAT.fullmatch, match.groups()[1:])):
        raise _refused(key, text, "this is no range and no choice")
    is_log, ends = match[1] is not None, match.groups()[1:]
    low, high = map(float, ends)
    are_whole = all(map(INTEGER.fullmatch, ends))
    if hint in (str, bool):
        raise _refused(key, text, f"{key} is no number")
    if hint is int and not are_whole:
        raise _refused(key, text, f"{key} is a whole number, and an end of this is none")
    if not -math.inf < low < high < math.inf or (is_log and low <= 0):
        raise _refused(key, text, "a range goes from a number to a larger one, and under log: from one above 0")
    return Dimension(key, text, (), low, high, is_log, are_whole and hint is not float)


def _refused(key: str, text: str, reason: str) -> ExperimentError:
    return ExperimentError(f"{key}={text}: {reason}.", key=key, remedy=_FORM)


def own_values(dimensions: Iterable[Dimension], plain: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the values that an experiment has by itself; None where one of them is not among those searched.

    Args:
        dimensions: What is searched.
        plain: The experiment as nested mappings.
    """
    values = {}
    for each in dimensions:
        section, _, name = each.key.partition(".")
        value = plain[section].get(name)
        if not each.holds(value):
            return None
        values[each.key] = _plain(value)
    return values


def _plain(value: Any) -> str:
    """Return a value of a configuration as an override has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)

"""What a file says of comparisons: its block `compare` (strategies, seeds, budget, at_once) and its settings, `sweep`.

A setting is some overrides that have a label. A sweep is the product of the values of some keys, or a list of settings
that have names. All of it is kept as text, as on the command line, which may say each of it too.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from umbel.conf.errors import ExperimentError
from umbel.conf.written import BOOLEANS, FLOAT, INTEGER, Scalar, Tree
from umbel.core.names import nearest

BLOCKS = ("compare", "sweep")
MOST_SETTINGS = 200
_KEYS = ("strategies", "seeds", "budget", "at_once")
_SINGLE = ("budget", "at_once")  # of these there is one
# What a comparison sets itself, and what to use in its place.
_NOT_VARIED = {
    "run.seed": "Use --seeds, or `compare: {seeds: 5}`.",
    "run.name": "Name the setting, or use --output.",
    "run.results": "Use --output.",
    "strategy.name": "Use --strategies, or `compare: {strategies: [...]}`.",
}


@dataclass(frozen=True)
class Setting:
    """Overrides that have a label.

    Attributes:
        label: Its name, or its overrides, such as `data.alpha=0.1,model.name=cnn`; empty for what varies nothing.
        overrides: `key=value` each.
    """

    label: str
    overrides: tuple[str, ...]

    @property
    def keys(self) -> frozenset[str]:
        """The keys that it sets."""
        return frozenset(key_of(each) for each in self.overrides)


@dataclass(frozen=True)
class Asked:
    """What a file's blocks say, as the command line has it; empty for what they do not say.

    Attributes:
        strategies: Such as `fedavg,fedprox(mu=0.1)`.
        seeds: Such as `3` or `1,5,7,`.
        budget: Such as `steps`.
        settings: Of its sweep.
        at_once: Such as `2` or `auto`.
    """

    strategies: str = ""
    seeds: str = ""
    budget: str = ""
    settings: tuple[Setting, ...] = ()
    at_once: str = ""


def key_of(override: str) -> str:
    """Return the key that an override sets."""
    return override.partition("=")[0]


def product(values_by_key: Mapping[str, Sequence[str]]) -> tuple[Setting, ...]:
    """Return every choice of a value for each key, the last key varying first; no key is no setting.

    Raises:
        ExperimentError: These are more settings than a comparison takes.
    """
    if not values_by_key:
        return ()
    count = 1
    for values in values_by_key.values():
        count *= len(values)
    if count > MOST_SETTINGS:
        raise ExperimentError(
            f"These are {count:,} settings, and {MOST_SETTINGS} are allowed.", key="sweep", remedy="Vary fewer values."
        )
    pairs = ([f"{key}={value}" for value in values] for key, values in values_by_key.items())
    return tuple(Setting(",".join(chosen), chosen) for chosen in itertools.product(*pairs))


def parse(options: Sequence[str]) -> tuple[Setting, ...]:
    """Read `--sweep data.alpha=0.1,1`, given as often as there are keys; commas in brackets are part of a value.

    Raises:
        ExperimentError: One is not of that form, or a key or value stands twice.
    """
    values_by_key: dict[str, list[str]] = {}
    for option in options:
        key, _, text = option.partition("=")
        key, values = key.strip(), _split(text)
        if not key or not values or "" in values:
            raise ExperimentError(
                f"--sweep takes a key and its values, such as data.alpha=0.1,1; found {option!r}.", key="--sweep"
            )
        _check_key(key, "--sweep")
        if key in values_by_key:
            raise ExperimentError(
                f"--sweep names {key} twice.", key="--sweep", remedy=f"Give all its values at once: {key}=a,b."
            )
        values_by_key[key] = _once(key, values, "--sweep")
    return product(values_by_key)


def read(given: Mapping[str, Tree], name: str) -> Asked:
    """Read the blocks of a file.

    Args:
        given: The file's sections.
        name: The file's, for refusals.

    Raises:
        ExperimentError: A block is not of the form that it has.
    """
    asked = _compare(given["compare"], name) if _is_there(given, "compare") else Asked()
    settings = _settings(given["sweep"], name) if _is_there(given, "sweep") else ()
    return replace(asked, settings=settings)


def without(given: Mapping[str, Tree]) -> dict[str, Tree]:
    """Return a file's sections without these blocks."""
    return {key: value for key, value in given.items() if key not in BLOCKS}


def check_one(given: Mapping[str, Tree], overrides: Sequence[str], name: str) -> None:
    """Refuse a file that has many settings where one is asked for, unless the overrides set all that one of them does.

    Raises:
        ExperimentError: It is not said which setting.
    """
    settings = _settings(given["sweep"], name) if _is_there(given, "sweep") else ()
    said = {key_of(each) for each in overrides}
    if not settings or any(setting.keys <= said for setting in settings):
        return
    first = shlex.join(settings[0].overrides)
    raise ExperimentError(
        f"{name} has a block `sweep` of {len(settings)} settings, and this takes one.",
        key="sweep",
        remedy=f"All of them: `umbel compare`. One of them, by its keys: {first}",
    )


def _is_there(given: Mapping[str, Tree], block: str) -> bool:
    """Say whether a block is there; one without anything in it is none."""
    value = given.get(block)
    return value is not None and not (isinstance(value, Scalar) and value.is_null)


def _compare(block: Tree, name: str) -> Asked:
    if not isinstance(block, dict):
        _refuse(name, "`compare` is a mapping", "compare", "Write it as {strategies: [fedavg, scaffold], seeds: 5}.")
    for key in block:
        if key not in _KEYS:
            guesses = nearest(key, _KEYS)
            hint = f"Did you mean {' or '.join(guesses)}?" if guesses else f"It takes {', '.join(_KEYS)}."
            raise ExperimentError(f"{name}: unknown key {key!r} in `compare`.", key=f"compare.{key}", remedy=hint)
    texts: dict[str, str] = {}
    for key, value in block.items():
        many = value if isinstance(value, list) else [value]
        if not many or not all(isinstance(each, Scalar) for each in many) or (len(many) > 1 and key in _SINGLE):
            remedy = f"Write it as in `{'compare: {strategies: [fedavg, scaffold], seeds: [1, 5, 7], budget: steps}'}`."
            _refuse(name, f"`compare.{key}` cannot be read", f"compare.{key}", remedy)
        words = [each.text for each in many if isinstance(each, Scalar)]
        is_list = isinstance(value, list) and key == "seeds"  # [4] is the seed 4, and 4 is four seeds
        texts[key] = ",".join(words) + ("," if is_list else "")
    return Asked(
        strategies=texts.get("strategies", ""),
        seeds=texts.get("seeds", ""),
        budget=texts.get("budget", ""),
        at_once=texts.get("at_once", ""),
    )


def _settings(block: Tree, name: str) -> tuple[Setting, ...]:
    if isinstance(block, dict):
        values_by_key: dict[str, list[str]] = {}
        for key, values in block.items():
            _check_key(key, name)
            if not isinstance(values, list) or not values:
                _refuse(name, f"`sweep` has no list of values for {key}", f"sweep.{key}", f"Write {key}: [a, b].")
            values_by_key[key] = _once(key, [_text(each) for each in values], name)
        return product(values_by_key)
    if not isinstance(block, list):
        remedy = "Write {data.alpha: [0.1, 1]}, or a list of settings that have names: [{name: iid, ...}, ...]."
        _refuse(name, "`sweep` is a mapping of keys to lists, or a list", "sweep", remedy)
    return _named(block, name)


def _named(block: Sequence[Tree], name: str) -> tuple[Setting, ...]:
    settings: list[Setting] = []
    for number, each in enumerate(block, start=1):
        label = each.get("name") if isinstance(each, dict) else None
        if not isinstance(each, dict) or not isinstance(label, Scalar) or not label.text.strip() or len(each) < 2:
            remedy = "Write it as {name: skewed, data.partition: dirichlet, data.alpha: 0.1}."
            _refuse(name, f"setting {number} of `sweep` has no name, or sets nothing", "sweep", remedy)
        for key in each:
            if key != "name":
                _check_key(key, name)
        overrides = tuple(f"{key}={_text(value)}" for key, value in each.items() if key != "name")
        settings.append(Setting(label.text.strip(), overrides))
    _once("`sweep`", [setting.label for setting in settings], name)
    if len(settings) > MOST_SETTINGS:
        _refuse(name, f"{len(settings)} settings, and {MOST_SETTINGS} are allowed", "sweep", "Leave some out.")
    return tuple(settings)


def _check_key(key: str, where: str) -> None:
    """Refuse a key that a sweep cannot vary; whether there is such a key is known when it is composed."""
    if key in _NOT_VARIED:
        raise ExperimentError(f"{where}: {key} is no key of a sweep.", key=key, remedy=_NOT_VARIED[key])
    if "." not in key:
        raise ExperimentError(
            f"{where}: {key} is no key of a sweep.", key=key, remedy="Give one with its section, such as data.alpha."
        )


def _once(key: str, values: list[str], where: str) -> list[str]:
    for value in values:
        if values.count(value) > 1:
            raise ExperimentError(f"{where}: {key} has {value} twice.", key=key, remedy="Leave one of them out.")
    return values


def _split(text: str) -> list[str]:
    """Split at commas that stand outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _text(value: Tree) -> str:
    """Return a value as an override has it."""
    return value.text if isinstance(value, Scalar) else _inside(value)


def _inside(value: Tree) -> str:
    """Return a value as it stands within brackets: text in quotes, numbers and the like as they are."""
    if isinstance(value, list):
        return f"[{', '.join(map(_inside, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {_inside(each)}' for key, each in value.items())}}}"
    is_word = INTEGER.fullmatch(value.text) or FLOAT.fullmatch(value.text) or value.text.lower() in BOOLEANS
    bare = value.style == "plain" and (is_word or value.is_null)
    return (value.text or "null") if bare else json.dumps(value.text, ensure_ascii=False)


def _refuse(name: str, problem: str, key: str, remedy: str) -> NoReturn:
    raise ExperimentError(f"{name}: {problem}.", key=key, remedy=remedy)

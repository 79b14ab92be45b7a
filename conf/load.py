"""Compose an experiment: YAML file, then overrides, then checks; any mistake is refused with the key to change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import typing
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from umbel.conf.check import check, strategy_of
from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment, StrategyConfig
from umbel.core.names import nearest, unknown
from umbel.strategies import registry
from umbel.strategies.base import Strategy

FOLDER = Path(__file__).parent / "experiments"


def experiment_names() -> tuple[str, ...]:
    """Return the names of the experiments that come with the project."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def describe(name: str) -> str:
    """Return the one-line description of an experiment."""
    return str(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")).get("description", ""))


def read(experiment: str) -> tuple[str, str]:
    """Return (name, YAML text) of a shipped experiment or of a file given by its path.

    Raises:
        ExperimentError: There is no such experiment; the message says the nearest.
    """
    path = Path(experiment)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ExperimentError(f"There is no experiment file {experiment!r}.", remedy="Give the path of one.")
        return path.stem, path.read_text(encoding="utf-8")
    if experiment not in experiment_names():
        raise ExperimentError.of(unknown("experiment", experiment, experiment_names()))
    return experiment, (FOLDER / f"{experiment}.yaml").read_text(encoding="utf-8")


def load(experiment: str, overrides: Sequence[str] = (), text: str | None = None) -> Experiment:
    """Compose and check an experiment.

    Args:
        experiment: Name of a shipped experiment, or path of a YAML file.
        overrides: `key=value` each, dotted keys, later ones win.
        text: The YAML itself, when it came in a message; `experiment` is then only its name.

    Raises:
        ExperimentError: Unknown key, wrong type or impossible combination.
    """
    name, content = (experiment, text) if text is not None else read(experiment)
    given = _parse_yaml(content, name)
    for override in overrides:
        key, value = _parse_override(override)
        _set(given, key, value)
    composed = compose(given, name)
    check(composed)
    return composed


def split_overrides(overrides: str) -> list[str]:
    """Split overrides that came in one string, as in a shell: by spaces, quotes keep a value together."""
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise ExperimentError(
            f"The overrides {overrides!r} cannot be split: {error}.", remedy="Quote them as in a shell."
        ) from error


def compose(given: dict[str, Any], name: str) -> Experiment:
    """Turn nested mappings into an `Experiment`; keys and types are checked, combinations are not."""
    given = {**given, "name": given.get("name") or name}
    section = given.get("strategy") or {}
    if not isinstance(section, Mapping):
        raise ExperimentError("strategy is a section.", key="strategy.name", remedy=f"Set strategy.name={section}.")
    strategy = dict(section)
    strategy_name = str(strategy.pop("name", StrategyConfig.name))
    options = {**strategy.pop("options", {}), **strategy}
    given = {**given, "strategy": {"name": strategy_name, "options": options}}
    try:
        if _ours(strategy_name):
            registry.find(strategy_name)
    except ValueError as error:
        raise ExperimentError.of(error) from error
    _check_keys(given, strategy_name)
    options = (
        _typed(registry.find(strategy_name).config_class, options, "strategy") if _ours(strategy_name) else options
    )
    typed: Experiment = _typed_section(Experiment, {**given, "strategy": {"name": strategy_name}}, "")
    return dataclasses.replace(typed, strategy=dataclasses.replace(typed.strategy, options=options))


def build_strategy(experiment: Experiment) -> Strategy[Any]:
    """Make the experiment's strategy; of Flower's own, the part that knows no Flower."""
    return strategy_of(experiment)


def as_dict(experiment: Experiment) -> dict[str, Any]:
    """Return nested mappings, with the strategy's options beside its name as in YAML."""
    plain = dataclasses.asdict(experiment)
    plain["strategy"] = {"name": experiment.strategy.name, **experiment.strategy.options}
    return plain


def as_yaml(experiment: Experiment) -> str:
    """Return the resolved experiment as YAML that `load` reads back to the same."""
    return yaml.safe_dump(as_dict(experiment), sort_keys=False, allow_unicode=True)


def portable(experiment: Experiment) -> dict[str, Any]:
    """Return the part that server and clients must agree on: no folder, device, engine or name of a site."""
    plain = as_dict(experiment)
    for key in ("name", "description", "engine", "checkpoint", "evaluate"):
        plain.pop(key)
    for section, key in (("data", "path"), ("client", "device"), ("run", "results"), ("run", "name")):
        plain[section].pop(key)
    plain["run"].pop("rounds")  # a resume may ask for more
    return plain


def portable_hash(experiment: Experiment) -> str:
    """Return the SHA-256 of the portable part, in hexadecimal."""
    return hashlib.sha256(json.dumps(portable(experiment), sort_keys=True).encode()).hexdigest()


def _ours(strategy_name: str) -> bool:
    return not strategy_name.startswith(registry.FLOWER_PREFIX)


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"{name}: this is not valid YAML: {error}", remedy="Put it right there.") from error
    if not isinstance(content, dict):
        raise ExperimentError(
            f"{name}: an experiment is a mapping of sections, found {type(content).__name__}.",
            remedy="Write it as `run: {rounds: 20}`.",
        )
    for section, value in content.items():
        if value is None:
            content[section] = {}
    return content


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ExperimentError(f"An override is key=value, found {override!r}.", remedy="Write run.rounds=20.")
    if key in _text_keys():
        return key, value  # a name stays as it was written: 07 is no number, and nothing is no null
    try:
        # OmegaConf's grammar, so that 1e-3 is a number and [1,2] a list.
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ExperimentError(
            f"The value of {key} cannot be read: {error}", key=key, remedy="Write it as in YAML."
        ) from error
    return key, parsed["value"]  # type: ignore[index, call-overload]


def _set(given: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        given = given.setdefault(section, {})
        if not isinstance(given, dict):
            raise ExperimentError(
                f"{key}: {section} is a value, not a section.", key=key, remedy="Set it without what comes after."
            )
    given[last] = value


def _leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of a dataclass of sections, each with its declared type, without its range."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, f"{key}.")  # type: ignore[arg-type]
        else:
            yield key, hint


@cache
def _text_keys() -> frozenset[str]:
    """Return the keys whose values are text."""
    return frozenset(key for key, kind in _leaves(Experiment) if kind is str)


def _free_keys(strategy_name: str) -> frozenset[str]:
    """Return the keys of mappings whose own keys depend on the data set, the model or another strategy."""
    leaves = [*_leaves(Experiment)]
    if _ours(strategy_name):
        leaves.extend(_leaves(registry.find(strategy_name).config_class, "strategy."))
    return frozenset(key for key, kind in leaves if typing.get_origin(kind) is dict)


def known_keys(strategy_name: str) -> list[str]:
    """Return every key that an experiment with this strategy may set."""
    keys = [key for key, _ in _leaves(Experiment) if not key.startswith("strategy.")]
    options = registry.options(strategy_name) if _ours(strategy_name) else {}
    return [*keys, "strategy.name", *(f"strategy.{option}" for option in options)]


def _given_keys(given: Mapping[str, Any], free: Container[str], prefix: str = "") -> Iterator[str]:
    for key, value in given.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in free:
            yield from _given_keys(value, free, f"{path}.")
        else:
            yield path


def _check_keys(given: Mapping[str, Any], strategy_name: str) -> None:
    sections = {field.name for field in dataclasses.fields(Experiment)}
    known = known_keys(strategy_name)
    free = _free_keys(strategy_name)
    for path in _given_keys({**given, "strategy": given["strategy"]["options"]}, free):
        if path in known or (path.startswith("strategy.") and not _ours(strategy_name)):
            continue
        if path in sections:
            raise ExperimentError(f"{path} is a section.", key=path, remedy=f"Set a key in it, such as {path}.name=...")
        guesses = nearest(path, known)
        hint = f"Did you mean {' or '.join(guesses)}?" if guesses else "See `umbel run --help` for the sections."
        raise ExperimentError(f"Unknown key {path!r}.", key=path, remedy=hint)


def _typed(kind: type, values: Mapping[str, Any], section: str) -> dict[str, Any]:
    return dataclasses.asdict(_typed_section(kind, values, section))


def _typed_section(kind: type, values: Mapping[str, Any], section: str) -> Any:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.create(dict(values)))
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = ".".join(filter(None, [section, str(getattr(error, "full_key", "") or "")]))
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ExperimentError(f"{key}: {reason}.", key=key) from error

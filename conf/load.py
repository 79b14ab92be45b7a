"""Compose an experiment: YAML file, then overrides, then checks; any mistake is refused with the key to change."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.conf import devices, own_data, sweep
from umbel.conf.check import check, strategy_of
from umbel.conf.errors import ExperimentError
from umbel.conf.keys import check_keys, is_ours
from umbel.conf.keys import known_keys as known_keys
from umbel.conf.omega import as_text
from umbel.conf.paths import absolute
from umbel.conf.schema import Experiment, StrategyConfig
from umbel.conf.typed import convert, section, untyped
from umbel.conf.written import (
    MAX_DEPTH,
    Scalar,
    Tree,
    check_size,
    check_text,
    read_value,
    read_yaml,
    shown,
    write_yaml,
)
from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.data.sets import registry as data_sets
from umbel.strategies import registry
from umbel.strategies.base import Strategy

if TYPE_CHECKING:
    from omegaconf import DictConfig

FOLDER = Path(__file__).parent / "experiments"
_NOTHING = Scalar("")


def experiment_names() -> tuple[str, ...]:
    """Return the names of the experiments that come with the project."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def describe(name: str) -> str:
    """Return the one-line description of an experiment."""
    description = _sections(*read(name)).get("description", _NOTHING)
    return description.text if isinstance(description, Scalar) else ""


def read(experiment: str) -> tuple[str, str]:
    """Return (name, YAML text) of a shipped experiment or of a file given by its path.

    Raises:
        ExperimentError: There is no such experiment, with the nearest; or the file is no text in UTF-8.
    """
    path = Path(experiment)
    if path.suffix in (".yaml", ".yml"):
        if not absolute(experiment, "The experiment's file").is_file():
            raise ExperimentError(f"There is no experiment file {experiment!r}.", remedy="Give the path of one.")
    elif experiment in experiment_names():
        path = FOLDER / f"{experiment}.yaml"
    else:
        raise ExperimentError.of(unknown("experiment", experiment, experiment_names()))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{experiment!r} is no text in UTF-8: {error}.", remedy="Save it as UTF-8.") from error
    return path.stem.encode(errors="replace").decode(), text


def asked(experiment: str) -> sweep.Asked:
    """Return what an experiment's file says of comparisons: its blocks `compare` and `sweep`.

    Raises:
        ExperimentError: There is no such experiment, or a block is not of the form that it has.
    """
    name, text = read(experiment)
    return sweep.read(_sections(name, text), name)


def load(
    experiment: str | DictConfig,
    overrides: Sequence[str] = (),
    text: str | None = None,
    strategy: str = "",
    swept: bool = False,
) -> Experiment:
    """Compose and check an experiment.

    A relative `data.path` is taken from the working directory and absolute from then on. A block `compare` is for
    `umbel compare`; a block `sweep` is refused, unless the overrides set all keys of one of its settings.

    Args:
        experiment: Name of a shipped experiment, path of a YAML file, or a container of OmegaConf.
        overrides: `key=value` each, dotted keys, later ones win.
        text: The YAML itself, when it came in a message; `experiment` is then only its name.
        strategy: Takes the place of the experiment's own, whose options then hold only if it is the same.
        swept: The overrides have what the experiment's `sweep` says, or it is not to count.

    Raises:
        ExperimentError: Unknown key, wrong type or impossible combination.
    """
    if not isinstance(experiment, str):
        text = as_text(experiment)
        experiment = "omegaconf"
    name, content = (experiment, text) if text is not None else read(experiment)
    sections = _sections(name, content)
    if not swept:
        sweep.check_one(sections, overrides, name)
    given = sweep.without(sections)
    if strategy:
        own, options = _strategy(given.get("strategy", _NOTHING))
        given["strategy"] = {**(options if own == strategy else {}), "name": Scalar(strategy)}
    for override in overrides:
        _set(given, override)
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


def compose(given: Mapping[str, Tree], name: str) -> Experiment:
    """Turn what was written into an `Experiment`; keys and types are checked, combinations are not."""
    try:
        strategy_name, written = _strategy(given.get("strategy", _NOTHING))
        check_keys({**given, "strategy": written}, strategy_name)
        strategy = StrategyConfig(strategy_name, _hyper_parameters(strategy_name, written))
        data, options = _without_options(given.get("data", {}))
        rest = {key: value for key, value in given.items() if key not in ("strategy", "data")}
        typed: Experiment = section(Experiment, {**rest, "data": data}, "")
        config = dataclasses.replace(typed.data, options=_data_options(typed.data.name, options))
    except Refusal as error:
        raise ExperimentError.of(error) from error
    if config.path is not None:
        path = check_text(str(absolute(config.path, "data.path")), "data.path")
        config = dataclasses.replace(config, path=path)
    if config.name == own_data.NAME and isinstance(data, dict) and "server_validation" not in data:
        config = dataclasses.replace(config, server_validation=0.0)  # the server has nothing to hold out of
    config = own_data.resolved(config)
    composed = dataclasses.replace(typed, name=typed.name or name, data=config, strategy=strategy)
    composed = devices.located(composed)
    check_size(as_dict(composed))
    return composed


def build_strategy(experiment: Experiment) -> Strategy[Any]:
    """Make the strategy of an experiment, which is checked if nobody in this process has."""
    check(experiment)
    return strategy_of(experiment)


def as_dict(experiment: Experiment) -> dict[str, Any]:
    """Return nested mappings, with the strategy's options beside its name as in YAML."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(experiment))
    plain["strategy"] = {"name": experiment.strategy.name, **plain["strategy"]["options"]}
    return plain


def as_yaml(experiment: Experiment) -> str:
    """Return the resolved experiment as YAML that `load` reads back to the same."""
    return write_yaml(as_dict(experiment))


def portable(experiment: Experiment) -> dict[str, Any]:
    """Return the part that server and clients must agree on: no folder, device, engine or name of a site."""
    plain = as_dict(experiment)
    for key in ("name", "description", "engine", "checkpoint", "evaluate", "tune"):
        plain.pop(key)
    places = (("data", "path"), ("data", "sites"), ("data", "server"))
    outputs = (("run", "results"), ("run", "name"), ("run", "trackers"))
    for part, key in (*places, ("model", "init"), ("client", "device"), *outputs):
        plain[part].pop(key)
    for key in ("capacity", "availability"):  # only the server reads them, and their hash is there
        plain["simulation"]["devices"].pop(key)
    for key in ("rounds", "until", "patience", "budget"):  # a resume may ask for more
        plain["run"].pop(key)
    return plain


def portable_hash(experiment: Experiment) -> str:
    """Return the SHA-256 of the portable part, in hexadecimal."""
    return hashlib.sha256(json.dumps(portable(experiment), sort_keys=True).encode()).hexdigest()


def _sections(name: str, text: str) -> dict[str, Tree]:
    content = read_yaml(text, name)
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else repr(content.text)
        raise ExperimentError(
            f"{name}: an experiment is a mapping of sections, found {kind}.",
            remedy="Write it as `run: {rounds: 20}`.",
        )
    names = {field.name for field in dataclasses.fields(Experiment) if field.default is dataclasses.MISSING}
    empty = {key for key in names & content.keys() if isinstance(each := content[key], Scalar) and each.is_null}
    return {key: {} if key in empty else value for key, value in content.items()}


def _set(given: dict[str, Tree], override: str) -> None:
    """Put an override in its place."""
    key, separator, text = check_text(override, "An override").partition("=")
    *sections, last = key.split(".")
    if not separator or not all((*sections, last)):
        raise ExperimentError(f"An override is key=value, found {shown(override)}.", remedy="Write run.rounds=20.")
    if len(sections) > MAX_DEPTH:
        raise ExperimentError(f"No key has as many dots as {key[:60]}...", remedy="Write run.rounds=20.")
    for part in sections:
        inner = _inner(given.get(part, _NOTHING), key)
        if not isinstance(inner, dict):
            raise ExperimentError(
                f"{key}: {part} is a value, not a section.", key=key, remedy="Set it without what comes after."
            )
        given[part] = given = inner
    value = Scalar(text, "override")
    given[last] = value if sections or last in ("name", "description") else read_value(value, key)


def _inner(written: Tree, key: str) -> Tree:
    """Return a mapping that was written, also as the value of an override; nothing written is an empty one."""
    value = read_value(written, key) if isinstance(written, Scalar) else written
    return {} if isinstance(value, Scalar) and value.is_null else value


def _strategy(written: Tree) -> tuple[str, dict[str, Tree]]:
    """Return the strategy's name and its options, which stand beside the name or under `options`."""
    value = _inner(written, "strategy")
    if not isinstance(value, dict):
        name = value.text if isinstance(value, Scalar) else "..."
        raise ExperimentError("strategy is a section.", key="strategy.name", remedy=f"Set strategy.name={name}.")
    beside = dict(value)
    name = convert(beside.pop("name", Scalar(StrategyConfig.name)), str, "strategy.name")
    options = _inner(beside.pop("options", _NOTHING), "strategy.options")
    if not isinstance(options, dict):
        raise ExperimentError("strategy.options is a mapping.", key="strategy.options", remedy="Write it as {mu: 0.1}.")
    if twice := sorted(options.keys() & beside.keys()):
        raise ExperimentError(
            f"strategy.{twice[0]} stands twice, also under strategy.options.",
            key=f"strategy.{twice[0]}",
            remedy="Keep one of them.",
        )
    return name, {**options, **beside}


def _hyper_parameters(name: str, written: dict[str, Tree]) -> dict[str, Any]:
    if not is_ours(name):
        return {option: untyped(value, f"strategy.{option}") for option, value in written.items()}
    config = section(registry.find(name).config_class, written, "strategy")
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _without_options(data: Tree) -> tuple[Tree, Tree]:
    if not isinstance(data, dict):
        return data, _NOTHING
    return {key: value for key, value in data.items() if key != "options"}, data.get("options", _NOTHING)


def _data_options(name: str, written: Tree) -> dict[str, Any]:
    """Return `data.options`, single values of the type that the data set's default has."""
    options = _inner(written, "data.options")
    if not isinstance(options, dict):
        return convert(options, dict[str, Any], "data.options")  # type: ignore[no-any-return] # refuses it
    kinds = {option: type(default) for option, default in data_sets.options(name).items()}
    return {each: _option(value, kinds.get(each), f"data.options.{each}") for each, value in options.items()}


def _option(value: Tree, kind: type | None, key: str) -> Any:
    if isinstance(value, Scalar) and value.text.lstrip().startswith(("[", "{")):
        value = read_value(value, key)
    is_single = isinstance(value, Scalar) and kind in (bool, int, float, str)
    return convert(value, kind if is_single else Any, key)


def _plain(value: Any) -> Any:
    """Return what YAML and JSON both know."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(each) for each in value)
    if isinstance(value, enum.Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value

"""What there is: strategies, models, data sets, partitions, experiments and keys, with their options."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from typing import Any

from flwr.serverapp import strategy as flower_strategies
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from umbel.conf.load import describe, experiment_names
from umbel.conf.schema import Experiment
from umbel.core import ranges
from umbel.core.names import unknown
from umbel.data import encoders, partition
from umbel.data.config import DataConfig
from umbel.data.sets import registry as data_sets
from umbel.models import operators
from umbel.models import registry as models
from umbel.server.flower.strategies import flower_names, flower_options
from umbel.strategies import registry as strategies
from umbel.strategies.registry import FLOWER_PREFIX

HOW_TO_USE = {
    "strategies": "Use one: umbel run digits strategy.name=fedprox strategy.mu=0.1",
    "models": "Its sizes: umbel list models cnn. Use one: umbel run digits model.name=cnn model.sizes.width=16",
    "operators": "Use one: umbel run digits model.name=cvt_tiny32 'model.operators={wconv: {layers: depthwise}}'",
    "data": "Use one: umbel run digits data.name=synthetic data.options.num_examples=2000",
    "encoders": "Use one: umbel run digits data.encoder=NAME",
    "partitions": "See one: umbel data show digits data.partition=dirichlet data.alpha=0.1",
    "experiments": "Run one: umbel run digits",
    "keys": "Set one: umbel run digits run.rounds=5 client.lr=0.1",
}

_LAYERS = (
    "Which convolutions: conv (all that it can stand for), dense or depthwise among them, or names of layers, with * "
    "for any part."
)


@dataclasses.dataclass(frozen=True)
class Option:
    """An option with its default and, where it is documented, a sentence."""

    name: str
    default: Any
    doc: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something that can be named in an experiment."""

    name: str
    line: str
    options: tuple[Option, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return nested dicts fit for JSON."""
        options = [
            {"name": option.name, "default": _json(option.default), "doc": option.doc} for option in self.options
        ]
        return {"name": self.name, "description": self.line, "options": options}


def entries(kind: str, part: str = "") -> list[Entry]:
    """Return what there is of a kind: strategies, models, data, encoders, partitions, experiments or keys.

    Args:
        kind: One of these.
        part: Leave out what does not have this in its name; or one of your own, `module:Class` or `module:factory`.

    Raises:
        umbel.core.names.UnknownNameError: Nothing has.
    """
    if kind in _OWN and ":" in part and not part.startswith(FLOWER_PREFIX):
        return [_OWN[kind](part)]
    everything = list(_KINDS[kind]())
    fitting = [entry for entry in everything if part in entry.name]
    if not fitting:
        raise unknown(f"name among the {kind}", part, [entry.name for entry in everything])
    return fitting


def attributes(kind: type) -> dict[str, str]:
    """Return the sentences of the `Attributes:` sections of a class and of those that it inherits from, by name."""
    told: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        told |= _section(inspect.cleandoc(vars(each).get("__doc__") or ""), "Attributes")
    return told


def meanings(kind: type) -> dict[str, str]:
    """Return what each field of a section of the configuration means: its sentences, and its range."""
    docs, sentences = attributes(kind), {}
    for name, limits in ranges.limits_of(kind).items():
        told = docs.get(name, "")
        words = [str(value) for limit in limits if isinstance(limit, ranges.OneOf) for value in limit.allowed]
        said = words and all(re.search(rf"\b{re.escape(word)}\b", told) for word in words)
        allowed = "" if said else ranges.describe(limits)
        sentences[name] = f"{told} {allowed[:1].upper()}{allowed[1:]}." if allowed else told
    return sentences


def _section(doc: str, title: str) -> dict[str, str]:
    match = re.search(rf"^{title}:\n((?:[ ]+.*\n?|\n)+)", doc, re.MULTILINE)
    descriptions: dict[str, str] = {}
    name = ""
    for line in match.group(1).splitlines() if match else []:
        start = re.match(r"(?: {4}|\t)(\*{0,2}\w+)(?: \([^)]*\))?: (.*)", line)
        if start:
            name, descriptions[start.group(1)] = start.group(1), start.group(2).strip()
        elif name and line.strip():
            descriptions[name] += " " + line.strip()
    return descriptions


def _strategy(name: str) -> Entry:
    kind = strategies.find(name)
    docs = meanings(kind.config_class)
    options = (Option(key, value, docs.get(key, "")) for key, value in strategies.options(name).items())
    line = strategies.describe(name) if name in strategies.names() else (inspect.getdoc(kind) or "").partition("\n")[0]
    return Entry(name, line, tuple(options))


def _strategies() -> Iterator[Entry]:
    yield from map(_strategy, strategies.names())
    for name in flower_names():
        options = (Option(key, value) for key, value in flower_options(name).items())
        line = (inspect.getdoc(getattr(flower_strategies, name.removeprefix(FLOWER_PREFIX))) or "").partition("\n")[0]
        yield Entry(name, f"Flower's aggregation: {line}", tuple(options))


def _model(name: str) -> Entry:
    module, factory = models.TABLE.get(name) or name.split(":", 1)
    options = models.options(name)  # imports the module
    docs = _section(inspect.getdoc(getattr(sys.modules[module], factory)) or "", "Args")
    other_options = (Option(key, value, docs.get(key, "")) for key, value in options.items() if key != "image_size")
    size = options.get("image_size")
    published = f" Images of {size} px." if size else ""
    return Entry(name, models.describe(name) + published, tuple(other_options))


def _models() -> Iterator[Entry]:
    yield from map(_model, models.names())


def _operators() -> Iterator[Entry]:
    for name in operators.names():
        docs = {"layers": _LAYERS} | _section(operators.documentation(name), "Args")
        options = (Option(key, value, docs.get(key, "")) for key, value in operators.options(name).items())
        yield Entry(name, operators.describe(name), tuple(options))


def _data() -> Iterator[Entry]:
    for name in data_sets.names():
        options = (Option(key, value) for key, value in data_sets.options(name).items())
        yield Entry(name, data_sets.describe(name), tuple(options))


def _encoders() -> Iterator[Entry]:
    for name in encoders.names():
        yield Entry(name, encoders.describe(name))


def _partitions() -> Iterator[Entry]:
    docs, defaults = meanings(DataConfig), DataConfig()
    for name in partition.names():
        keys = partition.keys(name)
        options = (Option(f"data.{key}", getattr(defaults, key), docs.get(key, "")) for key in keys)
        yield Entry(name, partition.describe(name), tuple(options))


def _experiments() -> Iterator[Entry]:
    for name in experiment_names():
        yield Entry(name, describe(name))


def _keys() -> Iterator[Entry]:
    sections = attributes(Experiment)
    for field in dataclasses.fields(Experiment):
        if not callable(field.default_factory):
            continue
        options = tuple(_of_section(field.name, field.default_factory()))
        if field.name == "strategy":
            own = "Hyper-parameters of the strategy, see `umbel list strategies`."
            options = (options[0], Option("strategy.<option>", "", own))
        yield Entry(field.name, sections.get(field.name, ""), options)


def _of_section(key: str, section: Any) -> Iterator[Option]:
    """Return the keys of a section and of those within it."""
    docs = meanings(type(section))
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from _of_section(f"{key}.{item.name}", value)
        else:
            yield Option(f"{key}.{item.name}", value, docs.get(item.name, ""))


_KINDS = {
    "strategies": _strategies,
    "models": _models,
    "operators": _operators,
    "data": _data,
    "encoders": _encoders,
    "partitions": _partitions,
    "experiments": _experiments,
    "keys": _keys,
}


_OWN = {"strategies": _strategy, "models": _model}


def render(entries: list[Entry], width: int, *, options: bool = True) -> Group:
    """Lay entries out for a terminal `width` characters wide, with their options or without."""
    if not options:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for entry in entries:
            table.add_row(entry.name, entry.line)
        return Group(table)
    parts: list[Any] = []
    for entry in entries:
        parts.append(Text.assemble((entry.name, "bold cyan"), "  ", entry.line))
        if entry.options:
            parts.append(Padding(_options(entry.options, width), (0, 0, 0, 4)))
        if entry.options or len(entry.name) + len(entry.line) + 2 > width:
            parts.append(Text(""))
    return Group(*parts)


def _options(options: tuple[Option, ...], width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    name = max(len(_assignment(option)) for option in options)
    table.add_column(style="green", overflow="fold", max_width=min(name, width // 2))
    table.add_column(overflow="fold")
    for option in options:
        table.add_row(Text(_assignment(option)), Text(option.doc))
    return table


def _assignment(option: Option) -> str:
    return option.name if option.default == "" and "<" in option.name else f"{option.name}={_value(option.default)}"


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return "''" if value == "" else str(value)


def _json(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, dict, list, type(None))) else str(value)

"""From what was written to what a field's type says: one way for YAML and overrides, sections and hyper-parameters.

Nothing is rounded, cut or guessed: a whole number is written without a point, a truth value is no number.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union

from umbel.conf.errors import ExperimentError
from umbel.conf.written import BOOLEANS, FLOAT, INTEGER, WORDS, Scalar, Tree, integer, read_value, real, resolve, shown

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


@cache
def hints_of(kind: type) -> Mapping[str, Any]:
    """Return the declared type of each field of a dataclass, in order, without its range."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def convert(value: Tree, hint: Any, key: str) -> Any:
    """Return a value of the type that a field declares.

    Args:
        value: What was written.
        hint: The type, without its range.
        key: Its key, for refusals.

    Raises:
        ExperimentError: It is none, with the key.
    """
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments, key)
    if origin in (str, Path):
        return hint(_text(value, hint, key))
    if isinstance(value, Scalar):
        value = read_value(value, key)
    if hint is Any or hint is object:
        return untyped(value, key)
    if origin is Literal:
        return _choice(value, {str(each): each for each in arguments}, key)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choice(value, {**{str(e.value): e for e in hint}, **{e.name: e for e in hint}}, key)
    if dataclasses.is_dataclass(hint):
        return section(typing.cast(type, hint), value, key)
    if origin in (bool, int, float):
        return _number(value, origin, key)
    if origin in (list, tuple, set, frozenset, Sequence):
        return _several(value, origin, arguments, key)
    if origin in (dict, Mapping):
        return _mapping(value, arguments[-1] if arguments else Any, key)
    raise ExperimentError(
        f"{key} is declared as {hint}, which cannot be written in YAML.", key=key, remedy="Declare it as another type."
    )


def section(kind: type, value: Tree, key: str) -> Any:
    """Return an instance of a dataclass, with its defaults where nothing was written.

    Args:
        kind: The dataclass.
        value: A mapping, or nothing.
        key: What stands before the fields' names, without the dot; empty for the whole experiment.
    """
    if isinstance(value, Scalar) and value.is_null:
        value = {}
    if not isinstance(value, dict):
        raise _unlike("a section", value, key)
    declared = hints_of(kind)
    values = {}
    for name, each in value.items():
        path = f"{key}.{name}" if key else name
        if name not in declared:
            raise ExperimentError(f"Unknown key {path!r}.", key=path, remedy=f"Known: {', '.join(sorted(declared))}.")
        values[name] = convert(each, declared[name], path)
    lacking = [
        field.name
        for field in dataclasses.fields(kind)
        if field.init
        and field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if lacking:
        path = f"{key}.{lacking[0]}" if key else lacking[0]
        raise ExperimentError(f"{path} has no default.", key=path, remedy="Set it.")
    return kind(**values)


def untyped(value: Tree, key: str) -> Any:
    """Return plain Python of what was written, where nobody says the types."""
    if isinstance(value, dict):
        return {name: untyped(each, f"{key}.{name}") for name, each in value.items()}
    if isinstance(value, list):
        return [untyped(each, key) for each in value]
    read = read_value(value, key)
    return resolve(read, key) if isinstance(read, Scalar) else untyped(read, key)


def _one_of(value: Tree, arms: tuple[Any, ...], key: str) -> Any:
    others = [arm for arm in arms if arm is not type(None)]
    if type(None) in arms and isinstance(value, Scalar) and value.is_null:
        return None
    # Text takes anything, so it comes last.
    for arm in sorted(others, key=lambda each: each is str):
        try:
            return convert(value, arm, key)
        except ExperimentError as error:
            refusal = error.with_traceback(None)  # a frame that knows what knows it would keep all frames above
    raise refusal if len(others) == 1 else _unlike(" or ".join(_word(arm) for arm in others), value, key)


def _text(value: Tree, hint: Any, key: str) -> str:
    if not isinstance(value, Scalar) or (value.style == "plain" and value.text and value.is_null):
        raise _unlike(_word(hint), value, key)
    return value.text


def _number(value: Tree, kind: Any, key: str) -> bool | int | float:
    text = value.text if isinstance(value, Scalar) else ""
    if kind is bool and text.lower() in BOOLEANS | WORDS:
        return (BOOLEANS | WORDS)[text.lower()]
    if kind is int and INTEGER.fullmatch(text):
        return integer(text, key)
    if kind is float and FLOAT.fullmatch(text):
        return real(text)
    raise _unlike(_word(kind), value, key)


def _choice(value: Tree, choices: Mapping[str, Any], key: str) -> Any:
    if not isinstance(value, Scalar) or value.text not in choices:
        raise _unlike(f"one of {', '.join(choices)}", value, key)
    return choices[value.text]


def _several(value: Tree, kind: Any, arguments: tuple[Any, ...], key: str) -> Any:
    if not isinstance(value, list):
        raise _unlike("a list such as [1, 2]", value, key)
    hints = list(arguments[:1] or (Any,)) * len(value)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _unlike(f"a list of {len(arguments)}", value, key)
        hints = list(arguments)
    values = [convert(each, hint, key) for each, hint in zip(value, hints, strict=True)]
    return values if kind in (list, Sequence) else kind(values)


def _mapping(value: Tree, hint: Any, key: str) -> dict[str, Any]:
    if isinstance(value, Scalar) and value.is_null:
        return {}
    if not isinstance(value, dict):
        raise _unlike("a mapping such as {a: 1}", value, key)
    return {name: convert(each, hint, f"{key}.{name}") for name, each in value.items()}


def _word(hint: Any) -> str:
    if typing.get_origin(hint) is dict:
        return "a mapping"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    return _NAMES.get(hint) or str(getattr(hint, "__name__", hint))


def _unlike(wanted: str, value: Tree, key: str) -> ExperimentError:
    kinds = {dict: "a mapping", list: "a list"}
    written = shown(value.text) if isinstance(value, Scalar) else kinds[type(value)]
    return ExperimentError(f"{key}: expected {wanted}, found {written}.", key=key)

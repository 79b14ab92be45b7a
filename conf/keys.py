"""The keys that an experiment may set, and what is answered to others."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Container, Iterator, Mapping
from functools import cache
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.conf.typed import hints_of
from umbel.core.names import nearest
from umbel.strategies import registry


def known_keys(strategy_name: str) -> list[str]:
    """Return every key that an experiment with this strategy may set."""
    keys = [key for key, _ in _leaves(Experiment) if not key.startswith("strategy.")]
    options = hints_of(registry.find(strategy_name).config_class) if is_ours(strategy_name) else {}
    return [*keys, "strategy.name", *(f"strategy.{option}" for option in options)]


def is_ours(strategy_name: str) -> bool:
    """Say whether a strategy is none of Flower's."""
    return not strategy_name.startswith(registry.FLOWER_PREFIX)


def check_keys(given: Mapping[str, Any], strategy_name: str) -> None:
    """Refuse a key that there is not.

    Args:
        given: Nested mappings, one for each section; below `strategy` its options alone.
        strategy_name: The strategy.
    """
    sections = {field.name for field in dataclasses.fields(Experiment)}
    known = known_keys(strategy_name)
    free = _free_keys(strategy_name)
    for path in _given_keys(given, free):
        if path in known or (path.startswith("strategy.") and not is_ours(strategy_name)):
            continue
        if path in sections:
            raise ExperimentError(f"{path} is a section.", key=path, remedy=f"Set a key in it, such as {path}.name=...")
        guesses = nearest(path, known)
        hint = f"Did you mean {' or '.join(guesses)}?" if guesses else "See `umbel run --help` for the sections."
        raise ExperimentError(f"Unknown key {path!r}.", key=path, remedy=hint)


@cache
def _leaves(kind: type, prefix: str = "") -> tuple[tuple[str, Any], ...]:
    """Return the dotted keys of a dataclass of sections, each with its declared type, without its range."""
    leaves: list[tuple[str, Any]] = []
    for name, hint in hints_of(kind).items():
        if dataclasses.is_dataclass(hint):
            leaves.extend(_leaves(typing.cast(type, hint), f"{prefix}{name}."))
        else:
            leaves.append((f"{prefix}{name}", hint))
    return tuple(leaves)


def _free_keys(strategy_name: str) -> frozenset[str]:
    """Return the keys of mappings whose own keys depend on the data set, the model or another strategy."""
    leaves = [*_leaves(Experiment)]
    if is_ours(strategy_name):
        leaves.extend(_leaves(registry.find(strategy_name).config_class, "strategy."))
    return frozenset(key for key, kind in leaves if _may_be_mapping(kind))


def _may_be_mapping(kind: Any) -> bool:
    return dict in (typing.get_origin(each) for each in (kind, *typing.get_args(kind)))


def _given_keys(given: Mapping[str, Any], free: Container[str], prefix: str = "") -> Iterator[str]:
    for key, value in given.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path not in free:
            yield from _given_keys(value, free, f"{path}.")
        else:
            yield path

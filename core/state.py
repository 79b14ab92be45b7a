"""Turn a strategy's State into named tensors and JSON, and back; never pickle."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from umbel.core.tree import first_non_finite


def pack(value: Any, prefix: str = "state") -> tuple[Any, dict[str, Tensor]]:
    """Take a value apart.

    Args:
        value: Dataclasses, mappings with string keys, tuples, lists, tensors, numbers, strings, None, nested.
        prefix: Name under which its tensors go.

    Returns:
        A JSON-able skeleton and the tensors it refers to.

    Raises:
        TypeError: A value of another type.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(value, prefix, tensors)
    return skeleton, tensors


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if path in tensors:
            raise ValueError(f"{path}: two tensors of a State have the same name; keep '/' out of keys")
        tensors[path] = value
        return {"tensor": path}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _pack(getattr(value, f.name), f"{path}/{f.name}", tensors) for f in dataclasses.fields(value)}
        return {"dataclass": _name(type(value)), "fields": fields}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{path}: a State's mappings have text as keys, found {list(value)[:3]}")
        return {"map": {key: _pack(item, f"{path}/{key}", tensors) for key, item in value.items()}}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]}
    raise TypeError(f"{path}: a State holds tensors, numbers, text and containers of them, found {type(value)}")


def unpack(skeleton: Any, tensors: Mapping[str, Tensor], classes: Mapping[str, type]) -> Any:
    """Put a value together again.

    Args:
        skeleton: From `pack`.
        tensors: From `pack`.
        classes: The dataclasses that may appear, by module and name; nothing else is ever constructed.
    """
    ((kind, content),) = [item for item in skeleton.items() if item[0] != "fields"]
    if kind == "tensor":
        return tensors[content]
    if kind == "plain":
        return content
    if kind == "map":
        return {key: unpack(item, tensors, classes) for key, item in content.items()}
    if kind == "dataclass":
        if content not in classes:
            raise ValueError(f"The checkpoint holds a {content!r}, which this strategy does not know.")
        fields = {name: unpack(item, tensors, classes) for name, item in skeleton["fields"].items()}
        return classes[content](**fields)
    items = [unpack(item, tensors, classes) for item in content]
    return tuple(items) if kind == "tuple" else items


def _name(kind: type) -> str:
    """Return a name that a State has to itself: several strategies call theirs `State`, and one may hold another's."""
    return f"{kind.__module__}:{kind.__qualname__}"


def named_classes(skeleton: Any) -> set[str]:
    """Return the dataclasses that `unpack` needs for a skeleton, by module and name."""
    named: set[str] = set()
    for kind, content in skeleton.items():
        if kind == "dataclass":
            named.add(content)
        elif kind in ("map", "fields"):
            named.update(*map(named_classes, content.values()))
        elif kind in ("tuple", "list"):
            named.update(*map(named_classes, content))
    return named


def module_classes(kind: type) -> dict[str, type]:
    """Collect the dataclasses that the modules of a class and of its bases know by name, for `unpack`."""
    modules = [sys.modules[each.__module__] for each in kind.__mro__]
    items = [item for module in modules for item in vars(module).values()]
    return {_name(item): item for item in items if isinstance(item, type) and dataclasses.is_dataclass(item)}


def state_classes(value: Any) -> dict[str, type]:
    """Collect the dataclasses of a State and of the modules that they are defined in, for `unpack`."""
    classes = module_classes(type(value)) | {_name(type(value)): type(value)}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            classes |= state_classes(inner)
    return classes


def not_finite(value: Any) -> str | None:
    """Return the name of the first tensor of a State that holds a NaN or an infinity, or None."""
    return first_non_finite(dict(_tensors(value, "")))


def _tensors(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a State with their names; what else it holds has its say when it is packed."""
    inner: dict[str, Any] = {}
    if isinstance(value, Tensor):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, Mapping):
        inner = {str(key): item for key, item in value.items()}
    elif isinstance(value, tuple | list):
        inner = {str(i): item for i, item in enumerate(value)}
    for name, item in inner.items():
        yield from _tensors(item, f"{path}/{name}".lstrip("/"))

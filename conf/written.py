"""YAML and overrides as they were written: a scalar keeps its text until the type of its key is known.

So a folder `007` stays `007`, and `1e-3` is a number wherever one is asked for. Where nobody says the type, YAML 1.2
does: decimal integers and floats, true, false, null, else text. Bounds keep every text to moments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import yaml

from umbel.conf.errors import ExperimentError

MAX_CHARACTERS = 500_000
MAX_NODES = 4_000
MAX_DEPTH = 20
BOOLEANS = {"true": True, "false": False}
# To older YAML these are truth values, to newer they are text.
WORDS = {"yes": True, "on": True, "no": False, "off": False}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NULLS = ("null", "Null", "NULL", "~")
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
_LONGEST_INTEGER = 20
_SHOWN = 60


@dataclass(frozen=True)
class Scalar:
    """A value as it was written.

    Attributes:
        text: Its text, without YAML's quotes.
        style: `plain` or `quoted` in YAML; `override` for all that stands behind the `=` of one.
    """

    text: str
    style: str = "plain"

    @property
    def is_null(self) -> bool:
        """Whether it says that there is nothing."""
        if self.style == "override":
            return self.text in ("", "null")
        return self.style == "plain" and self.text in ("", *_NULLS)


Tree: TypeAlias = "Scalar | list[Tree] | dict[str, Tree]"


def read_yaml(text: str, name: str, key: str = "") -> Tree:
    """Read YAML; the keys of mappings are text.

    Args:
        text: The YAML.
        name: What the text is called in refusals.
        key: The key whose value it is, if it is one.

    Raises:
        ExperimentError: This is no YAML, a key stands twice in it, or it is larger or deeper than an experiment can be.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExperimentError(
            f"{name} has {len(text):,} characters, and {MAX_CHARACTERS:,} are allowed.", key=key, remedy="Shorten it."
        )
    try:
        node = yaml.compose(text, Loader=_Loader)
        return Scalar("") if node is None else _Nodes(name, key).tree(node, 0)
    except ExperimentError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # numbers in escapes and directives may be any
        raise ExperimentError(
            f"{name}: this is not valid YAML: {error}", key=key, remedy="Put it right there."
        ) from error


def read_value(scalar: Scalar, key: str) -> Tree:
    """Return what a scalar sets a key to that takes more than text.

    Of an override, what begins with a bracket or a quote is YAML; all else is one scalar, whatever is in it.
    """
    if scalar.style != "override":
        return scalar
    text = scalar.text.strip()
    if text.startswith(("[", "{", '"', "'")):
        return read_yaml(text, f"The value of {key} cannot be read", key)
    return Scalar(text, "override")


def resolve(scalar: Scalar, key: str) -> Any:
    """Return the value of a scalar whose type nobody says.

    Raises:
        ExperimentError: A truth value in one YAML and text in another, or an integer beyond 64 bits.
    """
    text = scalar.text
    if scalar.style == "quoted":
        return text
    if scalar.is_null:
        return "" if scalar.style == "override" and not text else None
    if text in _variants(BOOLEANS):
        return BOOLEANS[text.lower()]
    if text in _variants(WORDS):
        raise ExperimentError(
            f"{key}: {text} is {str(WORDS[text.lower()]).lower()} in one YAML and text in another.",
            key=key,
            remedy=f"Write {str(WORDS[text.lower()]).lower()}, or the text in quotes.",
        )
    if INTEGER.fullmatch(text):
        return integer(text, key)
    return real(text) if FLOAT.fullmatch(text) else text


def integer(text: str, key: str) -> int:
    """Return an integer of 64 bits; text that is longer is never converted, which takes the square of its length."""
    value = int(text) if len(text) <= _LONGEST_INTEGER else 1 << 64
    if not -(1 << 63) <= value < 1 << 63:
        raise ExperimentError(f"{key}: {shown(text)} is beyond 64 bits.", key=key, remedy="Choose a smaller number.")
    return value


def real(text: str) -> float:
    """Return a number, infinity or NaN, as YAML writes them."""
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def check_text(text: str, key: str) -> str:
    """Return text that YAML, JSON and file systems all take, or refuse it."""
    if _NO_TEXT.search(text):
        raise ExperimentError(
            f"{key}: {shown(text)} is no Unicode text, or has a null character.",
            key=key,
            remedy="Give another name, such as that of a link to it.",
        )
    return text


def check_size(value: Any) -> None:
    """Refuse a composed experiment that `read_yaml` would not read again."""
    characters = 0
    for nodes, (depth, each) in enumerate(_walk(value, 0), start=1):
        characters += len(each) if isinstance(each, str) else 0
        if nodes > MAX_NODES or depth > MAX_DEPTH or characters > MAX_CHARACTERS // 10:
            raise ExperimentError(
                f"This is larger than an experiment can be: {MAX_NODES:,} values, {MAX_CHARACTERS // 10:,} characters, "
                f"{MAX_DEPTH} levels.",
                remedy="Shorten it.",
            )


def write_yaml(plain: Mapping[str, Any]) -> str:
    """Return YAML that both `read_yaml` and readers of YAML 1.1 read back to the same."""
    return yaml.dump(dict(plain), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _walk(value: Any, depth: int) -> Iterator[tuple[int, Any]]:
    yield depth, value
    children: Any = ()
    if isinstance(value, Mapping):
        children = [*value, *value.values()]
    elif isinstance(value, list | tuple):
        children = value
    for child in children if depth <= MAX_DEPTH else ():
        yield from _walk(child, depth + 1)


def _variants(words: Mapping[str, bool]) -> set[str]:
    return {form for word in words for form in (word, word.capitalize(), word.upper())}


class _Dumper(yaml.SafeDumper):
    """Writes text that is a number to YAML 1.2 in quotes, too."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


class _Loader(yaml.BaseLoader):
    """Composes nodes, all scalars text, and not more of them than an experiment has."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._count += 1
        self._depth += 1
        problem = ""
        if self._depth > MAX_DEPTH + 1 or self._count > 2 * MAX_NODES:  # here, keys count apart
            problem = _too_large()
        elif getattr(event, "tag", None):
            problem = f"the tag {event.tag} is not taken here"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Nodes:
    """Turns the nodes of one text into a tree; aliases count as often as they stand."""

    def __init__(self, name: str, key: str) -> None:
        self._name, self._key, self._count = name, key, 0

    def tree(self, node: yaml.Node, depth: int) -> Tree:
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_NODES:
            self._refuse(_too_large(), node, "Shorten it; aliases count as often as they stand.")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.tree(child, depth + 1) for child in node.value]
        text = check_text(str(node.value), self._key or self._name)
        return Scalar(text, "plain" if getattr(node, "style", None) is None else "quoted")

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Tree]:
        own: dict[str, Tree] = {}
        lines: dict[str, int] = {}
        merged: list[Tree] = []
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse("a key is text", key_node, "Write it without brackets.")
            key = check_text(key_node.value, self._key or self._name)
            if key in lines:
                self._refuse(f"{key} stands twice, first in line {lines[key]}", key_node, "Keep one of them.")
            lines[key] = key_node.start_mark.line + 1
            value = self.tree(value_node, depth + 1)
            if key == "<<" and key_node.style is None:
                merged = value if isinstance(value, list) else [value]
            else:
                own[key] = value
        for other in merged:
            if not isinstance(other, dict):
                self._refuse("<< merges mappings", node, "Give it one, or a list of them.")
            own = {**other, **own}
        return own

    def _refuse(self, problem: str, node: yaml.Node, remedy: str) -> NoReturn:
        line = node.start_mark.line + 1
        raise ExperimentError(f"{self._name}, line {line}: {problem}.", key=self._key, remedy=remedy)


def _too_large() -> str:
    return f"this is larger or deeper than an experiment can be ({MAX_NODES:,} values, {MAX_DEPTH} levels)"

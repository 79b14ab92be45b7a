"""What travels between server and clients: named trees of tensors and named numbers. Nothing is positional.

What a client hands over may be anything, of any class: `plain` makes values of it that nobody else can change and every
message can carry, or says why it cannot.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor, nn

from umbel.core import tree as trees_
from umbel.core.names import shortened
from umbel.core.tree import Tree

MOST_EXAMPLES = 2**53  # behind one reply: what float64 counts exactly
LARGEST = 1e100  # of a value in a reply: sums and squares over clients are still numbers
_LONGEST_VALUE = 60  # letters
_DTYPES = frozenset(
    {
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    }
)


class BadReplyError(ValueError):
    """A client's reply that cannot be used: it is left out, counted and named, and the round goes on."""


class NotFiniteError(BadReplyError):
    """A client's reply that holds NaN, infinity, or values too large to be combined: its training has diverged."""


@dataclass(frozen=True)
class Payload:
    """What every selected client of a phase receives.

    Attributes:
        trees: Named trees of tensors, such as `model` or `control`.
        numbers: Named numbers.
        one_of: Names of trees of which each client takes one: of these the largest counts.
    """

    trees: Mapping[str, Tree] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    one_of: frozenset[str] = frozenset()

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in bytes that a client takes, without framing."""
        sizes = {name: trees_.num_bytes(tree) for name, tree in self.trees.items()}
        taken = max((sizes[name] for name in self.one_of), default=0)
        return taken + sum(size for name, size in sizes.items() if name not in self.one_of)


@dataclass(frozen=True)
class Reply:
    """What one client answers.

    Attributes:
        trees: Named trees of tensors.
        numbers: Named numbers, averaged with the number of examples as weight.
        num_examples: Examples behind this reply, at least 1; the weight of weighted means.
    """

    trees: Mapping[str, Tree] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    num_examples: int = 1

    @property
    def num_bytes(self) -> int:
        """Size of the tensors in bytes, without framing."""
        return sum(trees_.num_bytes(tree) for tree in self.trees.values())

    def owned(self) -> Reply:
        """Return the same reply in memory of its own."""
        return replace(self, trees={name: trees_.clone(tree) for name, tree in self.trees.items()})


def plain(reply: object) -> Reply:
    """Return a client's reply in plain values: exact whole and floating-point numbers, plain mappings, CPU tensors.

    Tensors have no gradient, but may share memory with the client's. A number may be whatever is one: a tensor of one
    value, a number of numpy's.

    Raises:
        BadReplyError: It is of another form.
    """
    if not isinstance(reply, Reply):
        raise BadReplyError(f"expected a Reply, found {type(reply).__name__}")
    numbers = {_name(name): _number(name, value) for name, value in _items("numbers", reply.numbers)}
    trees = {
        _name(tree): {_name(name): _tensor(tree, name, value) for name, value in _items(tree, tensors)}
        for tree, tensors in _items("trees", reply.trees)
    }
    return Reply(trees, numbers, _whole(reply.num_examples))


def _items(what: object, mapping: object) -> list[tuple[object, object]]:
    if not isinstance(mapping, Mapping):
        raise BadReplyError(f"{what}: expected a mapping of names, found {type(mapping).__name__}")
    return list(mapping.items())


def _name(name: object) -> str:
    """Return a name that a message can carry; those that begin with # are the folds' own."""
    if type(name) is not str or not name or name.startswith("#") or "\0" in name or not _is_text(name):
        raise BadReplyError(f"expected a name, found {_shown(name)}")
    return name


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tensor(tree: object, name: object, value: object) -> Tensor:
    if type(value) not in (Tensor, nn.Parameter):
        raise BadReplyError(f"{tree}: {name!r} should be a tensor, found {type(value).__name__}")
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.dtype not in _DTYPES or value.is_meta:
        kind = f"{str(value.layout).removeprefix('torch.')} tensor of {value.dtype} on {value.device}"
        raise BadReplyError(f"{tree}: {name!r} cannot be sent as a {kind}")
    return value.detach().cpu()


def _number(name: object, value: object) -> float:
    try:
        if isinstance(value, Tensor) and value.numel() == 1:
            return float(value.detach())
        if isinstance(value, Real):
            return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadReplyError(f"the number {name!r} is {_shown(value)}: {error}") from error
    raise BadReplyError(f"the number {name!r} should be a number, found {_shown(value)}")


def _whole(value: object) -> int:
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise BadReplyError(f"num_examples should be a whole number, found {_shown(value)}") from error


def _shown(value: object) -> str:
    """Show a value of whatever class in a few letters."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - anybody's code
        text = f"a value whose text raises {type(error).__name__}"
    kind = type(value).__name__
    return f"{text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + '...'} ({kind})"


def has_diverged(reason: str) -> bool:
    """Say whether a failure, which names the class of what was raised, is that of a training that has diverged."""
    return reason.startswith(f"{NotFiniteError.__name__}: ")


def reason(error: BaseException) -> str:
    """Return what was raised, as a failure names it; it never raises itself and is never long.

    Args:
        error: Of any class, with any text, which may raise in its turn.
    """
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException as second:  # noqa: BLE001 - anybody's code
        text = f"{type.__dict__['__name__'].__get__(type(error))}, whose text raises " + type(second).__name__
    return shortened(text)

"""Folds that keep more than a sum: every reply as it came, and exact moments per class.

Legend: N replies, Z packed numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from umbel.core import moments
from umbel.core.fold import Fold, Like, check_values, open_size
from umbel.core.records import MOST_EXAMPLES, BadReplyError, Payload
from umbel.core.tree import Tree
from umbel.core.wire.limits import Size

_CLIENT, _NUM_EXAMPLES = "#client:", "#num_examples:"  # before a key: whose its rows are, and of how many examples
_LARGEST_MEAN, _LARGEST_COVARIANCE = 1e15, 1e30  # pooled, and with eigenvalues taken, they are still float32
_ROUNDED = 1 + 1e-6  # counts may have travelled as float32


class Moments(Fold):
    """Exact pooling of counts, means and covariances per class.

    A reply's tree has an entry for each class that the client holds: its number as the name, and
    `umbel.core.moments.pack` [Z] of its count, mean and biased covariance as the value.

    Args:
        within_only: Leave out how far the clients' means are apart.
        bounds: Returns the numbers of classes and of features that the payload asks for; None allows any.
    """

    def __init__(self, within_only: bool = False, bounds: Callable[[Payload], tuple[int, int]] | None = None) -> None:
        super().__init__()
        self.within_only = within_only
        self.bounds = bounds

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        num_classes, width = self.bounds(payload) if self.bounds else (0, 0)
        for name, packed in tree.items():
            if not name.isdecimal() or str(int(name)) != name or packed.ndim != 1 or not packed.is_floating_point():
                raise BadReplyError(
                    f"{what}: expected packed moments named by the number of a class, found {name!r} of shape "
                    f"{list(packed.shape)}"
                )
            try:
                count, mean, covariance = moments.unpack(packed)
            except ValueError as error:
                raise BadReplyError(f"{what}: class {name}: {error}") from error
            if num_classes and (int(name) >= num_classes or len(packed) != moments.packed_size(width)):
                raise BadReplyError(
                    f"{what}: expected classes below {num_classes} with {moments.packed_size(width)} numbers each, "
                    f"found class {name} with {len(packed)}"
                )
            if not 1 <= float(count) <= MOST_EXAMPLES:
                raise BadReplyError(f"{what}: class {name} is listed with a count of {float(count):g}, not at least 1")
            if float(mean.abs().max()) > _LARGEST_MEAN or float(covariance.abs().max()) > _LARGEST_COVARIANCE:
                raise BadReplyError(
                    f"{what}: class {name} has a mean or covariance that cannot be pooled: they should be at most "
                    f"{_LARGEST_MEAN:g} and {_LARGEST_COVARIANCE:g}"
                )

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        if any(tensor.dtype != torch.float64 for tensor in accumulator.values()):
            raise BadReplyError(f"{what}: pooled moments should be float64")
        self.check(what, accumulator, payload)

    def check_examples(self, what: str, tree: Tree, most: float) -> None:
        count = sum(float(packed[0]) for packed in tree.values())
        if count > most * _ROUNDED:
            raise BadReplyError(
                f"{what}: the counts of its classes come to {count:g} examples, at most {most:g} can be"
            )

    def check_weights(self, what: str, accumulator: Tree, num_examples: int, most: Mapping[int, float]) -> None:
        self.check_examples(what, accumulator, sum(most.values()))

    def most(self, payload: Payload, num_replies: int) -> Size:
        if self.bounds is None:
            return open_size(payload) * num_replies
        num_classes, width = self.bounds(payload)
        return Size(8 * num_classes * moments.packed_size(width), num_classes)

    def lift(self, tree: Tree, num_examples: int, client: int) -> dict[str, Tensor]:
        return {name: packed.to(torch.float64, copy=True) for name, packed in tree.items()}

    def merge(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        merged = left | right
        for name in left.keys() & right.keys():
            one, other = (moments.unpack(side[name][None]) for side in (left, right))
            try:
                merged[name] = moments.pack(*moments.merge(one, other, self.within_only))[0]
            except ValueError as error:
                raise BadReplyError(
                    f"two clients sent moments of class {name} that do not go together: {error}"
                ) from error
        return dict(sorted(merged.items(), key=lambda item: int(item[0])))

    def shapes(self, tree: Tree, lifted: bool) -> dict[str, tuple[int, ...]]:
        return {name: tuple(packed.shape) for name, packed in tree.items()}


class Collect(Fold):
    """Keep every reply: for medians, Krum, metrics of each client, ensembles.

    The result has, for each key, the tensors of those clients that sent it stacked in client order of the
    cohort, and `#client:<key>` [N] with the clients they are from; `#num_examples:<key>` likewise.

    Args:
        like: As in `Fold`.
        keys: Keys that every reply must have.
        optional: Keys that a reply may leave out.
    """

    def __init__(self, like: Like = None, keys: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
        super().__init__(like, keys)
        self.optional = tuple(optional)

    def lift(self, tree: Tree, num_examples: int, client: int) -> dict[str, Tensor]:
        lifted: dict[str, Tensor] = {}
        for name, tensor in tree.items():
            lifted[name] = tensor.unsqueeze(0).clone(memory_format=torch.contiguous_format)
            lifted[f"{_CLIENT}{name}"] = torch.tensor([client])
            lifted[f"{_NUM_EXAMPLES}{name}"] = torch.tensor([num_examples])
        return lifted

    def merge(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        both = left.keys() & right.keys()
        merged = {**left, **right}
        for name in both:
            if left[name].shape[1:] != right[name].shape[1:]:
                raise BadReplyError(f"two clients sent {name!r} in different shapes; they cannot be collected")
            merged[name] = torch.cat([left[name], right[name]])
        return merged

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        values = {name: tensor for name, tensor in accumulator.items() if not name.startswith("#")}
        if len(accumulator) != 3 * len(values):
            raise BadReplyError(f"{what}: the rows do not say whose they are")
        rows: dict[int, dict[str, Tensor]] = {client: {} for client in clients}
        said: dict[int, int] = {}
        for name, tensor in values.items():
            owners, sizes = accumulator.get(f"{_CLIENT}{name}"), accumulator.get(f"{_NUM_EXAMPLES}{name}")
            if owners is None or sizes is None or not owners.shape == sizes.shape == tensor.shape[:1]:
                raise BadReplyError(f"{what}: the rows of {name!r} do not say whose they are")
            if owners.ndim != 1 or owners.dtype != torch.int64 or sizes.dtype != torch.int64:
                raise BadReplyError(f"{what}: the rows of {name!r} do not say whose they are")
            order, sent = owners.tolist(), set(owners.tolist())
            # In the order of the cohort, each once, and at least one: a key that nobody sent is not there.
            if not order or order != [client for client in clients if client in sent]:
                raise BadReplyError(f"{what}: the rows of {name!r} are of other clients than those that replied")
            for client, size, row in zip(order, sizes.tolist(), tensor, strict=True):
                if size < 1 or said.setdefault(client, size) != size:
                    raise BadReplyError(f"{what}: the rows do not say how many examples are behind them")
                rows[client][name] = row
        for client, tree in rows.items():
            self.check(f"{what} of client {client}", tree, payload)

    def check_weights(self, what: str, accumulator: Tree, num_examples: int, most: Mapping[int, float]) -> None:
        counted: dict[int, int] = {}
        for client, size, tree in replies_in(accumulator):
            counted[client] = size
            if size > most[client]:
                raise BadReplyError(f"{what} of client {client}: at most {most[client]:,.0f} examples, found {size:,}")
            self.check_examples(f"{what} of client {client}", tree, most[client])
        missing = len(most) - len(counted)  # who sent none of the tree's tensors
        if not sum(counted.values()) + missing <= num_examples or (
            not missing and sum(counted.values()) < num_examples
        ):
            raise BadReplyError(
                f"{what}: the rows are of {sum(counted.values()):,} examples, the partial sum of {num_examples:,}"
            )

    def most(self, payload: Payload, num_replies: int) -> Size:
        expected = self.expected(payload)
        if expected is None or self.optional:
            return open_size(payload) * num_replies
        row = Size(8 * sum(tensor.numel() + 2 for tensor in expected.values()))  # and whose it is, of how many examples
        return row * num_replies + Size(0, 3 * len(expected))

    def shapes(self, tree: Tree, lifted: bool) -> dict[str, tuple[int, ...]]:
        return {name: tuple(value.shape[int(lifted) :]) for name, value in tree.items() if not name.startswith("#")}

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        present = {name: tensor for name, tensor in tree.items() if name not in self.optional}
        super().check(what, present, payload)
        extra = {name: tensor for name, tensor in tree.items() if name in self.optional}
        check_values(what, extra, {})


def replies_in(tree: Tree) -> list[tuple[int, int, dict[str, Tensor]]]:
    """Take the result of a `Collect` apart again.

    Returns:
        A list of (client, num_examples, tree) in ascending order of the clients, which is the cohort's.
    """
    rows: dict[int, tuple[int, dict[str, Tensor]]] = {}
    for name in (name for name in tree if not name.startswith("#")):
        clients, sizes = tree[f"{_CLIENT}{name}"].tolist(), tree[f"{_NUM_EXAMPLES}{name}"].tolist()
        for row, (client, size) in enumerate(zip(clients, sizes, strict=True)):
            rows.setdefault(client, (size, {}))[1][name] = tree[name][row]
    # Sorted, because the first key may be optional and then does not have every client.
    return [(client, size, parts) for client, (size, parts) in sorted(rows.items())]

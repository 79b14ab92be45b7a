"""Folds that keep more than a sum: every reply as it came, and exact moments per class.

Legend: N replies, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.folds import Fold
from core.records import BadReplyError, Payload
from core.tree import Tree, first_non_finite


class Moments(Fold):
    """Exact pooling of counts, means and scatters per class, aligned by a tensor of class ids.

    A reply's tree has `class_ids` [C'] int64, `count` [C'], `mean` [C', D] and `scatter` [C', D, D] (the sum of
    outer products of deviations) for the classes that the client holds. Merged after Chan, Golub and LeVeque
    (1983): M = M_a + M_b + n_a n_b / (n_a + n_b) d d^T with d = mean_b - mean_a.
    """

    def __init__(self) -> None:
        super().__init__(keys=("class_ids", "count", "mean", "scatter"))

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        ids, count, mean, scatter = (tree[key] for key in self.keys)
        num_classes, width = len(count) if count.ndim else -1, mean.shape[-1] if mean.ndim else -1
        shapes = [(num_classes,), (num_classes,), (num_classes, width), (num_classes, width, width)]
        if [tuple(tensor.shape) for tensor in (ids, count, mean, scatter)] != shapes:
            raise BadReplyError(
                f"{what}: expected class_ids [C], count [C], mean [C, D] and scatter [C, D, D], found "
                f"{[tuple(tensor.shape) for tensor in (ids, count, mean, scatter)]}"
            )
        if ids.is_floating_point() or len(torch.unique(ids)) != len(ids):
            raise BadReplyError(f"{what}: class_ids should be whole numbers, each once")
        if num_classes and not bool((count >= 1).all()):
            raise BadReplyError(f"{what}: a class that is listed should have a count of at least 1")

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        self.check(what, accumulator, payload)

    def lift(self, tree: Tree, num_examples: int, client: int) -> dict[str, Tensor]:
        order = torch.argsort(tree["class_ids"])
        lifted = {name: tree[name][order].to(torch.float64) for name in ("count", "mean", "scatter")}
        return {"class_ids": tree["class_ids"][order].to(torch.int64), **lifted}

    def merge(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, Tensor]:
        if left["mean"].shape[1:] != right["mean"].shape[1:]:
            raise BadReplyError(
                f"two clients sent moments of {left['mean'].shape[1]} and {right['mean'].shape[1]} features"
            )
        ids = torch.unique(torch.cat([left["class_ids"], right["class_ids"]]))
        a, b = _spread(left, ids), _spread(right, ids)
        count = a["count"] + b["count"]
        share = b["count"] / count.clamp(min=1)
        difference = b["mean"] - a["mean"]
        between = (a["count"] * share)[:, None, None] * difference[:, :, None] * difference[:, None, :]
        return {
            "class_ids": ids,
            "count": count,
            "mean": a["mean"] + share[:, None] * difference,
            "scatter": a["scatter"] + b["scatter"] + between,
        }


def _spread(tree: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Place the rows of a moments accumulator at the positions of `ids`, zeros elsewhere."""
    rows = torch.searchsorted(ids, tree["class_ids"])
    spread = {}
    for name in ("count", "mean", "scatter"):
        spread[name] = tree[name].new_zeros((len(ids), *tree[name].shape[1:]))
        spread[name][rows] = tree[name]
    return spread


class Collect(Fold):
    """Keep every reply: for medians, Krum, metrics of each client, ensembles.

    The result has, for each key, the tensors of those clients that sent it stacked in client order of the
    cohort, and `#client:<key>` [N] with the clients they are from; `#num_examples:<key>` likewise.

    Args:
        like: As in `Fold`.
        keys: Keys that every reply must have.
        optional: Keys that a reply may leave out.
    """

    def __init__(self, like: str | None = None, keys: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
        super().__init__(like, keys)
        self.optional = tuple(optional)

    def lift(self, tree: Tree, num_examples: int, client: int) -> dict[str, Tensor]:
        lifted: dict[str, Tensor] = {}
        for name, tensor in tree.items():
            lifted[name] = tensor.unsqueeze(0)
            lifted[f"#client:{name}"] = torch.tensor([client])
            lifted[f"#num_examples:{name}"] = torch.tensor([num_examples])
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
        super().check_accumulator(what, accumulator, payload, clients)
        values = {name: tensor for name, tensor in accumulator.items() if not name.startswith("#")}
        if len(accumulator) != 3 * len(values):
            raise BadReplyError(f"{what}: the rows do not say whose they are")
        for name, tensor in values.items():
            owners, sizes = accumulator.get(f"#client:{name}"), accumulator.get(f"#num_examples:{name}")
            if owners is None or sizes is None or not owners.shape == sizes.shape == tensor.shape[:1]:
                raise BadReplyError(f"{what}: the rows of {name!r} do not say whose they are")
            if owners.ndim != 1 or owners.dtype != torch.int64 or sizes.dtype != torch.int64:
                raise BadReplyError(f"{what}: the rows of {name!r} do not say whose they are")
            whole = len(owners) == len(clients) or name in self.optional or not (self.like or self.keys)
            # In the order of the cohort, each once.
            if not whole or owners.tolist() != [client for client in clients if client in set(owners.tolist())]:
                raise BadReplyError(f"{what}: the rows of {name!r} are of other clients than those that replied")
        rows = {name: tensor[0] for name, tensor in values.items() if len(tensor)}
        self.check(what, rows, payload)

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        present = {name: tensor for name, tensor in tree.items() if name not in self.optional}
        super().check(what, present, payload)
        extra = {name: tensor for name, tensor in tree.items() if name in self.optional}
        if (name := first_non_finite(extra)) is not None:
            raise BadReplyError(f"{what}: {name!r} holds NaN or infinity")


def collected(tree: Tree) -> list[tuple[int, int, dict[str, Tensor]]]:
    """Take the result of a `Collect` apart again.

    Returns:
        A list of (client, num_examples, tree) in ascending order of the clients, which is the cohort's.
    """
    rows: dict[int, tuple[int, dict[str, Tensor]]] = {}
    for name in (name for name in tree if not name.startswith("#")):
        clients, sizes = tree[f"#client:{name}"].tolist(), tree[f"#num_examples:{name}"].tolist()
        for row, (client, size) in enumerate(zip(clients, sizes, strict=True)):
            rows.setdefault(client, (size, {}))[1][name] = tree[name][row]
    # Sorted, because the first key may be optional and then does not have every client.
    return [(client, size, parts) for client, (size, parts) in sorted(rows.items())]

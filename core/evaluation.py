"""How evaluation travels: counts of each client, collected."""

from __future__ import annotations

from core.folds import product
from core.gathered import Collect
from core.records import BadReplyError, Payload
from core.tree import Tree


class Counts(Collect):
    """Collects for each split and predictor `<split>/<predictor>` [2, C] (correct, total) and `<...>/loss` [].

    C classes. A client without examples of a split leaves it out.
    """

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        found = {name: tuple(tensor.shape) for name, tensor in tree.items()}
        names = [name for name in found if not name.endswith("/loss")]
        expected = {name: (2, *found[name][1:]) for name in names} | {f"{name}/loss": () for name in names}
        if found != expected or any(len(found[name]) != 2 or "/" not in name for name in names):
            raise BadReplyError(f"{what}: expected counts [2, C] and a loss of each split, found {found}")


EVALUATION_FOLD = product({"counts": Counts()})

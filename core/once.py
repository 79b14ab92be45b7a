"""A tree of tensors each of which can be let go as soon as it has been used: what all replies together come to."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any

from torch import Tensor


class UsedUpError(RuntimeError):
    """Somebody asks for a tensor that has been let go."""


def keep_rest(trees: Iterable[Mapping[str, Tensor]]) -> None:
    """Have trees keep what is still in them."""
    for tree in trees:
        if isinstance(tree, Once):
            tree.keep_rest()


class Once(dict[str, Tensor]):
    """A tree that is used up by whoever takes its tensors; all others may look at it before.

    It is a combined change in float64, twice as large as the model: next to two States it would be the most that a
    server has in memory. Its names stay, and who asks for a tensor that went is told so.
    """

    def __init__(self, tree: Mapping[str, Tensor]) -> None:
        super().__init__(tree)
        self._gone: set[str] = set()
        self._stays = False

    def take(self, name: str) -> Tensor:
        """Return a tensor, of which nothing is kept here, unless the rest is kept.

        Raises:
            KeyError: There is none of that name.
            UsedUpError: It was taken before.
        """
        tensor = self[name]
        if not self._stays:
            self._gone.add(name)
            super().__setitem__(name, None)  # type: ignore[assignment]  # never handed out
        return tensor

    def keep_rest(self) -> None:
        """Keep from now on what is still here: a State may have it, and is used again and again."""
        self._stays = True

    def __getitem__(self, name: str) -> Tensor:
        if name in self._gone:
            raise UsedUpError(
                f"{name!r} was let go when it was added to the model (server_step): look at a combined change before "
                "that, or add a copy, dict(...)."
            )
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default

    def pop(self, name: str, *default: Any) -> Any:
        self.get(name)
        return super().pop(name, *default)

    def __iter__(
        self,
    ) -> Iterator[str]:  # as it is: but so that a copy, dict(...), asks for each tensor as all others do
        return super().__iter__()

    def values(self) -> ValuesView[Tensor]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[str, Tensor]:  # type: ignore[override]
        return ItemsView(self)

    def copy(self) -> dict[str, Tensor]:
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | dict(other)

    def __ror__(self, other: Any) -> Any:
        return dict(other) | dict(self)

    def __eq__(self, other: object) -> bool:
        return dict(self) == other

    def __ne__(self, other: object) -> bool:
        return dict(self) != other

    __hash__ = None  # as of all that can change

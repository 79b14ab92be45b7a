"""A tree of tensors each of which can be let go as soon as it has been used: what all replies together come to."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView

from torch import Tensor


class UsedUpError(LookupError):
    """Somebody asks for a tensor that has been let go."""


class Once(dict[str, Tensor]):
    """A tree that is used up by whoever takes its tensors; all others may look at it before.

    It is a combined change in float64, twice as large as the model: next to two States it would be the most that a
    server has in memory. Who looks at it afterwards is told so, and never finds less than there was.
    """

    _is_used = False

    def take(self, name: str) -> Tensor:
        """Return a tensor, of which nothing is kept here.

        Raises:
            UsedUpError: It was taken before, or was never there.
        """
        if name not in self:
            raise self._missed(name)
        self._is_used = True
        return self.pop(name)

    def _missed(self, name: str) -> Exception:
        if not self._is_used:
            return KeyError(name)
        return UsedUpError(
            f"{name!r} was let go when it was added to the model (server_step): look at a combined change before that, "
            "or add a copy, dict(...)."
        )

    def __missing__(self, name: str) -> Tensor:
        raise self._missed(name)

    def __iter__(self) -> Iterator[str]:
        if self._is_used:
            raise self._missed("all of it")
        return super().__iter__()

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return KeysView(self)

    def values(self) -> ValuesView[Tensor]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[str, Tensor]:  # type: ignore[override]
        return ItemsView(self)

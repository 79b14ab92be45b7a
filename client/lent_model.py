"""The model that a process lends to one client after the other: what it is made of, and whether it is so still.

A client may do anything with a model that it has: put in another layer, hook one, freeze it, leave it in evaluation
mode. Values of the state do not count, since the next client loads its own. Walking over modules takes as long as a
short step, and it is done a few times for each client: so the walk is done once, and what it found is looked at again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from umbel.core.tree import Tree
from umbel.models.base import Model
from umbel.models.weights import load_state, shared_names, shared_state, state_of

_HOOKS = {name for name in vars(nn.Module()) if name.endswith("_hooks")}


class LentModel:
    """A model as it was built; it is put into training mode.

    Args:
        model: The model; no client has had it yet.
        keep_local: State-dict names that stay with each client.
    """

    def __init__(self, model: Model, keep_local: frozenset[str]) -> None:
        self.model = model.train()
        self._keep_local = keep_local
        self._modules = tuple(model.modules())
        self._trains_itself = any(type(module).train is not nn.Module.train for module in self._modules)
        registers = [held for each in self._modules for held in (each._modules, each._parameters, each._buffers)]
        self._registered: list[tuple[dict[str, Any], tuple[tuple[str, object], ...]]] = [
            (held, tuple(held.items())) for held in registers
        ]
        self._parts = [_part(module) for module in self._modules]
        self._tensors = [each for module in self._modules for each in _tensors(module)]
        state = state_of(model)
        own = {
            f"{prefix}.{name}" if prefix else name: tensor
            for prefix, module in model.named_modules(remove_duplicate=False)
            for name, tensor in (*module._parameters.items(), *module._buffers.items())
        }
        # Where a module says otherwise what its state is, it is asked each time.
        self._is_plain = all(own.get(name) is tensor for name, tensor in state.items())
        places = state.items() if self._is_plain else ()
        self._state = {name: (tensor, tensor.is_floating_point()) for name, tensor in places}
        names = [group for group in shared_names(state) if keep_local.isdisjoint(group)]
        self._shared = {group[0]: state[group[0]] for group in names}
        self._parameters = tuple(model.parameters())

    def load(self, *trees: Tree) -> None:
        """Copy parts of the state into the model, as `umbel.models.weights.load_state`, and put it into training mode.

        It has no gradients then.
        """
        if not (self._holds() and all(self._fits(tree) for tree in trees)):
            for parameter in self.model.parameters():
                parameter.grad = None
            for tree in trees:
                load_state(self.model, tree, partial=True)
            self.model.train()
            return
        for parameter in self._parameters:
            parameter.grad = None
        with torch.no_grad():
            for tree in trees:
                for name, tensor in tree.items():
                    self._state[name][0].copy_(tensor)
        self._train()

    def _fits(self, tree: Tree) -> bool:
        """Say whether a tree can be copied tensor by tensor into what the model was built of."""
        for name, tensor in tree.items():
            place = self._state.get(name)
            if place is None or place[0].shape != tensor.shape or place[1] != tensor.is_floating_point():
                return False
        return True

    def weights(self) -> dict[str, Tensor]:
        """Return the shared state on the CPU, owning its memory, whatever the model is made of by now."""
        if not self._is_plain or not self._holds():
            return {name: tensor.cpu() for name, tensor in shared_state(self.model, self._keep_local).items()}
        order = torch.contiguous_format
        return {name: own.detach().clone(memory_format=order).cpu() for name, own in self._shared.items()}

    def _train(self) -> None:
        """Put the model, which is made of what it was built of, into training mode.

        Setting the mode of each module takes long where there are many. A module may have its own idea of the mode
        (frozen statistics, say), which is asked for in any case.
        """
        if self._trains_itself or not all(module.training for module in self._modules):
            self.model.train()

    def take_back(self) -> bool:
        """Put the model into training mode, and say whether it is as it was but for the values of its state."""
        try:
            if not self._holds():
                return False
            self._train()
            for parameter in self._parameters:
                parameter.grad = None  # as large as the model
            return all(_is_same(*part) for part in self._parts) and all(_lies(*each) for each in self._tensors)
        except (RuntimeError, ValueError, TypeError):  # what stands there now cannot be compared
            return False

    def _holds(self) -> bool:
        """Say whether it is made of the modules, parameters and buffers that it was built of."""
        for held, items in self._registered:
            if len(held) != len(items):
                return False
            for name, each in items:
                if held.get(name) is not each:
                    return False
        return True


_Part = tuple[nn.Module, type[nn.Module], dict[str, Any], tuple[object, ...], list[Any], list[int]]
_Placed = tuple[Tensor, int, torch.Size, torch.dtype, bool, int | None]


def _part(module: nn.Module) -> _Part:
    held = vars(module)
    hooks = [value for name, value in held.items() if name in _HOOKS]
    return module, type(module), held, tuple(held.values()), hooks, [len(each) for each in hooks]


def _is_same(
    module: nn.Module,
    kind: type[nn.Module],
    held: dict[str, Any],
    values: tuple[object, ...],
    hooks: list[Any],
    lengths: list[int],
) -> bool:
    return type(module) is kind and tuple(held.values()) == values and [len(each) for each in hooks] == lengths


def _tensors(module: nn.Module) -> list[_Placed]:
    """Return a module's own tensors and where they lie; those that no client loads may not be written into either."""
    fixed = module._non_persistent_buffers_set
    own = {**module._parameters, **module._buffers}
    return [
        (
            *(tensor, tensor.data_ptr(), tensor.shape, tensor.dtype, tensor.requires_grad),
            tensor._version if name in fixed else None,
        )
        for name, tensor in own.items()
        if tensor is not None
    ]


def _lies(
    tensor: Tensor, place: int, shape: torch.Size, dtype: torch.dtype, is_trained: bool, version: int | None
) -> bool:
    return (
        tensor.data_ptr() == place
        and tensor.shape == shape
        and tensor.dtype == dtype
        and tensor.requires_grad == is_trained
        and (version is None or tensor._version == version)
    )

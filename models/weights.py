"""A model's state as a tree of named tensors, and back.

What travels is every parameter and every floating buffer, each once. Counters and index tables stay: they
have no mean. A tensor that is kept under several names (a tied parameter) goes by the first of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from umbel.core.names import unknown
from umbel.core.tree import Tree, TreeMismatchError
from umbel.models.base import Model


def shared_state(model: Model, keep_local: frozenset[str] = frozenset()) -> dict[str, Tensor]:
    """Return copies of what `model` shares, in the order of its state dict.

    Args:
        model: The model; later training does not change the copies.
        keep_local: State-dict names that stay behind (`umbel.models.norm.batch_norm_names`, a head, ...). Any one
            name of a tied tensor keeps it.

    Raises:
        umbel.core.names.UnknownNameError: `keep_local` has a name that the model's state does not.
    """
    state = state_of(model)
    return {
        name: state[name].detach().clone(memory_format=torch.contiguous_format) for name in _shared(state, keep_local)
    }


def names_of_shared(model: Model, keep_local: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the names of `shared_state`, of which nothing is copied."""
    return frozenset(_shared(state_of(model), keep_local))


def _shared(state: Mapping[str, Tensor], keep_local: frozenset[str]) -> list[str]:
    for name in sorted(keep_local - state.keys()):
        raise unknown("state to keep local", name, state)
    return [names[0] for names in shared_names(state) if keep_local.isdisjoint(names)]


def load_state(model: Model, tree: Tree, *, partial: bool = False) -> None:
    """Copy `tree` into `model`, in place; nothing is copied unless all of it fits.

    Args:
        model: The model to change; its optimiser keeps pointing at the same parameters.
        tree: What `shared_state` returned, on any device. Integer buffers in it are copied too.
        partial: Accept a tree without some of the shared names, whose tensors stay as they are.

    Raises:
        TreeMismatchError: An unknown name, a missing one without `partial`, another shape or kind of number.
    """
    state = state_of(model)
    extra = sorted(tree.keys() - state.keys())
    if extra:
        hint = unknown("name", extra[0], state).remedy
        raise TreeMismatchError(
            f"{type(model).__name__}: {len(extra)} unexpected names, the first {extra[0]!r}. {hint}"
        )
    missing = [names[0] for names in shared_names(state) if tree.keys().isdisjoint(names)]
    if missing and not partial:
        raise TreeMismatchError(
            f"{type(model).__name__}: {len(missing)} missing names, the first {missing[0]!r}; pass "
            "partial=True if the rest is meant to stay as it is"
        )
    for name, tensor in tree.items():
        if tensor.shape != state[name].shape:
            raise TreeMismatchError(
                f"{type(model).__name__}: {name!r} should have shape {tuple(state[name].shape)}, found "
                f"{tuple(tensor.shape)}"
            )
        # A copy would round a float down without a word.
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise TreeMismatchError(
                f"{type(model).__name__}: {name!r} should hold {state[name].dtype}, found {tensor.dtype}; "
                "leave integer buffers out of averages"
            )
    with torch.no_grad():
        for name, tensor in tree.items():
            state[name].copy_(tensor)


def parameter_names(model: Model) -> frozenset[str]:
    """Return the names of the parameters, a tied one once: what an optimiser moves of `shared_state`."""
    return frozenset(name for name, _ in model.named_parameters())


def state_of(model: Model) -> dict[str, Tensor]:
    """Return the state dict with the tensors themselves, so that a tied one is seen to be the same object."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return state


def shared_names(state: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Return, for each parameter and floating buffer of a state dict, in its order, all of its names."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() or tensor.is_complex():
            names.setdefault(id(tensor), []).append(name)
    return [tuple(group) for group in names.values()]

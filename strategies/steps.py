"""Steps that many methods have in common: a client's training, the server's step, where a model begins."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from umbel.core import training
from umbel.core.folds import Folded
from umbel.core.once import Once
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.tree import Tree, subtract_from
from umbel.models.base import Model
from umbel.models.weights import load_state, parameter_names, shared_state

if TYPE_CHECKING:
    from umbel.strategies.base import ClientContext, ServerContext


def train_and_subtract(
    payload: Payload,
    client: ClientContext,
    correct: training.Correction | None = None,
    objective: training.Objective | None = None,
) -> Reply:
    """Train from the payload's `model` and reply with the change as the tree `delta`, and the mean loss.

    Args:
        payload: Has the tree `model`, the global model's shared state.
        client: The client.
        correct: Changes the gradients of each step, if given.
        objective: Takes the place of the loss, if given (`ClientContext.train`).
    """
    model = client.model(payload.trees["model"])
    report = client.train(model, correct, objective)
    delta = subtract_from(client.weights(model), payload.trees["model"])
    return Reply({"delta": delta}, {"loss": report.loss}, client.num_examples)


def server_step(model: Tree, delta: Tree, lr: float = 1.0) -> dict[str, Tensor]:
    """Return w + lr * delta, the mean change cast to the parameter's dtype once and then added.

    Args:
        model: w, shared state of the global model.
        delta: Mean change of the clients in float64, same names and shapes. As it comes out of a phase
            (`umbel.core.once.Once`) it is used up: each of its tensors goes as it is added; anything else stays.
        lr: Server learning rate (eta_g).
    """
    stepped: dict[str, Tensor] = {}
    for name, weight in model.items():
        change = delta.take(name) if isinstance(delta, Once) else delta[name]
        step = change.to(weight.dtype).to(weight.device)
        # In the memory of what was cast, where there is some: the sum is the same.
        is_like = step.shape == weight.shape and step.stride() == weight.stride()
        is_own = step is not change and is_like and not (weight.requires_grad or step.requires_grad)
        del change
        stepped[name] = torch.add(weight, step, alpha=lr, out=step) if is_own else torch.add(weight, step, alpha=lr)
    return stepped


def check_linear(local: training.LocalConfig, method: str, instead: str = "") -> None:
    """Refuse a local optimiser whose change of the weights is not linear in the gradients.

    Args:
        local: How clients train.
        method: What is made of the change, as a sentence begins.
        instead: Another setting that helps, if there is one.

    Raises:
        Refusal: Another optimiser than SGD, or clipped gradients.
    """
    for key, value, plain in (("optimizer", local.optimizer, "sgd"), ("clip_norm", local.clip_norm, 0)):
        if value != plain:
            raise Refusal(
                f"{method}, which holds where the change is linear in the gradients, not with client.{key}={value}.",
                key=f"client.{key}",
                remedy=f"Set client.{key}={plain}" + (f", or {instead}." if instead else "."),
            )


def replied_share(weighting: str, folded: Folded, server: ServerContext) -> float:
    """Return the weight of those who replied among all clients: of their number (`uniform`), or of their examples.

    A state of the server that is the mean over all clients, and to which some add their mean change, has to take that
    much of it, by the same weights.
    """
    if weighting == "uniform":
        return folded.num_replies / server.num_clients
    return folded.num_examples / server.num_examples


def frozen(model: Model, tree: Tree | None = None) -> Model:
    """Return a copy of a model that does not learn: in evaluation mode, its parameters without gradients.

    Args:
        model: The model, which stays as it is.
        tree: Shared state that the copy has in place of the model's.
    """
    copied = copy.deepcopy(model)
    vars(copied).pop("features", None)  # compiled for the model, whose parameters it would go on to read
    if tree is not None:
        load_state(copied, tree, partial=True)
    return copied.eval().requires_grad_(False)


def initial_model(server: ServerContext) -> dict[str, Tensor]:
    """Return the shared state of the freshly initialised global model, on the CPU."""
    state = shared_state(server.build_model())
    return {name: tensor.cpu() for name, tensor in state.items() if name in server.shared_names}


def split_buffers(model: Model, tree: Tree) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a model's shared state into parameters and floating-point buffers."""
    names = parameter_names(model)
    parameters = {name: tensor for name, tensor in tree.items() if name in names}
    return parameters, {name: tensor for name, tensor in tree.items() if name not in names}

"""What can be seen inside a model: where it looks, what its filters are like, how far it has collapsed.

A part that a model does not have (maps of an `mlp`, 3 x 3 filters of a `linear`) is left out, with the reason.

Shapes: N probe images, M of them shown, C classes, S side of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from umbel.conf.errors import ExperimentError
from umbel.conf.own_data import is_own
from umbel.core.metrics import collapse
from umbel.core.rng import generator
from umbel.core.tree import Tree
from umbel.data.types import Examples
from umbel.models.attention import AttentionMap, attention_maps, gpsa_locality
from umbel.models.base import Model
from umbel.models.maps import MapLayer, last_map, watched
from umbel.simulations.explain import filters
from umbel.simulations.explain.eigen_cam import eigen_cam
from umbel.simulations.explain.finished import FinishedRun, State

_BATCH = 256
LEAST_SIDE = 4  # of a map that is shown, where there is one


@dataclass(frozen=True)
class Probe:
    """Held-out images that every model is shown, the same ones to all.

    Attributes:
        split: Where they are from: `validation`, or `test` where the server has none to validate with.
        examples: N examples, the shown ones first.
        images: [N, ...], prepared as models read them.
        labels: [N].
        num_shown: M.
    """

    split: str
    examples: Examples
    images: Tensor
    labels: Tensor
    num_shown: int


@dataclass(frozen=True)
class Look:
    """What was seen of one model.

    Attributes:
        accuracy: On the probe images.
        logits: Of the probe images, [N, C].
        cams: Eigen-CAM of the probe images [N, S, S], or None.
        attention: Of the shown images.
        locality: Share of each gated layer's attention that goes by position (ConViT).
        collapse: Measures of neural collapse on the probe images.
        layers: Statistics of 3 x 3 filters by layer.
        filters: The tensors with 3 x 3 filters.
        update: Length of the difference from the global model, over all parameters.
    """

    accuracy: float
    logits: Tensor = field(repr=False)
    cams: Tensor | None
    attention: Sequence[AttentionMap]
    locality: Mapping[str, float]
    collapse: Mapping[str, float]
    layers: Mapping[str, filters.LayerStatistics]
    filters: Tree = field(repr=False)
    update: float = 0.0


def probe(run: FinishedRun, num_images: int, num_shown: int) -> Probe:
    """Draw held-out images by the run's seed: those that are shown are of as many classes as there are.

    Args:
        run: The run.
        num_images: N at most.
        num_shown: M at most.

    Raises:
        ExperimentError: The server holds nothing out.
    """
    server = run.data.server
    split, held = ("validation", server.validation) if len(server.validation) else ("test", server.test)
    if not len(held):
        key = "data.server to a folder of test pictures" if is_own(run.experiment) else "data.server_validation above 0"
        raise ExperimentError(f"The server has no held-out images to look at: set {key}.")
    source = generator(run.experiment.run.seed, purpose="explain")
    order = torch.randperm(len(held), generator=source)
    # Class by class in turn: the first of each, then the second of each, and so on.
    turn = torch.zeros(len(held), dtype=torch.int64)
    for label in torch.unique(held.labels):
        of_class = order[held.labels[order] == label]
        turn[of_class] = torch.arange(len(of_class))
    index = order[torch.argsort(turn[order] * run.data.num_classes + held.labels[order], stable=True)][:num_images]
    examples = held.take(index)
    images, labels = run.session.prepare(examples)
    return Probe(split, examples, images, labels, min(num_shown, len(index)))


@torch.no_grad()
def look(model: Model, state: State, seen: Probe, layer: MapLayer | None, reference: State) -> Look:
    """Look inside one model.

    Args:
        model: In evaluation mode.
        state: Its state.
        seen: What it is shown.
        layer: The layer whose activations Eigen-CAM reads; None leaves it out.
        reference: The global model's state.

    Raises:
        ValueError: Weights or activations are not finite.
    """
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite weights, found NaN or infinity; the model has diverged")
    features, cams = [], []
    with watched(model, [layer] if layer else []) as kept:
        for images in torch.split(seen.images, _BATCH):
            kept.clear()  # `features` is no call of the model, before which it is done by itself
            features.append(model.features(images))
            if layer is not None:
                cams.append(eigen_cam(kept[layer.name], size=seen.images.shape[-1]))
    every = torch.cat(features)
    logits = model.head(every)
    right = (logits.argmax(1) == seen.labels).double().mean()
    has_filters = any(tensor.dim() == 4 and tensor.shape[2:] == (3, 3) for tensor in state.values())
    changes = [(state[name].double() - reference[name].double()).square().sum() for name, _ in model.named_parameters()]
    return Look(
        accuracy=float(right),
        logits=logits.cpu(),
        cams=torch.cat(cams).cpu() if cams else None,
        attention=attention_maps(model, seen.images[: seen.num_shown]) if seen.images.dim() == 4 else [],
        locality=gpsa_locality(model),
        collapse=collapse.measure(every.double().cpu(), seen.labels.cpu(), model.head),
        layers=filters.layer_statistics(state) if has_filters else {},
        filters={name: state[name] for name in filters.layer_filters(state)} if has_filters else {},
        update=math.sqrt(float(torch.stack(changes).sum())),
    )


@torch.no_grad()
def answers(model: Model, images: Tensor) -> Tensor:
    """Return a model's logits of prepared images [N, ...], on the CPU, [N, C]."""
    return torch.cat([model.head(model.features(batch)).cpu() for batch in torch.split(images, _BATCH)])


def layer_of(run: FinishedRun, name: str) -> tuple[MapLayer | None, str]:
    """Return the layer to read and "", or None and why there is none; a layer that is asked for has to be there.

    Raises:
        umbel.core.names.UnknownNameError: There is no such layer with a map.
    """
    model = run.model(run.state)
    if name:
        return last_map(model, name), ""
    try:
        return last_map(model, least=LEAST_SIDE), ""
    except ValueError as error:
        return None, str(error)

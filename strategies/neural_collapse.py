"""Neural collapse over all clients' training examples, as two phases that a strategy can add to its own.

    features   everyone has the model; counts, sums of features by class and the moments of all features come back
    nearest    the same clients have the class means too; the share of examples given to the nearest comes back

The sums are exact: the result is that of all examples in one place (`umbel.core.metrics.collapse`), and nothing of it
depends on how they are cut into clients.

Legend: N examples, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from umbel.core import moments
from umbel.core.collecting import Moments
from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.metrics import collapse
from umbel.core.records import Payload, Reply
from umbel.core.tree import Tree
from umbel.models.base import Model
from umbel.strategies.base import ClientContext, Phase, ServerContext
from umbel.strategies.phase import one_pass

S = TypeVar("S")
_BATCH = 512


@dataclass(frozen=True)
class Collapse:
    """What a strategy's State keeps of it.

    Attributes:
        means: Between the two phases `mean` [C, D] float64, and `present` [C] int8, which classes have one; else empty.
        values: What was measured last, by name: `nc1` to `nc4`, and `<head>/nc3` of other heads.
    """

    means: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)


def phases(
    model: Callable[[S], Tree],
    heads: Callable[[S], Mapping[str, Tensor]],
    get: Callable[[S], Collapse],
    put: Callable[[S, Collapse], S],
) -> tuple[Phase[S], Phase[S]]:
    """Return the two phases.

    Args:
        model: Returns the model that is measured, out of a State.
        heads: Returns other heads [C, D] by name, whose alignment with the features is measured too.
        get: Returns what the State keeps of it.
        put: Returns the State that keeps another.
    """

    def send_model(state: S, server: ServerContext) -> Payload:
        num_classes, width = model(state)["head.weight"].shape
        return Payload({"model": model(state)}, {"classes": float(num_classes), "width": float(width)})

    def after_features(state: S, folded: Folded, server: ServerContext) -> S:
        sums = sums_of(folded)
        means = {"mean": sums.means(), "present": sums.present().to(torch.int8)}
        values = collapse.describe(sums, model(state)["head.weight"])
        for name, weight in heads(state).items():
            values |= {f"{name}/{key}": v for key, v in collapse.describe(sums, weight).items() if key == "nc3"}
        return put(state, Collapse(means, values))

    def send_means(state: S, server: ServerContext) -> Payload:
        return Payload({"model": model(state), "means": get(state).means})

    def after_nearest(state: S, folded: Folded, server: ServerContext) -> S:
        return put(state, Collapse({}, get(state).values | {"nc4": folded.numbers["agreement"]}))

    def measured(state: S) -> Mapping[str, float]:
        return {f"collapse/{name}": value for name, value in get(state).values.items()}

    return (
        Phase("features", send_model, sum_features, fold_sums, after_features, "everyone", num_processed=one_pass),
        Phase(
            "nearest",
            send_means,
            compare,
            fold_shares,
            after_nearest,
            "same:features",
            measured=measured,
            num_processed=one_pass,
        ),
    )


def sum_features(payload: Payload, client: ClientContext) -> Reply:
    """Reply with the sums over a client's features."""
    features, labels = features_of(client.model(payload.trees["model"]), client)
    own = collapse.class_sums(features, labels, client.num_classes)
    packed = moments.pack(*(part[0] for part in own.total))
    trees = {"classes": {"count": own.count_C, "sum": own.sum_CD}, "total": {"0": packed}}
    return Reply(trees, {}, client.num_examples)


def fold_sums() -> Product:
    """Return how sums over features combine."""
    return product({"classes": Sum(_classes_like), "total": Moments(bounds=lambda p: (1, int(p.numbers["width"])))})


def sums_of(folded: Folded) -> collapse.ClassSums:
    """Return the sums over all clients."""
    classes, (total,) = folded.trees["classes"], folded.trees["total"].values()
    return collapse.ClassSums(classes["count"], classes["sum"], moments.unpack(total[None]))


def compare(payload: Payload, client: ClientContext) -> Reply:
    """Reply with the share of a client's examples that the head gives to the class of the nearest mean."""
    model, known = client.model(payload.trees["model"]), payload.trees["means"]
    features, _ = features_of(model, client)
    bias = None if model.head.bias is None else model.head.bias.detach().double().cpu()
    logits = F.linear(features, model.head.weight.detach().double().cpu(), bias)
    agreeing = collapse.num_agreeing(features, logits, known["mean"], known["present"].bool())
    return Reply({}, {"agreement": agreeing / client.num_examples}, client.num_examples)


def fold_shares() -> Product:
    """Return how shares of examples combine."""
    return product({}, numbers=["agreement"])


@torch.no_grad()
def features_of(model: Model, client: ClientContext) -> tuple[Tensor, Tensor]:
    """Return features [N, D] of the client's training examples on the CPU in float64, and labels [N]."""
    images, labels = client.prepare(client.train_data)
    model.eval()
    batches = range(0, len(labels), _BATCH)
    return torch.cat([model.features(images[i : i + _BATCH]).double().cpu() for i in batches]), labels.cpu()


def _classes_like(received: Payload) -> dict[str, Tensor]:
    num_classes, width = int(received.numbers["classes"]), int(received.numbers["width"])
    return {
        "count": torch.empty(num_classes, device="meta"),
        "sum": torch.empty(num_classes, width, device="meta"),
    }

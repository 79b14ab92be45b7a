"""Neural collapse over all clients' training examples, as two phases that a strategy can add to its own.

    features   everyone has the model; counts, sums of features by class and the moments of all features come back
    nearest    the same clients have the class means too; the share of examples given to the nearest comes back

The sums are exact: the result is that of all examples in one place (`umbel.core.metrics.collapse`), and nothing of it
depends on how they are cut into clients.

Legend: N examples, C classes, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from umbel.core import moments
from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.gathered import Moments
from umbel.core.metrics import collapse
from umbel.core.records import Payload, Reply
from umbel.core.tree import Tree
from umbel.models.base import Model
from umbel.strategies.base import ClientContext, Phase

FEATURES = Phase("features", "everyone")
NEAREST = Phase("nearest", "same:features")
_BATCH = 512


def payload(phase: Phase, model: Tree, class_means: Tree) -> Payload:
    """Return what clients receive: the model, and in the second phase what `means` returned."""
    if phase.name == NEAREST.name:
        return Payload({"model": model, "means": class_means})
    num_classes, width = model["head.weight"].shape
    return Payload({"model": model}, {"classes": float(num_classes), "width": float(width)})


def fold(phase: Phase) -> Product:
    """Return how the replies of a phase combine."""
    if phase.name == NEAREST.name:
        return product({}, numbers=["agreement"])
    return product({"classes": Sum(_classes_like), "total": Moments(bounds=lambda p: (1, int(p.numbers["width"])))})


def sums(folded: Folded) -> collapse.ClassSums:
    """Return the sums over all clients."""
    classes, (total,) = folded.trees["classes"], folded.trees["total"].values()
    return collapse.ClassSums(classes["count"], classes["sum"], moments.unpack(total[None]))


def means(found: collapse.ClassSums) -> dict[str, Tensor]:
    """Return what the second phase sends: `mean` [C, D] float64, and `present` [C] int8, which classes have one."""
    return {"mean": found.means(), "present": found.present().to(torch.int8)}


def local(phase: Phase, received: Payload, client: ClientContext) -> Reply:
    """Do a client's part of a phase."""
    model = client.model(received.trees["model"])
    features, labels = features_of(model, client)
    if phase.name == NEAREST.name:
        bias = None if model.head.bias is None else model.head.bias.detach().double().cpu()
        logits = F.linear(features, model.head.weight.detach().double().cpu(), bias)
        known = received.trees["means"]
        agreeing = collapse.num_agreeing(features, logits, known["mean"], known["present"].bool())
        return Reply({}, {"agreement": agreeing / client.num_examples}, client.num_examples)
    own = collapse.class_sums(features, labels, client.num_classes)
    packed = moments.pack(*(part[0] for part in own.total))
    trees = {"classes": {"count": own.count_C, "sum": own.sum_CD}, "total": {"0": packed}}
    return Reply(trees, {}, client.num_examples)


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

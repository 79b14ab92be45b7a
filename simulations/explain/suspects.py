"""Which clients' labels do not go with their images: two signs, and the rule that asks for both.

The global model is asked about the images that a client trains on. Let z_i be its logits of image i for the client's
classes, centred for each image and for each class, and y_i the label, one-hot and centred alike. The *association* is

    r = sum_i <z_i, y_i> / sqrt(sum_i |z_i|^2  sum_i |y_i|^2),

Pearson's correlation of all entries of both tables. What the model gives to a class on every image, as one does that
has not yet seen much of the others, is centred away. If the labels stood in random order, r would be 0 in the mean,
with the deviation

    s = sqrt(sum_ij <z_i, y_j>^2 / (n - 1)) / sqrt(sum_i |z_i|^2  sum_i |y_i|^2)

exactly (Hoeffding 1951, "A Combinatorial Central Limit Theorem", Annals of Mathematical Statistics 22: the variance of
a sum over a random permutation). The association v that labels of this client would have is measured on held-out
images of its classes, in its mix; m is that of the client's own model, once it has trained on its data, on the same
images. Client k is suspect where both hold, medians being those of all other clients:

    labels    r_k + 2 s_k < min(v_k, median r_j) / 2
    training  m_k - v_k < median (m_j - v_j)

That is, more than half of what makes labels and images go together is missing, by more than chance; and a model learns
less from these data than others do from theirs. The rule is this project's own.

Legend: n examples, N held-out images, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST = 5  # so that two at fault leave most of the others in order
DEVIATIONS = 2.0
SHARE = 0.5


@dataclass(frozen=True)
class Evidence:
    """What is known of one client.

    Attributes:
        labels: r, from -1 to 1.
        deviation: s of it.
        expected: v, what labels of its mix have on held-out images.
        learned: m, the same by the client's own model.
    """

    labels: float
    deviation: float
    expected: float
    learned: float

    @property
    def gain(self) -> float:
        """What its own model has learned of its classes: m - v."""
        return self.learned - self.expected


@dataclass(frozen=True)
class Judgement:
    """What is said of one client among others.

    Attributes:
        ordinary: What its labels should have: v, or the median of the others' r where that is less.
        bound: What r is below where the sign `labels` holds.
        gain: The median of what the others' models have learned, which its own is below where `training` holds.
        suspect: Whether both signs hold.
    """

    ordinary: float
    bound: float
    gain: float
    suspect: bool


def evidence(own: Tensor, labels: Tensor, before: Tensor, after: Tensor, held: Tensor) -> Evidence | None:
    """Return what is known of a client; None where its labels say nothing.

    They say nothing where the classes that it shares with the held-out images are fewer than two, or where a model
    answers the same to everything.

    Args:
        own: The global model's logits of the client's images, [n, C].
        labels: The client's labels, [n].
        before: The global model's logits of the held-out images, [N, C].
        after: Those of the client's own model, [N, C].
        held: The held-out images' labels, [N].
    """
    num_classes = own.shape[1]
    counts, there = (torch.bincount(each, minlength=num_classes) for each in (labels, held))
    classes = ((counts > 0) & (there > 0)).nonzero().squeeze(1)
    if len(classes) < 2:
        return None
    kept, seen = torch.isin(labels, classes), torch.isin(held, classes)
    weights = (counts / there.clamp_min(1))[held[seen]]
    r, deviation = _association(own[kept], labels[kept], classes, torch.ones(int(kept.sum())))
    expected = _association(before[seen], held[seen], classes, weights)[0]
    learned = _association(after[seen], held[seen], classes, weights)[0]
    values = (r, deviation, expected, learned)
    return None if any(map(math.isnan, values)) else Evidence(*values)


def _association(logits: Tensor, labels: Tensor, classes: Tensor, weights: Tensor) -> tuple[float, float]:
    """Return (r, s) over `classes`; s is that of equal weights. NaN where the logits are the same for all images."""
    share = (weights / weights.sum()).to(torch.float64)[:, None]
    answers = logits[:, classes].to(torch.float64)
    answers = answers - answers.mean(dim=1, keepdim=True)
    answers = answers - (share * answers).sum(dim=0)
    truth = F.one_hot(labels, logits.shape[1])[:, classes].to(torch.float64)
    truth = truth - (share * truth).sum(dim=0)
    size = math.sqrt(float((share * answers.square()).sum() * (share * truth.square()).sum()))
    # Of the squares of <z_i, y_j> over all pairs, without a table of all pairs.
    squares = float(((answers.T @ (share * answers)) * (truth.T @ (share * truth))).sum())
    if size <= 1e-12:
        return math.nan, math.nan
    return float((share * answers * truth).sum()) / size, math.sqrt(max(squares, 0.0) / (len(labels) - 1)) / size


def judge(clients: Mapping[int, Evidence]) -> dict[int, Judgement]:
    """Return what is said of each client; of fewer than five nobody can say what is ordinary, and none is returned."""
    if len(clients) < FEWEST:
        return {}
    judged = {}
    for client, own in clients.items():
        others = [each for other, each in clients.items() if other != client]
        ordinary = min(own.expected, median(each.labels for each in others))
        bound = SHARE * ordinary - DEVIATIONS * own.deviation
        gain = median(each.gain for each in others)
        judged[client] = Judgement(ordinary, bound, gain, own.labels < bound and own.gain < gain)
    return judged

"""Neural collapse: how close features and classifier are to one direction a class, from sums that add over clients.

After Papyan, Han and Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training"
(PNAS 2020, arXiv:2008.08186), there written for as many examples of each class. Under a long tail:

    mu_c       mean of the features of class c;  mu_G  mean of the class means, a class counting once
    Sigma_W    mean over all examples of (f - mu_c)(f - mu_c)'
    Sigma_B    mean over classes of (mu_c - mu_G)(mu_c - mu_G)'
    NC1        tr(Sigma_W Sigma_B^+) / C                                    -> 0
    NC2        deviation over mean of the lengths of mu_c - mu_G            -> 0
               mean over pairs of |cos(mu_c - mu_G, mu_c' - mu_G) + 1/(C-1)| -> 0
    NC3        || W / ||W|| - M / ||M|| ||, rows of M are mu_c - mu_G       -> 0
    NC4        share of examples that the classifier gives to the nearest mu_c -> 1

Classes without an example are left out everywhere, and C is the number of the others.

Legend: N examples, C classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umbel.core.moments import ClassMoments


@dataclass(frozen=True)
class ClassSums:
    """What the metrics need of features; sums of parts are those of the whole.

    Attributes:
        count_C: [C] float64, examples of each class.
        sum_CD: [C, D] float64, sum of the features of each class.
        total: Count [1], mean [1, D] and biased covariance [1, D, D] of all examples, float64.
    """

    count_C: Tensor
    sum_CD: Tensor
    total: ClassMoments

    def present(self) -> Tensor:
        """Which classes have examples, [C] bool."""
        return self.count_C > 0

    def means(self) -> Tensor:
        """Mean features of each class, [C, D]; 0 for a class without examples."""
        return self.sum_CD / self.count_C.clamp_min(1)[:, None]


def class_sums(features_ND: Tensor, labels_N: Tensor, num_classes: int) -> ClassSums:
    """Return the sums of some examples.

    Args:
        features_ND: [N, D], N at least 1.
        labels_N: [N] int64.
        num_classes: C.
    """
    features = features_ND.to(torch.float64)
    count = torch.bincount(labels_N, minlength=num_classes).to(torch.float64)
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels_N, features)
    mean = features.mean(0)
    centred = features - mean
    covariance = centred.T @ centred / len(features)
    return ClassSums(count, sums, (count.sum()[None], mean[None], covariance[None]))


def variability(sums: ClassSums) -> float:
    """Return NC1, tr(Sigma_W Sigma_B^+) / C: 0 when the examples of a class have the same features."""
    (n,), (mean,), (covariance,) = sums.total
    present = sums.present()
    means, share = sums.means()[present], sums.count_C[present] / n
    apart = means - mean
    within = covariance - (share[:, None] * apart).T @ apart
    centred = means - means.mean(0)
    between = centred.T @ centred / len(means)
    inverse = torch.linalg.pinv(between, rtol=1e-10, hermitian=True)
    return float((within * inverse).sum()) / len(means)  # tr(A B) of symmetric A and B


def equinorm(mean_CD: Tensor) -> float:
    """Return NC2's lengths: their standard deviation over their mean, 0 when all class means are as far out.

    Args:
        mean_CD: [C, D], of classes with examples.
    """
    lengths: Tensor = torch.linalg.norm(mean_CD - mean_CD.mean(0), dim=1)
    return float(lengths.std(correction=0) / lengths.mean())


def equiangularity(mean_CD: Tensor) -> float:
    """Return NC2's angles: mean |cos + 1 / (C - 1)| over pairs of classes, 0 for a simplex.

    Args:
        mean_CD: [C, D], of classes with examples, C at least 2.
    """
    centred = mean_CD - mean_CD.mean(0)
    unit = centred / torch.linalg.norm(centred, dim=1, keepdim=True)
    pairs = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return float(((unit @ unit.T)[pairs] + 1 / (len(unit) - 1)).abs().mean())


def self_duality(weight_CD: Tensor, mean_CD: Tensor) -> float:
    """Return NC3: how far head and centred class means are apart, each at length 1; 0 when equal, 2 when opposed.

    Args:
        weight_CD: [C, D], the head's rows of the classes with examples.
        mean_CD: [C, D], their means.
    """
    weight, centred = weight_CD.to(mean_CD.dtype), mean_CD - mean_CD.mean(0)
    return float(torch.linalg.norm(weight / torch.linalg.norm(weight) - centred / torch.linalg.norm(centred)))


def num_agreeing(features_ND: Tensor, logits_NC: Tensor, mean_CD: Tensor, present_C: Tensor) -> int:
    """Return how many examples the classifier gives to the class whose mean is nearest; NC4 is their share.

    Args:
        features_ND: [N, D].
        logits_NC: [N, C], what the classifier says of them.
        mean_CD: [C, D].
        present_C: [C] bool, classes that have a mean; neither side may choose another.
    """
    features = features_ND.to(mean_CD.dtype)
    # ||f - mu||^2 without ||f||^2, which is the same for all classes.
    scores = features @ mean_CD.T - mean_CD.square().sum(1) / 2
    nearest = scores.masked_fill(~present_C, -torch.inf).argmax(1)
    chosen = logits_NC.masked_fill(~present_C, -torch.inf).argmax(1)
    return int((nearest == chosen).sum())


def measure(features_ND: Tensor, labels_N: Tensor, head: nn.Linear) -> dict[str, float]:
    """Return what `describe` does of examples that are in one place, and `nc4`.

    Args:
        features_ND: [N, D] on the CPU.
        labels_N: [N] int64.
        head: The classifier, from D features to C classes.
    """
    weight = head.weight.detach().double().cpu()
    bias = None if head.bias is None else head.bias.detach().double().cpu()
    sums = class_sums(features_ND, labels_N, len(weight))
    measures = describe(sums, weight)
    if measures:
        logits = F.linear(features_ND.double(), weight, bias)
        measures["nc4"] = num_agreeing(features_ND, logits, sums.means(), sums.present()) / len(labels_N)
    return measures


def describe(sums: ClassSums, weight_CD: Tensor) -> dict[str, float]:
    """Return `nc1`, `nc2_lengths`, `nc2_angles` and `nc3`; nothing when fewer than two classes have examples.

    Args:
        sums: Of all examples.
        weight_CD: [C, D], the head.
    """
    present = sums.present()
    if int(present.sum()) < 2:
        return {}
    means = sums.means()[present]
    return {
        "nc1": variability(sums),
        "nc2_lengths": equinorm(means),
        "nc2_angles": equiangularity(means),
        "nc3": self_duality(weight_CD[present.to(weight_CD.device)].to(means.device), means),
    }

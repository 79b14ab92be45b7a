"""FedLoGe's heads on one trunk: how they are trained together, realigned, and what they predict.

Legend: B batch, D features, C classes, H heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umbel.core.metrics import Predict
from umbel.models.base import Model


def realign_global(weight_CD: Tensor, scale: float = 1.0) -> Tensor:
    """Return GA-FR: the rows of the global head at one length, psi'_c = scale * psi_c / ||psi_c||.

    Args:
        weight_CD: psi, [C, D].
        scale: The length; the authors' code takes 1.7, which matters only beside a bias.
    """
    lengths: Tensor = torch.linalg.norm(weight_CD, dim=1, keepdim=True)
    return scale * weight_CD / torch.where(lengths > 0, lengths, torch.ones_like(lengths))


def realign_personal(global_weight_CD: Tensor, personal_weight_CD: Tensor) -> Tensor:
    """Return LA-FR: phi'_c = psi_c ||phi_c||, the global directions at the personal lengths.

    Args:
        global_weight_CD: psi, [C, D]; not normalised before.
        personal_weight_CD: phi, [C, D].
    """
    lengths: Tensor = torch.linalg.norm(personal_weight_CD, dim=1, keepdim=True)
    return global_weight_CD * lengths


def personal_logits(
    features_BD: Tensor,
    personal_weight_CD: Tensor,
    realigned_weight_CD: Tensor,
    present_C: Tensor,
    personal_bias_C: Tensor | None = None,
    realigned_bias_C: Tensor | None = None,
) -> Tensor:
    """Return phi(f) + phi'(f) of the classes that a client has, minus infinity for the others.

    Args:
        features_BD: f, [B, D].
        personal_weight_CD: phi, [C, D].
        realigned_weight_CD: phi', [C, D].
        present_C: [C] bool, classes among the client's training labels.
        personal_bias_C: [C], or none.
        realigned_bias_C: [C], or none.
    """
    logits = features_BD @ (personal_weight_CD + realigned_weight_CD).T
    for bias in (personal_bias_C, realigned_bias_C):
        if bias is not None:
            logits = logits + bias
    return logits.masked_fill(~present_C, -math.inf)


class Heads(Model):
    """The trunk under up to three heads; heads other than the trunk's own see features without a gradient."""

    def __init__(self, model: Model, frame: Tensor | None, personal: nn.Linear | None, bias: bool = True) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = model.num_features, model.in_channels, model.image_size
        self.model, self.personal, self.frame, self.bias = model, personal, frame, bias

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [H, B, C] of the heads psi_SSE (if there is one), psi and phi_k (if there is one)."""
        f = self.model.features(x)
        still = f.detach()
        heads = [] if self.frame is None else [F.linear(f, self.frame)]
        heads.append(self._logits(self.model.head, f if self.frame is None else still))
        if self.personal is not None:
            heads.append(self._logits(self.personal, still))
        return torch.stack(heads)

    def _logits(self, head: nn.Linear, f: Tensor) -> Tensor:
        # A bias that is not used gets no gradient, so that it stays at 0.
        return F.linear(f, head.weight, head.bias if self.bias else None)


def sum_of_losses(logits_HBC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the sum of the heads' cross-entropies, each a mean over B."""
    losses = [F.cross_entropy(logits, labels_B) for logits in logits_HBC]
    return torch.stack(losses).sum()


def headed(model: Model, weight_CD: Tensor, bias_C: Tensor | None) -> Predict:
    """Return a model's trunk under another head."""
    return lambda x: F.linear(model.features(x), weight_CD, bias_C)


def bias_of(head: nn.Linear) -> Tensor | None:
    """Return the bias of a head without its gradient, where it has one."""
    return None if head.bias is None else head.bias.detach()

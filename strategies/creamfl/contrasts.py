"""Losses of CreamFL: what ties a client to the server's space, a pair together, and examples to their class.

Legend: P public samples, D dimension, B batch, N examples, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from umbel.core import training
from umbel.models.pair import MODALITIES, Encoders, class_logits, margin_loss, pair_contrast, soft_contrast

if TYPE_CHECKING:
    from umbel.strategies.creamfl.method import Config


def inter_contrast(local_BD: Tensor, global_other_PD: Tensor, index_B: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the contrast of local representations to the global ones of the other modality, mean over B.

    Args:
        local_BD: z, [B, D].
        global_other_PD: Of all public samples, [P, D]; all of them are negatives, not the batch's alone.
        index_B: [B] int64, which public sample each row is.
        temperature: tau.
    """
    return F.cross_entropy(local_BD @ global_other_PD.T / temperature, index_B)


def intra_contrast(local_BD: Tensor, global_same_BD: Tensor, previous_BD: Tensor, temperature: float = 0.5) -> Tensor:
    """Return the contrast of local representations to the global ones of their modality, mean over B.

    The one negative is what the client's model said at the start of the round.

    Args:
        local_BD: z, [B, D].
        global_same_BD: [B, D].
        previous_BD: [B, D].
        temperature: tau.
    """
    nearer = (local_BD * (previous_BD - global_same_BD)).sum(1) / temperature
    return F.softplus(nearer).mean()


def contrast_loss(
    config: Config, model: Encoders, before: Mapping[str, Tensor], shared: Mapping[str, Tensor]
) -> training.Loss | None:
    """Return gamma (L_inter + L_intra); L_inter is summed over the client's modalities, L_intra their mean."""
    if not config.contrast or not (config.inter or config.intra):
        return None
    other = dict(zip(MODALITIES, MODALITIES[::-1], strict=True))

    def loss(unit_MBD: Tensor, index_B: Tensor) -> Tensor:
        parts = []
        for name, own in zip(model.modalities, unit_MBD, strict=True):
            if config.inter:
                parts.append(inter_contrast(own, shared[other[name]].to(own.dtype), index_B, config.temperature))
            if config.intra:
                near, past = shared[name][index_B].to(own.dtype), before[name][index_B]
                parts.append(intra_contrast(own, near, past, config.temperature) / len(model.modalities))
        return config.contrast * torch.stack(parts).sum()

    return exact(loss)


def pair_loss(config: Config, model: Encoders, identity_N: Tensor) -> training.Loss:
    """Return the loss of pairs [2, B, D] whose rows are those of `identity_N`, where equal ones belong together."""

    def loss(unit_MBD: Tensor, index_B: Tensor) -> Tensor:
        image, text = unit_MBD
        own = identity_N[index_B]
        same = own[:, None] == own[None, :]
        if config.pair_loss == "infonce":
            return pair_contrast(image, text, same, config.pair_temperature)
        squared = (2 - 2 * image @ text.T).clamp_min(0)
        return soft_contrast((squared + 1e-6).sqrt(), same, model.scale, model.shift)

    return exact(loss)


def class_loss(config: Config, weight_CD: Tensor) -> training.Loss:
    """Return the loss of representations [1, B, D] and labels [B] under a classifier's weights."""

    def loss(unit_MBD: Tensor, labels_B: Tensor) -> Tensor:
        if config.class_loss == "margin":
            return margin_loss(unit_MBD[0], weight_CD, labels_B, config.class_sharpness)
        return F.cross_entropy(class_logits(unit_MBD[0], weight_CD, config.class_sharpness), labels_B)

    return exact(loss)


def exact(loss: training.Loss) -> training.Loss:
    """Return a loss that autocast does not round: a sharp softmax of unit vectors needs more than bf16."""

    def whole(output: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return loss(output, target)

    return whole

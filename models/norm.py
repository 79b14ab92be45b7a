"""Batch norm among clients: which names belong to it, and group norm in its place.

Averaging the running statistics of clients with different data gives statistics of none of them. The
remedies are to keep batch norm at the client (Li et al. 2021, "FedBN", arXiv 2102.07623) and to have none
(Hsieh et al. 2020,
"The Non-IID Data Quagmire of Decentralized Machine Learning", arXiv 1910.00189; Wu & He 2018, "Group
Normalization", arXiv 1803.08494).
"""

from __future__ import annotations

import torch
from torch import nn

# The private base is the only name that covers 1d, 2d, 3d and synchronised batch norm, and not instance norm.
from torch.nn.modules.batchnorm import _BatchNorm

from umbel.models.base import Model

# What a rule puts in the place of batch norm: the largest number of groups.
GROUPS = {"group": 8, "layer": 1}


def replace_batch_norm(model: Model, groups: int = 8) -> Model:
    """Put a group norm in the place of every batch norm of `model`, in place, and return `model`.

    The number of parameters stays the same: weight and bias are carried over, and so are epsilon, device,
    dtype and mode. A channel count of at most `groups` becomes one group a channel, which on a 1 x 1 map
    leaves nothing but the bias; take fewer groups for such a model.

    Args:
        model: Any model of the zoo.
        groups: Largest number of groups of a layer; it gets the largest divisor of its channels up to this.

    Raises:
        ValueError: `groups` is below one.
    """
    if groups < 1:
        raise ValueError(f"groups should be 1 or more, found {groups}; 8 suits most models")
    # A layer that is used in two places has to stay one layer.
    replaced: dict[int, nn.GroupNorm] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm):
                if id(child) not in replaced:
                    replaced[id(child)] = _group_norm(child, groups)
                setattr(parent, name, replaced[id(child)])
    return model


def _group_norm(batch_norm: _BatchNorm, groups: int) -> nn.GroupNorm:
    """Return the group norm that stands for `batch_norm`."""
    channels = batch_norm.num_features
    divisor = next(count for count in range(min(groups, channels), 0, -1) if channels % count == 0)
    norm = nn.GroupNorm(divisor, channels, eps=batch_norm.eps, affine=batch_norm.affine)
    if batch_norm.affine:
        norm.to(batch_norm.weight)
        with torch.no_grad():
            norm.weight.copy_(batch_norm.weight)
            norm.bias.copy_(batch_norm.bias)
        norm.weight.requires_grad_(batch_norm.weight.requires_grad)
        norm.bias.requires_grad_(batch_norm.bias.requires_grad)
    return norm.train(batch_norm.training)


def batch_norm_names(model: Model) -> frozenset[str]:
    """Return the state-dict names (parameters and buffers) that belong to batch norm: what FedBN keeps."""
    return frozenset(
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm)
        for name in module.state_dict()
    )


def integer_buffer_names(model: Model) -> frozenset[str]:
    """Return the state-dict names of counters and index tables, which have no mean and are never averaged."""
    return frozenset(
        name for name, tensor in model.state_dict().items() if not (tensor.is_floating_point() or tensor.is_complex())
    )

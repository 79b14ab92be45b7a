"""The ensemble of clients' representations.

Legend: K clients, P public samples, M of them in a round, D dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from umbel.strategies.creamfl.representations import from_wire

if TYPE_CHECKING:
    from umbel.strategies.creamfl.method import Config

_CHUNK_BYTES = 64 << 20


def aggregate(
    representations_KPD: Tensor,
    other_modality_PD: Tensor,
    temperature: float = 1.0,
    exclude_self: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Combine clients' representations of the public set, by how well each tells its pair from the rest.

    s_k(i) = log softmax_j (I_k,i . T_j / tau) at j = i; the weights of sample i are the softmax of s_k(i) over k.

    Args:
        representations_KPD: I_k of one modality, [K, P, D], rows of unit length.
        other_modality_PD: T, the server's representations of the other modality, [P, D].
        temperature: tau; the paper has 1, at which weights of unit vectors are nearly equal.
        exclude_self: Leave j = i out of the denominator, as the paper's equation does.
        chunk: Rows of the [P, P] matrix that exist at once; None takes 64 MiB of them.

    Returns:
        The combined representations [P, D], not normalised again, and the weights [K, P], which sum to 1 over K.

    Raises:
        ValueError: Shapes do not fit, or nothing is left in the denominator.
    """
    if representations_KPD.ndim != 3 or representations_KPD.shape[1:] != other_modality_PD.shape:
        raise ValueError(
            f"Expected representations [K, P, D] and [P, D], found {list(representations_KPD.shape)} and "
            f"{list(other_modality_PD.shape)}."
        )
    num_clients, num_public, _ = representations_KPD.shape
    if not num_clients:
        raise ValueError("Expected the representations of at least one client, found none.")
    if not temperature > 0:
        raise ValueError(f"Expected a temperature above 0, found {temperature}.")
    if exclude_self and num_public < 2:
        raise ValueError("Without a sample's own pair, one public sample has nothing to be told from.")
    if chunk is not None and chunk < 1:
        raise ValueError(f"Expected a chunk of at least one row, found {chunk}.")
    rows = chunk or max(1, _CHUNK_BYTES // (num_public * other_modality_PD.element_size()))
    scores = representations_KPD.new_empty(num_clients, num_public)
    for client in range(num_clients):
        for start in range(0, num_public, rows):
            part = slice(start, min(start + rows, num_public))
            logits = representations_KPD[client, part] @ other_modality_PD.T / temperature
            own = torch.arange(part.start, part.stop, device=logits.device)
            here = torch.arange(len(own), device=logits.device)
            positive = logits[here, own].clone()
            if exclude_self:
                logits[here, own] = -torch.inf
            scores[client, part] = positive - torch.logsumexp(logits, dim=1)
    weights_KP = torch.softmax(scores, dim=0)
    aggregated = torch.zeros_like(representations_KPD[0])
    for client in range(num_clients):
        aggregated += weights_KP[client][:, None] * representations_KPD[client]
    return aggregated, weights_KP


def by_variance(representations_KMD: Tensor) -> tuple[Tensor, Tensor]:
    """Combine clients' representations by their variance over the dimensions, as FedET weighs class scores.

    Of a row z of unit length it is 1/D - mean(z)^2, so that nothing but a row's mean tells clients apart: near the
    uniform mean, which FedMD takes. Where nobody's row varies, all weigh the same.

    Args:
        representations_KMD: Of one modality, [K, M, D].

    Returns:
        The combined representations [M, D], not normalised again, and the weights [K, M], which sum to 1 over K.

    Source:
        Cho et al., "Heterogeneous Ensemble Knowledge Transfer", IJCAI 2022, whose scores of classes are dimensions
        here; the reading is ours.
    """
    spread_KM = torch.stack([each.double().var(-1, unbiased=False) for each in representations_KMD])
    spread_KM = torch.where(spread_KM.sum(0) > 0, spread_KM, 1.0)
    weights_KM = (spread_KM / spread_KM.sum(0)).to(representations_KMD.dtype)
    combined_MD = torch.zeros_like(representations_KMD[0])
    for weights_M, each_MD in zip(weights_KM, representations_KMD, strict=True):
        combined_MD += weights_M[:, None] * each_MD
    return combined_MD, weights_KM


def combine(config: Config, sent_KMD: Tensor, across_MD: Tensor) -> Tensor:
    """Return the ensemble of one modality, in the order of the cohort."""
    # One copy of all replies beside them; the mean of more than 16 has other bits when it is summed one by one.
    stacked = torch.empty(sent_KMD.shape, dtype=torch.float32, device=across_MD.device)
    for client, each in enumerate(sent_KMD):
        stacked[client] = from_wire(each)
    if config.ensemble == "mean":
        return stacked.mean(0)
    if config.ensemble == "variance":
        return by_variance(stacked)[0]
    return aggregate(stacked, across_MD, config.ensemble_temperature, config.exclude_self)[0]

"""What is said of each client after a look inside its model: a row each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from umbel.core.tree import Tree
from umbel.simulations.explain import filters
from umbel.simulations.explain.eigen_cam import agreement
from umbel.simulations.explain.finished import FinishedRun
from umbel.simulations.explain.inside import Look

# In each bin of a histogram beside the filters: without it single filters that fall where none was weigh heavily, and
# small models drift by chance.
PSEUDO_COUNT = 0.5
FEWEST = 3  # clients among which one can be out of the ordinary


@dataclass(frozen=True)
class Client:
    """What is said of one client.

    Attributes:
        client: Its number.
        accuracy: Of its model on the probe images, a fraction.
        drift: Of its filters from the global model's; None without 3 x 3 filters.
        drift_z: Robust z-score of that among the clients; None among fewer than three.
        kernels: Length of the change of its 3 x 3 kernels; None without.
        kernels_z: Robust z-score of that.
        update: Length of its whole update.
        update_z: Robust z-score of that.
        correlation: Of its Eigen-CAM with the global model's, mean over probe images; None without maps.
        iou: Of the brightest fifth of both.
        flagged: Whether its filters have drifted out of the ordinary.
        shuffled: Whether the experiment shuffled its labels (`data.num_shuffled`).
    """

    client: int
    accuracy: float
    drift: float | None
    drift_z: float | None
    kernels: float | None
    kernels_z: float | None
    update: float
    update_z: float | None
    correlation: float | None
    iou: float | None
    flagged: bool
    shuffled: bool


def describe(run: FinishedRun, whole: Look, looks: Mapping[int, Look]) -> list[Client]:
    """Return a row for each client."""
    states = {str(client): look.filters for client, look in looks.items()}
    drifts = filters.drifts(states, whole.filters, pseudo_count=PSEUDO_COUNT) if whole.layers else {}
    lengths = {client: _length(state, whole.filters) for client, state in states.items()} if whole.layers else {}
    updates = {str(client): look.update for client, look in looks.items()}
    # Of one or two nobody can say who is out of the ordinary.
    drift_z, lengths_z, updates_z = (
        filters.robust_z(values) if len(looks) >= FEWEST else {} for values in (drifts, lengths, updates)
    )
    out = set(filters.flagged(drifts))
    rows = []
    for client, look in looks.items():
        same = None if whole.cams is None or look.cams is None else agreement(whole.cams, look.cams)
        name = str(client)
        rows.append(
            Client(
                client=client,
                accuracy=look.accuracy,
                drift=drifts.get(name),
                drift_z=drift_z.get(name),
                kernels=lengths.get(name),
                kernels_z=lengths_z.get(name),
                update=updates[name],
                update_z=updates_z.get(name),
                correlation=None if same is None else _mean(same.correlation),
                iou=None if same is None else _mean(same.iou),
                flagged=name in out,
                shuffled=client in run.data.shuffled_clients,
            )
        )
    return rows


def _length(state: Tree, reference: Tree) -> float:
    """Return the Euclidean length of the difference of two states."""
    return math.sqrt(sum(float((state[n].double() - reference[n].double()).square().sum()) for n in reference))


def _mean(values: torch.Tensor) -> float | None:
    """Return the mean of what is a number, or None where nothing is."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None

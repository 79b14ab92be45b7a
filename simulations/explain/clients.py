"""What is said of each client after a look inside its model: a row each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from umbel.core.tree import Tree
from umbel.simulations.explain import filters, inside, suspects
from umbel.simulations.explain.eigen_cam import agreement
from umbel.simulations.explain.finished import FinishedRun
from umbel.simulations.explain.inside import Look, Probe
from umbel.simulations.explain.suspects import Evidence

# In each bin of a histogram beside the filters: without it single filters that fall where none was weigh heavily, and
# small models drift by chance.
PSEUDO_COUNT = 0.5
FEWEST = 3  # clients among which a length or drift can be out of the ordinary


@dataclass(frozen=True)
class Client:
    """What is said of one client.

    Attributes:
        client: Its number.
        accuracy: Of its model on the probe images, a fraction.
        labels: How well its labels go with the global model's answers to its images, from -1 to 1 (`suspects`); None
            where they say nothing.
        expected: What labels of its mix have on held-out images.
        learned: What its own model has there.
        ordinary: What its labels should have; None among fewer than five clients.
        bound: Below it are labels that do not go with their images; None likewise.
        gain: What its own model has learned of its classes: `learned` less `expected`.
        ordinary_gain: The median of the others'; None likewise.
        drift: Of its filters from the global model's; None without 3 x 3 filters.
        drift_z: Robust z-score of that among the clients; None among fewer than three.
        kernels: Length of the change of its 3 x 3 kernels; None without.
        kernels_z: Robust z-score of that.
        update: Length of its whole update.
        update_z: Robust z-score of that.
        correlation: Of its Eigen-CAM with the global model's, mean over probe images; None without maps.
        iou: Of the brightest fifth of both.
        flagged: Whether it is suspect: its labels do not go with its images, and a model learns less from them.
        shuffled: Whether the experiment shuffled its labels (`data.num_shuffled`).
    """

    client: int
    accuracy: float
    labels: float | None
    expected: float | None
    learned: float | None
    ordinary: float | None
    bound: float | None
    gain: float | None
    ordinary_gain: float | None
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

    @property
    def out_of_the_ordinary(self) -> tuple[str, ...]:
        """By what it stands out among the clients without being suspect for it: `drift`, `length of its update`."""
        scores = {"drift": self.drift_z, "length of its update": self.update_z}
        return tuple(name for name, z in scores.items() if z is not None and z > filters.THRESHOLD)


def describe(run: FinishedRun, seen: Probe, whole: Look, looks: Mapping[int, Look]) -> list[Client]:
    """Return a row for each client.

    Args:
        run: The run.
        seen: The held-out images that all models were shown.
        whole: The global model.
        looks: Each client's.
    """
    known = _evidence(run, seen, whole, looks)
    judged = suspects.judge(known)
    states = {str(client): look.filters for client, look in looks.items()}
    drifts = filters.drifts(states, whole.filters, pseudo_count=PSEUDO_COUNT) if whole.layers else {}
    lengths = {client: _length(state, whole.filters) for client, state in states.items()} if whole.layers else {}
    updates = {str(client): look.update for client, look in looks.items()}
    # Of one or two nobody can say who is out of the ordinary.
    drift_z, lengths_z, updates_z = (
        filters.robust_z(values) if len(looks) >= FEWEST else {} for values in (drifts, lengths, updates)
    )
    rows = []
    for client, look in looks.items():
        same = None if whole.cams is None or look.cams is None else agreement(whole.cams, look.cams)
        name = str(client)
        rows.append(
            Client(
                client=client,
                accuracy=look.accuracy,
                labels=known[client].labels if client in known else None,
                expected=known[client].expected if client in known else None,
                learned=known[client].learned if client in known else None,
                ordinary=judged[client].ordinary if client in judged else None,
                bound=judged[client].bound if client in judged else None,
                gain=known[client].gain if client in known else None,
                ordinary_gain=judged[client].gain if client in judged else None,
                drift=drifts.get(name),
                drift_z=drift_z.get(name),
                kernels=lengths.get(name),
                kernels_z=lengths_z.get(name),
                update=updates[name],
                update_z=updates_z.get(name),
                correlation=None if same is None else _mean(same.correlation),
                iou=None if same is None else _mean(same.iou),
                flagged=client in judged and judged[client].suspect,
                shuffled=client in run.data.shuffled_clients,
            )
        )
    return rows


def _evidence(run: FinishedRun, seen: Probe, whole: Look, looks: Mapping[int, Look]) -> dict[int, Evidence]:
    """Return what is known of each client whose labels say something."""
    model, held = run.model(run.state), seen.labels.cpu()
    known = {}
    for client, look in looks.items():
        images, labels = run.examples(client)
        own = suspects.evidence(inside.answers(model, images), labels.cpu(), whole.logits, look.logits, held)
        if own is not None:
            known[client] = own
    return known


def _length(state: Tree, reference: Tree) -> float:
    """Return the Euclidean length of the difference of two states."""
    return math.sqrt(sum(float((state[n].double() - reference[n].double()).square().sum()) for n in reference))


def _mean(values: torch.Tensor) -> float | None:
    """Return the mean of what is a number, or None where nothing is."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None

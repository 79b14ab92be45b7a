"""pfl-research: its simulation in one process or several, as its guides have it, in an environment of its own.

Data are `Dataset`s in memory, which its guide calls the fastest, one for each user and kept; users are trained by its
`FederatedAveraging` and weighted by their examples. It takes a user's batches in the order in which they lie, and it
averages parameters alone: batch norm's statistics stay those of the last user of the first process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from yardstick.marks import Clock, assignment, outcome

if TYPE_CHECKING:
    from torch import nn

RANK, ADDRESSES = "PFL_WORKER_RANK", "PFL_WORKER_ADDRESSES"


def start_others(num_processes: int) -> list[subprocess.Popen[bytes]]:
    """Become the first of so many processes and start the rest."""
    if num_processes == 1:
        return []
    sockets = [socket.create_server(("localhost", 0)) for _ in range(num_processes)]
    addresses = ",".join(f"localhost:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    os.environ |= {ADDRESSES: addresses, RANK: "0"}
    command = [sys.executable, *sys.argv]
    return [subprocess.Popen(command, env=os.environ | {RANK: str(rank)}) for rank in range(1, num_processes)]


def simulate(options: dict[str, Any], clock: Clock | None) -> nn.Module:
    """Run all rounds as one of the processes and return the model; the first has the clock."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    from yardstick import training
    from yardstick.workload import Workload

    folder = assignment()[1]
    workload = Workload.read(folder)
    torch.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 - pfl draws from NumPy's global generator; all processes must draw the same users
    channels_last = bool(options.get("channels_last"))

    class Classifier(torch.nn.Module):
        """What pfl asks of a model: its loss, and metrics, of which there are none to measure here."""

        def __init__(self) -> None:
            super().__init__()
            self.net = training.build(workload, folder, channels_last)

        def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            self.train()
            return F.cross_entropy(self.net(images), labels)

        def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Weighted]:
            return {"examples": Weighted(0, len(labels))}

    class Marks(TrainingProcessCallback):
        """Starts the clock after the rounds that warm up, and stops it after the last; the others wait."""

        def after_central_iteration(
            self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
        ) -> tuple[bool, Metrics]:
            done = central_iteration + 1
            if done in (workload.warm_rounds, workload.warm_rounds + workload.rounds):
                if clock is not None and done == workload.warm_rounds:
                    clock.begin()
                elif clock is not None:
                    clock.end()
                if torch.distributed.is_initialized():
                    torch.distributed.barrier()
            return False, Metrics()

    classifier = Classifier()
    central = torch.optim.SGD(classifier.parameters(), lr=1.0)
    central.is_of_server = True  # type: ignore[attr-defined]
    model = PyTorchModel(classifier, torch.optim.SGD, central)
    users = {
        k: Dataset(list(examples), user_id=str(k))
        for k, examples in enumerate(training.clients(workload, folder, channels_last))
    }
    data = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    num_rounds = workload.warm_rounds + workload.rounds
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=num_rounds,
            evaluation_frequency=num_rounds + 1,
            train_cohort_size=workload.clients_per_round,
            val_cohort_size=None,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=workload.batch_size,
            local_num_epochs=workload.epochs,
            local_learning_rate=workload.lr,
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Marks()],
        send_metrics_to_platform=False,
    )
    return classifier.net


def main() -> None:
    """Run as a contender: the first process measures and starts the rest."""
    options, _ = assignment()
    if RANK in os.environ:
        simulate(options, None)
        return
    clock = Clock()
    others = start_others(int(options["processes"]))
    net = simulate(options, clock)
    import torch

    torch.save(net.state_dict(), outcome())
    if any(other.wait() for other in others):
        raise SystemExit("One of the other processes failed.")


if __name__ == "__main__":
    main()

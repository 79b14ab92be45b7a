"""F1: a loop on one core that knows nothing of federations but the weighted mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from yardstick import training
from yardstick.marks import Clock, assignment, outcome
from yardstick.workload import Workload


def run(workload: Workload, folder: Path, channels_last: bool, begin: Callable[[], None]) -> nn.Module:
    """Run all rounds and return the model.

    Args:
        workload: What is to be done.
        folder: Where its data are.
        channels_last: The memory order of images and weights.
        begin: Called when the rounds that count begin.
    """
    torch.set_num_threads(1)
    data = training.clients(workload, folder, channels_last)
    model = training.build(workload, folder, channels_last)
    weights = {name: tensor.clone() for name, tensor in training.averaged(model.state_dict()).items()}
    generator = torch.Generator().manual_seed(0)
    for round_ in range(workload.warm_rounds + workload.rounds):
        if round_ == workload.warm_rounds:
            begin()
        total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        seen = 0
        for client in training.draw(workload, generator):
            images, labels = data[client]
            model.load_state_dict(weights, strict=False)
            training.train(model, images, labels, workload, generator)
            training.add(total, model.state_dict(), len(labels))
            seen += len(labels)
        training.set_mean(weights, [total], seen)
    model.load_state_dict(weights, strict=False)
    return model


def main() -> None:
    """Run as a contender."""
    options, folder = assignment()
    clock = Clock()
    model = run(Workload.read(folder), folder, bool(options.get("channels_last")), clock.begin)
    clock.end()
    torch.save(model.state_dict(), outcome())


if __name__ == "__main__":
    main()

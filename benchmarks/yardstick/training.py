"""One client's training and the mean of what comes of it, as plain PyTorch has it; nothing here knows umbel's engines.

Shapes: N examples, I channels, H height, W width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umbel.models.assemble import assemble
from yardstick.workload import IMAGES, INITIAL, LABELS, Workload


def build(workload: Workload, folder: Path, channels_last: bool = False) -> nn.Module:
    """Return the model, with the weights that every contender begins with."""
    model = assemble(**workload.model)
    model.load_state_dict(torch.load(folder / INITIAL, weights_only=True))
    return model.to(memory_format=torch.channels_last) if channels_last else model


def clients(workload: Workload, folder: Path, channels_last: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Return each client's (images [N, I, H, W], labels [N]), normalised."""
    images, labels = torch.from_numpy(np.load(folder / IMAGES)), torch.from_numpy(np.load(folder / LABELS))
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return list(zip(images.split(list(workload.sizes)), labels.split(list(workload.sizes)), strict=True))


@functools.cache
def at_hand(folder: str) -> tuple[Workload, list[tuple[Tensor, Tensor]], nn.Module]:
    """Return the workload, all clients' examples and the model, on one thread; a process makes them once."""
    torch.set_num_threads(1)
    workload = Workload.read(Path(folder))
    return workload, clients(workload, Path(folder)), build(workload, Path(folder))


def train(model: nn.Module, images: Tensor, labels: Tensor, workload: Workload, generator: torch.Generator) -> None:
    """Train a model in place on one client's examples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr)
    model.train()
    for _ in range(workload.epochs):
        for index in torch.randperm(len(labels), generator=generator).split(workload.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(images[index]), labels[index]).backward()
            optimizer.step()


def draw(workload: Workload, generator: torch.Generator) -> list[int]:
    """Draw the clients of a round."""
    return torch.randperm(len(workload.sizes), generator=generator)[: workload.clients_per_round].tolist()


def averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a model's state that is averaged: all but counters."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


@torch.no_grad()
def add(total: Mapping[str, Tensor], state: Mapping[str, Tensor], weight: float) -> None:
    """Add a model's state to a sum, in place."""
    for name, tensor in total.items():
        tensor.add_(state[name], alpha=weight)


@torch.no_grad()
def set_mean(weights: Mapping[str, Tensor], sums: Sequence[Mapping[str, Tensor]], weight: float) -> None:
    """Set weights, in place, to the sum of sums divided by the sum of weights."""
    for name, tensor in weights.items():
        tensor.copy_(sums[0][name])
        for other in sums[1:]:
            tensor.add_(other[name])
        tensor.div_(weight)

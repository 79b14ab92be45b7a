"""The same training as a loop in plain PyTorch: the least that a simulation of FedAvg can take in one process.

It knows nothing of strategies, messages, failures or random keys: it draws clients, loads the weights, trains, adds up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from umbel.client.host import Clients, Host
from umbel.conf.schema import Experiment
from umbel.core import device as devices
from umbel.core import leftovers
from umbel.core.losses import CrossEntropy
from umbel.core.memory import MemoryStore
from umbel.core.training import LocalConfig, Loss, make_optimizer
from umbel.core.training.loop import batch_order, make_ready

_LARGER = (1, 2, 4)  # batches that a throughput is told of, in the experiment's
_LEAST_SECONDS = 0.5  # that a throughput is measured for


def rounds(experiment: Experiment, number: int) -> Iterator[tuple[float, int]]:
    """Yield seconds and steps of each round.

    Args:
        experiment: Its model, data, clients and `client` section count; its strategy does not.
        number: How many.
    """
    source = torch.Generator().manual_seed(experiment.run.seed)
    host = Host(experiment)
    weights = {name: tensor.clone() for name, tensor in _averaged(host.model).items()}
    with TemporaryDirectory(prefix=leftovers.prefix("bench")) as folder:
        clients = Clients(host, MemoryStore(Path(folder)))
        for round_ in range(1, number + 1):
            begin, steps, seen = time.perf_counter(), 0, 0
            sums = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
            for client in torch.randperm(experiment.data.num_clients, generator=source)[: experiment.num_sampled]:
                context = clients.context(int(client), round_, "train", None, lambda record: None)
                images, labels = context.prepare(context.train_data)
                host.model.load_state_dict(weights, strict=False)
                steps += _train(host.model, images, labels, experiment.local, source, context.loss)
                for name, tensor in _averaged(host.model).items():
                    sums[name] += tensor * len(labels)
                seen += len(labels)
            weights = {name: tensor / seen for name, tensor in sums.items()}
            yield time.perf_counter() - begin, steps


def throughput(experiment: Experiment) -> dict[int, float]:
    """Return examples a second by batch size, for the experiment's and larger ones: of a client that had enough."""
    host = Host(experiment)
    examples = host.data.client(0).train
    images, labels = host.prepare(examples)
    size = experiment.local.batch_size or len(labels)
    found: dict[int, float] = {}
    for batch in (size * factor for factor in _LARGER):
        index = torch.arange(batch, device=labels.device) % len(labels)
        x, y = images[index], labels[index]
        optimizer = make_optimizer(experiment.local, list(host.model.parameters()), 0.0)
        host.model.train()
        _step(host.model, x, y, experiment.local, optimizer, CrossEntropy())
        begin, steps = time.perf_counter(), 0
        while time.perf_counter() - begin < _LEAST_SECONDS:
            _step(host.model, x, y, experiment.local, optimizer, CrossEntropy()).item()
            steps += 1
        found[batch] = steps * batch / (time.perf_counter() - begin)
    return found


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def _train(
    model: nn.Module, images: Tensor, labels: Tensor, local: LocalConfig, source: torch.Generator, loss: Loss
) -> int:
    """Train in place; return the number of steps."""
    optimizer = make_optimizer(local, [p for p in model.parameters() if p.requires_grad], local.lr)
    leave_out, steps = make_ready(model, len(labels), local), 0
    for index in batch_order(len(labels), local, source, leave_out):
        index = index.to(labels.device)
        _step(model, images[index], labels[index], local, optimizer, loss)
        steps += 1
    return steps


def _step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    local: LocalConfig,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    with devices.autocast(x.device, local.precision):
        value = loss(model(x), y)
    value.backward()  # type: ignore[no-untyped-call]
    if local.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), local.clip_norm)
    optimizer.step()
    return value.detach()

"""Write the workload of an experiment, and what this machine is: run in a process of its own, whose memory goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from umbel.conf.federation import build_model, federation
from umbel.conf.load import load
from umbel.conf.schema import Experiment
from umbel.core.training import LocalConfig
from umbel.data.transforms import normalize
from umbel.server.results import environment
from yardstick.workload import IMAGES, INITIAL, LABELS, Workload

MACHINE = "machine.json"
_PLAIN = {
    "optimizer": "sgd",
    "precision": "fp32",
    "channels_last": False,  # contenders of their own
    "compile": "none",
    "together": 1,
    "lr_decay": 1.0,
    "class_weights": "none",
    "max_steps": 0,
    "lr_warmup": 0,
    "momentum": 0.0,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "label_smoothing": 0.0,
}


def check(experiment: Experiment) -> None:
    """Refuse what the plain loop does not do."""
    local: LocalConfig = experiment.client
    other = [f"client.{key}={getattr(local, key)}" for key, value in _PLAIN.items() if getattr(local, key) != value]
    if experiment.strategy.name != "fedavg" or experiment.data.augment != "none" or experiment.evaluate.every:
        other.append("a strategy, an augmentation or an evaluation")
    if other:
        raise SystemExit(f"{experiment.name}: the plain loop is FedAvg with plain SGD and nothing else; {other}")


def prepare(name: str, overrides: tuple[str, ...], folder: Path) -> Workload:
    """Write a workload and return it."""
    experiment = load(name, overrides)
    check(experiment)
    data, own = federation(experiment), experiment.model
    clients = [data.client(k).train for k in range(experiment.data.num_clients)]
    images = torch.cat([normalize(each.images, data.mean, data.std) for each in clients])
    np.save(folder / IMAGES, images.numpy())
    np.save(folder / LABELS, torch.cat([each.labels for each in clients]).numpy())
    model = build_model(experiment, data)
    torch.save(model.state_dict(), folder / INITIAL)
    workload = Workload(
        experiment=name,
        overrides=overrides,
        sizes=tuple(len(each.labels) for each in clients),
        clients_per_round=experiment.num_sampled,
        epochs=experiment.client.epochs,
        batch_size=experiment.client.batch_size,
        lr=experiment.client.lr,
        model={
            "name": own.name,
            "num_classes": data.num_classes,
            "image_size": data.image_size,
            "in_channels": data.in_channels,
            "sizes": dict(own.sizes),
            "operators_": dict(own.operators),
            "norm_rule": own.norm,
        },
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    workload.write(folder)
    return workload


def main() -> None:
    """Write what the arguments name: a folder, an experiment, overrides."""
    folder, name, *overrides = sys.argv[1:]
    prepare(name, tuple(overrides), Path(folder))
    (Path(folder) / MACHINE).write_text(json.dumps(environment()), encoding="utf-8")


if __name__ == "__main__":
    main()

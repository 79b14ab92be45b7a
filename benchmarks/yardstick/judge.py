"""Say what came of each contender: the loss of its last model on all training examples, and the parameters' norm.

Run in a process of its own, the same for all, so that they need not be taken at their word.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from yardstick import training
from yardstick.workload import Workload

_BATCH = 256


def state_of(file: Path) -> dict[str, Tensor]:
    """Return the state dict that a contender left, in whichever format."""
    content = file.read_bytes()
    return torch.load(file, weights_only=True) if content[:2] == b"PK" else load(content)  # torch writes a zip archive


@torch.no_grad()
def judge(workload: Workload, folder: Path, state: dict[str, Tensor]) -> tuple[float, float]:
    """Return (mean loss, norm of all parameters)."""
    model = training.build(workload, folder)
    model.load_state_dict(state)
    model.eval()
    total = 0.0
    for images, labels in training.clients(workload, folder):
        for x, y in zip(images.split(_BATCH), labels.split(_BATCH), strict=True):
            total += float(F.cross_entropy(model(x), y, reduction="sum"))
    norm = torch.cat([parameter.flatten() for parameter in model.parameters()]).norm()
    return total / sum(workload.sizes), float(norm)


def main() -> None:
    """Judge the files that the arguments name after the workload's folder; print JSON."""
    folder, *files = map(Path, sys.argv[1:])
    workload = Workload.read(folder)
    print(json.dumps({file.name: judge(workload, folder, state_of(file)) for file in files}))


if __name__ == "__main__":
    main()

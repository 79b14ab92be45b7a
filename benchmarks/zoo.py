"""How fast do the zoo's models train and predict, per operation, beside a plain ResNet?

    python benchmarks/zoo.py tiny      # every `_tiny32` model at 32 px, batch 32
    python benchmarks/zoo.py published # every published variant at its own size, batch 2 (hours on a CPU)
    python benchmarks/zoo.py published --only uniformer --device cuda --batch 64 --ways fp32,bf16,bf16-channels_last

The reference of a model is `resnet18` (3 x 3 stem, no attention) of the width at which it has the most nearly equal
multiply-adds for the same image. Model and reference are run in turn in one process, a few times; the table has
medians, and the ratio says how many times longer a multiply-add of the model takes: the ratio of their times over the
ratio of their operations. Ways of running (`--ways`): fp32, bf16 (autocast), each also with `-channels_last`,
`-compile` or both. Figures are added to benchmarks/results/zoo.json, by hardware; docs/make_models.py makes the page of
them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.models import build, names
from umbel.models.base import Model
from umbel.models.facts import macs
from umbel.server.results import environment

FOUND = Path(__file__).parent / "results" / "zoo.json"
GROUPS = {"tiny": 10, "published": 1000}  # -> classes


def chosen(group: str, only: str) -> list[str]:
    """Return the models of a group: those of families that have a `_tiny32`."""
    tiny = [name for name in names() if name.endswith("_tiny32")]
    if group == "tiny":
        return [name for name in tiny if only in name]
    families = tuple(name.removesuffix("tiny32") for name in tiny)
    return [name for name in names() if name.startswith(families) and name not in tiny and only in name]


def count(name: str, classes: int, size: int | None, **sizes: Any) -> tuple[int, int]:
    """Return multiply-adds of an image's forward pass, and the image's side."""
    with torch.device("meta"):
        model = build(name, classes, size, **sizes)
    return macs(model), model.image_size


def reference(wanted: int, size: int, classes: int) -> tuple[int, int]:
    """Return width and multiply-adds of the ResNet that comes nearest."""
    return min(
        ((width, count("resnet18", classes, size, width=width)[0]) for width in range(2, 129, 2)),
        key=lambda pair: abs(pair[1] - wanted),
    )


class Contender:
    """A model that can be asked for a training step or a prediction."""

    def __init__(self, model: Model, x: Tensor, classes: int, way: str) -> None:
        self.low, parts = "bf16" in way, way.split("-")
        if "channels_last" in parts:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            x = x.contiguous(memory_format=torch.channels_last)
        self.model, self.x = model, x
        self.call: Callable[[Tensor], Tensor] = torch.compile(model) if "compile" in parts else model
        self.y = torch.arange(len(x), device=x.device) % classes
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def train(self) -> None:
        """Do one step."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.low):
            loss = F.cross_entropy(self.call(self.x), self.y)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def predict(self) -> None:
        """Do one forward pass."""
        self.model.eval()
        with torch.no_grad(), torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.low):
            self.call(self.x)


def seconds(act: Callable[[], None], device: torch.device, least: float) -> float:
    """Return the seconds of one call, over as many as take `least` seconds."""
    calls, start = 0, time.perf_counter()
    while True:
        act()
        calls += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        if (taken := time.perf_counter() - start) >= least:
            return taken / calls


def measure(name: str, classes: int, batch: int, device: torch.device, way: str, given: argparse.Namespace) -> Any:
    """Time a model beside its reference, in turn."""
    operations, size = count(name, classes, None)
    width, theirs = reference(operations, size, classes)
    x = torch.randn(batch, 3, size, size, device=device)
    pair = [
        Contender(build(name, classes, size).to(device), x, classes, way),
        Contender(build("resnet18", classes, size, width=width).to(device), x, classes, way),
    ]
    spent: dict[str, list[list[float]]] = {"train": [[], []], "predict": [[], []]}
    for contender in pair:  # warm up, compile
        contender.train()
        contender.predict()
    for _ in range(given.repeats):
        for kind, times in spent.items():
            for contender, own in zip(pair, times, strict=True):
                own.append(seconds(getattr(contender, kind), device, given.least))
    row: dict[str, Any] = {"model": name, "image_size": size, "batch": batch, "way": way, "macs": operations}
    row |= {"reference_width": width, "reference_macs": theirs}
    for kind, times in spent.items():
        mine, other = (statistics.median(own) for own in times)
        row |= {f"{kind}_images_per_second": batch / mine, f"{kind}_ratio": (mine / other) / (operations / theirs)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        pair[0].train()
        row["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return row


def hardware(device: torch.device) -> str:
    """Return what the figures were taken on."""
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{environment()['processor']}, one thread"
    return f"{where}, torch {torch.__version__}"


def keep(rows: list[dict[str, Any]], where: str) -> None:
    """Put rows in the place of older ones of the same model, batch and way on this hardware."""
    known = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["model"], row["batch"], row["way"]

    merged = {key(row): row for row in [*known.get(where, []), *rows]}
    known[where] = sorted(merged.values(), key=key)
    FOUND.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--only", default="", help="only models with this in their name")
    parser.add_argument("--batch", type=int, default=0, help="0: 32 for tiny, 2 for published")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ways", default="fp32", help="see above; separated by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.3, help="seconds of each repetition, at least")
    parser.add_argument("--no-keep", action="store_true", help="print, and write nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device, batch = torch.device(given.device), given.batch or {"tiny": 32, "published": 2}[given.group]
    print(f"{hardware(device)}\n")
    print("| model | way | training, images/s | ratio per MAC | inference, images/s | ratio per MAC |")
    print("|---|---|---:|---:|---:|---:|", flush=True)
    for name in chosen(given.group, given.only):
        for way in given.ways.split(","):
            row = measure(name, GROUPS[given.group], batch, device, way, given)
            cells = [f"{row[f'{kind}_{what}']:.2f}" for kind in ("train", "predict") for what in PRINTED]
            print(f"| {name} | {way} | {' | '.join(cells)} |", flush=True)
            if not given.no_keep:
                keep([row], hardware(device))


PRINTED = ("images_per_second", "ratio")

if __name__ == "__main__":
    main()

"""What a client's training step takes in each fast mode, beside a plain PyTorch loop of the same steps.

    python benchmarks/modes.py
    python benchmarks/modes.py --models cnn,resnet18 --modes plain,channels-last,step --steps 40 --repeats 9
    python benchmarks/modes.py --models cnn --device cuda --together 4,16,64
    python benchmarks/modes.py --modes loop,step,step-1,step-4 --together "" --steps 80 --clock cpu

All train on synthetic images in float32, by SGD. Each contender warms up, which includes the compiler's time and is
printed by itself; then all take turns. A figure is the median of milliseconds a step of one client; a ratio is taken
within a repeat, to `loop` (or `loop-channels-last` where the memory order is that), and then the median of ratios.

`step-4` is no mode of umbel: four steps in one compiled graph, by the same arithmetic as `step`, to see whether that
would be one. `step-1` is one step called in the same way, and what to compare it with. With an empty folder as
TORCHINDUCTOR_CACHE_DIR a warm-up has the compiler's whole time, less what it shares with warm-ups before it in the
same command. `--clock cpu` reads processor time, for a machine that has other work.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import torch
import torch.nn.functional as F
from round_times import machine
from torch import Tensor, nn

from umbel.core import device
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig, compiled, modes, train
from umbel.core.training.loop import make_ready
from umbel.core.training.steps import Step, rates_of, state_of
from umbel.core.training.together import Job, train_together
from umbel.data.sources.cache import folder
from umbel.models import build

MODES = ("loop", "loop-channels-last", "plain", "channels-last", "step", "step-channels-last")
CLASSES = 10
CLOCKS = ("wall", "cpu")
SEVERAL = re.compile(r"step-(\d+)(-channels-last)?")


@dataclass(frozen=True)
class Several(Step):
    """Several steps as one function of tensors: as a step, of as many batches after each other and `rates_of` [S, 3].

    Attributes:
        number: S, how many they are.
    """

    number: int = 1

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Do them; return the loss [S] before each."""
        *held, rates, x, y = tensors
        batches = zip(x.split(self.config.batch_size), y.split(self.config.batch_size), strict=True)
        return torch.stack(
            [super(Several, self).__call__(*held, rate, *each) for rate, each in zip(rates, batches, strict=True)]
        )


class Bench:
    """One model, and data of a client.

    Args:
        name: Its name.
        config: How to train.
        side: Height and width of images.
        channels: Of images.
        steps: Steps of a local run.
        where: The device.
    """

    def __init__(
        self, name: str, config: LocalConfig, side: int, channels: int, steps: int, where: torch.device
    ) -> None:
        self.model = build_seeded(lambda: build(name, CLASSES, image_size=side, in_channels=channels), seed=0).to(where)
        self.config, self.where, self.steps = replace(config, epochs=0, max_steps=steps), where, steps
        num = config.batch_size * steps
        self.images = torch.randn(num, channels, side, side, generator=generator(1)).to(where)
        self.labels = torch.randint(CLASSES, (num,), generator=generator(2)).to(where)

    def contender(self, mode: str) -> Callable[[], int]:
        """Return what does a local run in a mode, and says how many steps of clients that were."""
        last = mode.endswith("channels-last")
        order = torch.channels_last if last else torch.contiguous_format
        model = build_copy(self.model, order)
        images = self.images.contiguous(memory_format=order)
        if mode.startswith("loop"):
            return lambda: self._loop(model, images)
        if several := SEVERAL.fullmatch(mode):
            return self._several(model, images, int(several[1]))
        if mode.startswith("together-"):
            return lambda: self._together(model, int(mode.removeprefix("together-")))
        config = replace(self.config, compile="step" if mode.startswith("step") else "none")

        def run() -> int:
            train(model, images, self.labels, config, batches=generator(3), noise=generator(4), loss=F.cross_entropy)
            return self.steps

        return run

    def _loop(self, model: nn.Module, images: Tensor) -> int:
        optimizer = torch.optim.SGD(model.parameters(), lr=self.config.lr, foreach=True)
        model.train()
        for index in torch.randperm(len(images), generator=generator(3)).split(self.config.batch_size):
            index = index.to(self.where)
            optimizer.zero_grad(set_to_none=True)
            with device.autocast(self.where, self.config.precision):
                value = F.cross_entropy(model(images[index]), self.labels[index])
            value.backward()
            optimizer.step()
        return self.steps

    def _several(self, model: nn.Module, images: Tensor, number: int) -> Callable[[], int]:
        if self.steps % number:
            raise SystemExit(f"step-{number}: --steps is {self.steps}, which is no multiple of {number}")
        make_ready(model, len(images), self.config)
        step = Several(model, self.config, F.cross_entropy, number=number)
        graphs = compiled.Graphs(step, (compiled.form_of(step), number))
        state = state_of(model)
        held = [state[name].detach() for names in step.names for name in names]

        def run() -> int:
            total = torch.zeros((), dtype=torch.float64, device=self.where)
            order = torch.randperm(len(images), generator=generator(3)).split(number * self.config.batch_size)
            for call, index in enumerate(order):
                index, first = index.to(self.where), call * number + 1
                rates = [rates_of(self.config, self.config.lr, first + i, self.where) for i in range(number)]
                tensors = [*held, torch.stack(rates), images[index], self.labels[index]]
                graph = graphs.of(tensors)
                if graph is None:
                    raise RuntimeError(f"{number} steps cannot be one graph")
                with torch.no_grad():
                    total += graph(*tensors).sum() * self.config.batch_size
            return self.steps

        return run

    def _together(self, model: nn.Module, width: int) -> int:
        words = {"batches": generator(3), "noise": generator(4), "loss": F.cross_entropy}
        job = Job.of(model, self.images, self.labels, self.config, **words)
        train_together([job] * width)
        return self.steps * width


def build_copy(model: nn.Module, order: torch.memory_format) -> nn.Module:
    """Return a copy of a model in a memory order."""
    made: nn.Module = copy.deepcopy(model).to(memory_format=order)  # type: ignore[call-overload]
    return made


def processor_seconds() -> float:
    """Return processor time of this process and of those that it has waited for, such as a C++ compiler's."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measure(
    contenders: dict[str, Callable[[], int]], repeats: int, where: torch.device, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return milliseconds a step of each contender by a clock, one figure a repeat; all take turns."""

    def timed(run: Callable[[], int]) -> float:
        begin = clock()
        steps = run()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return (clock() - begin) * 1e3 / steps

    for name, run in contenders.items():
        begin = clock()
        run()
        print(f"  warm-up of {name}: {clock() - begin:.1f} s", flush=True)
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in (*names[first:], *names[:first]):
            figures[name].append(timed(contenders[name]))
    return figures


def show(figures: dict[str, list[float]]) -> None:
    """Print a table."""
    print("| mode | ms a step | ratio to the loop |\n|---|---:|---:|")
    for name, values in figures.items():
        beside = "loop-channels-last" if name.endswith("channels-last") and "loop-channels-last" in figures else "loop"
        ratios = [value / base for value, base in zip(values, figures.get(beside, values), strict=True)]
        print(f"| {name} | {median(values):.2f} ({min(values):.2f}-{max(values):.2f}) | {median(ratios):.2f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="cnn,cvt_tiny32")
    parser.add_argument("--modes", default=",".join(MODES), help="among them, and step-2, step-4-channels-last, ...")
    parser.add_argument("--together", default="4", help="so many clients at once, such as 4,16; empty: none")
    parser.add_argument("--steps", type=int, default=10, help="of a local run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=32, help="of images, in pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall time, or processor time of this process")
    asked = parser.parse_args()
    device.set_threads(asked.threads)
    where = device.resolve(asked.device)
    device.make_repeatable(where)
    compiled.keep_in(folder() / "compiled")
    clock = processor_seconds if asked.clock == "cpu" else time.perf_counter
    print(f"{machine(os.getloadavg()[0])}; {asked.clock} time")
    chosen = [mode for mode in asked.modes.split(",") if mode]
    chosen += [f"together-{number}" for number in asked.together.split(",") if number]
    config = LocalConfig(batch_size=asked.batch, device=asked.device)
    for name in asked.models.split(","):
        bench = Bench(name, config, asked.side, asked.channels, asked.steps, where)
        auto = modes.uses_channels_last(replace(config, channels_last="auto"), bench.model)
        size = sum(parameter.numel() for parameter in bench.model.parameters())
        print(f"\n{name}: {size:,} parameters, batch {asked.batch}; client.channels_last=auto is {str(auto).lower()}")
        show(measure({mode: bench.contender(mode) for mode in chosen}, asked.repeats, where, clock))


if __name__ == "__main__":
    main()

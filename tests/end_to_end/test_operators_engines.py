"""Every operator in CvT and in the CNN: a federated round on each engine gives the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.test_operators_federated import ALL, BASES, SMALL, overrides
from tests.helpers import bits
from umbel import run
from umbel.models import operators

# Ray and processes that outlive the call that started them leave open files to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.filterwarnings("ignore")]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("base", "operator"), ALL)
@pytest.mark.usefixtures("cluster")
def test_each_alone_gives_the_same_bits_on_ray(base: str, operator: str, tmp_path: Path) -> None:
    options = (*overrides(base, operator), "engine.workers=2", f"run.results={tmp_path}")
    results = [run("digits", *options, f"engine.name={engine}") for engine in ("inline", "ray")]
    assert all(result.summary["num_failures"] == 0 for result in results)
    assert bits(results[0]) == bits(results[1])


# Every operator in each base, several in one model: a federation takes seconds for each run that is submitted to it.
TOGETHER = {
    "cvt_tiny32": (
        {
            "wconv": {"layers": "stages.0.embed", "trainable": True},
            "dcls": {"layers": "stages.0.*conv_?.conv", "size": 7, "count": 5, "share": "stage"},
            "separable": {"layers": "stages.1.embed"},
            "e2gc": {"layers": "stages.2.embed", "group_size": 8},
            "sgconv": {"layers": "stages.1.*conv_q.conv"},
            "dolg": {},
        },
        {
            "msa_conv": {"layers": "stages.1.embed"},
            "local_global": {"layers": "stages.2.embed"},
            "glsim": {"num_top": 3},
        },
    ),
    "cnn": (
        {"wconv": {"layers": "conv1"}, "dcls": {"layers": "conv2"}, "dolg": {}},
        {"separable": {"layers": "conv1"}, "e2gc": {"layers": "conv2", "group_size": 8}, "glsim": {"num_top": 3}},
        {"sgconv": {"layers": "conv1"}, "msa_conv": {"layers": "conv2"}},
        {"local_global": {"layers": "conv2"}},
    ),
}


# The first of CvT has two thirds of the operators; test_operators_federated.py runs each in one process.
PLACED = [
    pytest.param(base, each, marks=() if (base, i) == ("cvt_tiny32", 0) else pytest.mark.exhaustive)
    for base in BASES
    for i, each in enumerate(TOGETHER[base])
]


def same_bits(base: str, placed: dict[str, object], engine: str, tmp_path: Path) -> None:
    operators_ = f"model.operators={json.dumps(placed)}"
    options = (*SMALL, f"model.name={base}", operators_, "engine.workers=2", f"run.results={tmp_path}")
    results = [run("digits", *options, f"engine.name={name}") for name in ("inline", engine)]
    assert all(result.summary["num_failures"] == 0 for result in results)
    assert bits(results[0]) == bits(results[1])


@pytest.mark.parametrize(("base", "placed"), PLACED)
@pytest.mark.usefixtures("cluster")
def test_two_ray_workers_give_the_same_bits(base: str, placed: dict[str, object], tmp_path: Path) -> None:
    same_bits(base, placed, "ray", tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("base", "placed"), PLACED)
@pytest.mark.usefixtures("federation")
def test_a_federation_gives_the_same_bits(base: str, placed: dict[str, object], tmp_path: Path) -> None:
    same_bits(base, placed, "grpc", tmp_path)


@pytest.mark.parametrize("base", BASES)
def test_together_they_are_all(base: str) -> None:
    assert {name for each in TOGETHER[base] for name in each} == set(operators.names())

"""Every operator in CvT and in the CNN: a federated round on each engine gives the same bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models import operators
from simulations import run
from tests.helpers import bits
from tests.test_operators_federated import ALL, BASES, SMALL, overrides

# Ray and processes that outlive the call that started them leave open files to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    folder = tmp_path_factory.mktemp("inline")
    return {pair: bits(run("digits", *overrides(*pair), f"run.results={folder}")) for pair in ALL}


@pytest.mark.parametrize(("base", "operator"), ALL)
@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_same_bits(base: str, operator: str, inline, tmp_path: Path) -> None:
    engine = ("engine.name=ray", "engine.workers=2", f"run.results={tmp_path}")
    result = run("digits", *overrides(base, operator), *engine)
    assert result.summary["num_failures"] == 0
    assert bits(result) == inline[base, operator]


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


@pytest.mark.parametrize(("base", "placed"), [(base, each) for base in BASES for each in TOGETHER[base]])
@pytest.mark.usefixtures("federation")
def test_a_federation_gives_the_same_bits(base: str, placed: dict[str, object], tmp_path: Path) -> None:
    options = (*SMALL, f"model.name={base}", f"model.operators={json.dumps(placed)}", f"run.results={tmp_path}")
    results = [run("digits", *options, f"engine.name={engine}") for engine in ("inline", "grpc")]
    assert all(result.summary["num_failures"] == 0 for result in results)
    assert bits(results[0]) == bits(results[1])


@pytest.mark.parametrize("base", BASES)
def test_together_they_are_all(base: str) -> None:
    assert {name for each in TOGETHER[base] for name in each} == set(operators.names())

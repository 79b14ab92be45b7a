"""The bits of a round are those that were recorded: a change of them is deliberate, and stands in CHANGELOG.md.

`recorded_bits.json` has a hash for each strategy under each arithmetic that it was recorded on: the kernels' bits
(core/kernels.py), PyTorch's version and the processor. Elsewhere the test skips. To record what this process gives:
`pytest tests/end_to_end/test_recorded_bits.py --record-bits`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.end_to_end.test_engines import SMALL, STRATEGIES
from tests.helpers import bits
from umbel import run
from umbel.core.files import read_json, write_json
from umbel.core.kernels import kernels
from umbel.server.results import processor

RECORDED = Path(__file__).with_name("recorded_bits.json")


def here() -> str:
    """The arithmetic of this process in a line."""
    rounding = kernels()
    return f"{processor()} | torch {torch.__version__} | {rounding['aten']} | {rounding['bits']}"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_bits_are_those_recorded(strategy: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    arithmetic = here()
    if strategy not in recorded.get(arithmetic, {}) and not request.config.getoption("--record-bits"):
        pytest.skip(f"no bits of {strategy} were recorded for: {arithmetic}")
    digest = bits(run("digits", *SMALL, *STRATEGIES[strategy], f"run.results={tmp_path}"))
    if request.config.getoption("--record-bits"):
        write_json(RECORDED, {**read_json(RECORDED), arithmetic: {**recorded.get(arithmetic, {}), strategy: digest}})
    else:
        assert digest == recorded[arithmetic][strategy]

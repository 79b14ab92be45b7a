"""`umbel data`: its picture, its numbers, and what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.simulations.commands.command_line import umbel
from umbel.simulations.commands.data import text_map
from umbel.simulations.commands.data_view import statistics


def test_data_show_writes_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    result = umbel("data", "show", "digits", "data.num_clients=4", "--output", picture)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "divergence" in result.stderr
    facts = json.loads(umbel("data", "show", "digits", "--json", "--output", picture).stdout)
    assert facts["num_clients"] == 10
    assert facts["num_examples"] == sum(map(sum, facts["counts"]))


def test_statistics_of_a_partition() -> None:
    import numpy as np

    apart = statistics(np.array([[4, 0], [0, 4]]))
    # Each client against the even mix: H(3/4, 1/4) - (0 + 1) / 2 bits.
    assert apart["divergence_mean"] == pytest.approx(0.8112781 - 0.5)
    assert apart["classes_per_client"] == {"min": 1, "median": 1.0, "max": 1}
    same = statistics(np.array([[2, 2], [6, 6]]))
    assert same["divergence_max"] == 0
    assert same["examples_per_client"] == {"min": 4, "median": 8.0, "max": 12}
    assert text_map(np.array([[4, 0], [1, 4]]), ("a", "b"))[1:] == ["       0  ██    4", "       1  ▒▒██  5"]


def test_data_fetch_says_what_is_there() -> None:
    result = umbel("data", "fetch", "digits")
    assert result.exit_code == 0, result.output
    assert "1,438 training and 359 test examples" in result.stdout
    assert "licence" in result.stdout
    assert umbel("data", "fetch", "digitz").exit_code == 2

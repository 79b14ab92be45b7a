"""What the clients of a process share is put back after each, and who changed it is known."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.end_to_end.faults.clients.shared import SHARED
from umbel.client.shared import Shared, gradients_on

CPU = torch.device("cpu")
ABOUT_DATA = ("payload", "its ")


@pytest.mark.parametrize("kind", [kind for kind in SHARED if not kind.startswith(ABOUT_DATA)])
def test_what_is_changed_is_named_and_put_back(kind: str) -> None:
    before = torch.get_rng_state(), np.random.get_state(), dict(os.environ), list(sys.path)  # noqa: NPY002
    with gradients_on():
        shared = Shared(CPU)
        assert shared.put_back() == []
        SHARED[kind](None, None, lambda: None)  # type: ignore[arg-type, return-value]
        names = shared.put_back()
    assert len(names) == (2 if kind == "inference" else 1)  # which keeps no gradients either
    assert not any("cannot be put back" in name for name in names)
    assert Shared(CPU).put_back() == [] and shared.put_back() == []
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(np.array_equal(now, then) for now, then in zip(np.random.get_state(), before[1], strict=True))  # noqa: NPY002
    assert (dict(os.environ), sys.path) == before[2:]
    assert torch.ones(2, requires_grad=True).sum().requires_grad and not torch.is_inference_mode_enabled()


def test_all_that_was_changed_is_named() -> None:
    shared = Shared(CPU)
    torch.set_default_dtype(torch.float64)
    os.environ["UMBEL_BAD"] = "1"
    assert shared.put_back() == ["torch's default dtype", "the environment"]
    assert torch.get_default_dtype() == torch.float32 and "UMBEL_BAD" not in os.environ


def test_nobody_is_blamed_for_what_a_module_does_when_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import os, warnings\nos.environ['UMBEL_MODULE'] = '1'\nwarnings.simplefilter('ignore')\n"
    (tmp_path / "sets_a_variable.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(warnings.filters)
    shared = Shared(CPU)
    importlib.import_module("sets_a_variable")
    assert shared.put_back() == []
    assert "UMBEL_MODULE" not in os.environ and warnings.filters == before
    os.environ["UMBEL_MODULE"] = "2"  # by whoever comes next
    assert shared.put_back() == ["the environment"]


def test_what_cannot_be_put_back_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path.cwd()
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shared = Shared(CPU)
    os.chdir(here)
    folder.rmdir()
    (text,) = shared.put_back()
    assert text.startswith("the current folder, which cannot be put back") and "No such file" in text


def test_numpys_generator_goes_on_where_it_was_if_another_was_put_in_its_place() -> None:
    expected = np.random.RandomState(5).rand(3)
    np.random.seed(5)  # noqa: NPY002
    generator, shared = np.random.get_bit_generator(), Shared(CPU)
    np.random.set_bit_generator(np.random.PCG64(1))
    assert len(shared.put_back()) == 1
    assert np.random.get_bit_generator() is generator
    assert np.array_equal(np.random.rand(3), expected)  # noqa: NPY002

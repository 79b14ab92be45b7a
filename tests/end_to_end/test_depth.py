"""From the command line to the gradient: few enough frames that a traceback can be read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.end_to_end.test_engines import SMALL
from tests.places import ROOT
from umbel.simulations.commands.main import main

MOST = 17


def test_frames_from_the_command_line_to_the_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    backward = torch.Tensor.backward

    def watched(self: torch.Tensor, *arguments: object, **options: object) -> None:
        frame, names = sys._getframe(1), []
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] not in (".venv", "tests"):
                names.append(f"{file.relative_to(ROOT)}:{frame.f_code.co_name}")
            frame = frame.f_back
        seen.append(names)
        backward(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    done = CliRunner().invoke(main, ["run", "digits", "--quiet", *SMALL, "run.rounds=1", f"run.results={tmp_path}"])
    assert done.exit_code == 0, done.output
    assert seen and max(map(len, seen)) <= MOST, "\n".join(max(seen, key=len))

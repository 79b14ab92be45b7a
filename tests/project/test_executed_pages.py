"""The pages that say what to do are true: every block of them runs, in the order of the page."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.project.pages import EXECUTED, NOT_EXECUTED, SHELLS, blocks, called
from umbel.simulations.commands.main import main


@pytest.mark.slow  # a dozen small runs
@pytest.mark.parametrize("page", EXECUTED, ids=called)
def test_a_page_in_this_process(page: Path, page_folder: Path) -> None:
    """All but the slow blocks; `umbel` is called as a function, which saves the imports."""
    executed = 0
    for block in blocks(page):
        if block.mark:
            continue
        if block.file:
            (page_folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            (page_folder / "block.py").write_text(block.text, encoding="utf-8")
            runpy.run_path(str(page_folder / "block.py"))
        else:
            assert block.kind in SHELLS
            for line in block.lines:
                words = shlex.split(line, comments=True)
                if words[:2] == ["export", "PYTHONPATH=$PWD"]:
                    continue  # the fixture has done it
                assert words[0] == "umbel"
                done = CliRunner().invoke(main, words[1:])
                assert done.exit_code == 0, f"{page.name}, line {block.line}: {line}\n{done.output}"
        executed += 1
    assert executed > 3


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.processes
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", EXECUTED, ids=called)
def test_the_whole_of_a_page_in_real_shells(page: Path, tmp_path: Path) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"],
        "UMBEL_HOME": str(tmp_path / "federation"),
    }
    work = tmp_path / "work"
    work.mkdir()
    state: list[str] = []  # what one block exports holds for those below it

    def shell(text: str) -> subprocess.CompletedProcess[str]:
        script = ["bash", "-euo", "pipefail", "-c", "\n".join([*state, text])]
        return subprocess.run(
            script, cwd=work, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    try:
        for block in blocks(page):
            if block.mark == NOT_EXECUTED:
                continue
            if block.file:
                (work / block.file).write_text(block.text, encoding="utf-8")
                continue
            text = block.text
            if block.kind == "python":
                (work / "block.py").write_text(text, encoding="utf-8")
                text = "python block.py"
            done = shell(text)
            assert done.returncode == 0, f"{page.name}, line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"
            state += [line for line in text.splitlines() if line.startswith("export ")]
    finally:
        shell("umbel federate down")

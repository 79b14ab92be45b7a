"""The page "Two sites in ten minutes" does what it says: its commands in real shells, word for word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.pages import DOCS, blocks
from umbel.core.files import read_json
from umbel.server import reading

PAGE = DOCS / "federation" / "two-sites.md"


@pytest.mark.exhaustive  # a minute on an idle machine: a server, two nodes and a run, each of which loads torch
@pytest.mark.processes
@pytest.mark.timeout(1800)
def test_the_page_of_two_sites(tmp_path: Path) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"],
    }

    def shell(text: str) -> subprocess.CompletedProcess[str]:
        script = ["bash", "-euo", "pipefail", "-c", text]
        return subprocess.run(
            script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
        )

    printed = []
    try:
        for block in blocks(PAGE):
            done = shell(block.text)
            assert done.returncode == 0, f"line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"
            printed.append(done.stdout)
    finally:
        for folder in ("sites/north", "sites/south", "server"):
            shell(f"umbel federate down fl/{folder}")
    status = next(text for text in printed if "last contact" in text)
    rows = [line.split()[:3] for line in status.splitlines() if line.startswith(("  north ", "  south "))]
    assert rows == [
        ["north", "connected", "0-1"],
        ["south", "connected", "2-3"],
    ]
    run = tmp_path / "results" / "first"
    assert reading.summary(run)["rounds"] == 3
    assert reading.summary(run)["num_failures"] == 0
    assert {entry["site"]: entry["clients"] for entry in read_json(run / "nodes.json")["nodes"]} == {
        "north": "0-1",
        "south": "2-3",
    }
    assert (tmp_path / "east" / "site.yaml").is_file()

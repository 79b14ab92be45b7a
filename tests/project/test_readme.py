"""What the README promises: its commands run, its code is the code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = str(Path(sys.executable).parent)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def environment(folder: Path) -> dict[str, str]:
    path = BIN + os.pathsep + os.environ["PATH"]
    return {**os.environ, "PATH": path, "UMBEL_HOME": str(folder / "federation")}


def shell(command: str, folder: Path) -> str:
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.exhaustive  # a minute: Ray, and a federation of four nodes
@pytest.mark.processes
def test_one_experiment_three_engines_same_bits(tmp_path: Path) -> None:
    (engines,) = [block for block in blocks("bash") if "federate up" in block]
    hashes = []
    try:
        for line in engines.strip().splitlines():
            output = shell(line, tmp_path)
            if "umbel run" in line:
                folder = Path(output.strip().splitlines()[-1])
                hashes.append(json.loads((folder / "summary.json").read_text())["weights_sha256"])
    finally:
        subprocess.run([f"{BIN}/umbel", "federate", "down"], env=environment(tmp_path), check=False)
    assert len(hashes) == 3
    assert len(set(hashes)) == 1


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_other_commands(tmp_path: Path) -> None:
    for block in blocks("bash"):
        if "federate up" in block:
            continue  # the test above
        for line in block.strip().splitlines():
            shell(line, tmp_path)


@pytest.mark.slow
def test_the_python_example(tmp_path: Path) -> None:
    example = blocks("python")[1]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.split()[0]) <= 1


def test_the_strategy_shown_is_the_strategy() -> None:
    source = (ROOT / "strategies" / "fedprox.py").read_text(encoding="utf-8")
    assert textwrap.indent(blocks("python")[0], "    ") in source


def test_make_has_what_is_promised() -> None:
    (console,) = blocks("console")
    for line in console.strip().splitlines():
        target = re.match(r"\$ make (\w+)", line)
        assert target is not None, line
        done = subprocess.run(["make", "-n", target[1]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert {"demo": "umbel compare demo", "test": "python -m pytest"}[target[1]] in done.stdout


@pytest.mark.slow
def test_the_demo_ends_with_its_table(tmp_path: Path) -> None:
    """The demo's own command, shortened to two seeds of two rounds."""
    done = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    (command,) = [line for line in done.stdout.splitlines() if "compare demo" in line]
    command = re.sub(r"\S*/umbel", f"{BIN}/umbel", command).replace("results/demo", str(tmp_path / "demo"))
    command = command.replace("--seeds 8", "--seeds 2")
    shell(f"{command} run.rounds=2 data.max_train=200 data.max_test=60 data.num_clients=4", tmp_path)
    table = (tmp_path / "demo" / "table.md").read_text()
    for strategy in ("fedavg", "fedprox(mu=0.1)", "scaffold", "ggeur(complete=all)"):
        assert re.search(rf"\| {re.escape(strategy)} \| 0\.\d+ ± 0\.\d+ \|", table)
    for picture in ("curves.png", "partition.png", "report.html"):
        assert (tmp_path / "demo" / picture).stat().st_size > 5000


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", README):
        assert (ROOT / (target[0] or target[1])).exists(), target

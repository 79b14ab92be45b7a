"""What Flower ships to the nodes: exactly our packages, and it runs with nothing of the project installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT
from umbel.simulations.engines.federate import flower_environment

PACKAGES = ("umbel", "core", "models", "data", "strategies", "conf", "server", "client")
FLWR = str(Path(sys.executable).parent / "flwr")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy: the files that git knows, as a clone would have them."""
    target = tmp_path_factory.mktemp("clean") / "umbel"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def bundle(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = flower_environment(tmp_path_factory.mktemp("home"))
    subprocess.run([FLWR, "build"], cwd=checkout, env=environment, check=True, capture_output=True)
    (file,) = checkout.glob("*.fab")
    folder = tmp_path_factory.mktemp("bundle")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    file.unlink()
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_file_list_is_our_packages(bundle: Path, checkout: Path) -> None:
    code = {
        str(path.relative_to(checkout))
        for package in PACKAGES
        for path in (checkout / package).rglob("*")
        if path.suffix == ".py"
    }
    experiments = {str(path.relative_to(checkout)) for path in checkout.glob("conf/experiments/*.yaml")}
    expected = code | experiments | {"pyproject.toml", "README.md", "LICENSE", ".info/CONTENT"}
    assert files(bundle) == expected
    assert "data/sets/digits.py" in expected  # a `data/` line in .gitignore would drop the package


def test_both_apps_load_with_nothing_of_the_project_installed(bundle: Path) -> None:
    program = f"""
import sys
root = {str(ROOT)!r}
sys.path = [path for path in sys.path if path.rstrip("/") != root]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
from server.app import app as server
from client.app import app as client
import umbel, umbel.core, umbel.models, umbel.data, umbel.strategies, umbel.conf, umbel.server, umbel.client
for package in (umbel, umbel.core, umbel.models, umbel.data, umbel.strategies, umbel.conf, umbel.server, umbel.client):
    assert package.__file__.startswith({str(bundle)!r}), package.__file__
from umbel.conf.load import load
assert load("digits").name == "digits"
assert "umbel.simulations" not in sys.modules
print(type(server).__name__, type(client).__name__)
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=bundle, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ServerApp", "ClientApp"]


@pytest.fixture
def flower_home(tmp_path: Path) -> Iterator[dict[str, str]]:
    environment = flower_environment(tmp_path / "home")
    yield environment
    # `flwr run .` leaves a local SuperLink behind.
    home = str(tmp_path)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if home.encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), 15)
        except (OSError, ValueError):
            continue


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="finds the SuperLink that Flower leaves behind through /proc")
def test_flower_runs_it_in_its_own_simulation(checkout: Path, tmp_path: Path, flower_home: dict[str, str]) -> None:
    """`flwr run .` with Flower's local simulation gives the bits of our own inline engine."""
    from umbel import run

    options = ["run.rounds=2", "data.max_train=300", "model.name=cnn", "data.num_clients=5"]
    overrides = " ".join([*options, f"run.results={tmp_path / 'flower'}"])
    done = subprocess.run(
        [
            *(FLWR, "run", ".", "--stream", "--federation-config", "num-supernodes=2"),
            *("--run-config", f'experiment="digits" overrides="{overrides}"'),
        ],
        cwd=checkout,
        env=flower_home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    summaries = list((tmp_path / "flower").glob("*/summary.json"))
    assert summaries, done.stdout[-3000:] + done.stderr[-3000:]
    import json

    ours = run("digits", *options, f"run.results={tmp_path / 'ours'}").summary["weights_sha256"]
    assert json.loads(summaries[0].read_text())["weights_sha256"] == ours

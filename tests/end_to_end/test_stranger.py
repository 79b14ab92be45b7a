"""A user's own project, with packages and modules of every name that ours have, beside umbel: nothing meets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import umbel
from tests.end_to_end.test_engines import SMALL
from tests.places import ROOT

NAMES = ("core", "models", "data", "strategies", "conf", "server", "client", "simulations")
WRONG = "raise ImportError('a module of the user was imported in place of one of ours')\n"
TRAIN = """
import json, sys
import data, mine  # the user's own
import umbel

if __name__ == "__main__":
    result = umbel.run("digits", *sys.argv[1:])
    print(json.dumps([data.OWN, mine.OWN, result.summary["weights_sha256"]]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with packages of our names, modules of our names, and a program that uses its own `data`."""
    folder = tmp_path / "project"
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(WRONG)
        (folder / name / "app.py").write_text(WRONG)
    (folder / "data" / "__init__.py").write_text("OWN = 'data'\n")
    (folder / "mine.py").write_text("OWN = 'mine'\n")
    (folder / "train.py").write_text(TRAIN)
    return folder


def call(project: Path, command: list[str], path: str | None = ".") -> str:
    """Run a command in the project, as somebody would who puts the project on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def options(*more: str) -> list[str]:
    return [*SMALL, "run.rounds=1", "run.results=results", *more]


def weights(project: Path, output: str) -> str:
    return str(json.loads((project / output.split()[-1] / "summary.json").read_text())["weights_sha256"])


@pytest.mark.slow
def test_inline_from_python_and_from_the_command_line(project: Path) -> None:
    own, mine, bits = json.loads(call(project, [sys.executable, "train.py", *options()]).splitlines()[-1])
    assert (own, mine) == ("data", "mine")
    shell = call(project, [str(Path(sys.executable).parent / "umbel"), "run", "digits", "--quiet", *options()])
    assert weights(project, shell) == bits


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(("ray", "engine.workers=1"), id="ray"),
        pytest.param(("grpc", "engine.nodes=1"), id="grpc", marks=pytest.mark.exhaustive),  # a federation of its own
    ],
)
def test_workers_and_nodes(project: Path, engine: tuple[str, str]) -> None:
    output = call(project, [sys.executable, "train.py", *options(f"engine.name={engine[0]}", engine[1])])
    assert len(json.loads(output.splitlines()[-1])[2]) == 64


def test_modules_of_the_user_come_by_the_name_that_the_experiment_gives(project: Path) -> None:
    (project / "my_strategy.py").write_text("from umbel.strategies.fedavg import FedAvg\n\nclass Mine(FedAvg): ...\n")
    program = "import umbel; print(umbel.load('digits', ['strategy.name=my_strategy:Mine']).strategy.name)"
    assert call(project, [sys.executable, "-c", program]).strip() == "my_strategy:Mine"


@pytest.mark.exhaustive  # builds the wheel and runs it on every engine: a minute and a half
@pytest.mark.processes
def test_a_wheel_in_an_environment_of_its_own(project: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels)]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = wheels.glob("umbel-*.whl")
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    # What umbel depends on comes from this environment; a folder that a .pth names has its own .pth files ignored, so
    # the checkout is not on the path.
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(str(Path(pytest.__file__).parents[1]) + "\n")
    for command in Path(sys.executable).parent.glob("fl*w*r*"):  # Flower's commands, on this interpreter
        copy = home / "bin" / command.name
        copy.write_text(f"#!{python}\n" + command.read_text().split("\n", 1)[1])
        copy.chmod(0o755)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True)
    place = call(project, [str(python), "-c", "import umbel.core; print(umbel.core.__file__)"], path=None)
    assert Path(place.strip()).is_relative_to(home)
    bits = set()
    for engine in ("inline", "ray", "grpc"):
        output = call(project, [str(python), "train.py", *options(f"engine.name={engine}")])
        bits.add(json.loads(output.splitlines()[-1])[2])
    shell = call(project, [str(home / "bin" / "umbel"), "run", "digits", "--quiet", *options()])
    assert bits == {weights(project, shell)}
    call(project, [str(home / "bin" / "umbel"), "federate", "bundle", "app"])
    flwr = [str(home / "bin" / "flwr"), "build", "--app", "app/umbel"]
    call(project, flwr)
    assert list(project.rglob("*.fab"))


def test_the_public_names_are_there_and_nothing_else_is_promised() -> None:
    assert set(umbel.__all__) <= set(dir(umbel))
    assert all(getattr(umbel, name) is not None for name in umbel.__all__)
    with pytest.raises(AttributeError, match=r"module 'umbel' has no attribute .rnu."):
        _ = umbel.rnu

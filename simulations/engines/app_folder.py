"""The folder that Flower builds a bundle from, out of a checkout or out of an installed wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import umbel
from umbel.conf.errors import ExperimentError
from umbel.server.errors import RunStoppedError

PACKAGES = ("core", "models", "data", "strategies", "conf", "server", "client")  # what nodes run
FILES = ("pyproject.toml", "README.md", "LICENSE")


def write_app(target: Path) -> Path:
    """Write what the bundle is built from, in the layout of a checkout, into a folder whose name Flower accepts.

    A checkout may be in a folder with an underscore in its name, which Flower refuses; in a wheel the packages lie
    inside `umbel`, and the project's files beside them in `umbel/bundle`.

    Args:
        target: A folder; `umbel` is made in it.

    Returns:
        The folder to give to `flwr build` or `flwr run`.

    Raises:
        ExperimentError: The target has such a folder already.
        RunStoppedError: The project's files are not there.
    """
    packages = Path(umbel.__path__[0])
    project = next((each for each in (packages / "bundle", packages) if (each / "pyproject.toml").is_file()), None)
    if project is None:
        raise RunStoppedError(
            f"{packages} has no pyproject.toml: the gRPC engine ships the project's source to the nodes. Install umbel "
            "from its wheel, or from a checkout (pip install -e .)."
        )
    app = target / "umbel"
    if app.exists():
        raise ExperimentError(f"{app} is there already; remove it, or name another folder.")
    (app / "umbel").mkdir(parents=True)
    for file in FILES:
        shutil.copy2(project / file, app / file)
    for file in ("__init__.py", "py.typed"):
        shutil.copy2(Path(umbel.__file__).parent / file, app / "umbel" / file)
    for package in PACKAGES:
        shutil.copytree(packages / package, app / package, ignore=shutil.ignore_patterns("__pycache__"))
    return app

"""An environment of its own for pfl-research, made once and kept in the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

VERSION = "0.6.0"
STAMP = "versions.json"
_CHECK = (
    "import json, platform; from importlib.metadata import version; "
    "import pfl.aggregate.simulate, pfl.algorithm.federated_averaging, pfl.model.pytorch; "
    "print(json.dumps({n: version(n) for n in ('pfl', 'torch', 'numpy')} | {'python': platform.python_version()}))"
)


class NoEnvironmentError(RuntimeError):
    """pfl-research cannot be had here; the message is the reason."""


def place() -> Path:
    """Return the folder of the environment."""
    cache = Path(os.environ.get("UMBEL_CACHE", "~/.cache/umbel")).expanduser()
    return cache / "benchmarks" / f"pfl-{VERSION}-python{sys.version_info.major}.{sys.version_info.minor}"


def python() -> Path:
    """Return the environment's Python; the environment is made where there is none.

    Raises:
        NoEnvironmentError: It cannot be made.
    """
    folder = place()
    if not (folder / STAMP).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder)
    return folder / "bin" / "python"


def versions() -> dict[str, str]:
    """Return what is installed in the environment."""
    return dict(json.loads((place() / STAMP).read_text(encoding="utf-8")))


def _make(folder: Path) -> None:
    print(f"pfl-research {VERSION}: making {folder}", file=sys.stderr)
    torch = metadata.version("torch")
    try:
        venv.create(folder, symlinks=True, with_pip=True)
        # The same torch as umbel's, build and all; what an index has may lack the build.
        if failure := _install(folder, f"torch=={torch}"):
            print(f"torch=={torch}: {failure}; trying without the build", file=sys.stderr)
            if failure := _install(folder, f"torch=={torch.partition('+')[0]}"):
                raise NoEnvironmentError(f"pip cannot install pfl {VERSION} here: {failure}")
        done = subprocess.run([folder / "bin" / "python", "-c", _CHECK], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoEnvironmentError(f"pfl {VERSION} is installed and cannot be imported: {_last_line(done.stderr)}")
        (folder / STAMP).write_text(done.stdout, encoding="utf-8")
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError | subprocess.SubprocessError):
            raise NoEnvironmentError(f"{folder} cannot be made: {error}") from error
        raise


def _install(folder: Path, torch: str) -> str:
    """Install what the contender needs; return why that is not possible, or ""."""
    wanted = [f"pfl=={VERSION}", torch, f"numpy=={metadata.version('numpy')}", "annotated-types"]
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return _last_line(done.stderr) if done.returncode else ""


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it gave no reason"

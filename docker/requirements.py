"""Print a project's dependencies, one a line: the images take their list out of pyproject.toml and keep none.

python requirements.py pyproject.toml          all of them
python requirements.py pyproject.toml torch    the line of one package
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, only: str = "") -> list[str]:
    """Return the dependencies of the project.

    Args:
        pyproject: The file.
        only: Name of the one package that is wanted; empty for all.

    Raises:
        LookupError: The project does not depend on that package.
    """
    lines: list[str] = tomllib.loads(pyproject.read_text("utf-8"))["project"]["dependencies"]
    if only:
        lines = [line for line in lines if re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] == only]
        if not lines:
            raise LookupError(f"{pyproject} has no dependency called {only!r} under [project].")
    return lines


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), *sys.argv[2:3])))

"""Check who imports whom, by import-linter; its contracts are in pyproject.toml.

Its graph takes packages of a namespace or top-level ones, and no `__path__` that a package sets itself; so `umbel` is
shown to it as the namespace that the link `.typing/umbel` makes of the project.
"""

from __future__ import annotations

import os
import sys

from importlinter.cli import lint_imports_command

from tests.places import ROOT

if __name__ == "__main__":
    others = [path for path in sys.path if path not in ("", str(ROOT), str(ROOT / "tests"))]
    sys.path[:] = [str(ROOT / ".typing"), *others]
    os.chdir(ROOT / ".typing")  # import-linter puts its folder on the path
    lint_imports_command(["--config", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".import_linter_cache")])

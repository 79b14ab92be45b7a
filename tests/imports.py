"""Check who imports whom, by import-linter; its contracts are in pyproject.toml.

Its graph takes packages of a namespace or top-level ones, and no `__path__` that a package sets itself; so `umbel` is
shown to it as the namespace that the link `.typing/umbel` makes of the project.
"""

from __future__ import annotations

import ast
import os
import sys

from importlinter.cli import lint_imports_command

from tests.places import ROOT

# The public ones are flwr.app, flwr.clientapp, flwr.serverapp.
PRIVATE = ("cli", "client", "common", "proto", "server", "simulation", "supercore", "superlink", "supernode")
DOORS = (
    *("client/node/flower_", "client/node/bundle.py", "server/flower/internals.py", "server/flower/pulling.py"),
    *("simulations/engines/flower_internals.py", "simulations/sites/flower_door.py"),
)
PACKAGES = ("umbel", "core", "models", "data", "strategies", "conf", "server", "client", "simulations")


def beside_the_doors() -> list[str]:
    """Return the imports of Flower's private modules that stand elsewhere, which import-linter cannot tell apart."""
    imports = []
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        name = path.relative_to(ROOT).as_posix()
        for node in [] if name.startswith(DOORS) else ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            private = [module for module in modules if module.split(".")[0] == "flwr" and module.split(".")[1:2] != []]
            imports += [f"{name}:{node.lineno}: {module}" for module in private if module.split(".")[1] in PRIVATE]
    return imports


if __name__ == "__main__":
    others = [path for path in sys.path if path not in ("", str(ROOT), str(ROOT / "tests"))]
    sys.path[:] = [str(ROOT / ".typing"), *others]
    os.chdir(ROOT / ".typing")  # import-linter puts its folder on the path
    if imports := beside_the_doors():
        sys.exit("Flower's own modules, which it may change any day, belong behind a door:\n" + "\n".join(imports))
    lint_imports_command([str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".import_linter_cache")])

"""How many small faults in the mathematics the tests notice: `make mutants`.

Cosmic Ray changes one operator, number, comparison or condition of a module at a time. Here a fixed sample of
those mutants is drawn for each module of `SUITES`; each is tried, in a copy of the tree, with the tests that guard it.
A mutant that differs in type annotations alone is none. The table says how many were noticed; survivors are printed.
A survivor that changes nothing that can be seen (a bound that is never met) is no fault of the tests.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
_GGEUR = ("tests/strategies/ggeur/test_*.py",)
_FOT = ("tests/strategies/fot/test_*.py",)
_FEDLOGE = ("tests/strategies/fedloge/test_*.py", "tests/core/metrics/test_collapse.py")
_CREAMFL = (
    "tests/strategies/creamfl/test_*.py",
    "tests/core/metrics/test_matching.py",
    "tests/simulations/report/test_measures.py",
)
_FOLDS = tuple(f"tests/core/test_{name}.py" for name in ("folds", "moments", "collecting", "evaluation_counts"))
SUITES: dict[str, tuple[str, ...]] = {
    "core/folds.py": (*_FOLDS, "tests/strategies/test_quadratics.py"),
    "core/fold_tree.py": ("tests/core/test_fold_tree.py", *_FOLDS),
    "core/records.py": ("tests/core/test_records.py", *_FOLDS, "tests/core/wire/test_messages.py"),
    "core/training/steps.py": ("tests/core/training/test_compiled.py", "tests/core/training/test_together.py"),
    "core/training/loop.py": (
        "tests/core/test_training.py",
        "tests/strategies/test_local.py",
        "tests/strategies/test_quadratics.py",
    ),
    "core/virtual/devices.py": ("tests/core/virtual/test_devices.py",),
    "core/virtual/turns.py": ("tests/core/virtual/test_turns.py",),
    "core/moments.py": (*_FOLDS, *_GGEUR),
    "core/metrics/collapse.py": _FEDLOGE,
    "core/metrics/matching.py": _CREAMFL,
    "strategies/feddyn.py": ("tests/strategies/test_feddyn.py",),
    "strategies/fednova.py": ("tests/strategies/test_fednova.py",),
    "strategies/moon.py": ("tests/strategies/test_moon.py",),
    "strategies/ditto.py": ("tests/strategies/test_ditto.py",),
    "strategies/pfedme.py": ("tests/strategies/test_pfedme.py",),
    "strategies/apfl.py": ("tests/strategies/test_apfl.py",),
    "strategies/long_tail/fedrod.py": ("tests/strategies/long_tail/test_fedrod.py",),
    "strategies/long_tail/fedetf.py": ("tests/strategies/long_tail/test_fedetf.py",),
    "strategies/long_tail/creff.py": ("tests/strategies/long_tail/test_creff.py",),
    "strategies/fedmd.py": ("tests/strategies/test_fedmd.py",),
    "strategies/fedgems.py": ("tests/strategies/test_fedgems.py",),
    "strategies/fedet.py": ("tests/strategies/test_fedet.py",),
    "strategies/parties.py": ("tests/strategies/test_fedmd.py", "tests/strategies/test_fedgems.py"),
    "strategies/fedntd.py": ("tests/strategies/test_fedntd.py",),
    "strategies/continual/ewc.py": ("tests/strategies/continual/test_ewc.py",),
    "strategies/continual/lwf.py": ("tests/strategies/continual/test_lwf.py",),
    "strategies/continual/replay.py": ("tests/strategies/continual/test_replay.py",),
    "strategies/fedproto.py": ("tests/strategies/test_fedproto.py",),
    "strategies/fedrep.py": ("tests/strategies/test_own_heads.py",),
    "strategies/fedbabu.py": ("tests/strategies/test_own_heads.py",),
    "strategies/ccvr.py": ("tests/strategies/test_ccvr.py",),
    "strategies/ggeur/pooling.py": _GGEUR,
    "strategies/ggeur/shapes.py": _GGEUR,
    "strategies/ggeur/completion.py": _GGEUR,
    "strategies/fot/subspace.py": _FOT,
    "strategies/fot/method.py": _FOT,
    "strategies/fedloge/method.py": _FEDLOGE,
    "strategies/creamfl/method.py": _CREAMFL,
    "strategies/fedbuff.py": ("tests/strategies/test_fedbuff.py",),
}
_SECONDS = 300.0  # a mutant that takes longer runs for ever: noticed


@dataclass(frozen=True)
class Mutant:
    """One change of one module: which operator of Cosmic Ray, at which of its places."""

    module: str
    operator: str
    occurrence: int

    @property
    def rank(self) -> str:
        """The sample is those of least rank; it does not change when other modules do."""
        return hashlib.sha256(f"{self.module} {self.operator} {self.occurrence}".encode()).hexdigest()

    def code(self) -> str | None:
        """Return the module's text with the change, or None if it changes nothing that runs."""
        source = (ROOT / self.module).read_text(encoding="utf-8")
        changed = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        try:
            return None if changed is None or meaning(changed) == meaning(source) else changed
        except SyntaxError:
            return None

    def difference(self, changed: str) -> str:
        """Write the change as a diff without context."""
        source = (ROOT / self.module).read_text(encoding="utf-8")
        lines = difflib.unified_diff(
            source.splitlines(), changed.splitlines(), self.module, self.operator, "", "", 0, ""
        )
        return "\n".join(list(lines)[2:])


class _Bare(ast.NodeTransformer):
    """Takes annotations and docstrings away, which are never evaluated."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(value=None)
        self.generic_visit(node)
        return node


def meaning(source: str) -> str:
    """Write a module's syntax tree without annotations."""
    return ast.dump(_Bare().visit(ast.parse(source)))


def mutants(module: str) -> Iterator[Mutant]:
    """All changes of a module."""
    nodes = list(ast_nodes(get_ast((ROOT / module).read_text(encoding="utf-8"))))
    for name in operator_names():
        operator = get_operator(name)
        if not operator.arguments():
            places = sum(1 for node in nodes for _ in operator().mutation_positions(node))
            yield from (Mutant(module, name, occurrence) for occurrence in range(places))


def sample(module: str, number: int) -> list[Mutant]:
    """Draw a number of a module's mutants, the same every time."""
    chosen = []
    for mutant in sorted(mutants(module), key=lambda each: each.rank):
        if len(chosen) < number and mutant.code() is not None:
            chosen.append(mutant)
    return chosen


def copy(target: Path) -> Path:
    """Copy what git knows and what it would add."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def noticed(folder: Path, module: str, code: str, select: str) -> bool:
    """Try a mutant in a copy of the tree: whether a test of its suite fails."""
    path = folder / module
    before = path.read_text(encoding="utf-8")
    path.write_text(code, encoding="utf-8")
    files = sorted(str(file.relative_to(folder)) for pattern in SUITES[module] for file in folder.glob(pattern))
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-m", select, "-n", "0"]
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", *options, *files],
            cwd=folder, env=_environment(folder), capture_output=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(before, encoding="utf-8")
    return done.returncode != 0


def _environment(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(folder)}


def main() -> None:
    """Try the sample and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=12, help="mutants a module (12)")
    parser.add_argument("--workers", type=int, default=2, help="how many run at once (2)")
    parser.add_argument("--select", default="not slow", help="pytest's -m (the quick tests)")
    parser.add_argument("--modules", nargs="*", default=list(SUITES), help="of " + ", ".join(SUITES))
    parser.add_argument("--json", type=Path, help="write each mutant's fate there")
    given = parser.parse_args()
    drawn = [mutant for module in given.modules for mutant in sample(module, given.number)]
    fates: dict[Mutant, bool] = {}
    with tempfile.TemporaryDirectory(prefix="umbel-mutants-") as temporary:
        folders: queue.Queue[Path] = queue.Queue()
        for number in range(given.workers):
            folders.put(copy(Path(temporary) / str(number)))

        def attempt(mutant: Mutant) -> None:
            folder = folders.get()
            try:
                code = mutant.code()
                assert code is not None
                fates[mutant] = noticed(folder, mutant.module, code, given.select)
                if not fates[mutant]:
                    print(f"survived: {mutant.module}\n{mutant.difference(code)}\n", flush=True)
            finally:
                folders.put(folder)

        for module in given.modules:  # a suite that is red would notice everything
            folder = folders.get()
            if noticed(folder, module, (ROOT / module).read_text(encoding="utf-8"), given.select):
                parser.error(f"the tests of {module} fail as they are")
            folders.put(folder)
        with ThreadPoolExecutor(given.workers) as pool:
            list(pool.map(attempt, drawn))
    if given.json:
        given.json.write_text(json.dumps([asdict(m) | {"noticed": fates[m]} for m in drawn], indent=1) + "\n")
    print("| module | mutants | noticed |\n|---|---:|---:|")
    for module in given.modules:
        outcomes = [fates[mutant] for mutant in drawn if mutant.module == module]
        print(f"| `{module}` | {len(outcomes)} | {sum(outcomes)} |")
    print(f"| all | {len(drawn)} | {sum(fates.values())} ({sum(fates.values()) / len(drawn):.1%}) |")


if __name__ == "__main__":
    main()

"""The time that tests take: `record` it, or `check` a run against the budget and say which files grew.

Usage: python tests/budget.py record REPORT.xml          (of `make test-all`, whose tests are all)
       python tests/budget.py check REPORT.xml SECONDS   (exit status 1 above so many seconds of wall time)

REPORT.xml is what `pytest --junitxml` writes. The record, `durations.json`, has the mean seconds a test of each
function takes: it decides what is quick (conftest.py), which tests begin first, and which files have grown.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from xml.etree import ElementTree

RECORDED = Path(__file__).with_name("durations.json")
_LEAST = 0.05  # what takes less is not recorded
_SHOWN = 15


def read(report: Path) -> tuple[float, dict[str, dict[str, list[float]]]]:
    """Return the wall seconds of a run, and the seconds of each test by file and function."""
    root = ElementTree.parse(report).getroot()
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in root.iter("testcase"):
        file = next(part for part in case.get("classname", "").split(".") if part.startswith("test_")) + ".py"
        function = case.get("name", "").partition("[")[0].partition("@")[0]
        seconds[file][function].append(float(case.get("time", 0)))
    return sum(float(suite.get("time", 0)) for suite in root.iter("testsuite")), seconds


def record(report: Path) -> None:
    """Write the mean seconds of each function's tests."""
    _, seconds = read(report)
    means = {
        file: {name: round(fmean(each), 2) for name, each in sorted(functions.items()) if fmean(each) >= _LEAST}
        for file, functions in sorted(seconds.items())
    }
    RECORDED.write_text(json.dumps({file: each for file, each in means.items() if each}, indent=1) + "\n")


def grown(seconds: dict[str, dict[str, list[float]]], recorded: dict[str, dict[str, float]]) -> list[tuple[float, str]]:
    """Return files by how many seconds more than recorded their tests took, largest first."""
    more = []
    for file, functions in seconds.items():
        now = sum(sum(each) for each in functions.values())
        before = sum(len(each) * recorded.get(file, {}).get(name, 0.0) for name, each in functions.items())
        more.append((now - before, file))
    return sorted(more, reverse=True)


def check(report: Path, limit: float) -> int:
    """Print the total and, above the limit, what grew; return the exit status."""
    wall, seconds = read(report)
    number = sum(len(each) for functions in seconds.values() for each in functions.values())
    print(f"{number} tests took {wall:.0f} s of the {limit:.0f} s that they may.")
    if wall <= limit:
        return 0
    rows = [
        f"{file} {more:+.0f} s" for more, file in grown(seconds, json.loads(RECORDED.read_text()))[:_SHOWN] if more > 1
    ]
    print("Over the budget. Beside the record these files grew: " + (", ".join(rows) or "none; the machine is slower"))
    print("Mark what is a product or slow with @pytest.mark.exhaustive (make test-all), or make it smaller.")
    return 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", report]:
            record(Path(report))
        case ["check", report, limit]:
            sys.exit(check(Path(report), float(limit)))
        case _:
            sys.exit(__doc__)

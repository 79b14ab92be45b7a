"""Writes a comparison's tables, what was tuned, and every run with its hash, below what a person said of it.

    umbel tune domains_emoji -o tuning
    umbel compare domains_emoji --tuned tuning -o compared
    python benchmarks/comparison_page.py compared tuning benchmarks/results/domains_emoji.md

What stands above `## Tables` in the page stays; all below is made anew.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from umbel.core.files import read_json
from umbel.simulations.compare.comparison import Comparison, read_comparison

HERE = "## Tables\n"


def runs(comparison: Comparison, measure: str) -> list[str]:
    """Return a table of all runs: their value of a measure, a fraction or a sum of such, and how their hash begins."""
    lines = [
        f"| strategy | seed | {measure.replace('_', ', ')} (%) | weights_sha256 begins with |",
        "|---|---:|---:|---|",
    ]
    for member in sorted(comparison.members, key=lambda each: each.seed):
        value, sha = 100 * member.measures[measure], member.summary["weights_sha256"]
        lines.append(f"| {member.item.label} | {member.seed} | {value:.2f} | `{sha[:16]}` |")
    return lines


def where(comparison: Comparison) -> str:
    """Return with what, and on what, all runs were carried out."""
    found = [read_json(member.path / "env.json") for member in comparison.members]
    what = {
        f"Commit {(env['git_commit'] or 'unknown')[:7]} of umbel, Python {env['python'].split()[0]}, torch "
        f"{env['versions']['torch']}, {env['processor']}."
        for env in found
    }
    return " ".join(sorted(what))


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compared", type=Path, help="folder of umbel compare")
    parser.add_argument("tuning", type=Path, help="folder of umbel tune")
    parser.add_argument("page", type=Path)
    asked = parser.parse_args()
    comparison = read_comparison(asked.compared)
    measure = comparison.main
    if measure is None:
        parser.error(f"{asked.compared} has no measure that all runs have.")
    said = asked.page.read_text(encoding="utf-8") if asked.page.is_file() else f"# {comparison.experiment}\n\n"
    parts = [
        said.partition(HERE)[0] + HERE,
        (asked.compared / "table.md").read_text(encoding="utf-8").strip(),
        "\n## What was tuned\n",
        (asked.tuning / "tuning.md").read_text(encoding="utf-8").strip(),
        "\n## Runs\n",
        where(comparison) + "\n",
        *runs(comparison, measure),
    ]
    asked.page.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The main table and the ablation of a method's paper by one command: tuned alike, compared over paired seeds, written.

    python benchmarks/tables.py ggeur|fot|fedloge|creamfl|parties [--main-only] [--results results/tables]
        [--seeds N] [--at-once N|auto] [--page FILE] [KEY=VALUE ...]
    python benchmarks/tables.py ggeur --original cifar10_paper [--seeds N] ...

`umbel tune` and `umbel compare` run the method's experiment beside the baselines that its paper compares with, on data
that anybody can have, and then the study of its parts (`benchmarks/ggeur.py parts` and so on). `--original` takes the
paper's own data and network, where the data are there; all have the paper's values then, nothing is tuned, and nothing
taken apart. What has ended is not run again: after a stop, the same command goes on.

The page is `benchmarks/results/<experiment>.md` unless another is named. What stands above `## Tables` was written by a
person and stays; all below is made anew: the tables, what was tuned, the ablation, and every run with its hash.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from umbel.core.files import read_json
from umbel.simulations.compare.comparison import Comparison, read_comparison
from umbel.simulations.report.measures import COLUMNS

HERE = "## Tables\n"
BENCHMARKS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Method:
    """What gives the tables of a method.

    Attributes:
        experiment: Compares it; its sections `compare` and `tune` name baselines, seeds, budget and what is searched.
        ablation: Script and study of its parts; empty where the comparison has them.
        originals: Its paper's experiments on its paper's data.
    """

    experiment: str
    ablation: tuple[str, ...] = ()
    originals: Sequence[str] = ()


METHODS = {
    "ggeur": Method(
        "domains_emoji",
        ("ggeur.py", "parts"),
        [f"ggeur_{data}_paper" for data in ("cifar10", "cifar100", "tiny_imagenet", "digits", "office_home")],
    ),
    "fot": Method("sequence_fashion", ("fot.py", "ablations"), ["fot_pmnist_paper", "fot_cifar100_paper"]),
    "fedloge": Method(
        "longtail_fashion", ("fedloge.py", "fashion"), ["fedloge_cifar10_paper", "fedloge_cifar100_paper"]
    ),
    "creamfl": Method("ensembles_emoji", ("creamfl.py", "emoji"), ["creamfl_coco_paper"]),
    "parties": Method("parties_fashion"),
}


def runs(comparison: Comparison, measure: str) -> list[str]:
    """Return a table of all runs: their value of a measure, fractions in per cent, and how their hash begins."""
    whole = COLUMNS[measure].unit.whole
    scale, sign = (100, " (%)") if whole == 1 else (1, "")
    lines = [
        f"| strategy | seed | {measure.replace('_', ', ')}{sign} | weights_sha256 begins with |",
        "|---|---:|---:|---|",
    ]
    for member in sorted(comparison.members, key=lambda each: each.seed):
        value, sha = scale * member.measures[measure], member.summary["weights_sha256"]
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


def write_page(page: Path, compared: Path, tuning: Path | None, ablation: Path | None) -> None:
    """Write a page below what a person said there.

    Args:
        page: The page.
        compared: Folder of `umbel compare`, within that of its experiment.
        tuning: Folder of `umbel tune`; None where nothing was tuned.
        ablation: Tables of a study of the parts; None where there are none.
    """
    comparison = read_comparison(compared)
    if comparison.main is None:
        raise SystemExit(f"{compared} has no measure that all runs have; nothing was written to {page}.")
    said = page.read_text(encoding="utf-8") if page.is_file() else f"# {compared.parent.name}\n\n"
    parts = [said.partition(HERE)[0] + HERE, (compared / "table.md").read_text(encoding="utf-8").strip()]
    if tuning:
        parts += ["\n## What was tuned\n", (tuning / "tuning.md").read_text(encoding="utf-8").strip()]
    if ablation:
        parts += ["\n## Ablation\n", ablation.read_text(encoding="utf-8").strip()]
    parts += ["\n## Runs\n", where(comparison) + "\n", *runs(comparison, comparison.main)]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")


def do(*command: object) -> None:
    """Run a command as a person would, and end with it where it fails."""
    words = [str(word) for word in command]
    print(f"$ {shlex.join([Path(words[0]).name, *words[1:]])}", file=sys.stderr, flush=True)
    if code := subprocess.run(words, check=False).returncode:
        raise SystemExit(code)


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all runs of the comparison")
    parser.add_argument("--original", metavar="NAME", help="the paper's data: cifar10_paper, say")
    parser.add_argument("--main-only", action="store_true", help="without the ablation")
    parser.add_argument("--seeds", help="of the comparison; else what the experiment says")
    parser.add_argument("--at-once", default="1", metavar="N|auto", help="runs of the comparison that go on at once")
    parser.add_argument("--results", type=Path, default=Path("results/tables"), help="where runs are kept")
    parser.add_argument("--page", type=Path, help="else benchmarks/results/<experiment>.md")
    asked = parser.parse_intermixed_args()
    method = METHODS[asked.method]
    if asked.original is not None:
        names = {name.partition("_")[2]: name for name in method.originals}
        if asked.original not in names:
            parser.error(f"--original of {asked.method} is one of: {', '.join(names) or 'none'}")
        asked.original = names[asked.original]
    return asked


def main() -> None:
    """Tune, compare, take apart, and write the page."""
    asked = arguments()
    method, umbel = METHODS[asked.method], Path(sys.executable).with_name("umbel")
    experiment = asked.original or method.experiment
    compared, tuning = asked.results / experiment / "compared", asked.results / experiment / "tuning"
    common, ablation = [*asked.overrides, "--at-once", asked.at_once], None
    if not asked.original:
        do(umbel, "tune", experiment, *common, "-o", tuning)
    tuned = [] if asked.original else ["--tuned", tuning]
    seeds = ["--seeds", asked.seeds] if asked.seeds else []
    do(umbel, "compare", experiment, *common, *seeds, *tuned, "-o", compared)
    if method.ablation and not asked.main_only and not asked.original:
        script, study = method.ablation
        ablation = compared.with_name("ablation.md")
        options = ["--results", asked.results / experiment / "ablation", "--output", ablation]
        do(sys.executable, BENCHMARKS / script, study, *options)
    page = asked.page or BENCHMARKS / "results" / f"{experiment}.md"
    write_page(page, compared, None if asked.original else tuning, ablation)
    print(page)


if __name__ == "__main__":
    main()

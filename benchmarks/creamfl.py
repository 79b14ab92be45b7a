"""Does the contrastive ensemble help the server, and does it stand clients that send noise? Paired seeds, one budget.

    python benchmarks/creamfl.py emoji [--seeds 6] [--output FILE] [--picture FILE]

Nine clients on emoji of five vendors and their names: three with images, three with texts, three with both; the server
retrieves names of concepts that nobody has seen. What is compared: the server alone on the public pairs, also stopped
after a third of the rounds; distillation towards the plain mean of the clients' representations, and towards
CreamFL's ensemble; both with one, three and six clients that send noise; CreamFL without its parts.
Hyper-parameters were chosen on validation data. Prints Markdown tables: mean ± sample deviation over seeds, and paired
differences ± their standard error. Runs are kept in the results folder and are not run again.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from methods import Study, measure, spread

ONE = "strategy.noise_clients=[8]"  # it has both modalities
THREE = "strategy.noise_clients=[0,3,8]"  # one of each kind
SIX = "strategy.noise_clients=[0,1,3,4,6,7]"  # two of each kind
MEAN = "strategy.ensemble=mean"
I2T, T2I = "test/i2t_recall@10", "test/t2i_recall@10"
BOTH, VALIDATION = "test/recall@10", "validation/recall@10"  # means of both ways, made here
COLUMNS = {"image to text": I2T, "text to image": T2I, "mean of both": BOTH, "validation, mean of both": VALIDATION}
# What is subtracted from what, in recall at 10.
QUESTIONS = (
    ("CreamFL", "server alone"),
    ("CreamFL", "server alone, 20 rounds"),
    ("CreamFL", "uniform mean"),
    ("CreamFL, one client sends noise", "uniform mean, one client sends noise"),
    ("CreamFL, three clients send noise", "uniform mean, three clients send noise"),
    ("CreamFL, six clients send noise", "uniform mean, six clients send noise"),
    ("uniform mean, one client sends noise", "uniform mean"),
    ("CreamFL, one client sends noise", "CreamFL"),
    ("uniform mean, three clients send noise", "uniform mean"),
    ("CreamFL, three clients send noise", "CreamFL"),
    ("uniform mean, six clients send noise", "uniform mean"),
    ("CreamFL, six clients send noise", "CreamFL"),
)
STUDIES = {
    "emoji": Study(
        "creamfl_emoji",
        ("checkpoint.every=0",),
        {
            "server alone": ("strategy.distil=0",),
            "server alone, 20 rounds": ("strategy.distil=0", "run.rounds=20"),
            "uniform mean": (MEAN,),
            "CreamFL": (),
            "uniform mean, one client sends noise": (MEAN, ONE),
            "CreamFL, one client sends noise": (ONE,),
            "uniform mean, three clients send noise": (MEAN, THREE),
            "CreamFL, three clients send noise": (THREE,),
            "uniform mean, six clients send noise": (MEAN, SIX),
            "CreamFL, six clients send noise": (SIX,),
            "CreamFL, tau 1": ("strategy.ensemble_temperature=1",),
            "CreamFL without L_inter": ("strategy.inter=false",),
            "CreamFL without L_intra": ("strategy.intra=false",),
            "CreamFL without both": ("strategy.contrast=0",),
        },
        COLUMNS,
    ),
}
# Clients that send noise -> how the contenders' names end.
NOISE = {
    0: "",
    1: ", one client sends noise",
    3: ", three clients send noise",
    6: ", six clients send noise",
}
SPLITS = ("validation", "test")
Runs = Mapping[str, Sequence[Mapping[str, float]]]


def difference(runs: Runs, name: str, against: str, metric: str = BOTH) -> str:
    """Write the paired difference ± its standard error."""
    paired = [a[metric] - b[metric] for a, b in zip(runs[name], runs[against], strict=True)]
    error = statistics.stdev(paired) / math.sqrt(len(paired)) if len(paired) > 1 else 0.0
    return f"{statistics.fmean(paired):+.2f} ± {error:.2f}"


def with_means(found: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with the means of both ways of retrieval."""
    means = {f"{split}/recall@10": [found[f"{split}/{way}_recall@10"] for way in ("i2t", "t2i")] for split in SPLITS}
    return dict(found) | {name: statistics.fmean(values) for name, values in means.items()}


def table(study: Study, runs: Runs) -> str:
    """Return the tables as Markdown; recalls at 10 are in percent."""
    lines = [
        f"| contender | {' | '.join(study.metrics)} | rsum | MB a round |",
        "|---|" + "---:|" * (len(study.metrics) + 2),
    ]
    for name, each in runs.items():
        cells = [spread([one[metric] for one in each], 1.0) for metric in (*study.metrics.values(), "test/rsum")]
        cells.append(f"{statistics.fmean([one['megabytes'] for one in each]):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| recall at 10, mean of both | less that of | difference |", "|---|---|---:|"]
    lines += [f"| {one} | {other} | {difference(runs, one, other)} |" for one, other in QUESTIONS]
    return "\n".join(lines)


def picture(runs: Runs, file: Path) -> None:
    """Draw recall over the number of clients that send noise, with standard errors, and the server alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def middle(name: str) -> tuple[float, float]:
        values = [one[BOTH] for one in runs[name]]
        return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0

    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for name, colour, style in (("CreamFL", "tab:blue", "o-"), ("uniform mean", "tab:orange", "s--")):
        means, errors = zip(*(middle(name + noise) for noise in NOISE.values()), strict=True)
        axes.errorbar(list(NOISE), means, errors, fmt=style, color=colour, capsize=3, label=name)
    alone, error = middle("server alone")
    axes.axhline(alone, color="tab:gray", label="server alone")
    axes.axhspan(alone - error, alone + error, color="tab:gray", alpha=0.2, linewidth=0)
    axes.set_xticks(list(NOISE))
    axes.set_xlabel("clients of nine that send noise")
    axes.set_ylabel("recall at 10, unseen concepts (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(file, dpi=150)


def main() -> None:
    """Run a study and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--results", type=Path, default=Path("results/methods"))
    parser.add_argument("--output", type=Path, help="also write the table here")
    parser.add_argument("--picture", type=Path, help="also draw it here")
    given = parser.parse_args()
    study = STUDIES[given.study]
    folder = (given.results / f"creamfl_{given.study}").resolve()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in study.contenders}
    for seed in range(given.seeds):
        for name, options in study.contenders.items():
            runs[name].append(with_means(measure(study, name, options, seed, folder)))
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "flwr", "numpy"))
    text = (
        f"`python benchmarks/creamfl.py {given.study} --seeds {given.seeds}`; {platform.machine()}, Python "
        f"{platform.python_version()}, {versions}. Recall at 10 in percent; mean ± sample deviation over seeds, paired "
        f"difference ± its standard error.\n\n{table(study, runs)}\n"
    )
    print(text)
    if given.output:
        given.output.write_text(text, encoding="utf-8")
    if given.picture:
        picture(runs, given.picture)


if __name__ == "__main__":
    main()

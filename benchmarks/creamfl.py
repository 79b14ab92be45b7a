"""Does the contrastive ensemble help the server, and does it stand clients that send noise? Paired seeds, one budget.

    python benchmarks/creamfl.py emoji [--seeds 6] [--output FILE] [--picture FILE]
    python benchmarks/creamfl.py unequal|unequal_nine [--seeds 6] [--first-seed 20] [--output FILE]

Nine clients on emoji of five vendors and their names: three with images, three with texts, three with both; the server
retrieves names of concepts that nobody has seen. What is compared: the server alone on the public pairs, also stopped
after a third of the rounds; distillation towards the plain mean of the clients' representations, and towards CreamFL's
ensemble; both with one, three and six clients that send noise; CreamFL without its parts. In `unequal`, half of six
clients have networks that are too small, in `unequal_nine` a third of nine. Hyper-parameters were chosen on validation
data. Prints Markdown tables: mean ± sample deviation over seeds, and paired differences ± their standard error. Runs
are kept in the results folder and are not run again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from studies import Runs, Study, column, command_line, folder_of, measure_all, paired, publish, spread, standard_error

ONE = "strategy.noise_clients=[8]"  # it has both modalities
THREE = "strategy.noise_clients=[0,3,8]"  # one of each kind
SIX = "strategy.noise_clients=[0,1,3,4,6,7]"  # two of each kind
MEAN = "strategy.ensemble=mean"
# Six clients, two of each kind, the second of them with 8 hidden units in place of 128; the paper's 30 rounds.
UNEQUAL = (
    *("data.num_clients=6", "strategy.num_image=2", "strategy.num_text=2", "strategy.num_both=2"),
    "strategy.image_sizes.mlp=[{depth: 1, hidden: 128}, {depth: 1, hidden: 8}]",
    "strategy.text_sizes.embedding_mlp=[{hidden: 128, width: 64}, {hidden: 8, width: 64}]",
    "run.rounds=30",
)
# Nine, three of each kind, of which the third has the small networks.
NINE = (
    "strategy.image_sizes.mlp=[{depth: 1, hidden: 128}, {depth: 1, hidden: 128}, {depth: 1, hidden: 8}]",
    "strategy.text_sizes.embedding_mlp=[{hidden: 128, width: 64}, {hidden: 128, width: 64}, {hidden: 8, width: 64}]",
    "run.rounds=30",
)
SMALL = "strategy.noise_clients=[5]"  # has both modalities
LARGE = "strategy.noise_clients=[4]"  # likewise, the best teacher of all
ONE_LARGE = "strategy.noise_clients=[7]"  # of `NINE`: one of the two large ones that have both
I2T, T2I = "test/i2t_recall@10", "test/t2i_recall@10"
BOTH, VALIDATION = "test/recall@10", "validation/recall@10"  # means of both ways, made here
COLUMNS = {"image to text": I2T, "text to image": T2I, "mean of both": BOTH, "validation, mean of both": VALIDATION}
# What is subtracted from what, in recall at 10.
QUESTIONS = (
    ("CreamFL", "server alone"),
    ("CreamFL", "server alone, 20 rounds"),
    ("CreamFL", "uniform mean"),
    ("uniform mean", "server alone"),
    ("CreamFL, one client sends noise", "uniform mean, one client sends noise"),
    ("CreamFL, a small client sends noise", "uniform mean, a small client sends noise"),
    ("CreamFL, a large client sends noise", "uniform mean, a large client sends noise"),
    ("CreamFL, three clients send noise", "uniform mean, three clients send noise"),
    ("CreamFL, six clients send noise", "uniform mean, six clients send noise"),
    ("uniform mean, one client sends noise", "uniform mean"),
    ("CreamFL, one client sends noise", "CreamFL"),
    ("uniform mean, a small client sends noise", "uniform mean"),
    ("CreamFL, a small client sends noise", "CreamFL"),
    ("uniform mean, a large client sends noise", "uniform mean"),
    ("CreamFL, a large client sends noise", "CreamFL"),
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
    "unequal": Study(
        "creamfl_emoji",
        ("checkpoint.every=0", *UNEQUAL),
        {
            "server alone": ("strategy.distil=0", "client.max_steps=1"),  # nothing that clients learn reaches it
            "uniform mean": (MEAN,),
            "CreamFL": (),
            "uniform mean, a small client sends noise": (MEAN, SMALL),
            "CreamFL, a small client sends noise": (SMALL,),
            "uniform mean, a large client sends noise": (MEAN, LARGE),
            "CreamFL, a large client sends noise": (LARGE,),
        },
        COLUMNS,
    ),
    "unequal_nine": Study(
        "creamfl_emoji",
        ("checkpoint.every=0", *NINE),
        {
            "server alone": ("strategy.distil=0", "client.max_steps=1"),
            "uniform mean": (MEAN,),
            "CreamFL": (),
            "uniform mean, a large client sends noise": (MEAN, ONE_LARGE),
            "CreamFL, a large client sends noise": (ONE_LARGE,),
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


def with_means(recalls: Mapping[str, float]) -> dict[str, float]:
    """Return metrics with the means of both ways of retrieval."""
    means = {f"{split}/recall@10": [recalls[f"{split}/{way}_recall@10"] for way in ("i2t", "t2i")] for split in SPLITS}
    return dict(recalls) | {name: statistics.fmean(values) for name, values in means.items()}


def table(study: Study, runs: Runs) -> str:
    """Return the tables as Markdown; recalls at 10 are in percent."""
    lines = [
        f"| contender | {' | '.join(study.metrics)} | rsum | MB a round |",
        "|---|" + "---:|" * (len(study.metrics) + 2),
    ]
    for name, each in runs.items():
        cells = [spread(column(each, metric), 1.0) for metric in (*study.metrics.values(), "test/rsum")]
        cells.append(f"{statistics.fmean(column(each, 'megabytes')):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| recall at 10, mean of both | less that of | difference |", "|---|---|---:|"]
    for one, other in QUESTIONS:
        if {one, other} <= runs.keys():
            lines.append(f"| {one} | {other} | {paired(column(runs[one], BOTH), column(runs[other], BOTH), 1.0)} |")
    return "\n".join(lines)


def picture(runs: Runs, file: Path) -> None:
    """Draw recall over the number of clients that send noise, with standard errors, and the server alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def middle(name: str) -> tuple[float, float]:
        values = column(runs[name], BOTH)
        return statistics.fmean(values), standard_error(values)

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
    """Run a study, print its tables and draw its picture."""
    parser = command_line(__doc__, STUDIES, seeds=6)
    parser.add_argument("--picture", type=Path, help="draw recall over the clients that send noise here")
    given = parser.parse_args()
    if given.picture and given.study != "emoji":
        parser.error(f"--picture is drawn of the study emoji, not of {given.study}")
    study = STUDIES[given.study]
    measured = measure_all(study, folder_of(given), given)
    runs = {name: [with_means(one) for one in each] for name, each in measured.items()}
    publish(given, [table(study, runs)], "Recall at 10 in percent")
    if given.picture:
        picture(runs, given.picture)


if __name__ == "__main__":
    main()

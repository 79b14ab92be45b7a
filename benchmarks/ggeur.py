"""Does GGEUR help, where, over which base, and which part of it? Paired seeds, one budget, chosen on validation data.

    python benchmarks/ggeur.py fashion|emoji|parts|weak|mild|privacy|trained [--seeds 3] [--output FILE]

Prints Markdown tables: mean ± sample deviation over seeds, and the paired difference to the first row ± its standard
error. Runs are kept in the results folder and are not run again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from studies import Runs, Study, column, command_line, folder_of, measure_all, paired, publish, spread


@dataclass(frozen=True)
class Block:
    """One table.

    Attributes:
        title: Above it.
        study: What is run; the first contender is what the others are compared with.
        compared: Columns whose paired difference is shown.
        against: What a contender is compared with, where that is not the first one; others are references then.
    """

    title: str
    study: Study
    compared: Sequence[str]
    against: Mapping[str, str] = field(default_factory=dict)


BASE = ("strategy.augment=false",)  # bit for bit the base strategy
LONGER = (*BASE, "client.epochs=10")  # as many steps as a completed client takes, or more
ACCURACY = {
    "accuracy": "test/accuracy",
    "worst class": "test/worst_class_accuracy",
    "validation": "validation/accuracy",
}
DOMAINS = {
    "mean over domains": "test/domains_mean",
    "worst domain": "test/domains_worst",
    "validation, mean": "validation/domains_mean",
}
FASHION = {
    "FedAvg": BASE,
    "FedAvg, 10 local epochs": LONGER,
    "GGEUR, held classes": ("strategy.complete=held",),
    "GGEUR, all classes": (),
    "GGEUR, all, std lambda": ("strategy.scale=eig",),
}
# SCAFFOLD's control variates need plain SGD, so all take it. Of 0.001 to 1, on validation data of seed 0 and without
# GGEUR, this rate is the best for SCAFFOLD and 0.1 points from the best for FedAvg.
SGD = ("client.optimizer=sgd", "client.lr=0.1", "client.momentum=0")
BASES = {"FedAvg": "fedavg", "FedProx": "fedprox", "SCAFFOLD": "scaffold"}
PLUG_IN = {
    name: options
    for base, key in BASES.items()
    for name, options in ((base, (f"strategy.base={key}", *BASE)), (f"{base} + GGEUR", (f"strategy.base={key}",)))
}
VENDORS = {
    "FedAvg": BASE,
    "FedAvg, 10 local epochs": LONGER,
    "GGEUR, held classes only": ("strategy.complete=held", "strategy.domains=false"),
    "GGEUR, classes of clients and domains": (),
}
SKEWS = {
    "label skew (10 clients of mixed vendors, Dirichlet .05)": ("data.partition=dirichlet", "data.top_up=true"),
    "domain skew (5 clients, a vendor each)": ("data.partition=domain", "data.num_clients=5"),
    "both (10 clients, two a vendor, Dirichlet .05 between them)": (),
}
PARTS = {
    "all of it": (),
    "no prototypes": ("strategy.domains=false",),
    "no class means": ("strategy.complete=held",),
    "spread between clients left in": ("strategy.within_only=false",),
    "std lambda": ("strategy.scale=eig",),
    "rank 1": ("strategy.rank=1",),
    "all directions": ("strategy.rank=0",),
    "T = 300": ("strategy.target=300",),
}
WEAK = {
    "FedAvg": BASE,
    "FedAvg, 10 local epochs": LONGER,
    "GGEUR, held classes": ("strategy.complete=held",),
    "GGEUR, all classes": (),
}
WEAKER = ("data.encoder=pca:16", "data.encoder_size=0", "strategy.rank=0")
MILD = {"Dirichlet .5": ("data.alpha=0.5",), "IID": ("data.partition=iid", "data.top_up=false")}
PRIVATE = ("strategy.release=sums", "strategy.clip=8", "strategy.delta=1e-5")
PRIVACY = {
    "FedAvg": BASE,
    "GGEUR, no noise": (),
    "clipped, no noise": ("strategy.release=sums", "strategy.clip=8"),
    **{
        f"epsilon {epsilon}, {noise}": (*PRIVATE, f"strategy.epsilon={epsilon}", f"strategy.noise={noise}")
        for noise in ("local", "distributed")
        for epsilon in (8, 2, 0.5)
    },
    "epsilon 2, local, plain unit": (*PRIVATE, "strategy.epsilon=2", "strategy.unit=1"),
}
TRAINED = {
    "FedAvg": BASE,
    "refresh=1, held classes": ("strategy.complete=held",),
    "refresh=1, all classes": (),
    "refresh=5, all classes": ("strategy.refresh=5",),
}
IMAGES = (
    *("data.encoder=", "data.encoder_size=0", "model.name=cnn", "strategy.refresh=1", "strategy.rank=32"),
    *("data.max_train=5000", "run.rounds=20", "strategy.target=100"),
)
STUDIES = {
    "fashion": [
        Block("Fashion-MNIST, Dirichlet .05", Study("ggeur_fashion", (), FASHION, ACCURACY), ("accuracy",)),
        Block(
            "the same with plain SGD, GGEUR over each base",
            Study("ggeur_fashion", SGD, PLUG_IN, ACCURACY),
            ("accuracy", "worst class"),
            {f"{base} + GGEUR": base for base in BASES},
        ),
    ],
    "emoji": [
        Block(title, Study("ggeur_emoji", skew, VENDORS, DOMAINS), ("mean over domains", "worst domain"))
        for title, skew in SKEWS.items()
    ],
    "parts": [
        Block(
            "emoji, both skews",
            Study("ggeur_emoji", (), PARTS, DOMAINS),
            ("mean over domains", "worst domain"),
        )
    ],
    "weak": [
        Block(
            f"Fashion-MNIST, data.encoder={encoder}",
            Study(
                "ggeur_fashion",
                (f"data.encoder={encoder}", "data.encoder_size=0", "strategy.rank=0"),
                WEAK,
                ACCURACY,
            ),
            ("accuracy",),
        )
        for encoder in ("pixels", "pca:16")
    ],
    "mild": [
        Block(
            f"Fashion-MNIST, {encoder}, {skew}",
            Study("ggeur_fashion", (*MILD[skew], *encoded), WEAK, ACCURACY),
            ("accuracy",),
        )
        for skew in MILD
        for encoder, encoded in (("lite0", ()), ("pca:16", WEAKER))
    ],
    "privacy": [
        Block(
            "Fashion-MNIST, data.encoder=pca:32, delta 1e-5, B 8",
            Study(
                "ggeur_fashion",
                ("data.encoder=pca:32", "data.encoder_size=0", "strategy.rank=0"),
                PRIVACY,
                ACCURACY,
            ),
            ("accuracy",),
        )
    ],
    "trained": [
        Block(
            "Fashion-MNIST images, a CNN under training",
            Study("ggeur_fashion", IMAGES, TRAINED, ACCURACY),
            ("accuracy",),
        )
    ],
}


def table(block: Block, contenders: Runs) -> str:
    """Return a block's table as Markdown."""
    metrics, first = block.study.metrics, next(iter(contenders))
    against = [f"{compared} against {'its base' if block.against else first}" for compared in block.compared]
    lines = [
        f"| {block.title} | {' | '.join([*metrics, *against])} |",
        "|---|" + "---:|" * (len(metrics) + len(against)),
    ]
    for name, runs in contenders.items():
        cells = [spread(column(runs, metric)) for metric in metrics.values()]
        reference = contenders[block.against.get(name, name if block.against else first)]
        for compared in block.compared:
            left, right = column(runs, metrics[compared]), column(reference, metrics[compared])
            cells.append("reference" if runs is reference else paired(left, right))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(blocks: Sequence[Block], measured: Sequence[Runs], path: Path) -> None:
    """Draw the compared columns as bars, a panel a block, a dot a seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(blocks), figsize=(2 + 3.2 * len(blocks), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, block, runs in zip(axes[0], blocks, measured, strict=True):
        width = 0.8 / len(runs)
        for place, (name, each) in enumerate(runs.items()):
            for group, compared in enumerate(block.compared):
                values = [100 * value for value in column(each, block.study.metrics[compared])]
                x = group + (place - (len(runs) - 1) / 2) * width
                label = name if not group else None
                axis.bar(x, statistics.fmean(values), width * 0.9, color=f"C{place}", alpha=0.8, label=label)
                axis.plot([x] * len(values), values, "k.", markersize=4)
        axis.set_xticks(range(len(block.compared)), block.compared)
        axis.set_title(block.title.replace(" (", "\n("), fontsize=9)
        axis.grid(axis="y", alpha=0.3)
    axes[0][0].set_ylabel("test accuracy, %")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run a study, print its tables and draw its picture."""
    parser = command_line(__doc__, STUDIES)
    parser.add_argument("--picture", type=Path, help="draw the compared columns here")
    given = parser.parse_args()
    blocks = STUDIES[given.study]
    measured = [measure_all(block.study, folder_of(given), given) for block in blocks]
    publish(given, [table(block, runs) for block, runs in zip(blocks, measured, strict=True)])
    if given.picture:
        draw(blocks, measured, given.picture)


if __name__ == "__main__":
    main()

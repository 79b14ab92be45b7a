"""Does FedLoGe show its paper's effects on a long tail? Paired seeds, one budget, tuned on validation data only.

    python benchmarks/fedloge.py STUDY [--seeds 3] [--first-seed 0] [--output FILE] [--picture FILE]

`fashion` is Fashion-MNIST thinned to a long tail, `natural` kinds of emoji, which nobody thinned. Both train FedLoGe,
the same without a frame (which is FedAvg with a personal head beside it: the heads do not touch each other, so one
run gives both), and every client alone. `steady` chose how the learning rate falls in `fashion`, in the same way for
all three, by validation data of seeds 0 to 2. `fashion_flat` (where it does not fall), `fashion_20` and `natural_25`
are the settings that were looked at before these. `sweep` varies the frame's length gamma and its share beta of
dropped entries on Fashion-MNIST in short runs, `natural_sweep` gamma on emoji; each takes one seed and looks at
validation data only. `rounds` asks on one seed what more rounds change, and how far features and heads have collapsed
by then.

Prints Markdown tables: mean ± sample deviation over seeds, and paired differences ± their standard error. Runs are kept
in the results folder and are not run again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from studies import Runs, Study, column, command_line, folder_of, hash_of, measure_all, paired, publish, spread

FEDLOGE, PLAIN, LOCAL = "FedLoGe", "no frame", "local"
CONTENDERS: Mapping[str, Sequence[str]] = {
    FEDLOGE: (),  # gamma as in the experiment's file: on Fashion-MNIST that of `sweep`, on emoji of `natural_sweep`
    PLAIN: ("strategy.frame=none",),
    LOCAL: ("strategy={name: umbel.strategies.local:Local}",),  # all of the section, since it knows no gamma
}
ENDS = ("evaluate.every=1000", "checkpoint.every=0")  # the last round is always evaluated
FLAT = (*ENDS, "client.lr_decay=1.0")  # as the experiment's file was before `steady`
# What `steady` varies, with all that the experiment's file may change.
SETTINGS = {
    f"decay {decay:g}": (f"client.lr_decay={decay}", "client.lr=0.05", "run.rounds=30", "run.participation=0.3")
    for decay in (1.0, 0.95, 0.93)
}
STUDIES = {
    "fashion": Study("fedloge_fashion", ENDS, CONTENDERS, {}),
    "fashion_flat": Study("fedloge_fashion", FLAT, CONTENDERS, {}),
    "fashion_20": Study(
        "fedloge_fashion",
        (*FLAT, "data.num_clients=20", "data.alpha=0.5", "run.participation=0.4", "run.rounds=40"),
        {**CONTENDERS, FEDLOGE: ("strategy.norm=0.1",)},  # it came before `sweep`
        {},
    ),
    "steady": Study(
        "fedloge_fashion",
        ENDS,
        {
            f"{who} | {setting}": (*options, *overrides)
            for setting, overrides in SETTINGS.items()
            for who, options in CONTENDERS.items()
        },
        {},
    ),
    "natural": Study("fedloge_emoji", ENDS, CONTENDERS, {}),
    "natural_25": Study("fedloge_emoji", (*ENDS, "run.rounds=25"), CONTENDERS, {}),
    "sweep": Study(
        "fedloge_fashion",
        (*FLAT, "run.rounds=15", "evaluate.clients=0", "strategy.personal=false"),
        {
            "no frame": ("strategy.frame=none",),
            **{f"gamma {g}, beta .6": (f"strategy.norm={g}",) for g in (0.1, 0.3, 1.0, 3.0)},
            **{f"gamma 1, beta {b}": ("strategy.norm=1.0", f"strategy.sparsity={b}") for b in (0.0, 0.8)},
        },
        {},
    ),
    "natural_sweep": Study(
        "fedloge_emoji",
        (*ENDS, "evaluate.clients=0", "strategy.personal=false"),
        {
            "no frame": ("strategy.frame=none",),
            **{f"gamma {g:g}, beta .6": (f"strategy.norm={g}",) for g in (0.1, 1.0, 3.0, 10.0)},
        },
        {},
    ),
    "rounds": Study(
        "fedloge_fashion",
        (*FLAT, "run.rounds=60", "evaluate.clients=0", "strategy.personal=false", "strategy.collapse=60"),
        {
            "gamma 1, beta .6": (),
            "no frame": ("strategy.frame=none",),
        },
        {},
    ),
}

SINGLE = ("sweep", "natural_sweep", "rounds")  # studies of one seed, on validation data

# What a table has: row -> (contender, prefix of its metrics). The first row is what the others are compared with.
SERVER = {
    "FedAvg: psi trains all": (PLAIN, "psi/"),
    "FedAvg + GA-FR": (PLAIN, ""),
    "FedLoGe, psi unaligned": (FEDLOGE, "psi/"),
    "FedLoGe, psi' (GA-FR)": (FEDLOGE, ""),
    "FedLoGe, the frame itself": (FEDLOGE, "frame/"),
}
CLIENTS = {
    "each client alone": (LOCAL, ""),
    "FedAvg's model": (PLAIN, "psi/"),
    "FedAvg + phi + phi'": (PLAIN, ""),
    "FedLoGe, psi'": (FEDLOGE, "generic/"),
    "FedLoGe, phi": (FEDLOGE, "phi/"),
    "FedLoGe, phi + phi'": (FEDLOGE, ""),
}
# What `steady` makes good, each contender for itself: column -> (contender, metric).
MADE_GOOD = {
    "FedLoGe, psi'": (FEDLOGE, "validation/balanced_accuracy"),
    "FedLoGe, phi + phi'": (FEDLOGE, "clients/validation/accuracy_mean"),
    "FedAvg + GA-FR": (PLAIN, "validation/balanced_accuracy"),
    "FedAvg's model on clients": (PLAIN, "clients/validation/psi/accuracy_mean"),
    "each client alone": (LOCAL, "clients/validation/accuracy_mean"),
}
GROUPS = {
    "balanced": "balanced_accuracy",
    "head": "accuracy_head",
    "middle": "accuracy_middle",
    "tail": "accuracy_tail",
}


def server_table(contenders: Runs, split: str = "test") -> str:
    """Return accuracies of generic predictors on the server's examples."""
    lines = [f"| generic, {split} | {' | '.join(GROUPS)} |", "|---|" + "---:|" * len(GROUPS)]
    for row, (name, prefix) in SERVER.items():
        metrics = (f"{split}/{prefix}{metric}" for metric in GROUPS.values())
        lines.append(f"| {row} | {' | '.join(spread(column(contenders[name], metric)) for metric in metrics)} |")
    for name, runs in ((FEDLOGE, contenders[FEDLOGE]), ("FedAvg", contenders[PLAIN])):
        cells = [
            paired(column(runs, f"{split}/{metric}"), column(runs, f"{split}/psi/{metric}"))
            for metric in GROUPS.values()
        ]
        lines.append(f"| GA-FR against the same head unaligned, {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def client_table(contenders: Runs) -> str:
    """Return accuracies on clients' own test examples, a client counting once."""
    best = column(contenders[FEDLOGE], "clients/test/accuracy_mean")
    lines = ["| on clients | mean of clients | worst tenth | FedLoGe's phi + phi' against it |", "|---|---:|---:|---:|"]
    for row, (name, prefix) in CLIENTS.items():
        mean, worst = (
            column(contenders[name], f"clients/test/{prefix}accuracy_{which}") for which in ("mean", "worst10")
        )
        against = "" if mean == best else paired(best, mean)
        lines.append(f"| {row} | {spread(mean)} | {spread(worst)} | {against} |")
    return "\n".join(lines)


def sweep_table(contenders: Runs) -> str:
    """Return validation accuracies for each point of the sweep."""
    lines = ["| | psi', balanced | psi', tail | psi, balanced | psi, tail |", "|---|---:|---:|---:|---:|"]
    for name, runs in contenders.items():
        metrics = [f"validation/{prefix}{m}" for prefix in ("", "psi/") for m in ("balanced_accuracy", "accuracy_tail")]
        lines.append(f"| {name} | {' | '.join(spread(column(runs, metric)) for metric in metrics)} |")
    return "\n".join(lines)


def steady_table(contenders: Runs) -> str:
    """Return validation accuracies of each contender in each setting."""
    lines = [f"| validation | {' | '.join(MADE_GOOD)} | mean |", "|---|" + "---:|" * (len(MADE_GOOD) + 1)]
    for setting in SETTINGS:
        values = [column(contenders[f"{name} | {setting}"], metric) for name, metric in MADE_GOOD.values()]
        mean = [statistics.fmean(each) for each in zip(*values, strict=True)]
        lines.append(f"| {setting} | {' | '.join(spread(each) for each in (*values, mean))} |")
    return "\n".join(lines)


def collapse_table(study: Study, folder: Path, seed: int) -> str:
    """Return the neural-collapse metrics at the end of each run of a study of one seed."""
    names = ("nc1", "nc2_lengths", "nc2_angles", "nc3", "nc4")
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for name, options in study.contenders.items():
        overrides = [*study.common, *options, f"run.seed={seed}", f"run.results={folder}"]
        rows = pq.read_table(folder / f"{hash_of(overrides):016x}" / "metrics.parquet").to_pylist()
        measures = {row["metric"]: row["value"] for row in rows}
        cells = (f"{measures['collapse/' + key]:.3f}" for key in names)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(contenders: Runs, path: Path) -> None:
    """Draw the accuracy of head, middle and tail classes before and after GA-FR."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "umbel"
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    rows = {row: place for row, place in SERVER.items() if row != "FedLoGe, the frame itself"}
    colours = ("#b9c4d0", "#5b7ea3", "#e3c39d", "#c06f2b")
    for index, ((row, (name, prefix)), colour) in enumerate(zip(rows.items(), colours, strict=True)):
        values = [column(contenders[name], f"test/{prefix}{metric}") for metric in GROUPS.values()]
        means = [100 * statistics.fmean(each) for each in values]
        errors = [100 * statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
        places = [group + 0.2 * (index - 1.5) for group in range(len(GROUPS))]
        axes.bar(places, means, 0.19, yerr=errors, label=row, color=colour, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(GROUPS)), list(GROUPS))
    axes.set_ylabel("test accuracy, %")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run a study and print its tables."""
    parser = command_line(__doc__, STUDIES)
    parser.add_argument("--picture", type=Path, help="draw head, middle and tail here (svg)")
    given = parser.parse_args()
    study = STUDIES[given.study]
    if given.study in SINGLE:
        given.seeds = 1
    contenders = measure_all(study, folder_of(given), given)
    if given.study == "steady":
        tables = [steady_table(contenders)]
    elif given.study in SINGLE:
        tables = [sweep_table(contenders)]
        if given.study == "rounds":
            tables.append(collapse_table(study, folder_of(given), given.first_seed))
    else:
        tables = [server_table(contenders), client_table(contenders)]
    publish(given, tables)
    if given.picture and given.study not in SINGLE:
        draw(contenders, given.picture)


if __name__ == "__main__":
    main()

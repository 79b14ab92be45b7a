"""Does FOT forget less than FedAvg, and which part of it matters? Paired seeds, one budget, chosen on validation data.

The studies of digits, which are small, have EWC, LwF and replay beside it.

    python benchmarks/fot.py permuted|split|ablations|digits_split|digits_permuted
        [--seeds 3] [--first-seed 0] [--output FILE]

Prints a Markdown table: mean ± sample deviation over seeds, and the paired difference to the first row ± its standard
error. Runs are kept in the results folder and are not run again, unless their resolved experiment is another one now.
"""

from __future__ import annotations

import statistics

from studies import Runs, Study, column, command_line, folder_of, measure_all, paired, publish, spread

SEQUENCE = {"ACC": "test/acc", "FGT": "test/forgetting", "ACC, validation": "validation/acc"}
DIGITS = (
    *("data.name=digits", "data.max_train=0", "data.max_test=0", "data.rounds_per_task=8", "run.rounds=40"),
    *("model.sizes={hidden: 100, depth: 2}", "client.batch_size=8", "evaluate.every=8"),
)


def beside(ewc: int, lwf: float) -> dict[str, tuple[str, ...]]:
    """Return FedAvg, FOT and the baselines for sequences of tasks, with strengths that validation data chose."""
    return {
        "FedAvg": ("strategy={name: fedavg}",),
        "FOT, epsilon .95": ("strategy={name: fot, threshold: 0.95}",),
        f"EWC, lambda {ewc}": (f"strategy={{name: ewc, strength: {ewc}}}",),
        f"LwF, lambda {lwf:g}": (f"strategy={{name: lwf, strength: {lwf}}}",),
        "replay of 5": ("strategy={name: replay, memory: 5}",),
        "replay of 20": ("strategy={name: replay, memory: 20}",),
    }


STUDIES = {
    "permuted": Study(
        "fot_permuted",
        (),
        {
            "FedAvg": ("strategy.project=false",),
            "FOT, epsilon .95": ("strategy.threshold=0.95",),
            "FOT, epsilon .98": ("strategy.threshold=0.98",),
            "FOT as in the authors' code": (
                "strategy.threshold=0.95",
                "strategy.sketched=local",
                "strategy.ratio_power=1",
                "strategy.min_directions=1",
                "strategy.bias=free",
                "strategy.rest=free",
            ),
        },
        SEQUENCE,
    ),
    "split": Study(
        "fot_split",
        (),
        {"FedAvg": ("strategy.project=false",), "FOT, epsilon .95": ("strategy.threshold=0.95",)},
        SEQUENCE,
    ),
    "ablations": Study(
        "fot_split",
        (),
        {
            "FOT, epsilon .95": (),
            "inputs of local models": ("strategy.sketched=local",),
            "rho not squared": ("strategy.ratio_power=1",),
            "biases free": ("strategy.bias=free",),
            "Gram matrices": ("strategy.width=0",),
            "no bases sent": ("strategy.residual=server",),
        },
        SEQUENCE,
    ),
    "digits_split": Study("fot_split", DIGITS, beside(ewc=300, lwf=1), SEQUENCE),
    "digits_permuted": Study("fot_permuted", DIGITS, beside(ewc=30, lwf=3), SEQUENCE),
}


def table(study: Study, contenders: Runs) -> str:
    """Return the table as Markdown."""
    (first, reference), main = next(iter(contenders.items())), next(iter(study.metrics))
    lines = [
        f"| contender | {' | '.join(study.metrics)} | {main} against {first} | MB a round |",
        "|---|" + "---:|" * (len(study.metrics) + 2),
    ]
    for name, runs in contenders.items():
        cells = [spread(column(runs, metric)) for metric in study.metrics.values()]
        left, right = column(runs, study.metrics[main]), column(reference, study.metrics[main])
        cells.append("reference" if name == first else paired(left, right))
        cells.append(f"{statistics.fmean(column(runs, 'megabytes')):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run a study and print its table."""
    given = command_line(__doc__, STUDIES).parse_args()
    study = STUDIES[given.study]
    publish(given, [table(study, measure_all(study, folder_of(given), given))])


if __name__ == "__main__":
    main()

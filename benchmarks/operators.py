"""What do the drop-in operators cost, and what do they bring, in CvT and in the plain CNN?

    python benchmarks/operators.py cost     # parameters, operations, bytes, steps a second, beside the plain model
    python benchmarks/operators.py accuracy # Fashion-MNIST, three seeds, beside the plain model (an hour and a half)

Each operator is placed as its preset `operator_<name>` says, into `cvt_tiny32` and, in every convolution that it can
stand for, into `cnn`, for images of 28 px. The
cost of a step is timed in turn with the plain model's, in one process, batch 32; the ratio is what to read. The budget
of `accuracy` is that of `fashion_zoo`: 20 rounds of 5 of 10 clients, 10 steps of 32 examples each, Dirichlet 0.5. The
learning rate, one of `RATES`, is each contender's own, the plain models' too: chosen on the server's validation data of
seed 0.

Figures go to benchmarks/results/operators.json, from which docs/make_models.py makes the page.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from studies import Runs, Study, column, command_line, folder_of, measure_all, paired, publish, spread
from zoo import Contender, hardware, seconds

from umbel.conf.load import load
from umbel.models import build, operators
from umbel.models.base import Model
from umbel.models.facts import activation_bytes, macs
from umbel.models.weights import shared_state

FOUND = Path(__file__).parent / "results" / "operators.json"
RATES = (0.001, 0.003)
BASES = ("cvt_tiny32", "cnn")
PLAIN = "plain"
ACCURACY, VALIDATION = "test/accuracy", "validation/accuracy"
REPEATS, LEAST = 7, 0.3  # repetitions, and seconds of each


def chosen(base: str, operator: str) -> Mapping[str, Any]:
    """Return `model.operators` of an operator's preset; its choice of layers holds for the preset's own model."""
    if operator == PLAIN:
        return {}
    preset = load(f"operator_{operator}").model
    own = {} if base == preset.name else {"layers"}
    return {name: {k: v for k, v in options.items() if k not in own} for name, options in preset.operators.items()}


def make(base: str, operator: str) -> Model:
    """Build a base with an operator in it, for 28 px of one channel and 10 classes."""
    return operators.apply(build(base, 10, 28, 1), chosen(base, operator))


def cost(base: str, operator: str) -> dict[str, Any]:
    """Return what a base with an operator costs beside the base alone."""
    torch.manual_seed(0)
    x = torch.randn(32, 1, 28, 28)
    pair = [Contender(make(base, each), x, 10, "fp32") for each in (operator, PLAIN)]
    times: list[list[float]] = [[], []]
    for contender in pair:
        contender.train()
    for _ in range(REPEATS):
        for contender, own in zip(pair, times, strict=True):
            own.append(seconds(contender.train, x.device, LEAST))
    mine, plain = (statistics.median(own) for own in times)
    with torch.device("meta"):
        model = make(base, operator)
    return {
        "base": base,
        "operator": operator,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": macs(model),
        "activation_bytes": activation_bytes(model),
        "bytes_per_round": 8 * sum(tensor.numel() for tensor in shared_state(model).values()),
        "steps_per_second": 1 / mine,
        "ratio": mine / plain,
    }


def cost_table(rows: list[dict[str, Any]]) -> str:
    """Return costs as a table."""
    lines = [
        "| base | operator | parameters | MMACs | activations, MB | MB a round | steps/s | time of a step / plain |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row['parameters']:,}", f"{row['macs'] / 1e6:.2f}", f"{row['activation_bytes'] / 1e6:.2f}"]
        cells += [f"{row['bytes_per_round'] / 1e6:.2f}", f"{row['steps_per_second']:.1f}", f"{row['ratio']:.2f}"]
        lines.append(f"| {row['base']} | {row['operator']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def label(base: str, operator: str, rate: float) -> str:
    """Return what a contender is called."""
    return f"{base}, {operator}, lr {rate:g}"


def overrides(base: str, operator: str, rate: float) -> tuple[str, ...]:
    """Return the overrides of a contender."""
    placed = json.dumps(dict(chosen(base, operator)))
    return (f"model.name={base}", f"model.operators={placed}", f"client.lr={rate}")


def accuracies(given: Any) -> list[dict[str, Any]]:
    """Choose each contender's rate on seed 0, then run all seeds at it."""
    names = (PLAIN, *operators.names())
    pairs = [(base, operator) for base in BASES for operator in names if given.only in operator]
    trials = {label(*pair, rate): overrides(*pair, rate) for pair in pairs for rate in RATES}
    seeds, given.seeds = given.seeds, 1
    tried: Runs = measure_all(Study("fashion_zoo", (), trials, {}), folder_of(given), given)
    rates = {pair: max(RATES, key=lambda rate: column(tried[label(*pair, rate)], VALIDATION)[0]) for pair in pairs}
    given.seeds = seeds
    final = {label(*pair, rate): overrides(*pair, rate) for pair, rate in rates.items()}
    runs: Runs = measure_all(Study("fashion_zoo", (), final, {}), folder_of(given), given)
    return [
        {
            "base": base,
            "operator": operator,
            "lr": rate,
            "accuracy": column(runs[label(base, operator, rate)], ACCURACY),
        }
        for (base, operator), rate in rates.items()
    ]


def accuracy_table(rows: list[dict[str, Any]]) -> str:
    """Return accuracies beside those of the plain base."""
    plain = {row["base"]: row["accuracy"] for row in rows if row["operator"] == PLAIN}
    lines = ["| base | operator | learning rate | accuracy, % | gain over plain |", "|---|---|---:|---:|---:|"]
    for row in rows:
        gain = "" if row["operator"] == PLAIN else paired(row["accuracy"], plain[row["base"]])
        cells = [row["base"], row["operator"], f"{row['lr']:g}", spread(row["accuracy"]), gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run a study, print its table, keep its figures."""
    parser = command_line(__doc__, ("cost", "accuracy"))
    parser.add_argument("--only", default="", help="only operators with this in their name; nothing is kept")
    given = parser.parse_args()
    known: dict[str, Any] = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    if given.study == "cost":
        torch.set_num_threads(1)
        rows = [cost(base, each) for base in BASES for each in (PLAIN, *operators.names()) if given.only in each]
        known |= {"cost": rows, "hardware": hardware(torch.device("cpu"))}
        tables = [cost_table(rows)]
    else:
        rows = accuracies(given)
        known["accuracy"] = rows
        tables = [accuracy_table(rows)] if any(row["operator"] == PLAIN for row in rows) else []
    if not given.only:
        FOUND.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    publish(given, tables)


if __name__ == "__main__":
    main()

"""What do the zoo's small models reach for the bytes that they send, in a fixed federated budget on Fashion-MNIST?

    python benchmarks/zoo_accuracy.py all                          # every `_tiny32` model and its plain CNN, one seed
    python benchmarks/zoo_accuracy.py best --picture docs/images/zoo.svg # the five best of `all`, three seeds

The budget is that of `fashion_zoo`: 20 rounds of 5 of 10 clients, 10 steps of 32 examples each, Dirichlet 0.5. Each
model is put beside the plain CNN whose width gives the same number of bytes as nearly as it can. The learning rate, one
of `RATES`, is each model's own, the CNNs' too: chosen on the server's validation data of seed 0.

Prints Markdown tables, and keeps what docs/make_models.py shows in benchmarks/results/zoo_accuracy.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from studies import Runs, Study, column, command_line, folder_of, measure_all, paired, publish, spread

from umbel.models import build, names
from umbel.models.weights import shared_state

FOUND = Path(__file__).parent / "results" / "zoo_accuracy.json"
RATES = (0.001, 0.003)
TINY = tuple(name for name in names() if name.endswith("_tiny32"))
ACCURACY, VALIDATION = "test/accuracy", "validation/accuracy"


def shared(name: str, **sizes: int) -> int:
    """Return how many numbers a model shares at 28 px."""
    with torch.device("meta"):
        model = build(name, 10, 28, 1, **sizes)
    return sum(tensor.numel() for tensor in shared_state(model).values())


def equal_cnn(wanted: int) -> int:
    """Return the width of the plain CNN that shares most nearly as many numbers."""
    return min(range(2, 129), key=lambda width: abs(shared("cnn", width=width) - wanted))


CNNS: Mapping[str, int] = {name: equal_cnn(shared(name)) for name in TINY}  # model -> width of its CNN


def contenders(models: Mapping[str, float] | None = None) -> dict[str, tuple[str, ...]]:
    """Return overrides of each model and of its CNN; without rates, with each of `RATES`."""
    overrides: dict[str, tuple[str, ...]] = {}
    for name in TINY:
        for label, options in (
            (name, (f"model.name={name}",)),
            (cnn_of(name), ("model.name=cnn", f"model.sizes={{width: {CNNS[name]}}}")),
        ):
            if models is None:
                overrides |= {f"{label}, lr {rate:g}": (*options, f"client.lr={rate}") for rate in RATES}
            elif label in models:
                overrides[label] = (*options, f"client.lr={models[label]}")
    return overrides


def cnn_of(name: str) -> str:
    """Return what the plain CNN of a model's size is called."""
    return f"cnn of width {CNNS[name]}"


def chosen(runs: Runs) -> dict[str, tuple[float, str]]:
    """Return for each label its rate and its row, by validation accuracy."""
    best: dict[str, tuple[float, str]] = {}
    for label in dict.fromkeys(label for name in TINY for label in (name, cnn_of(name))):
        rows = [(rate, f"{label}, lr {rate:g}") for rate in RATES]
        best[label] = max(rows, key=lambda row: column(runs[row[1]], VALIDATION)[0])
    return best


def table(runs: Runs, rows: Mapping[str, tuple[float, str]]) -> str:
    """Return accuracies beside those of the plain CNN of as many bytes."""
    lines = [
        "| model | numbers shared | MB a round | learning rate | accuracy, % | plain CNN of as many bytes | gain |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    order = sorted((name for name in TINY if name in rows), key=lambda name: shared(name))
    for name in order:
        rate, row = rows[name]
        own, plain = column(runs[row], ACCURACY), column(runs[rows[cnn_of(name)][1]], ACCURACY)
        cells = [f"{shared(name):,}", f"{8 * shared(name) / 1e6:.2f}", f"{rate:g}", spread(own), spread(plain)]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {paired(own, plain)} |")
    return "\n".join(lines)


def keep(part: str, runs: Runs, rows: Mapping[str, tuple[float, str]]) -> dict[str, list[dict[str, object]]]:
    """Write the figures down."""
    known: dict[str, list[dict[str, object]]] = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.exists() else {}
    known[part] = [
        {
            "model": name,
            "cnn_width": CNNS[name],
            "shared": shared(name),
            "cnn_shared": shared("cnn", width=CNNS[name]),
            "lr": rows[name][0],
            "cnn_lr": rows[cnn_of(name)][0],
            "accuracy": column(runs[rows[name][1]], ACCURACY),
            "cnn_accuracy": column(runs[rows[cnn_of(name)][1]], ACCURACY),
            "validation": column(runs[rows[name][1]], VALIDATION)[0],
        }
        for name in TINY
        if name in rows
    ]
    FOUND.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return known


def draw(known: Mapping[str, list[dict[str, object]]], path: Path) -> None:
    """Draw accuracy over bytes a round for every model and the plain CNNs."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "umbel"

    def mean(values: object) -> float:
        assert isinstance(values, list)
        return 100 * sum(values) / len(values)

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    rows = known["all"]
    plain = sorted({(8 * int(str(row["cnn_shared"])) / 1e6, mean(row["cnn_accuracy"])) for row in rows})
    axes.plot(*zip(*plain, strict=True), "o-", color="0.6", markersize=3, label="plain CNN, by width")
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: int(str(row["shared"]))):
        x, y = 8 * int(str(row["shared"])) / 1e6, mean(row["accuracy"])
        near = any(abs(x - other) < 0.4 and abs(y - height) < 0.7 for other, height in placed)
        placed.append((x, y))
        axes.plot(x, y, "o", color="tab:blue", markersize=5)
        name = str(row["model"]).removesuffix("_tiny32")
        axes.annotate(name, (x, y), (4, -10 if near else 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel("MB a round and client, down and up")
    axes.set_ylabel("test accuracy after 20 rounds, %")
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run a study, print its table, keep and draw its figures."""
    parser = command_line(__doc__, ("all", "best"), seeds=1)
    parser.add_argument("--picture", type=Path, help="draw accuracy over bytes here (svg)")
    given = parser.parse_args()
    if given.study == "all":
        given.seeds = 1
        runs = measure_all(Study("fashion_zoo", (), contenders(), {}), folder_of(given), given)
        rows = chosen(runs)
    else:
        everything = json.loads(FOUND.read_text(encoding="utf-8"))["all"]
        first = sorted(everything, key=lambda row: -row["validation"])[:5]
        rates = {row["model"]: row["lr"] for row in first} | {cnn_of(row["model"]): row["cnn_lr"] for row in first}
        given.seeds = max(given.seeds, 3)
        runs = measure_all(Study("fashion_zoo", (), contenders(rates), {}), folder_of(given), given)
        rows = {label: (rate, label) for label, rate in rates.items()}
    known = keep(given.study, runs, rows)
    publish(given, [table(runs, rows)])
    if given.picture:
        draw(known, given.picture)


if __name__ == "__main__":
    main()

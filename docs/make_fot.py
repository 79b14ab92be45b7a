"""Draw the picture of docs/strategies/fot.md and print its table of ranks and what sketches took, from the benchmark.

python benchmarks/fot.py permuted --seeds 3
python docs/make_fot.py [--runs results/fot/permuted]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from umbel.core.files import read_json

PICTURE = Path(__file__).resolve().parent / "images" / "fot-permuted.png"
CONTENDERS: dict[str, dict[str, Any]] = {
    "FedAvg": {"project": False},
    "FOT": {"project": True, "threshold": 0.95, "sketched": "global"},
}


def runs_of(folder: Path, wanted: dict[str, Any]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Return summary and metrics of each run whose strategy has these options, by seed."""
    found = []
    for path in sorted(folder.iterdir()):
        options = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))["strategy"]
        if (path / "summary.json").is_file() and all(options[key] == value for key, value in wanted.items()):
            found.append((read_json(path / "summary.json"), pd.read_parquet(path / "metrics.parquet")))
    return sorted(found, key=lambda pair: int(pair[0]["seed"]))


def matrix(table: pd.DataFrame) -> np.ndarray:
    """Return R[i][t], the test accuracy on task t after the training on task i, in percent."""
    rows = table[(table["side"] == "server") & (table["split"] == "test")]
    rows = rows[rows["metric"].str.fullmatch(r"task/\d+/accuracy")]
    tasks = rows["metric"].str.split("/").str[1].astype(int)
    wide = rows.assign(task=tasks).pivot_table(index="round", columns="task", values="value")
    step = len(wide) // wide.shape[1]  # evaluations of each task; the last of them counts
    return 100 * wide.to_numpy()[step - 1 :: step]


def draw(found: dict[str, np.ndarray]) -> None:
    """Draw the matrices side by side."""
    figure = Figure(figsize=(3.6 * len(found), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(found))
    for axis, (name, values) in zip(axes, found.items(), strict=True):
        image = axis.imshow(values, vmin=0, vmax=100, cmap="viridis")
        for row, column in np.ndindex(values.shape):
            shade = "white" if values[row, column] < 65 else "black"
            axis.text(column, row, f"{values[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=9)
        axis.set(title=name, xlabel="accuracy on task", xticks=range(len(values)), yticks=range(len(values)))
        axis.set_xticklabels(range(1, len(values) + 1))
        axis.set_yticklabels(range(1, len(values) + 1))
    axes[0].set_ylabel("after training on task")
    figure.colorbar(image, ax=axes, shrink=0.8, label="test accuracy (%)")
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def ranks(table: pd.DataFrame) -> str:
    """Return the directions of each layer after each task, and the share of the weights that they hold, as Markdown."""
    rows = table[(table["side"] == "server") & table["metric"].str.match("rank/|protected")]
    wide = rows.pivot_table(index="metric", columns="round", values="value")
    wide = wide.loc[:, ~wide.T.duplicated()]
    head = ["layer", *(f"after round {round_}" for round_ in wide.columns)]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * wide.shape[1]]
    for metric in [*(m for m in wide.index if m.startswith("rank/")), "protected"]:
        name = "share of the weights" if metric == "protected" else f"`{metric.removeprefix('rank/')}`"
        shown = [f"{v:.0%}" if metric == "protected" else f"{v:.0f}" for v in wide.loc[metric]]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("results/fot/permuted"))
    given = parser.parse_args()
    runs = {name: runs_of(given.runs, wanted) for name, wanted in CONTENDERS.items()}
    means = {name: np.mean([matrix(table) for _, table in found], axis=0) for name, found in runs.items()}
    draw(means)
    for name, values in means.items():
        print(f"{name}, mean of {len(runs[name])} seeds:\n{np.array2string(values, precision=1)}\n")
    summary, table = runs["FOT"][0]
    print(ranks(table))
    share = summary["seconds"]["sketch"] / summary["seconds"]["total"]
    print(f"\nAll sketches of seed {summary['seed']} took {share:.1%} of the run's time.")


if __name__ == "__main__":
    main()

"""Does FedAvg reach centralised training on IID data, and what does label skew cost?

1. `fashion_iid`: 10 IID clients, one pass over the data a round, 10 rounds; against the same with a single client
   that holds everything, which is centralised training with the same number of passes.
2. `fashion_dirichlet`: 20 clients, Dirichlet 0.1, FedAvg, FedProx and SCAFFOLD with the same budget; against FedAvg
   on an IID partition with the same everything else.

Three seeds each. Hyper-parameters are those of the experiment files; nothing was chosen on the test set. Finished
runs are used again. Writes the tables, with each run's hash, to benchmarks/results/fashion.md.

    python benchmarks/fashion.py [--results results/fashion] [--seeds 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from umbel.server.results import environment
from umbel.simulations.compare.carry_out import carry_out
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.prepare import prepare

TABLE = Path(__file__).parent / "results" / "fashion.md"
PARTS = (
    ("centralised", "fashion_iid", "fedavg", ("data.num_clients=1",)),
    ("10 IID clients", "fashion_iid", "fedavg", ()),
    ("20 IID clients", "fashion_dirichlet", "fedavg", ("data.partition=iid",)),
    ("Dirichlet 0.1", "fashion_dirichlet", "fedavg,fedprox(mu=0.01),scaffold", ()),
)


def rows(title: str, comparison: Comparison) -> list[str]:
    """Return the table's rows of one comparison."""
    lines = []
    for item in comparison.items:
        cells = []
        for measure in ("test_last", "test_best"):
            mean, deviation = comparison.mean_and_deviation(item.label, measure)
            cells.append(f"{100 * mean:.2f} ± {100 * deviation:.2f}")
        difference = comparison.differences("test_last").get(item.label)
        paired = f"{100 * difference.mean:+.2f} ± {100 * difference.error:.2f}" if difference else ""
        hashes = " ".join(member.summary["weights_sha256"][:12] for member in comparison.of(item.label))
        lines.append(f"| {title} | {item.label} | {cells[0]} | {cells[1]} | {paired} | {hashes} |")
    return lines


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/fashion"))
    parser.add_argument("--seeds", default="3")
    arguments = parser.parse_args()
    env = environment()
    lines = [
        "# Fashion-MNIST",
        "",
        f"`python benchmarks/fashion.py --seeds {arguments.seeds}` on {env['processor']}, torch "
        f"{env['versions']['torch']}, flwr {env['versions']['flwr']}. Test accuracy in %, mean ± sample deviation "
        "over seeds; *best* is the round with the best validation accuracy; *paired* is the difference to the "
        "first strategy of the same data with its standard error.",
        "",
        "| data | strategy | test, last round | test, best round | paired | weights_sha256 by seed |",
        "|---|---|---|---|---|---|",
    ]
    for title, experiment, strategies, overrides in PARTS:
        folder = arguments.results / title.replace(" ", "-").lower()
        done = carry_out(prepare(experiment, strategies, arguments.seeds, overrides, folder))
        lines += rows(title, done)
        print("\n".join(lines[6:]), flush=True)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\n{TABLE}")


if __name__ == "__main__":
    main()

"""NIID-Bench's table for Fashion-MNIST and MNIST, ours beside what was published.

Li, Diao, Chen, He, "Federated learning on non-IID data silos: an experimental study" (ICDE 2022), as Flower's baseline
`niid_bench` reports it: test accuracy in per cent after 50 rounds of FedAvg, SCAFFOLD, FedProx (the best mu of .001,
.01, .1 and 1, by which accuracy is not said) and FedNova. Here FedProx is run with mu = .01, chosen before and by no
result, and SCAFFOLD reads its controls off gradients (option I): that baseline takes option II, x - y over K eta, with
momentum, under which the difference of weights is no sum of gradients, and umbel refuses that. Where more than a point
lies between theirs and ours the difference is bold.

A run is some half an hour of one core. Finished runs are used again, and stopped ones go on: give the same command
once more. Rows that were not run yet are left out.

    python benchmarks/niid.py [--data fashion,mnist] [--partitions iid,dirichlet,3,2,1] [--seeds 1]
                              [--strategies fedavg,scaffold,fedprox,fednova] [key=value ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from umbel.server.results import environment
from umbel.simulations.compare.carry_out import carry_out
from umbel.simulations.compare.prepare import prepare

PAGE = Path(__file__).parents[1] / "docs" / "results" / "niid_bench.md"
STRATEGIES = {"fedavg": "fedavg", "scaffold": "scaffold(option=I)", "fedprox": "fedprox(mu=0.01)", "fednova": "fednova"}
PARTITIONS = {
    "iid": ("IID", ("data.partition=iid",)),
    "dirichlet": ("Dirichlet .5", ()),
    **{
        str(n): (f"{n} classes a client", ("data.partition=pathological", f"data.classes_per_client={n}"))
        for n in (3, 2, 1)
    },
}
# Of (FedAvg, SCAFFOLD, FedProx, FedNova), in per cent.
PUBLISHED = {
    ("fashion", "iid"): (89.0, 89.5, 89.5, 89.3),
    ("fashion", "dirichlet"): (88.4, 88.4, 88.6, 88.1),
    ("fashion", "3"): (83.2, 84.2, 82.5, 83.2),
    ("fashion", "2"): (81.0, 10.0, 78.8, 70.5),
    ("fashion", "1"): (10.0, 10.0, 38.0, 11.1),
    ("mnist", "iid"): (99.1, 99.2, 99.2, 99.0),
    ("mnist", "dirichlet"): (98.9, 99.0, 99.0, 98.8),
    ("mnist", "3"): (98.2, 97.8, 97.8, 97.7),
    ("mnist", "2"): (96.6, 96.6, 96.7, 96.5),
}
POINT = 1.0


def cell(ours: float, deviation: float, theirs: float, num_seeds: int) -> str:
    """Return `ours (theirs)`, bold where more than a point lies between them."""
    text = f"{ours:.1f} ± {deviation:.1f}" if num_seeds > 1 else f"{ours:.1f}"
    text = f"**{text}**" if abs(ours - theirs) > POINT else text
    return f"{text} ({theirs:.1f})"


def main() -> None:
    """Run what is asked for, row by row, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="where and how, such as engine.name=processes"
    )
    parser.add_argument("--data", default="fashion,mnist")
    parser.add_argument("--partitions", default=",".join(PARTITIONS))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--results", type=Path, default=Path("results/niid"))
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    strategies = asked.strategies.split(",")
    env = environment()
    words = " ".join(f"--{key} {getattr(asked, key)}" for key in ("data", "partitions", "strategies", "seeds"))
    words = " ".join([words, *asked.overrides])
    lines = [
        "# NIID-Bench",
        "",
        f"`python benchmarks/niid.py {words}` on {env['processor']}, torch {env['versions']['torch']}. Test accuracy "
        "in per cent after the last round, ours and, in brackets, what was published; bold where more than a point "
        "lies between them. Published: Li et al., ICDE 2022, as Flower's baseline `niid_bench` reports it.",
        "",
        "| data | clients | " + " | ".join(STRATEGIES[name] for name in strategies) + " | weights_sha256 |",
        "|---|---|" + "---:|" * len(strategies) + "---|",
    ]
    for data in asked.data.split(","):
        for name in asked.partitions.split(","):
            if (data, name) not in PUBLISHED:
                continue
            title, partition = PARTITIONS[name]
            folder, chosen = asked.results / f"{data}-{name}", ",".join(STRATEGIES[each] for each in strategies)
            done = carry_out(prepare(f"niid_{data}", chosen, asked.seeds, (*partition, *asked.overrides), folder))
            theirs = dict(zip(STRATEGIES, PUBLISHED[data, name], strict=True))
            cells = []
            for each in strategies:
                mean, deviation = done.mean_and_deviation(STRATEGIES[each], "test_last")
                cells.append(cell(100 * mean, 100 * deviation, theirs[each], len(done.seeds)))
            hashes = " ".join(member.summary["weights_sha256"][:8] for member in done.members)
            lines.append(f"| {data} | {title} | " + " | ".join(cells) + f" | {hashes} |")
            print(lines[-1], flush=True)
            asked.page.parent.mkdir(parents=True, exist_ok=True)
            asked.page.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

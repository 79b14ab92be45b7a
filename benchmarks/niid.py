"""NIID-Bench's table for Fashion-MNIST and MNIST, ours beside what was published.

Li, Diao, Chen, He, "Federated learning on non-IID data silos: an experimental study" (ICDE 2022), as Flower's baseline
`niid_bench` reports it: test accuracy in per cent after 50 rounds of FedAvg, SCAFFOLD, FedProx (the best mu of .001,
.01, .1 and 1, by which accuracy is not said) and FedNova. Here FedProx is run with mu = .01, chosen before and by no
result. SCAFFOLD's option II corrects the gradient, before momentum, and divides x - y by what the gradients count; that
baseline corrects the step, after momentum, and divides by the number of steps. Option I was not published and stands
beside it. Where more than a point lies between theirs and ours the difference is bold.

A run is some forty minutes of one core. Finished runs are used again, and stopped ones go on: give the same command
once more. What came of each strategy is kept in benchmarks/results/niid.json, from which the page is written: a row
that is not asked for stays, and one that was never run is left out.

    python benchmarks/niid.py [--data fashion,mnist] [--partitions iid,dirichlet,3,2,1] [--seeds 1] [--at-once 1]
                              [--strategies fedavg,scaffold,fedprox,fednova,scaffold-one] [key=value ...]
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umbel.core.files import read_json
from umbel.simulations.compare.carry_out import carry_out
from umbel.simulations.compare.comparison import Comparison
from umbel.simulations.compare.prepare import prepare

RECORDS = Path(__file__).resolve().parent / "results" / "niid.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "niid_bench.md"
STRATEGIES = {
    "fedavg": "fedavg",
    "scaffold": "scaffold",
    "fedprox": "fedprox(mu=0.01)",
    "fednova": "fednova",
    "scaffold-one": "scaffold(option=I)",
}
PARTITIONS = {
    "iid": ("IID", ("data.partition=iid",)),
    "dirichlet": ("Dirichlet .5", ()),
    **{
        str(n): (f"{n} classes a client", ("data.partition=pathological", f"data.classes_per_client={n}"))
        for n in (3, 2, 1)
    },
}
# Of (FedAvg, SCAFFOLD, FedProx, FedNova), the first of `STRATEGIES`, in per cent.
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
# What changes how and where runs go on, and not what is asked; with anything else it is another table.
HOW = (
    "engine.",
    "checkpoint.",
    "client.channels_last",
    "client.compile",
    "client.together",
    "client.device",
    "run.threads",
)
INTRODUCTION = f"""# NIID-Bench

Test accuracy in per cent after 50 rounds, ours and, in brackets, what was published: Li, Diao, Chen, He, "Federated
learning on non-IID data silos: an experimental study" (ICDE 2022), as Flower's baseline `niid_bench` reports it. Bold
where more than {POINT:g} point lies between them. Ten clients, ten local epochs a round, batch 64, SGD at .01 with
momentum .9 and weight decay 1e-5, and LeNet: the experiments `niid_fashion` and `niid_mnist`.

Two columns are not the same by construction. Published FedProx is the best of four mu (.001, .01, .1, 1), by which
accuracy is not said; ours is mu = .01, chosen before and by no result. Published SCAFFOLD corrects the step,
after momentum, and divides a client's way by its steps; ours corrects the gradient, before momentum, and divides by
what the gradients count ([scaffold.md](../strategies/scaffold.md)): over a round of many steps both corrections sum to
nearly the same, within it they come at other steps. SCAFFOLD's option I, the gradient at the server's model, was not
published. A dash: not run yet.
"""

Records = Mapping[str, Mapping[str, Any]]  # `fashion/iid/fedavg` -> what came of it


def recorded(done: Comparison, strategy: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what is kept of a strategy's runs.

    Args:
        done: The row's comparison.
        strategy: A key of `STRATEGIES`.
        overrides: What they had beside the row's own.
    """
    members = sorted(done.of(STRATEGIES[strategy]), key=lambda member: member.seed)
    where = [read_json(member.path / "env.json") for member in members]
    return {
        "test/accuracy": [member.summary["metrics"]["test/accuracy"] for member in members],
        "seeds": [member.seed for member in members],
        "weights_sha256": [member.summary["weights_sha256"] for member in members],
        "minutes": [round(member.summary["seconds"]["total"] / 60, 1) for member in members],
        "overrides": list(overrides),
        "commits": sorted({env["git_commit"] or "" for env in where}),
        "processors": sorted({env["processor"] for env in where}),
        "torch": sorted({env["versions"]["torch"] for env in where}),
    }


def cell(ours: Sequence[float], theirs: float | None) -> str:
    """Return `ours (theirs)` in per cent, bold where more than a point lies between them; accuracies as fractions.

    Args:
        ours: Accuracies, one for each seed; none where it was not run.
        theirs: What was published, in per cent, if it was.
    """
    published = "" if theirs is None else f" ({theirs:.1f})"
    if not ours:
        return f"–{published}"
    percent = [100 * each for each in ours]
    text = f"{statistics.mean(percent):.1f}"
    if len(percent) > 1:
        text += f" ± {statistics.stdev(percent):.1f}"
    is_apart = theirs is not None and abs(statistics.mean(percent) - theirs) > POINT
    return (f"**{text}**" if is_apart else text) + published


def short(commit: str) -> str:
    """Return a commit as people write it; `+` stands for changes beside it."""
    return commit[:7] + ("+" if commit.endswith("+") else "") or "an unknown commit"


def page(records: Records) -> str:
    """Return the page of what is kept."""
    rows, sources = [], []
    for (data, partition), published in PUBLISHED.items():
        names = [f"{data}/{partition}/{strategy}" for strategy in STRATEGIES]
        if not any(name in records for name in names):
            continue
        cells = [
            cell(records[name]["test/accuracy"] if name in records else (), theirs)
            for name, theirs in itertools.zip_longest(names, published)
        ]
        rows.append(f"| {data} | {PARTITIONS[partition][0]} | {' | '.join(cells)} |")
        for name, strategy in zip(names, STRATEGIES, strict=True):
            if kept := records.get(name):
                runs = zip(kept["seeds"], kept["weights_sha256"], kept["minutes"], strict=True)
                each = "<br>".join(f"seed {seed}: `{sha[:12]}`, {minutes} min" for seed, sha, minutes in runs)
                commits = ", ".join(short(each) for each in kept["commits"])
                where = f"{', '.join(kept['processors'])}, torch {', '.join(kept['torch'])}, umbel at {commits}"
                with_ = f"`{' '.join(kept['overrides'])}`" if kept["overrides"] else "–"
                sources.append(f"| {data} | {partition} | `{STRATEGIES[strategy]}` | {each} | {with_} | {where} |")
    table = ["| data | clients | " + " | ".join(STRATEGIES.values()) + " |", "|---|---|" + "---:|" * len(STRATEGIES)]
    came = [
        "| data | partition | strategy | weights_sha256, time of a run beside other work | overrides | where |",
        "|---|---|---|---|---|---|",
    ]
    command = "    python benchmarks/niid.py --data fashion,mnist --partitions iid,dirichlet,3,2,1"
    parts = [INTRODUCTION, "\n".join([*table, *rows]), f"\n{command}\n", "## Where it comes from\n"]
    return "\n".join([*parts, "\n".join([*came, *sources]), ""])


def main() -> None:
    """Run what is asked for, row by row, and write records and page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="where and how, such as engine.name=processes"
    )
    parser.add_argument("--data", default="fashion,mnist")
    parser.add_argument("--partitions", default=",".join(PARTITIONS))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs that go on side by side")
    parser.add_argument("--results", type=Path, default=Path("results/niid"))
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_intermixed_args()
    others = [each for each in asked.overrides if not each.startswith(HOW)]
    if others and RECORDS in (asked.records.resolve(), asked.records):
        parser.error(f"{others[0]} is not what was published: give files of your own by --records and --page.")
    strategies = asked.strategies.split(",")
    records = json.loads(asked.records.read_text(encoding="utf-8")) if asked.records.is_file() else {}
    for data in asked.data.split(","):
        for name in asked.partitions.split(","):
            if (data, name) not in PUBLISHED:
                continue
            partition = PARTITIONS[name][1]
            folder, chosen = asked.results / f"{data}-{name}", ",".join(STRATEGIES[each] for each in strategies)
            planned = prepare(f"niid_{data}", chosen, asked.seeds, (*partition, *asked.overrides), folder)
            done = carry_out(planned, at_once=asked.at_once)
            for each in strategies:
                records[f"{data}/{name}/{each}"] = recorded(done, each, asked.overrides)
            asked.records.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            asked.page.parent.mkdir(parents=True, exist_ok=True)
            asked.page.write_text(page(records), encoding="utf-8")
            print(f"{data}, {PARTITIONS[name][0]}: {asked.page}", flush=True)


if __name__ == "__main__":
    main()

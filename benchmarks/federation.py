"""What does a round over gRPC cost with nodes that stay warm, and with Flower's own, beside the same in one process?

Flower's SuperNode starts a Python process for every message and looks for messages every three seconds; the warm
node (`umbel.client.node.supernode`) keeps one process for each run and looks soon after something came. Both serve
Flower's SuperLink over its gRPC Fleet API, and the ServerApp is the same: this is what the node alone changes.

Workload: 200 digits, 8 clients, a small CNN, 1 epoch, no evaluation, 2 and 4 nodes on this machine. A round's time is
that between the ends of two rounds; the first, in which processes start, is given apart (the time from the command to
its end).

    python benchmarks/federation.py [--rounds 10] [--stock-rounds 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys

from round_times import SHORT, machine, measure, over_loopback

WORKLOAD = ("model.name=cnn", "model.sizes={width: 8, hidden: 32}", *SHORT)


def main() -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--stock-rounds", type=int, default=5)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    os.environ["UMBEL_HOME"] = "/nonexistent"  # no federation that is up already
    times = {"inline": measure(arguments.rounds, *WORKLOAD)}
    for nodes in (2, 4):
        for stock in (False, True):
            name = f"{nodes} {'stock SuperNodes' if stock else 'warm nodes'}"
            rounds = arguments.stock_rounds if stock else arguments.rounds
            times[name] = over_loopback(nodes, rounds, stock, *WORKLOAD)
            print(f"{name}: {statistics.median(times[name].rounds):.2f} s a round", file=sys.stderr, flush=True)
    print(f"{machine(load_before)}\n")
    print("| contender | s a round (median) | range | rounds | ratio to inline | first round (s) |")
    print("|---|---|---|---|---|---|")
    base = statistics.median(times["inline"].rounds)
    for name, one in times.items():
        middle = statistics.median(one.rounds)
        print(
            f"| {name} | {middle:.3f} | {min(one.rounds):.3f}-{max(one.rounds):.3f} | {len(one.rounds)} "
            f"| {middle / base:.1f} | {one.first:.1f} |"
        )


if __name__ == "__main__":
    main()

"""What the figures of `umbel bench` say about the user's own experiment, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psutil

from umbel.core.device import num_cpus
from umbel.simulations.bench.measure import LOOP, Row

_WORTH = 0.9  # a gain of a tenth is worth a word
_BUSY = 0.8  # below, processes wait for each other
_LONG = 0.5  # of a round, that one client takes


def advice(rows: Sequence[Row], batch_size: int) -> list[str]:
    """Return a sentence for each thing that would make the experiment faster, or that keeps it from being so.

    Args:
        rows: What was measured.
        batch_size: The experiment's.
    """
    done = {row.name: row for row in rows if not row.failure}
    if "inline" not in done:
        return []
    inline = done["inline"]
    lines = [*_workers(inline, done), *_modes(inline, done)]
    if loop := done.get(LOOP):
        lines += _beside_the_loop(inline, loop)
        lines += _batch(loop.throughput, batch_size)
    for name, seconds in (("evaluate.every", inline.evaluation), ("checkpoint.every", inline.checkpoint)):
        if seconds > (1 - _WORTH) * inline.round:
            what = "An evaluation" if name == "evaluate.every" else "A checkpoint"
            share = seconds / inline.round
            lines.append(f"{what} takes {_seconds(seconds)}, {share:.1f} times a round: {name} says how often.")
    return lines


def _workers(inline: Row, done: Mapping[str, Row]) -> list[str]:
    on_workers = [row for name, row in done.items() if name.endswith(" workers")]
    if not on_workers:
        return []
    best = min(on_workers, key=lambda row: row.round)
    ratio, lines = best.round / inline.round, []
    number = len({c.process for each in best.times for phase in each.values() for c in phase})
    if ratio < _WORTH:
        lines.append(f"{_asked(best)} takes {ratio:.2f} of a round in one process.")
    else:
        why = " (rounds are so short that handing out and back is most of one)" if inline.round < 1 else ""
        lines.append(f"Workers do not pay here: {ratio:.2f} of a round in one process{why}. engine.name=inline")
    if best.longest > _LONG:
        lines.append(f"One client takes {best.longest:.0%} of a round, and no number of workers makes it shorter.")
    elif best.busy < _BUSY and number > 1:
        lines.append(f"Its workers are at clients {best.busy:.0%} of the time that a phase takes.")
    own = best.memory_bytes / max(number, 1)
    fit = int(psutil.virtual_memory().available / own) if own else 0
    cores = num_cpus()
    if ratio < _WORTH and number < cores and fit > number:
        lines.append(f"There are {cores} cores, and memory for {fit} workers: try more of them (--workers).")
    return lines


def _modes(inline: Row, done: Mapping[str, Row]) -> list[str]:
    modes = [row for name, row in done.items() if name.startswith("inline, ")]
    better = sorted((row for row in modes if row.round / inline.round < _WORTH), key=lambda row: row.round)
    return [
        f"{_asked(row)} takes {row.round / inline.round:.2f} of a round (same results but for rounding: other bits)."
        for row in better
    ]


def _beside_the_loop(inline: Row, loop: Row) -> list[str]:
    ratio = inline.round / loop.round
    if ratio <= 1 / _WORTH:
        return [f"A round takes {ratio:.2f} of the same training in a plain loop: umbel itself costs next to nothing."]
    outside = inline.round - inline.stages["clients"]
    where = {"the server's step": inline.stages["server"]}
    where["handing out, checks and adding up"] = outside - inline.stages["server"]
    where["clients' turns, beside what the loop does"] = inline.stages["clients"] - loop.round
    most = max(where, key=lambda name: where[name])
    return [
        f"A round takes {ratio:.2f} of the same training in a plain loop; most of the rest is {most} "
        f"({_seconds(where[most])} a round)."
    ]


def _batch(throughput: Mapping[int, float], batch_size: int) -> list[str]:
    if not throughput:
        return []
    own = throughput[min(throughput)]
    better = [size for size, speed in throughput.items() if speed > own / _WORTH]
    if not better or not batch_size:
        return []
    size = max(better, key=lambda each: throughput[each])
    return [
        f"A batch of {size} goes through {throughput[size] / own:.1f} times as many examples a second as one of "
        f"{batch_size} (client.batch_size); it changes what is learnt."
    ]


def _asked(row: Row) -> str:
    return " ".join(word for word in row.overrides if word != "engine.name=inline")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"

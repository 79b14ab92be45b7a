"""`umbel data`: get a data set, and see how it is cut into clients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simulations.cli_run import guarded, say

if TYPE_CHECKING:
    from conf.schema import Experiment
    from simulations.plots import Counts

_SHADES = " ░▒▓█"
_MAX_TEXT_CLIENTS = 40


@click.group(short_help="Get a data set; see who has which classes.")
def data() -> None:
    """Get a data set, and see how an experiment cuts it into clients.

    \b
    Examples:
      umbel data fetch digits
      umbel data show digits data.alpha=0.1
      umbel list data
    """  # noqa: D301 - click reads the backspace as "keep these lines"


@data.command(short_help="Get a data set, or say how to.")
@click.argument("name")
@click.argument("overrides", nargs=-1, metavar="[data.options.KEY=VALUE]...")
@guarded
def fetch(name: str, overrides: tuple[str, ...]) -> None:
    """Check that data set NAME is on this machine; sets of the hub are fetched. Says what is in it.

    \b
    Examples:
      umbel data fetch digits
      umbel data fetch fashion_mnist
      umbel data fetch hub:ylecun/mnist
      umbel data fetch image_folder data.path=/data/flowers
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from conf.load import experiment_names, load
    from data import registry

    options = [f"data.name={name}", *overrides]
    config = load(experiment_names()[0], options, "description: fetch\n").data
    if name.startswith("hub:"):
        say(f"Fetching {name} ...")
    found = registry.load(config, seed=0)
    channels, height, width = found.train.images.shape[1:]
    colour = "grey" if channels == 1 else f"{channels} channels"
    click.echo(f"{found.name}: there.")
    click.echo(f"  {len(found.train):,} training and {len(found.test):,} test examples, {height} x {width}, {colour}")
    click.echo(f"  {len(found.class_names)} classes: {_some(found.class_names)}")
    if found.domain_names:
        click.echo(f"  {len(found.domain_names)} domains: {_some(found.domain_names)}")
    click.echo(f"  licence: {found.licence}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


@data.command(short_help="See who has which classes: table and heat map.")
@click.argument("experiment")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The picture to write  [default: partition-EXPERIMENT-PARTITION.png in run.results]",
)
@click.option("--open/--no-open", "show_it", default=False, help="Open the picture.")
@click.option("--json", "as_json", is_flag=True, help="For machines, on standard output.")
@guarded
def show(experiment: str, overrides: tuple[str, ...], output: Path | None, show_it: bool, as_json: bool) -> None:
    """Show how EXPERIMENT cuts its data into clients: counts, skew, and a heat map of clients and classes.

    The divergence is Jensen and Shannon's, between a client's classes and all clients' classes, in bits: 0 is
    the same mix, 1 is nothing in common. The picture's path is the last line of standard output.

    \b
    Examples:
      umbel data show digits
      umbel data show digits data.partition=dirichlet data.alpha=0.1 data.num_clients=30
      umbel data show digits data.partition=shards --output shards.png --open
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    import json

    from conf.load import load
    from data import check
    from simulations import plots

    composed = load(experiment, overrides)
    check(composed.data)
    counts, names, federation = plots.class_counts(composed)
    facts = statistics(counts)
    facts["server"] = {
        "validation": len(federation.validation_index),
        "test": len(federation.test_pool),
    }
    stem = f"partition-{composed.name}-{composed.data.partition}.png"
    path = (output or Path(composed.run.results) / stem).expanduser().resolve()
    plots.save(plots.heat_map(counts, names, title(composed)), path)
    if as_json:
        click.echo(json.dumps({**facts, "counts": counts.tolist(), "classes": list(names), "picture": str(path)}))
        return
    _print(composed, counts, names, facts)
    if show_it:
        click.launch(str(path))
    click.echo(str(path))


def title(experiment: Experiment) -> str:
    """Return a heat map's title."""
    data_, keys = experiment.data, {"dirichlet": "alpha", "long_tail": "alpha", "domain_label": "alpha"}
    keys |= {"quantity_skew": "alpha", "pathological": "classes_per_client", "shards": "shards_per_client"}
    key = keys.get(data_.partition)
    value = f" ({key.replace('_', ' ')} {getattr(data_, key):g})" if key else ""
    return f"{data_.name}: {data_.partition}{value}, {data_.num_clients:,} clients, seed {experiment.data_seed}"


def statistics(counts: Counts) -> dict[str, Any]:
    """Describe a partition.

    Args:
        counts: [K, C] examples.

    Returns:
        Numbers of clients, classes, examples; smallest, median, largest of examples and of classes a client;
        mean and largest Jensen-Shannon divergence of the clients' classes to the whole, in bits.
    """
    import numpy as np

    sizes, classes = counts.sum(axis=1), (counts > 0).sum(axis=1)
    shares = counts / np.maximum(sizes, 1)[:, None]
    whole = counts.sum(axis=0) / max(int(counts.sum()), 1)
    middle = (shares + whole) / 2

    def relative(p: Any) -> Any:
        ratio = np.divide(p, middle, out=np.ones_like(middle), where=(p > 0) & (middle > 0))
        return (p * np.log2(ratio)).sum(axis=1)

    divergence = np.maximum((relative(shares) + relative(np.broadcast_to(whole, shares.shape))) / 2, 0.0)

    def spread(values: Any) -> dict[str, float]:
        return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}

    return {
        "num_clients": int(counts.shape[0]),
        "num_classes": int(counts.shape[1]),
        "num_examples": int(counts.sum()),
        "examples_per_client": spread(sizes),
        "classes_per_client": spread(classes),
        "divergence_mean": float(divergence.mean()),
        "divergence_max": float(divergence.max()),
    }


def _print(experiment: Experiment, counts: Counts, names: tuple[str, ...], facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    console.print(title(experiment), style="bold")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    examples, classes = facts["examples_per_client"], facts["classes_per_client"]
    server = facts["server"]
    table.add_row("clients", f"{facts['num_clients']:,} with {facts['num_examples']:,} examples")
    for what, found in (("examples a client", examples), ("classes a client", classes)):
        table.add_row(what, f"{found['min']:,} to {found['max']:,}, median {found['median']:g}")
    table.add_row(
        "divergence from the whole",
        f"mean {facts['divergence_mean']:.3f}, largest {facts['divergence_max']:.3f} bits "
        "(0 the same mix, 1 nothing in common)",
    )
    table.add_row("on the server", f"{server['validation']:,} for validation, {server['test']:,} for test")
    console.print(table)
    if len(counts) <= _MAX_TEXT_CLIENTS:
        console.print()
        for line in text_map(counts, names):
            console.print(line, soft_wrap=True, markup=False)
    console.print()


def text_map(counts: Counts, names: tuple[str, ...]) -> list[str]:
    """Draw a partition with block characters, darker for more examples: a client a line."""
    largest = max(int(counts.max()), 1)
    cell = 2 if counts.shape[1] <= 25 else 1
    head = "".join(f"{name[:cell]:<{cell}}" for name in names) if max(map(len, names)) <= cell else ""
    lines = [f"{'client':>8}  {head or 'classes'}{'' if head else f' 0 to {len(names) - 1}'}"]
    for client, row in enumerate(counts):
        shades = "".join(_SHADES[_shade(int(count), largest)] * cell for count in row)
        lines.append(f"{client:>8}  {shades}  {int(row.sum()):,}")
    return lines


def _shade(count: int, largest: int) -> int:
    """Return 0 for nothing, else 1 to 4 by the square root, so that few are told from many."""
    return math.ceil(4 * math.sqrt(count / largest))

"""`umbel data`: get a data set, and see how it is cut into clients."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from umbel.simulations.commands.supervision import guarded, say

if TYPE_CHECKING:
    from umbel.conf.schema import Experiment
    from umbel.data.federation import Federation
    from umbel.data.types import DataSet
    from umbel.simulations.plots.runs import Counts

_SHADES = " ░▒▓█"
_MAX_TEXT_CLIENTS = 40
_SHOWN_TEXTS = 6
_SHOWN_LETTERS = 100
# Names that stand for several sets out of the same packages.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "emoji": ("emoji_domains", "emoji_pairs"),
    "openclipart": ("openclipart", "openclipart_pairs"),
}


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
    """Get data set NAME onto this machine, or say how to, and say what is in it.

    NAME may stand for a family: emoji is emoji_domains and emoji_pairs, openclipart is openclipart and
    openclipart_pairs; whatever is set is then set for both.

    \b
    Examples:
      umbel data fetch digits
      umbel data fetch fashion_mnist
      umbel data fetch emoji
      umbel data fetch cifar10 data.path=/data/cifar10
      umbel data fetch hub:ylecun/mnist
      umbel data fetch image_folder data.path=/data/flowers
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.conf.load import experiment_names, load
    from umbel.data.sets import registry

    members = FAMILIES.get(name, (name,))
    asked = [[f"data.name={one}", *overrides] for one in members]
    configs = [load(experiment_names()[0], each, "description: fetch\n").data for each in asked]
    for config in configs:
        registry.check_options(config)  # of all, before anything is fetched
    if name == "emoji":
        from umbel.data.sets.emoji import store as emoji_store

        emoji_store.fetch_all(say)  # also the styles that are only there when they are asked for
    for config in configs:
        if config.name.startswith("hub:"):
            say(f"Fetching {config.name} ...")
        registry.fetch(config, say)
        for line in describe(registry.load(config, seed=0)):
            click.echo(line)


def describe(data_set: DataSet) -> list[str]:
    """Say what is in a data set, whom it is by and what it allows, a line each."""
    images = data_set.train.images
    if images.ndim == 4:
        channels, height, width = images.shape[1:]
        form = f"examples, {height} x {width}, " + {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    else:
        form = f"examples of {images.shape[1]} numbers" if images.shape[1] else "texts"
    lines = [
        f"{data_set.name}: there.",
        f"  {len(data_set.train):,} training and {len(data_set.test):,} test {form}",
        f"  {len(data_set.class_names):,} classes: {_some(data_set.class_names)}",
    ]
    if data_set.domain_names:
        count = len(data_set.domain_names)
        lines.append(f"  {count} domain{'' if count == 1 else 's'}: {_some(data_set.domain_names)}")
    both = (data_set.train, data_set.test)
    concepts = [len(set(one.concepts.tolist())) for one in both if one.concepts is not None]
    if concepts:
        lines.append(f"  {concepts[0]:,} training and {concepts[1]:,} test concepts, none of them in both")
    if data_set.train.texts is not None:
        sizes = data_set.train.texts.offsets.diff().double()
        mean = f", {float(sizes.mean()):.0f} bytes on average" if len(sizes) else ""
        example = f", such as {_cut(data_set.train.texts[0])!r}" if len(sizes) else ""
        lines.append(f"  a text for each{mean}{example}")
    lines.append(f"  licence: {data_set.licence}")
    asked = data_set.attribution.strip().splitlines()
    lines += [f"  attribution: {line}" for line in asked]
    return lines + [f"  note: {notice}" for notice in data_set.notices]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _cut(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN_LETTERS else plain[: _SHOWN_LETTERS - 1] + "…"


@data.command(name="check-site", short_help="See what a site's own data are; send nothing.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("experiment", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@guarded
def check_site(file: Path, experiment: str | None, overrides: tuple[str, ...]) -> None:
    """Read the data that a site's FILE names as EXPERIMENT would, and print what a run would hear of them.

    Nothing is sent. Without EXPERIMENT the data are looked at alone.

    \b
    Examples:
      umbel data check-site north.yaml
      umbel data check-site north.yaml experiment.yaml
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    from umbel.client.node.site_data import dry_run

    dry_run(file, experiment, overrides, click.echo)


@data.command(short_help="See who has what: table, heat maps, examples, distances.")
@click.argument("experiment")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The heat map to write; other pictures lie beside it  "
    "[default: partition-EXPERIMENT-PARTITION.png in run.results]",
)
@click.option("--open/--no-open", "show_it", default=False, help="Open the heat map.")
@click.option("--json", "as_json", is_flag=True, help="For machines, on standard output.")
@guarded
def show(experiment: str, overrides: tuple[str, ...], output: Path | None, show_it: bool, as_json: bool) -> None:
    """Show how EXPERIMENT cuts its data into clients: counts, skew, distances, and pictures.

    \b
    In numbers:
      divergence   Jensen and Shannon's, between a client's classes and all clients', in
                   bits: 0 is the same mix, 1 is nothing in common
      imbalance    the largest over the smallest class that has examples
      distance     Frechet's, squared, between what a client (or a domain) looks like and
                   all others, over the total variance; of embeddings, or else of pixels,
                   in 32 principal components; and what such groups come to by chance

    \b
    In pictures, whose paths are printed on standard output:
      ...-examples.png   a sheet of examples of each client
      ...-domains.png    clients and domains, where the set has domains
      ....png            clients and classes; its path is the last line

    \b
    Examples:
      umbel data show digits
      umbel data show digits data.partition=dirichlet data.alpha=0.1 data.num_clients=30
      umbel data show digits data.partition=shards --output shards.png --open
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    import json

    from umbel.conf.load import load
    from umbel.core.names import file_stem
    from umbel.data import check
    from umbel.simulations.commands import data_view

    composed = load(experiment, overrides)
    check(composed.data)
    federation = data_view.build(composed)
    for notice in federation.notices:
        click.echo(f"Note: {notice}", err=True)
    counts, domains = data_view.class_counts(federation), data_view.domain_counts(federation)
    facts = data_view.statistics(counts)
    facts["server"] = {
        "validation": len(federation.validation_index),
        "test": len(federation.test_pool),
    }
    distances = data_view.distances(federation)
    facts["features"] = (composed.data.encoder or "pixels") if distances else ""
    facts["distances"] = {kind: one.plain() for kind, one in distances.items()}
    stem = f"partition-{file_stem(composed.name)}-{composed.data.partition}.png"
    path = (output or Path(composed.run.results) / stem).expanduser().resolve()
    pictures = _draw(composed, federation, counts, domains, path)
    if as_json:
        facts |= {"counts": counts.tolist(), "classes": list(federation.class_names)}
        if domains is not None:
            facts |= {"domain_counts": domains.tolist(), "domains": list(federation.domain_names)}
        facts |= {"picture": str(path), "pictures": {kind: str(picture) for kind, picture in pictures.items()}}
        click.echo(json.dumps(facts))
        return
    _print(composed, counts, federation, facts)
    if show_it:
        click.launch(str(path))
    for picture in pictures.values():
        click.echo(str(picture))


def _draw(
    experiment: Experiment, federation: Federation, counts: Counts, domains: Counts | None, path: Path
) -> dict[str, Path]:
    """Write the pictures that fit the data; the heat map of classes is the last."""
    from umbel.simulations.commands import data_view
    from umbel.simulations.plots import data as data_plots
    from umbel.simulations.plots import heat
    from umbel.simulations.plots import runs as plots

    title = data_view.title(experiment)
    pictures: dict[str, Path] = {}

    def beside(kind: str) -> Path:
        return path.with_name(f"{path.stem}-{kind}{path.suffix or '.png'}")

    if federation.pool.images.ndim == 4:
        rows = data_plots.rows(federation)
        of = "each client" if len(rows) == len(counts) else f"{len(rows)} of the {len(counts):,} clients"
        what = f"up to {data_plots.COLUMNS} examples of {of}, in the order of their classes"
        figure = data_plots.sheet(rows, f"{title}\n{what}")
        pictures["examples"] = plots.save(figure, beside("examples"))
    if domains is not None:
        figure = heat.heat_map(domains, federation.domain_names, title, what="domain")
        pictures["domains"] = plots.save(figure, beside("domains"))
    pictures["classes"] = plots.save(heat.heat_map(counts, federation.class_names, title), path)
    return pictures


def _print(experiment: Experiment, counts: Counts, federation: Federation, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from umbel.simulations.commands.data_view import title

    console = Console(stderr=True, highlight=False)
    console.print(title(experiment), style="bold")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    examples, classes = facts["examples_per_client"], facts["classes_per_client"]
    server = facts["server"]
    table.add_row("clients", f"{facts['num_clients']:,} with {facts['num_examples']:,} examples")
    for what, summary in (("examples a client", examples), ("classes a client", classes)):
        table.add_row(what, f"{summary['min']:,} to {summary['max']:,}, median {summary['median']:g}")
    table.add_row(
        "divergence from the whole",
        f"mean {facts['divergence_mean']:.3f}, largest {facts['divergence_max']:.3f} bits "
        "(0 the same mix, 1 nothing in common)",
    )
    table.add_row(
        "imbalance of classes",
        f"{_factor(facts['imbalance'])} in the whole, {_factor(facts['imbalance_mean_of_clients'])} in a client on "
        "average (largest over smallest class)",
    )
    for kind, distance in facts["distances"].items():
        table.add_row(
            f"distance of {kind}",
            f"mean {distance['mean']:.3g}, largest {distance['max']:.3g} (by chance {distance['by_chance']:.2g}), "
            f"by {facts['features']}",
        )
    table.add_row("on the server", f"{server['validation']:,} for validation, {server['test']:,} for test")
    console.print(table)
    if len(counts) <= _MAX_TEXT_CLIENTS:
        console.print()
        for line in text_map(counts, federation.class_names):
            console.print(line, soft_wrap=True, markup=False)
    texts = federation.pool.texts
    if texts is not None and federation.pool.images.ndim != 4:
        console.print()
        for number in federation.partition.indices[:_SHOWN_TEXTS].tolist():
            name = federation.class_names[int(federation.pool.labels[number])]
            console.print(f"{name}: {_cut(texts[number])}", soft_wrap=True, markup=False)
    console.print()


def _factor(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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

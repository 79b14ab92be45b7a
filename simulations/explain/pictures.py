"""Which pictures `umbel explain` draws: those that the model and the run have something for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from umbel.models.attention import AttentionMap
from umbel.models.maps import MapLayer
from umbel.simulations.explain import filters
from umbel.simulations.explain.clients import FEWEST, Client
from umbel.simulations.explain.finished import FinishedRun
from umbel.simulations.explain.inside import Look, Probe
from umbel.simulations.plots import inside as inside_plots
from umbel.simulations.plots import metrics as metric_plots
from umbel.simulations.plots.inside import GLOBAL, Column, Layers
from umbel.simulations.report import series as report_series

Picture = tuple[str, Figure, str]  # name of its file, and what it shows for those who cannot see it

NAMES = (
    "cams",
    "attention",
    "attention_clients",
    "labels",
    "drift",
    "kernels",
    "update",
    "layers",
    "locality",
    "collapse",
    "collapse_clients",
)
_MOST_LAYERS = 7  # columns of attention maps
_LETTERS = 16  # of a line above a column


def draw(
    run: FinishedRun,
    seen: Probe,
    layer: MapLayer | None,
    whole: Look,
    looks: Mapping[int, Look],
    clients: Sequence[Client],
    metrics: pd.DataFrame,
    num_shown: int,
) -> Iterator[Picture]:
    """Draw what was found.

    Args:
        run: The run.
        seen: What models were shown.
        layer: What Eigen-CAM read.
        whole: The global model.
        looks: Each client's.
        clients: A row each.
        metrics: Of the run.
        num_shown: Clients with a column of their own; suspects have one in any case, unless it is 0.
    """
    shown = with_columns(clients, num_shown)
    images = seen.examples.images[: seen.num_shown]
    names = [run.data.class_names[int(label)] for label in seen.labels[: seen.num_shown]]
    if layer is not None and whole.cams is not None:
        yield _cams(images, names, layer, whole.cams[: seen.num_shown], looks, shown)
    if whole.attention:
        yield _attention(images, names, whole.attention)
        if shown:
            yield _attention_of_clients(images, names, whole.attention, looks, shown)
    yield from _labels(clients)
    yield from _outliers(clients)
    yield from _layers(whole, looks)
    if panels := report_series.collapse(metrics):
        yield "collapse", metric_plots.panels(panels, "Neural collapse by round"), "neural collapse by round"
    yield from _collapsed(whole, looks, seen.split)


def with_columns(clients: Sequence[Client], num_shown: int) -> list[Client]:
    """Return the clients that have a column: all suspects, and others up to `num_shown`; none where that is 0."""
    number = max(num_shown, sum(row.flagged for row in clients)) if num_shown else 0
    first = sorted(clients, key=lambda row: (not row.flagged, row.client))[:number]
    return sorted(first, key=lambda row: row.client)


def _cams(
    images: Tensor,
    names: Sequence[str],
    layer: MapLayer,
    cams: Tensor,
    looks: Mapping[int, Look],
    shown: Sequence[Client],
) -> Picture:
    columns = [Column("image"), Column("global", cams)]
    for row in shown:
        own = looks[row.client].cams
        told = "" if row.correlation is None else f"\nr = {row.correlation:.2f}"
        columns.append(Column(f"{_named(row)}{told}", None if own is None else own[: len(images)], row.flagged))
    title = f"Eigen-CAM at {layer.name}, {layer.side} x {layer.side}"
    return "cams", inside_plots.sheet(images, names, columns, title), "where each model's activations vary most"


def _attention(images: Tensor, names: Sequence[str], maps: Sequence[AttentionMap]) -> Picture:
    """Draw the global model's layers, those in the middle left out where they are many."""
    if len(maps) > _MOST_LAYERS:
        maps = [each for each in maps if each.kind != "positional"]  # these are the same for all images
    step = max(1, -(-len(maps) // _MOST_LAYERS))
    chosen = maps[::-1][::step][::-1]
    titles = short([each.name for each in chosen])
    columns = [
        Column("image"),
        *(Column(f"{t}\n{_said(each)}", scaled(each.map)) for t, each in zip(titles, chosen, strict=True)),
    ]
    figure = inside_plots.sheet(images, names, columns, "The global model's attention and gates, by layer")
    return "attention", figure, "attention and gates of the global model by layer"


def _attention_of_clients(
    images: Tensor,
    names: Sequence[str],
    maps: Sequence[AttentionMap],
    looks: Mapping[int, Look],
    shown: Sequence[Client],
) -> Picture:
    last = maps[-1]
    columns = [Column("image"), Column("global", scaled(last.map))]
    for row in shown:
        own = looks[row.client].attention
        columns.append(Column(_named(row), scaled(own[-1].map), row.flagged))
    figure = inside_plots.sheet(images, names, columns, f"{_said(last).capitalize()} at {last.name}")
    return "attention_clients", figure, "attention of each model in its last layer that has maps"


def _named(row: Client) -> str:
    return f"client {row.client}" + (", suspect" if row.flagged else "")


def scaled(maps: Tensor) -> Tensor:
    """Return maps [M, s, s] from 0 to 1, each by its own extremes; one that is the same everywhere is 0."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return ((maps - low) / (high - low).clamp_min(1e-12)).cpu()


def short(names: Sequence[str]) -> list[str]:
    """Return names of modules without the parts at the end that all have in common, cut to what fits above a column."""
    parts = [name.split(".") for name in names]
    while len(parts) > 1 and all(len(each) > 1 for each in parts) and len({each[-1] for each in parts}) == 1:
        parts = [each[:-1] for each in parts]
    joined = [".".join(each) for each in parts]
    return [name if len(name) <= _LETTERS else "…" + name[-_LETTERS + 1 :] for name in joined]


def _said(attention: AttentionMap) -> str:
    return attention.kind.replace("_", " ")


# What clients are told apart by: field of a `Client`, its title, and what it is.
_DRIFT = ("drift", "Drift of each client's filters from the global model's", "drift (no unit)")
_KERNELS = ("kernels", "Length of the change of each client's 3 x 3 kernels", "Euclidean length")
_UPDATE = ("update", "Length of each client's update", "Euclidean length")


def _labels(clients: Sequence[Client]) -> Iterator[Picture]:
    judged = [row for row in clients if row.labels is not None and row.bound is not None]
    if judged:
        title = "How well each client's labels go with the global model's answers"
        values = {row.client: float(row.labels or 0) for row in judged}
        bounds = {row.client: float(row.bound or 0) for row in judged}
        figure = inside_plots.bounded(
            values, bounds, [row.client for row in judged if row.flagged], title, "association"
        )
        yield "labels", figure, "association of each client's labels with the global model's answers to its images"


def _outliers(clients: Sequence[Client]) -> Iterator[Picture]:
    if len(clients) < FEWEST:
        return
    for name, title, unit in (_UPDATE,) if clients[0].drift is None else (_DRIFT, _KERNELS):
        values = {row.client: float(getattr(row, name)) for row in clients}
        scores = {row.client: float(getattr(row, f"{name}_z")) for row in clients}
        far = [client for client, score in scores.items() if score > filters.THRESHOLD]
        said = f"robust z above {filters.THRESHOLD:g}"
        yield name, inside_plots.outliers(values, far, bound(values, scores), title, unit, said), title.lower()


def bound(values: Mapping[int, float], scores: Mapping[int, float]) -> float | None:
    """Return the value at which the robust z-score is at its threshold; None where all scores are 0."""
    middle = median(values.values())
    client = max(scores, key=lambda each: abs(scores[each]))
    return middle + filters.THRESHOLD * (values[client] - middle) / scores[client] if scores[client] else None


def _layers(whole: Look, looks: Mapping[int, Look]) -> Iterator[Picture]:
    named = {GLOBAL: whole} | {f"client {client}": look for client, look in looks.items()}
    if whole.layers:
        sparsity = {name: {layer: s.sparsity for layer, s in look.layers.items()} for name, look in named.items()}
        entropy = {name: {layer: s.entropy for layer, s in look.layers.items()} for name, look in named.items()}
        bounds = {
            "as random": {layer: s.threshold for layer, s in whole.layers.items()},
            "hardly any variety": dict.fromkeys(whole.layers, filters.LEAST_ENTROPY),
        }
        panels = [
            Layers("Variance entropy of 3 x 3 filters", entropy, bounds),
            Layers("Sparsity: share of filters that are next to nothing", sparsity, {}),
        ]
        yield "layers", inside_plots.by_layer(panels, "Filters by layer"), "entropy and sparsity of filters by layer"
    if whole.locality:
        panel = Layers("Share of attention that goes by position", {n: look.locality for n, look in named.items()}, {})
        yield (
            "locality",
            inside_plots.by_layer([panel], "Locality of gated attention"),
            "locality of attention by layer",
        )


def _collapsed(whole: Look, looks: Mapping[int, Look], split: str) -> Iterator[Picture]:
    titles = {"nc1": "NC1 → 0", "nc2_angles": "NC2, angles → 0", "nc3": "NC3 → 0", "nc4": "NC4 → 1"}
    named = {GLOBAL: whole} | {f"client {client}": look for client, look in looks.items()}
    values = {
        title: {name: look.collapse[key] for name, look in named.items() if key in look.collapse}
        for key, title in titles.items()
    }
    if all(GLOBAL in models for models in values.values()):
        figure = inside_plots.spread(values, f"Neural collapse on held-out images ({split}), last round")
        yield "collapse_clients", figure, "neural collapse of the global model and of each client's"

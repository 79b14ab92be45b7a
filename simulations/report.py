"""One self-contained HTML file of runs or of a comparison; it loads nothing from anywhere."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from conf.errors import ExperimentError
from conf.load import load
from conf.schema import Experiment
from core.files import read_json, write_text
from data.errors import DataError
from server.main import summary
from simulations import plots, report_rows
from simulations.comparison import MEASURES, Comparison, cell, difference_cell, footnote, read_comparison
from simulations.data_view import statistics, title
from simulations.display import describe

_TEMPLATES = Path(__file__).parent / "templates"


def report(paths: Sequence[str | Path], output: Path | None = None) -> Path:
    """Write the report of runs or of comparisons.

    Args:
        paths: Folders of runs, or of comparisons.
        output: The file; None is report.html in the folder, or in the folder that holds all of several.

    Raises:
        ExperimentError: A path is neither a finished run nor a comparison.
    """
    folders = [Path(path).expanduser().resolve() for path in paths]
    sections = []
    for folder in folders:
        if (folder / "comparison.json").is_file():
            sections.append(_comparison(read_comparison(folder)))
        elif (folder / "config.yaml").is_file():
            sections.append(_run(folder))
        else:
            raise ExperimentError(f"{folder} is neither a run (config.yaml) nor a comparison (comparison.json).")
    parent = folders[0] if len(folders) == 1 else folders[0].parent
    target = (output or parent / "report.html").expanduser().resolve()
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("report.html.jinja")
    name = sections[0]["title"] if len(sections) == 1 else f"{len(sections)} results"
    write_text(target, template.render(title=name, sections=sections))
    return target


def write_pictures(comparison: Comparison) -> None:
    """Write curves.png and partition.png of a comparison."""
    plots.save(_comparison_curves(comparison), comparison.path / "curves.png")
    experiment = comparison.members[0].experiment
    counts, names, _ = plots.class_counts(experiment)
    plots.save(plots.heat_map(counts, names, title(experiment)), comparison.path / "partition.png")


# ---- a run -------------------------------------------------------------------------------------------------


def _run(folder: Path) -> dict[str, Any]:
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    experiment = load("config", (), text)
    try:
        content = summary(folder)
    except FileNotFoundError as error:
        raise ExperimentError(str(error)) from error
    metrics = pd.read_parquet(folder / "metrics.parquet")
    pictures = [
        _picture(plots.curves(series, heading, label, percent), alternative)
        for series, heading, label, percent, alternative in (
            (
                report_rows.course(metrics, "accuracy"),
                "Accuracy by round",
                "accuracy",
                True,
                "accuracy by round",
            ),
            (
                report_rows.course(metrics, "loss"),
                "Loss by round",
                "cross-entropy in nats",
                False,
                "loss by round",
            ),
        )
        if series
    ]
    spread = report_rows.of_clients(metrics)
    if spread:
        figure = plots.clients({"": spread}, f"Clients' accuracy, {len(spread)} clients, last round")
        pictures.append(_picture(figure, "accuracy of each client, from the worst to the best"))
    return {
        "kind": "run",
        "title": f"{experiment.name}: {content['strategy']}, seed {content['seed']}",
        "description": experiment.description,
        "line": describe(experiment),
        "path": str(folder),
        "tiles": report_rows.tiles(content),
        "pictures": pictures,
        **_partition(experiment),
        "metrics": report_rows.metric_rows(content["metrics"]),
        "classes": report_rows.class_rows(metrics),
        "clients_table": report_rows.client_facts(spread),
        "seconds": report_rows.shares(content["seconds"]),
        "bytes": report_rows.bytes(content),
        "failures": report_rows.failures(folder),
        "num_failures": content["num_failures"],
        "weights_sha256": content["weights_sha256"],
        "config_hash": content["config_hash"],
        "config": text,
        "environment": report_rows.flat(read_json(folder / "env.json")),
        "command": _run_command(folder, experiment),
    }


def _partition(experiment: Experiment) -> dict[str, Any]:
    """Return the heat map and its numbers, or why there is none: the data may be on another machine."""
    try:
        counts, names, _ = plots.class_counts(experiment)
    except (DataError, OSError) as error:
        return {"partition": None, "partition_note": f"No picture: {error}", "partition_facts": []}
    facts = statistics(counts)
    sizes, classes = facts["examples_per_client"], facts["classes_per_client"]
    rows = [
        ("clients", f"{facts['num_clients']:,}"),
        ("examples of all clients", f"{facts['num_examples']:,}"),
        ("examples a client", f"{sizes['min']:,} to {sizes['max']:,}, median {sizes['median']:g}"),
        ("classes a client", f"{classes['min']} to {classes['max']}, median {classes['median']:g}"),
        ("mean divergence from the whole", f"{facts['divergence_mean']:.3f} bits (Jensen-Shannon)"),
    ]
    figure = plots.heat_map(counts, names, title(experiment))
    picture = _picture(figure, "examples of each class at each client")
    return {"partition": picture, "partition_note": "", "partition_facts": rows}


def _picture(figure: Figure, alternative: str) -> dict[str, str]:
    content = base64.b64encode(plots.png(figure)).decode()
    return {"source": f"data:image/png;base64,{content}", "alternative": alternative}


def _run_command(folder: Path, experiment: Experiment) -> str:
    words = ["umbel", "run", str(folder / "config.yaml")]
    # A name that is taken would be refused.
    again = [f"run.name={experiment.run.name}-again"] if experiment.run.name else []
    return shlex.join([*words, *again])


# ---- a comparison ------------------------------------------------------------------------------------------


def _comparison_curves(comparison: Comparison) -> Figure:
    kinds = (
        ("server", "accuracy", "test accuracy"),
        ("clients", "accuracy_mean", "clients' mean accuracy"),
    )
    found = [
        {
            item.label: [report_rows.rows(member.metrics, side, "test", metric) for member in comparison.of(item.label)]
            for item in comparison.items
        }
        for side, metric, _ in kinds
    ]
    # Without a server's test set, what clients measured.
    best = next((i for i, series in enumerate(found) if all(map(all, series.values()))), 0)
    label = kinds[best][2]
    num = len(comparison.seeds)
    band = f", mean and standard deviation of {num} seeds" if num > 1 else f", seed {comparison.seeds[0]}"
    return plots.curves(found[best], f"{comparison.members[0].experiment.name}: {label}{band}", label)


def _comparison(comparison: Comparison) -> dict[str, Any]:
    first = comparison.members[0].experiment
    labels = [item.label for item in comparison.items]
    pooled = {
        label: [value for member in comparison.of(label) for value in report_rows.of_clients(member.metrics)]
        for label in labels
    }
    pictures = [_picture(_comparison_curves(comparison), "accuracy by round of each strategy")]
    if any(pooled.values()):
        figure = plots.clients(pooled, "Clients' accuracy, last round, all seeds")
        pictures.append(_picture(figure, "accuracy of clients by strategy"))
    traffic = {
        label: [
            sum(sum(m.summary[key].values()) for m in comparison.of(label)) / 1e6 / len(comparison.seeds)
            for key in ("bytes_down", "bytes_up")
        ]
        for label in labels
    }
    figure = plots.bars(traffic, ("to clients", "from clients"), "Bytes of a whole run", "MB (mean over seeds)")
    pictures.append(_picture(figure, "bytes by strategy"))
    return {
        "kind": "comparison",
        "title": f"{first.name}: {', '.join(labels)}",
        "description": first.description,
        "line": describe(first, with_strategy=False),
        "path": str(comparison.path),
        "pictures": pictures,
        **_partition(first),
        "heads": [name for name, _ in MEASURES.values()],
        "rows": [
            (label, [cell(comparison, label, m) for m in MEASURES], difference_cell(comparison, label))
            for label in labels
        ],
        "footnote": footnote(comparison),
        "runs": [
            (m.item.label, m.seed, m.path.name, f"{m.measures['test_last']:.4f}", m.summary["weights_sha256"])
            for m in comparison.members
        ],
        "config": (comparison.members[0].path / "config.yaml").read_text(encoding="utf-8"),
        "environment": report_rows.flat(read_json(comparison.members[0].path / "env.json")),
        "command": _compare_command(comparison),
    }


def _compare_command(comparison: Comparison) -> str:
    labels = ",".join(item.label.replace(", ", ",") for item in comparison.items)
    seeds = ",".join(map(str, comparison.seeds)) + ("," if len(comparison.seeds) == 1 else "")
    words = ["umbel", "compare", comparison.source, *comparison.overrides, "--strategies", labels]
    return shlex.join([*words, "--seeds", seeds, "--fresh", "--output", str(comparison.path)])

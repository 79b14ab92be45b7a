"""One self-contained HTML file of runs or of a comparison; it loads nothing from anywhere."""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.core.files import DamagedError, read_json, write_text
from umbel.data.errors import DataError
from umbel.server import reading
from umbel.simulations.commands.data_view import statistics, title
from umbel.simulations.commands.words import describe
from umbel.simulations.compare import matrix_tables
from umbel.simulations.compare import target as targets
from umbel.simulations.compare.comparison import Comparison, Member, read_comparison
from umbel.simulations.compare.matrix import Matrix
from umbel.simulations.compare.read_matrix import is_matrix, read_matrix
from umbel.simulations.compare.tables import footnote, table
from umbel.simulations.compare.verdict import question, verdict
from umbel.simulations.plots import heat, inline
from umbel.simulations.plots import runs as plots
from umbel.simulations.report import confusion, pictures
from umbel.simulations.report import matrix as report_matrix
from umbel.simulations.report import rows as report_rows
from umbel.simulations.report import series as report_series
from umbel.simulations.report.measures import COLUMNS
from umbel.simulations.tune.results import table as tuning_table

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_NAME = 60  # letters
_MOST_NAMED = 6  # strategies in a heading
_MOST_PARTITIONS = 9  # of seeds beside the first


def report(paths: Sequence[str | Path], output: Path | None = None, figures: Path | None = None) -> Path:
    """Write the report of runs or of comparisons.

    Args:
        paths: Folders of runs, or of comparisons, in one setting or several.
        output: The file; None is report.html in the folder, or in the folder that holds all of several.
        figures: A folder to write each picture to as well, as SVG and PDF, in the order of the report.

    Raises:
        ExperimentError: A path is neither a finished run nor a comparison.
    """
    folders = [Path(path).expanduser().resolve() for path in paths]
    sections = []
    for folder in folders:
        if (folder / "comparison.json").is_file() and is_matrix(folder):
            sections.append(_matrix(read_matrix(folder)))
        elif (folder / "comparison.json").is_file():
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
    if figures is not None:
        _write_figures(sections, figures.expanduser())
    return target


def _write_figures(sections: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the pictures of sections, numbered and named by their titles; what umbel explain drew has files already."""
    shown = [
        each for s in sections for each in (*s["pictures"], _matrices(s), s.get("partition"), *s["partitions"]) if each
    ]
    for number, picture in enumerate(shown, start=1):
        for suffix in ("svg", "pdf"):
            plots.save(picture["figure"], folder / f"{number:02d}-{_stem(picture['figure'])}.{suffix}")


def _matrices(section: Mapping[str, Any]) -> Any:
    return (section.get("confusion") or {}).get("picture")


def _stem(figure: Figure) -> str:
    """Return a figure's title as a file's name."""
    titles = [figure.get_suptitle(), *(axes.get_title(loc="left") for axes in figure.axes)]
    text = next((title for title in titles if title), "picture")
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST_NAME].rstrip("-") or "picture"


def write_pictures(comparison: Comparison) -> None:
    """Write curves.png and partition.png of a comparison."""
    plots.save(pictures.main_curves(comparison), comparison.path / "curves.png")
    experiment = comparison.members[0].experiment
    counts, names = plots.class_counts(experiment, comparison.members[0].path)
    plots.save(heat.heat_map(counts, names, title(experiment)), comparison.path / "partition.png")


# ---- a run -------------------------------------------------------------------------------------------------


def _run(folder: Path) -> dict[str, Any]:
    content = reading.summary(folder)
    text, experiment = reading.configuration(folder), reading.experiment(folder)
    metrics = reading.metrics(folder).to_pandas()
    # Whatever is damaged is refused before anything is drawn.
    inside, failures, environment = _inside(folder), report_rows.failures(folder), reading.environment(folder)
    heads, facts = report_rows.client_facts(report_series.of_clients(metrics))
    return {
        "kind": "run",
        "partitions": [],
        "title": f"{experiment.name}: {content['strategy']}, seed {content['seed']}",
        "description": experiment.description,
        "line": describe(experiment),
        "path": str(folder),
        "tiles": report_rows.tiles(content),
        "pictures": [_picture(*picture) for picture in pictures.of_run(metrics)],
        **_partition(experiment, folder, content),
        "confusion": _confusion({"": [folder]}, "What test examples are taken for, %"),
        "inside": inside,
        "metrics": report_rows.metric_rows(content["metrics"]),
        "classes": report_rows.class_rows(metrics),
        "clients_heads": heads,
        "clients_table": facts,
        "seconds": report_rows.shares(content["seconds"]),
        "bytes": report_rows.bytes(content),
        "coverage": report_rows.coverage(content),
        "failures": failures,
        "num_failures": content["num_failures"],
        "weights_sha256": content["weights_sha256"],
        "config_hash": content["config_hash"],
        "config": text,
        "environment": report_rows.flat(environment),
        "command": _run_command(folder, experiment),
    }


def _partition(experiment: Experiment, folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the heat map and its numbers, or why there is none: the data may be on another machine.

    Args:
        experiment: The experiment.
        folder: A run of it.
        content: That run's summary, which has what sites with data of their own said.
    """
    of_sites = report_rows.site_rows(content)
    try:
        counts, names = plots.class_counts(experiment, folder)
    except (DataError, OSError) as error:
        return {"partition": None, "partition_note": f"No picture: {error}", "partition_facts": of_sites}
    facts = statistics(counts)
    sizes, classes = facts["examples_per_client"], facts["classes_per_client"]
    rows = [
        ("clients", f"{facts['num_clients']:,}"),
        ("examples of all clients", f"{facts['num_examples']:,}"),
        ("examples a client", f"{sizes['min']:,} to {sizes['max']:,}, median {sizes['median']:g}"),
        ("classes a client", f"{classes['min']} to {classes['max']}, median {classes['median']:g}"),
        ("mean divergence from the whole", f"{facts['divergence_mean']:.3f} bits (Jensen-Shannon)"),
        *of_sites,
    ]
    figure = heat.heat_map(counts, names, title(experiment))
    picture = _picture(figure, f"examples of each class at each client. {title(experiment)}")
    return {"partition": picture, "partition_note": "", "partition_facts": rows}


def _inside(folder: Path) -> dict[str, Any] | None:
    """Return what `umbel explain` found of this run; None where it was not asked, or of an earlier state of the run."""
    path = folder / "explain" / "explain.json"
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if content["weights_sha256"] != reading.summary(folder)["weights_sha256"]:
            return None
        pictures = [
            {"source": _embedded((path.parent / name).read_bytes()), "alternative": alternative}
            for name, alternative in content["pictures"]
            if name != "collapse.png" and (path.parent / name).is_file()  # the run's own curves have it
        ]
        return {"pictures": pictures, "rows": report_rows.inside_rows(content["clients"]), "notes": content["notes"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError.of(path, repr(error), f"Make it again: umbel explain {folder}") from error


def _embedded(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _confusion(by_label: Mapping[str, Sequence[Path]], title: str) -> dict[str, Any] | None:
    """Return what test examples were taken for, with its picture drawn; None where runs do not tell it."""
    found = confusion.section(by_label, title)
    if found is None or found["picture"] is None:
        return found
    draw, said = found["picture"]
    return found | {"picture": _picture(draw(), said)}


def _picture(figure: Figure, alternative: str) -> dict[str, Any]:
    """Return a figure as SVG in the page's colours where that can be, else as PNG."""
    if (drawn := inline.svg(figure, alternative)) is not None:
        return {"svg": drawn, "alternative": alternative, "figure": figure}
    return {"source": _embedded(plots.png(figure)), "alternative": alternative, "figure": figure}


def _run_command(folder: Path, experiment: Experiment) -> str:
    words = ["umbel", "run", str(folder / "config.yaml")]
    # A name that is taken would be refused.
    again = [f"run.name={experiment.run.name}-again"] if experiment.run.name else []
    return shlex.join([*words, *again])


# ---- a comparison ------------------------------------------------------------------------------------------


def _comparison(comparison: Comparison) -> dict[str, Any]:
    first = comparison.members[0].experiment
    environment = reading.environment(comparison.members[0].path)
    labels = [item.label for item in comparison.items]
    heads, rows = table(comparison)
    main = comparison.main
    return {
        "kind": "comparison",
        "title": f"{first.name}: {_together(labels)}",
        "description": first.description,
        "line": describe(first, with_strategy=False),
        "path": str(comparison.path),
        "pictures": [_picture(*picture) for picture in pictures.of_comparison(comparison)],
        **_partition(first, comparison.members[0].path, comparison.members[0].summary),
        "confusion": _confusion(
            {label: [member.path for member in comparison.of(label)] for label in labels},
            "What test examples are taken for",
        ),
        "question": question(comparison),
        "verdict": verdict(comparison),
        "heads": heads,
        "rows": rows,
        "footnote": footnote(comparison),
        "partitions": _other_partitions(comparison),
        "tuned": tuning_table(comparison.tuned, labels) if comparison.tuned else None,
        "target": None
        if not targets.is_asked(comparison)
        else {"title": targets.title(comparison), "rows": targets.table(comparison)},
        "main": COLUMNS[main].heading if main else "",
        "runs": [(m.item.label, m.seed, _main(m, main), m.path.name, _sha(m)) for m in comparison.members],
        "configs": [
            (item.label, comparison.of(item.label)[0].seed, _configuration(comparison.of(item.label)[0].path))
            for item in comparison.items
        ],
        "environment": report_rows.flat(environment),
        "command": _compare_command(comparison),
        "has_budget": comparison.budget != "rounds",
    }


def _configuration(folder: Path) -> str:
    return (folder / "config.yaml").read_text(encoding="utf-8")


def _together(labels: Sequence[str]) -> str:
    """Return what is compared, for a heading; the question below it names all."""
    return ", ".join(labels) if len(labels) <= _MOST_NAMED else f"{len(labels)} strategies"


def _other_partitions(comparison: Comparison) -> list[dict[str, Any]]:
    """Return heat maps of the partitions of the seeds after the first, some of them where there are many."""
    if comparison.members[0].experiment.data.seed is not None:
        return []  # all seeds share one
    own = comparison.of(comparison.items[0].label)[1 : 1 + _MOST_PARTITIONS]
    found = [_partition(member.experiment, member.path, member.summary)["partition"] for member in own]
    return [each for each in found if each]


def _main(member: Member, measure: str | None) -> str:
    """Return what a run is judged by, or a dash."""
    value = member.measures[measure] if measure else math.nan
    return "–" if measure is None or math.isnan(value) else f"{value:.{COLUMNS[measure].unit.digits}f}"


def _sha(member: Member) -> str:
    return str(member.summary["weights_sha256"])


def _compare_command(comparison: Comparison) -> str:
    labels = ",".join(item.label.replace(", ", ",") for item in comparison.items)
    asked = [*comparison.seeds, *comparison.open_seeds]
    seeds = ",".join(map(str, asked)) + ("," if len(asked) == 1 else "")
    words = ["umbel", "compare", comparison.source, *comparison.overrides, "--strategies", labels]
    words += ["--budget", comparison.budget]  # the experiment may say another one
    words += ["--target", f"{comparison.target:g}"] if comparison.target is not None else []
    words += report_matrix.tuned_words(comparison.tuned, comparison.untuned)
    whole = [] if comparison.failed or comparison.open_seeds else ["--fresh"]  # else it goes on with what is missing
    return shlex.join([*words, "--seeds", seeds, *whole, "--output", str(comparison.path)])


# ---- several settings --------------------------------------------------------------------------------------


def _matrix(matrix: Matrix) -> dict[str, Any]:
    first = next((each for cell in matrix.cells for each in cell.ended), None)
    heads, rows = matrix_tables.table(matrix)
    return {
        "kind": "matrix",
        "partitions": [],
        "verdict": "",
        "title": report_matrix.title(matrix),
        "description": first.experiment.description if first else "",
        "line": " ".join(matrix.overrides),
        "path": str(matrix.path),
        "pictures": [_picture(*picture) for _, picture in report_matrix.of_matrix(matrix)],
        "heads": heads,
        "rows": rows,
        "footnote": matrix_tables.footnote(matrix),
        "tuned": tuning_table(matrix.tuned, matrix.labels) if matrix.tuned else None,
        "target": None,
        "failures": matrix_tables.failures(matrix),
        "missing": matrix_tables.missing(matrix),
        "pairs": report_matrix.pairs(matrix),
        "settings": report_matrix.settings(matrix),
        "command": report_matrix.command(matrix),
        "config": (first.path / "config.yaml").read_text(encoding="utf-8") if first else "",
        "environment": report_rows.flat(reading.environment(first.path)) if first else [],
    }

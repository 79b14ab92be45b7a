"""What is said of a run while it goes on and when it ends: its lines, its course, its headline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from umbel.simulations.report.measures import COURSE, HEADLINES, MEASURES, Measure, known, unit

Line = tuple[str, list[tuple[str, str]]]  # label, and (name, value as text) each

_SHOWN_DOMAINS = 4


def course(metrics: Mapping[str, float]) -> float | None:
    """Return the value whose course says how a run goes, or None."""
    names = (MEASURES[key].of_split(split) for key in COURSE for split in ("test", "validation"))
    return next((metrics[name] for name in names if known(metrics.get(name))), None)


def headline(metrics: Mapping[str, float]) -> str:
    """Return a run's result in a few words; empty when nothing of it was measured."""
    for keys in HEADLINES:
        measures = [MEASURES[key] for key in keys]
        if values := _values(metrics, [(measure.headline, measure.metric) for measure in measures]):
            return ", ".join(f"{name} {value}" for name, value in values)
    return ""


def lines(metrics: Mapping[str, float]) -> list[Line]:
    """Return what to show of a round, a line for each kind of metric that there is.

    Args:
        metrics: By name, as strategies and evaluation report them.
    """
    split = "test" if any(name.startswith("test/") for name in metrics) else "validation"
    by_label: dict[str, list[tuple[str, str]]] = {}
    for key, measure in MEASURES.items():
        if measure.line is None:
            continue
        names = _names(measure, measure.line[1], metrics, split)
        if key != "domain" or len(names) <= _SHOWN_DOMAINS:
            by_label.setdefault(measure.line[0], []).extend(_values(metrics, names))
    return [(label, values) for label, values in by_label.items() if values]


def _names(measure: Measure, name: str, metrics: Iterable[str], split: str) -> list[tuple[str, str]]:
    """Return (name in the line, metric) of a measure, of each of a family, or of each split."""
    if not name:
        return [(each, measure.of_split(each)) for each in ("validation", "test")]
    if "{}" not in name:
        return [(name, measure.of_split(split))]
    return [(name.format(part), metric) for part, metric in measure.members(metrics, split).items()]


def _values(metrics: Mapping[str, float], names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (name, value as text) of those metrics that are there and are numbers."""
    return [(name, text(metric, metrics[metric])) for name, metric in names if known(metrics.get(metric))]


def text(metric: str, value: float) -> str:
    """Return a metric's value as people read it: recalls are in per cent, accuracies are fractions."""
    return unit(metric).text(value)

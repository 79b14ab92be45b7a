"""What is worth showing of a run, whatever its kind: accuracy, recall, tasks, class groups, domains, predictors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from umbel.core.metrics import GROUPS

Line = tuple[str, list[tuple[str, str]]]  # label, and (name, value as text) each


@dataclass(frozen=True)
class Measure:
    """A number of a finished run, a column of a comparison.

    Attributes:
        title: The column's heading, with the unit where it is not a fraction.
        metric: Its name in the run's metrics; empty for what is none (bytes, seconds).
        digits: Digits behind the point.
        aim: 1 where more is better, -1 where less is, 0 for a cost that is not ranked.
        scale: What one unit on the axis of a curve is: 1 for fractions and 100 for per cent, both drawn in per cent;
            0 for a plain number.
        curve: What its curve is called.
    """

    title: str
    metric: str = ""
    digits: int = 4
    aim: int = 1
    scale: float = 1
    curve: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        """Side, split and metric of the rows that hold its course."""
        side, name = ("clients", self.metric[8:]) if self.metric.startswith("clients/") else ("server", self.metric)
        split, _, metric = name.partition("/")
        return side, split, metric


MEASURES: dict[str, Measure] = {
    "test_last": Measure("test, last", "test/accuracy", curve="test accuracy"),
    "test_best": Measure("test, best", "best/test/accuracy"),
    "acc": Measure("ACC", "test/acc", curve="mean test accuracy over tasks (ACC)"),
    "forgetting": Measure("forgetting", "test/forgetting", aim=-1),
    "i2t_recall10": Measure("image→text R@10, %", "test/i2t_recall@10", digits=2, scale=100, curve="image→text R@10"),
    "t2i_recall10": Measure("text→image R@10, %", "test/t2i_recall@10", digits=2, scale=100, curve="text→image R@10"),
    "rsum_last": Measure("rsum, last", "test/rsum", digits=2, scale=0, curve="sum of six recalls, of 600"),
    "rsum_best": Measure("rsum, best", "best/test/rsum", digits=2, scale=0),
    "domains_mean": Measure("domains' mean", "test/domains_mean"),
    "domains_worst": Measure("worst domain", "test/domains_worst"),
    **{name: Measure(name, f"test/accuracy_{name}") for name in GROUPS},
    "clients_mean": Measure("clients' mean", "clients/test/accuracy_mean", curve="clients' mean accuracy"),
    "clients_worst10": Measure("worst 10 %", "clients/test/accuracy_worst10"),
    "image_clients": Measure("image clients", "clients/test/image/accuracy_mean", curve="image clients' mean accuracy"),
    "text_clients": Measure("text clients", "clients/test/text/accuracy_mean", curve="text clients' mean accuracy"),
    "mb_per_round": Measure("MB a round", digits=2, aim=0, scale=0),
    "seconds": Measure("seconds", digits=1, aim=0, scale=0),
}
# What a run is judged by, the first of these that it has.
MAIN = ("acc", "test_last", "rsum_last", "clients_mean")
# The course of a run while it goes on, the first of these that it has.
_COURSE = (
    *("test/accuracy", "validation/accuracy", "test/rsum", "validation/rsum"),
    *("clients/test/accuracy_mean", "clients/test/image/accuracy_mean"),
)
_SHOWN_DOMAINS = 4


def known(value: float | None) -> bool:
    """Say whether there is a value and it is a number."""
    return value is not None and not math.isnan(value)


def course(metrics: Mapping[str, float]) -> float | None:
    """Return the value whose course says how a run goes, or None."""
    return next((metrics[key] for key in _COURSE if known(metrics.get(key))), None)


def headline(metrics: Mapping[str, float]) -> str:
    """Return a run's result in a few words; empty when nothing of it was measured."""
    for names in (
        (("ACC", "test/acc"), ("forgetting", "test/forgetting")),
        (("test accuracy", "test/accuracy"),),
        (("R@10 image→text", "test/i2t_recall@10"), ("text→image", "test/t2i_recall@10"), ("rsum", "test/rsum")),
        (("clients' mean accuracy", "clients/test/accuracy_mean"),),
    ):
        if found := _texts(metrics, names):
            return ", ".join(f"{name} {value}" for name, value in found)
    return ""


def lines(metrics: Mapping[str, float]) -> list[Line]:
    """Return what to show of a round, a line for each kind of metric that there is.

    Args:
        metrics: By name, as strategies and evaluation report them.
    """
    split = "test" if any(name.startswith("test/") for name in metrics) else "validation"
    ways = (("image→text", f"{split}/i2t_recall@10"), ("text→image", f"{split}/t2i_recall@10"))
    sums = (("validation", "validation/rsum"), ("test", "test/rsum"))
    wanted = (
        ("accuracy", (("validation", "validation/accuracy"), ("test", "test/accuracy"))),
        ("tasks", (("ACC", f"{split}/acc"), ("forgetting", f"{split}/forgetting"))),
        ("recall@10", ways),
        ("rsum of 600", sums),
        ("classes", [(name, f"{split}/accuracy_{name}") for name in GROUPS]),
        ("domains", _domains(metrics, split)),
        ("predictors", [(name, f"{split}/{name}/accuracy") for name in predictors(metrics, split)]),
        ("loss", (("validation", "validation/loss"), ("test", "test/loss"))),
        ("clients", _clients(metrics)),
    )
    found = [(label, _texts(metrics, names)) for label, names in wanted]
    return [(label, values) for label, values in found if values]


def _clients(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    start = "clients/test"
    names = [("mean", f"{start}/accuracy_mean"), ("worst 10 %", f"{start}/accuracy_worst10")]
    names += [(name, f"{start}/{name}/accuracy_mean") for name in predictors(metrics, start)]
    ways = (("image→text R@10", "i2t"), ("text→image R@10", "t2i"))
    return names + [(name, f"{start}/retrieval/{way}_recall@10_mean") for name, way in ways]


def _domains(metrics: Mapping[str, float], split: str) -> list[tuple[str, str]]:
    """Return the mean and the worst domain, and each of a few."""
    each = [(name[len(split) + 8 : -9], name) for name in metrics if re.fullmatch(f"{split}/domain/.+/accuracy", name)]
    few = each if len(each) <= _SHOWN_DOMAINS else []
    return [("mean", f"{split}/domains_mean"), ("worst", f"{split}/domains_worst"), *few]


def predictors(metrics: Mapping[str, float], start: str) -> list[str]:
    """Return the predictors beside the main one, such as `psi` of `test/psi/accuracy`, in the order of the metrics."""
    found = (re.fullmatch(f"{start}/([^/]+)/accuracy(?:_mean)?", name) for name in metrics)
    return list(dict.fromkeys(match.group(1) for match in found if match))


def _texts(metrics: Mapping[str, float], names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (name, value as text) of those metrics that are there and are numbers."""
    return [(name, text(metric, metrics[metric])) for name, metric in names if known(metrics.get(metric))]


def text(metric: str, value: float) -> str:
    """Return a metric's value as people read it: recalls are in per cent, accuracies are fractions."""
    if "recall@" in metric:
        return f"{value:.1f} %"
    digits = 1 if metric.endswith(("rsum", "median_rank")) else 4
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: nothing is minus zero

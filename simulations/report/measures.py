"""The one table of what is measured: what people read of it in each place, its unit, and whether more is better.

The display, the tiles and pictures of a report, and the columns, curves and footnotes of a comparison all take their
words from here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from umbel.core.metrics import GROUPS, matching
from umbel.simulations.report import charts
from umbel.simulations.report.charts import Chart


@dataclass(frozen=True)
class Unit:
    """How values are written.

    Attributes:
        whole: What is drawn as 100 %: 1 for fractions, 100 for per cents, 0 for what is no share of anything.
        digits: Digits behind the point in the table of a comparison.
        short_digits: The same where many numbers stand side by side: in the display and in lists of metrics.
        tile_digits: The same on a tile of a report, where every share is in per cent.
        sign: Stands behind a number.
    """

    whole: float = 0
    digits: int = 4
    short_digits: int = 4
    tile_digits: int = 2
    sign: str = ""

    def text(self, value: float) -> str:
        """Return a value as the display and lists of metrics have it."""
        return f"{_rounded(value, self.short_digits)}{self.sign}"

    def tile(self, value: float) -> str:
        """Return a value as a tile of a report has it."""
        if self.whole:
            return f"{_rounded(100 / self.whole * value, self.tile_digits)} %"
        return _rounded(value, self.tile_digits)


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: nothing is minus zero


FRACTION = Unit(whole=1)
PER_CENT = Unit(whole=100, digits=2, short_digits=1, tile_digits=1, sign=" %")
POINTS = Unit(digits=2, short_digits=1, tile_digits=1)  # sums of per cents
RANK = Unit(short_digits=1)
MEGABYTES = Unit(digits=2)
GIGAFLOP = Unit(digits=1)
SECONDS = Unit(digits=1)
NUMBER = Unit()
COUNT = Unit(digits=0, short_digits=0, tile_digits=0)


@dataclass(frozen=True)
class Measure:
    """Something that is measured of a run, and what it is called wherever people see it.

    Attributes:
        metric: Its name in the run's metrics, on the test split where there are several; `{}` stands for what differs
            within a family, such as a domain. Empty for what is no metric (bytes, seconds).
        title: What it is called in full, as above a comparison's curves.
        unit: How its values are written.
        aim: 1 where more is better, -1 where less is, 0 for a cost that is not ranked.
        brief: Its name in a headline, where that is not the title.
        column: The heading of its column in a comparison; empty for what has none.
        tile: Its name on a tile of a report; empty for what has none.
        line: Which line of the display has it, and its name there: `{}` as in the metric, empty for that of the split.
        chart: The picture of a run that has its curve.
        legend: Its name in that picture: `{}` as in the metric, empty for that of the split.
        meaning: What a reader of a comparison should know of it, and of those that follow it.
    """

    metric: str
    title: str
    unit: Unit = FRACTION
    aim: int = 1
    brief: str = ""
    column: str = ""
    tile: str = ""
    line: tuple[str, str] | None = None
    chart: Chart | None = None
    legend: str = ""
    meaning: str = ""

    @property
    def heading(self) -> str:
        """The heading of its column, with the unit where it is per cent."""
        return f"{self.column}, %" if self.unit is PER_CENT else self.column

    @property
    def headline(self) -> str:
        """Its name in a headline."""
        return self.brief or self.title

    @property
    def place(self) -> tuple[str, str, str]:
        """Side, split and metric of the rows that hold its course."""
        start, _, rest = self.metric.partition("/")
        side, name = (start, rest) if start in ("clients", "client") else ("server", self.metric)
        split, _, metric = name.partition("/")
        return side, split, metric

    def of_split(self, split: str) -> str:
        """Return the name of the same metric on another split of the server's."""
        return f"{split}{self.metric[4:]}" if self.metric.startswith("test/") else self.metric

    def members(self, metrics: Iterable[str], split: str = "test") -> dict[str, str]:
        """Return those of the metrics that are of this family: what stands for `{}`, and the metric's name."""
        # At the start of a name it is a predictor, one word; else what comes before says where it begins.
        part = "([^/]+)" if self.place[2].startswith("{}") else "(.+)"
        pattern = re.compile(re.escape(self.of_split(split)).replace(r"\{\}", part))
        matches = ((pattern.fullmatch(metric), metric) for metric in metrics)
        return {match.group(1): metric for match, metric in matches if match}


_WAYS = {"i2t": "image→text", "t2i": "text→image"}
_RECALL_LINE = "recall@10"
_RECALL_MEANING = "R@10: test queries that find their partner among the first 10."
_CLIENTS, _TASKS, _DOMAINS, _CLASSES = "clients", "tasks", "domains", "classes"


def _recalls() -> tuple[dict[str, Measure], dict[str, Measure]]:
    """Describe the six recalls, the server's and the clients' means; those at 10 are shown in words too."""
    servers, clients = {}, {}
    for name in matching.RECALLS:
        way, _, at = name.partition("_recall@")
        title, is_shown = f"{_WAYS[way]} R@{at}", at == "10"
        servers[f"{way}_recall{at}"] = Measure(
            f"test/{name}", title, PER_CENT, column=title if is_shown else "", tile=title if is_shown else "",
            line=(_RECALL_LINE, _WAYS[way]) if is_shown else None, chart=charts.RECALLS, legend=title,
            meaning=_RECALL_MEANING if is_shown and way == "i2t" else "",
        )  # fmt: skip
        clients[f"clients_{way}_recall{at}"] = Measure(
            f"clients/test/{matching.NAME}/{name}_mean", f"clients' mean {title}", PER_CENT,
            line=(_CLIENTS, title) if is_shown else None, chart=charts.CLIENTS_RECALLS, legend=title,
        )  # fmt: skip
    return servers, clients


def _groups() -> dict[str, Measure]:
    """Describe the accuracy on head, middle and tail classes."""
    meaning = "Head, middle, tail: test accuracy by how frequent a class is in training, last round."
    return {
        name: Measure(
            f"test/accuracy_{name}", f"{name} classes", column=name, tile=f"{name} classes", line=(_CLASSES, name),
            chart=charts.GROUPS, legend=name, meaning="" if number else meaning,
        )
        for number, name in enumerate(GROUPS)
    }  # fmt: skip


def _collapse() -> dict[str, Measure]:
    """Describe the measures of neural collapse; those of one title share a panel."""
    simplex, classifier = "NC2: class means, deviation from a simplex → 0", "NC3: classifier from the class means → 0"
    within, nearest = "NC1: within over between classes → 0", "NC4: agreement with the nearest mean → 1"
    return {
        name.replace("/", "_"): Measure(
            f"train/collapse/{name}", title, NUMBER, aim, chart=charts.COLLAPSE, legend=legend
        )
        for name, title, legend, aim in (
            ("nc1", within, "model", -1),
            ("nc2_angles", simplex, "angles", -1),
            ("nc2_lengths", simplex, "lengths", -1),
            ("nc3", classifier, "model", -1),
            ("psi/nc3", classifier, "psi", -1),
            ("frame/nc3", classifier, "frame", -1),
            ("nc4", nearest, "model", 1),
        )
    }


_RECALLS, _CLIENTS_RECALLS = _recalls()
# In the order in which people see them.
MEASURES: dict[str, Measure] = {
    "test_last": Measure(
        "test/accuracy", charts.TEST_ACCURACY, column="test, last", tile="test accuracy, last round",
        line=("accuracy", ""), chart=charts.ACCURACY,
        meaning="Test: the server's, in the last round and in the best, which validation data choose.",
    ),
    "test_best": Measure(
        "best/test/accuracy", "test accuracy, best round", column="test, best", tile="test accuracy, best round",
    ),
    # ---- a sequence of tasks ----
    "acc": Measure(
        "test/acc", "mean test accuracy over tasks (ACC)", brief="ACC", column="ACC", tile="mean over tasks (ACC)",
        line=(_TASKS, "ACC"), chart=charts.AFTER_TASKS, legend="mean accuracy (ACC)",
        meaning="ACC: mean test accuracy over the tasks after the last one.",
    ),
    "forgetting": Measure(
        "test/forgetting", "forgetting", aim=-1, column="forgetting", tile="forgetting", line=(_TASKS, "forgetting"),
        chart=charts.AFTER_TASKS, legend="forgetting",
        meaning="Forgetting: how much of it was lost since each task's own training; less is better.",
    ),
    "forward_transfer": Measure(
        "test/fwt", "forward transfer", tile="forward transfer", chart=charts.AFTER_TASKS, legend="forward transfer",
    ),
    "task": Measure("test/task/{}/accuracy", "test accuracy on a task", chart=charts.TASKS, legend="task {}"),
    # ---- retrieval ----
    **_RECALLS,
    "rsum_last": Measure(
        "test/rsum", charts.SUMS_OF_RECALLS.axis, POINTS, brief="rsum", column="rsum, last",
        tile=charts.SUMS_OF_RECALLS.axis, line=("rsum of 600", ""), chart=charts.SUMS_OF_RECALLS,
        meaning="Rsum: sum of the six recalls in per cent, at most 600.",
    ),
    "rsum_best": Measure(
        "best/test/rsum", "sum of six recalls, best round", POINTS, column="rsum, best",
        tile="sum of six recalls, best round", meaning="Best: the round that validation data choose.",
    ),
    **{
        f"{way}_median_rank": Measure(f"test/{way}_median_rank", f"{name} median rank", RANK, aim=-1)
        for way, name in _WAYS.items()
    },
    # ---- domains, classes, predictors ----
    "domains_mean": Measure(
        "test/domains_mean", "mean over domains", column="domains' mean", tile="mean over domains",
        line=(_DOMAINS, "mean"),
        meaning="Domains: test accuracy in each, a domain counting once, last round.",
    ),
    "domains_worst": Measure(
        "test/domains_worst", "worst domain", column="worst domain", tile="worst domain", line=(_DOMAINS, "worst"),
    ),
    "domain": Measure("test/domain/{}/accuracy", "test accuracy in a domain", line=(_DOMAINS, "{}")),
    **_groups(),
    "class": Measure("test/class/{}/accuracy", "test accuracy on a class"),
    "predictor": Measure(
        "test/{}/accuracy", "test accuracy of a predictor beside the main one", line=("predictors", "{}"),
        chart=charts.PREDICTORS, legend="test: {}",
    ),
    "loss": Measure("test/loss", "test loss", NUMBER, aim=-1, line=("loss", ""), chart=charts.LOSS),
    # ---- clients ----
    "clients_mean": Measure(
        "clients/test/accuracy_mean", "clients' mean accuracy", column="clients' mean", tile="clients' mean",
        line=(_CLIENTS, "mean"), chart=charts.ACCURACY, legend="clients' own test, mean",
        meaning="Clients: each on its own test, last round.",
    ),
    "clients_worst10": Measure(
        "clients/test/accuracy_worst10", "worst 10 % of clients", column="worst 10 %", tile="worst 10 % of clients",
        line=(_CLIENTS, "worst 10 %"), chart=charts.ACCURACY, legend="clients' own test, worst 10 %",
    ),
    "image_clients": Measure(
        "clients/test/image/accuracy_mean", "image clients' mean accuracy", column="image clients",
        tile="image clients' mean",
        meaning="Image and text clients: accuracy, each on its own test, last round.",
    ),
    "text_clients": Measure(
        "clients/test/text/accuracy_mean", "text clients' mean accuracy", column="text clients",
        tile="text clients' mean",
    ),
    "clients_predictor": Measure(
        "clients/test/{}/accuracy_mean", "clients' mean accuracy of a predictor beside the main one",
        line=(_CLIENTS, "{}"), chart=charts.PREDICTORS, legend="clients' own test: {}",
    ),
    **_CLIENTS_RECALLS,
    "clients_loss": Measure(
        "clients/test/loss_mean", "clients' mean loss", NUMBER, aim=-1, chart=charts.LOSS,
        legend="clients' own test, mean",
    ),
    "training_loss": Measure(
        "clients/train/loss", "loss of the clients' training", NUMBER, aim=-1, chart=charts.LOSS,
        legend="clients' training",
    ),
    "client": Measure("client/test/accuracy", "a client's accuracy on its own test"),
    "client_predictor": Measure("client/test/{}/accuracy", "a client's accuracy of a predictor beside the main one"),
    # ---- the inside, and costs ----
    **_collapse(),
    "steps": Measure(
        "", "steps of training", COUNT, aim=0, column="steps",
        meaning="Steps, examples: of all training by optimiser steps, of clients with good replies and of the server.",
    ),
    "examples": Measure("", "examples that training went through", COUNT, aim=0, column="examples"),
    "gflop": Measure(
        "", "floating-point operations", GIGAFLOP, aim=0, column="GFLOP",
        meaning="GFLOP: 10^9 floating-point operations of images through models, there and, to learn, back.",
    ),
    "mb_per_round": Measure("", "MB a round", MEGABYTES, aim=0, column="MB a round"),
    "seconds": Measure("", "seconds", SECONDS, aim=0, column="seconds"),
    "virtual_seconds": Measure(
        "train/virtual_seconds", "virtual seconds", SECONDS, aim=0, column="virtual s",
        line=("virtual time", "seconds"), meaning="Virtual s: seconds that the clients' devices would have taken.",
    ),
}  # fmt: skip

COLUMNS = {key: measure for key, measure in MEASURES.items() if measure.column}
# What a run is judged by, the first of these that it has.
MAIN = ("acc", "test_last", "rsum_last", "clients_mean")
# What a headline says of a run, the first of these of which it has any.
HEADLINES = (("acc", "forgetting"), ("test_last",), ("i2t_recall10", "t2i_recall10", "rsum_last"), ("clients_mean",))
# The course of a run while it goes on, the first of these that it has, on test or else on validation data.
COURSE = ("test_last", "rsum_last", "clients_mean", "image_clients")
# Curves that a comparison shows beside those of its main measure.
BESIDE = ("forgetting", "i2t_recall10", "t2i_recall10", "image_clients", "text_clients")
# In a sequence of tasks ACC says it, and the best round may lie before the last task.
NOT_OF_TASKS = ("test_last", "test_best")
# What is measured after each task only.
AFTER_TASKS = tuple(key for key, measure in MEASURES.items() if measure.line and measure.line[0] == _TASKS)

_UNITS = {measure.metric.rpartition("/")[2]: measure.unit for measure in MEASURES.values() if measure.metric}


def unit(metric: str) -> Unit:
    """Return a metric's unit: the last part of its name says it, whatever the split, predictor or domain."""
    return _UNITS.get(metric.rpartition("/")[2], NUMBER)


def known(value: float | None) -> bool:
    """Say whether there is a value and it is a number."""
    return value is not None and not math.isnan(value)

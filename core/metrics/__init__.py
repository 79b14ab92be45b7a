"""What is measured: counts that can be added, ranks, sequences of tasks, neural collapse."""

from umbel.core.metrics.counts import (
    GROUPS,
    ClassCounts,
    Predict,
    by_domain,
    by_group,
    classify,
    classify_tasks,
    mean_and_deviation,
    metric_rows,
    only_task,
    over_clients,
    per_class,
    split_at,
    summarise,
    total,
)
from umbel.core.metrics.ranks import retrieval

__all__ = [
    "GROUPS",
    "ClassCounts",
    "Predict",
    "by_domain",
    "by_group",
    "classify",
    "classify_tasks",
    "mean_and_deviation",
    "metric_rows",
    "only_task",
    "over_clients",
    "per_class",
    "retrieval",
    "split_at",
    "summarise",
    "total",
]

"""Metrics of a classification that need more than counts: by name from torchmetrics, or a function of one's own.

Legend: N examples, C classes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from umbel.core.names import unknown
from umbel.core.outside import find, guarded
from umbel.core.refusal import Refusal

Score = Callable[[Tensor, Tensor], object]

# Name -> torchmetrics' function of (predictions, labels), what it takes, and its options.
_KEY = "evaluate.metrics"
_LABELS, _SHARES = "labels", "shares"
_MACRO: dict[str, object] = {"average": "macro"}
BY_NAME: dict[str, tuple[str, str, dict[str, object]]] = {
    "f1": ("multiclass_f1_score", _LABELS, _MACRO),
    "precision": ("multiclass_precision", _LABELS, _MACRO),
    "recall": ("multiclass_recall", _LABELS, _MACRO),
    "kappa": ("multiclass_cohen_kappa", _LABELS, {}),
    "matthews": ("multiclass_matthews_corrcoef", _LABELS, {}),
    "auroc": ("multiclass_auroc", _SHARES, {"average": "none"}),
    "average_precision": ("multiclass_average_precision", _SHARES, {"average": "none"}),
    "calibration_error": ("multiclass_calibration_error", _SHARES, {"n_bins": 15, "norm": "l1"}),
    "top5": ("multiclass_accuracy", _SHARES, {"average": "micro", "top_k": 5}),
}

_ERRORS = ("calibration_error",)  # of which less is better


def check(names: Sequence[str], key: str = _KEY) -> None:
    """Refuse names that are neither in `BY_NAME` nor a `package.module:function`, and two that would be called alike.

    Raises:
        Refusal: Naming `key`.
    """
    for name in names:
        if name not in BY_NAME and ":" not in name:
            raise unknown("metric", name, BY_NAME, key=key, own="module:function")
        if name not in BY_NAME:
            find(name, "metric", key)
    titles = [title(name) for name in names]
    for each in titles:
        if titles.count(each) > 1:
            raise Refusal(
                f"{key} has two metrics called {each}.", key=key, remedy="Leave one out, or rename its function."
            )


def less_is_better(name: str) -> bool:
    """Say whether of two values of a metric the less is the better, of one's own by its `higher_is_better = False`."""
    if name in BY_NAME:
        return name in _ERRORS
    return getattr(find(name, "metric", _KEY), "higher_is_better", True) is False


def title(name: str) -> str:
    """Return what a metric is called in results: its name, of one's own that of the function."""
    return name.rpartition(":")[2]


def score(name: str, logits_NC: Tensor, labels_N: Tensor) -> float:
    """Return a metric of some predictions; NaN where it has no value, as an AUROC of a single class.

    AUROC and average precision are means over the classes that occur. Macro F1, precision and recall are torchmetrics':
    a class that is predicted and does not occur counts as 0.

    Args:
        name: One of `BY_NAME`, or `package.module:function`, which gets logits and labels and returns a number.
        logits_NC: [N, C]; minus infinity where a class is ruled out.
        labels_N: [N] int64.

    Raises:
        Refusal: The function of one's own raised something, or did not return a number.
    """
    if name not in BY_NAME:
        function = find(name, "metric", _KEY)
        with guarded(f"{_KEY}: {name} raised", _KEY, "Mend the function."):
            return _number(name, function(logits_NC, labels_N))
    if not len(labels_N) or logits_NC.isnan().any():
        return math.nan
    from torchmetrics.functional import classification  # takes a second to import

    function, takes, options = BY_NAME[name]
    predictions = logits_NC.argmax(1) if takes == _LABELS else logits_NC.double().softmax(1)
    num_classes = logits_NC.shape[1]
    if "top_k" in options:
        options = options | {"top_k": min(5, num_classes)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes that do not occur
        value = getattr(classification, function)(predictions, labels_N, num_classes=num_classes, **options)
    if options.get("average") != "none":
        return _number(name, value)
    # One class against the rest: only where it occurs, and so do others.
    present = torch.bincount(labels_N, minlength=num_classes) > 0
    return float(value[present].mean()) if int(present.sum()) > 1 else math.nan


def _number(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refusal(
            f"{_KEY}: {name} should return a number, and returned {type(value).__name__}.",
            key=_KEY,
            remedy="Return a float, or a tensor with one element.",
        ) from error


@dataclass
class Seen:
    """Keeps what a predictor said of some examples, on the CPU, while they are counted.

    Attributes:
        batches: Logits [B, C], labels [B] and task of each batch.
    """

    batches: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor, task: int = 0) -> None:
        """Keep a batch."""
        self.batches.append((logits.detach().cpu(), labels.cpu(), task))

    def scores(self, names: Sequence[str], last_task: int | None = None) -> dict[str, float]:
        """Return the metrics that have a value, by their title; nothing where there was no example.

        Args:
            names: Which, as in `score`.
            last_task: Only over the tasks up to this one.
        """
        known = [each for each in self.batches if last_task is None or each[2] <= last_task]
        if not known:
            return {}
        logits, labels = torch.cat([each[0] for each in known]), torch.cat([each[1] for each in known])
        values = {title(name): score(name, logits, labels) for name in names}
        return {name: value for name, value in values.items() if math.isfinite(value)}


def as_tensor(values: Mapping[str, float], names: Sequence[str]) -> Tensor:
    """Return [2, M] float64, the values in the order of the names and whether there is one, for a client's reply."""
    titles = [title(name) for name in names]
    rows = [[values.get(each, 0.0) for each in titles], [float(each in values) for each in titles]]
    return torch.tensor(rows, dtype=torch.float64).reshape(2, len(titles))


def from_tensor(rows: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Return the values that `as_tensor` was given."""
    columns = zip(names, rows.T.tolist(), strict=True)
    return {title(name): value for name, (value, is_known) in columns if is_known}

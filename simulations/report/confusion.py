"""What a run, and what the strategies of a comparison, take test examples for: matrices, and the most confused pairs.

They are of the last evaluation, as is the accuracy that stands beside them. Where a run tells none (it evaluated
nothing on the server, classifies nothing, or is of an older umbel) there is none of it.

Legend: C classes, P pairs of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from umbel.core.metrics.counts import NO_CLASS
from umbel.models import card
from umbel.server import reading
from umbel.simulations.plots import confusion as plots

_MOST_CLASSES = 50  # of a matrix; of more, the most confused pairs say more
_MOST_PAIRS = 15
_TOLD_PAIRS = 3  # in words
_LONGEST_NAME = 40

Confused = Mapping[tuple[int, int], float]  # (class, what it was taken for) -> examples, a mean over runs


@dataclass(frozen=True)
class Told:
    """What some runs of one strategy told, as a mean over them.

    Attributes:
        pairs: Examples by class and what they were taken for, `NO_CLASS` among it.
        examples: Examples of each class, in all.
    """

    pairs: Confused
    examples: Mapping[int, float]

    def share(self, pair: tuple[int, int]) -> float:
        """Return the share of a class's examples that were taken for another."""
        return self.pairs.get(pair, 0.0) / self.examples[pair[0]] if self.examples.get(pair[0]) else 0.0

    def matrix(self, num_classes: int) -> NDArray[np.float64]:
        """Return shares [C, C], a row a class; NaN in rows of classes without examples."""
        shares = np.full((num_classes, num_classes), np.nan)
        for label in self.examples:
            shares[label] = 0.0
        for label, predicted in self.pairs:
            if predicted != NO_CLASS:
                shares[label, predicted] = self.share((label, predicted))
        return shares


def told(folders: Sequence[Path]) -> Told | None:
    """Return what runs told; None unless all of them did.

    Raises:
        DamagedError: A file is not what was written.
    """
    pairs: dict[tuple[int, int], float] = {}
    examples: dict[int, float] = {}
    for folder in folders:
        counts = reading.confusion(folder)
        if counts is None:
            return None
        for label, predicted, number in counts.tolist():
            pairs[label, predicted] = pairs.get((label, predicted), 0.0) + number / len(folders)
            examples[label] = examples.get(label, 0.0) + number / len(folders)
    return Told(pairs, examples)


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names that a run's model has for its classes; none where it does not say them, or is not there.

    Only the head of its file is read: no number depends on the weights.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / reading.MODEL, "pt") as opened:
            metadata = opened.metadata() or {}
        return card.Card.of(metadata).classes
    except (OSError, SafetensorError, ValueError, TypeError):  # deleted, damaged, or of another version
        return ()


def section(by_label: Mapping[str, Sequence[Path]], title: str) -> dict[str, Any] | None:
    """Return what a report shows; None where some of the runs do not tell it.

    Args:
        by_label: The runs of each strategy; of one run under an empty label.
        title: Above the picture.

    Returns:
        `picture`, a function that draws it and what it says in words (None where classes are too many), `heads` and
        `rows` of the most confused pairs, and a `note`.
    """
    found = {label: told(folders) for label, folders in by_label.items()}
    known = {label: each for label, each in found.items() if each is not None and each.examples}
    if not known or len(known) < len(found):
        return None
    names = class_names(next(iter(by_label.values()))[0])
    last = max(max(pair) for each in known.values() for pair in each.pairs)
    names = names if len(names) > last else tuple(f"class {number}" for number in range(last + 1))
    picture: tuple[Callable[[], Figure], str] | None = None
    if len(names) <= _MOST_CLASSES:
        matrices = {label: each.matrix(len(names)) for label, each in known.items()}
        picture = (lambda: plots.matrices(matrices, names, title)), _finding(known, names)
    heads, rows = _table(known, names)
    return {"picture": picture, "heads": heads, "rows": rows, "note": _note(known, len(names), by_label)}


def _most_confused(known: Mapping[str, Told]) -> list[tuple[tuple[int, int], float]]:
    """Return the pairs of classes that most examples are confused between, the mean over strategies with each."""
    sums: dict[tuple[int, int], float] = {}
    for each in known.values():
        for (label, predicted), number in each.pairs.items():
            if predicted not in (label, NO_CLASS):
                sums[label, predicted] = sums.get((label, predicted), 0.0) + number / len(known)
    return sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:_MOST_PAIRS]


def _table(known: Mapping[str, Told], names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the most confused pairs: names, examples, and the share of the class, by strategy."""
    labels = [label or "% of the class" for label in known]
    rows = []
    for pair, number in _most_confused(known):
        shares = [f"{100 * each.share(pair):.1f}" for each in known.values()]
        rows.append([_short(names[pair[0]]), _short(names[pair[1]]), f"{number:,.1f}".removesuffix(".0"), *shares])
    return ["class", "taken for", "examples", *labels], rows


def _note(known: Mapping[str, Told], num_classes: int, by_label: Mapping[str, Sequence[Path]]) -> str:
    """Say what the numbers are of."""
    said = ["Test examples at the server, in the last evaluation."]
    if (num_runs := max(map(len, by_label.values()))) > 1:
        said.append(f"Means over {num_runs} seeds; examples are also the mean over strategies.")
    if len(known) > 1:
        said.append("Of each strategy, per cent of the class.")
    if num_classes > _MOST_CLASSES:
        said.append(f"There is no picture of more than {_MOST_CLASSES} classes; confusion.csv has all pairs.")
    lost = sum(number for each in known.values() for (_, told), number in each.pairs.items() if told == NO_CLASS)
    if lost:
        said.append(f"{lost / len(known):,.1f} examples were taken for no class: their scores were not finite.")
    return " ".join(said)


def _finding(known: Mapping[str, Told], names: Sequence[str]) -> str:
    """Say what is confused most, in words."""
    said = []
    for label, each in known.items():
        right = sum(number for (true, told), number in each.pairs.items() if true == told)
        pairs = [
            f"{_short(names[pair[0]])} for {_short(names[pair[1]])} in {100 * each.share(pair):.1f} %"
            for pair, _ in _most_confused({label: each})[:_TOLD_PAIRS]
        ]
        whole = f"{100 * right / sum(each.examples.values()):.1f} % right"
        said.append(f"{label + ': ' if label else ''}{whole}, most often taken {'; '.join(pairs) or 'for no other'}")
    return f"What test examples of each class are taken for. {'. '.join(said)}."


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"

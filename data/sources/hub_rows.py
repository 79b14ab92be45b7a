"""Rows of a set of the hub that cannot be examples, found before any picture is decoded: no label, no picture, ...

Each refusal names the first such row by its number in the split, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from umbel.data.errors import DataError
from umbel.data.sources.hub_columns import Columns, column

# Columns that must have a value in each row, by their options.
_FULL = ("domain_column", "natural_id_column", "image_id_column", "text_column")


def check_rows(
    source: str,
    splits: Mapping[str, Any],
    columns: Columns,
    options: Mapping[str, str],
    numbers: Mapping[str, Sequence[int]],
) -> tuple[str, ...]:
    """Refuse rows without a label, a domain, a writer or a text.

    Args:
        source: What the messages call the set.
        splits: The rows that are kept, by `train` and `test`.
        columns: Which column is which.
        options: The options of `umbel.data.sources.hub`.
        numbers: The number of each row that is kept in its split.

    Returns:
        What whoever reads the result should know, a sentence each.

    Raises:
        DataError: A row lacks something, or has several labels or a number to predict; the message names it.
    """
    for key, split in splits.items():
        for option in _FULL:
            if options[option]:
                entries = column(split, options[option])
                may_be_empty = option == "text_column"
                lost = [row for row, entry in enumerate(entries) if entry is None or not (may_be_empty or _has(entry))]
                _check_full(source, options[f"{key}_split"], option, options[option], len(entries), lost, numbers[key])
    notices = [_without_captions(source, key, split, options) for key, split in splits.items()]
    if columns.label:
        labels = {key: column(split, columns.label) for key, split in splits.items()}
        for key, values in labels.items():
            _check_classes(source, options[f"{key}_split"], columns.label, values, numbers[key])
        notices.append(_check_labels(source, columns, options, labels, numbers))
    return tuple(notice for notice in notices if notice)


def check_pictures(source: str, split: str, name: str, rows: Any, numbers: Sequence[int]) -> None:
    """Refuse rows without a picture; nothing is decoded.

    Args:
        source: What the message calls the set.
        split: `train` or `test`.
        name: The column of images.
        rows: The whole split, as it was opened.
        numbers: The rows of it that are kept.

    Raises:
        DataError: A row has neither the bytes of a picture nor its path; the message names it.
    """
    import pyarrow.compute as pc

    table, start, missing = rows.data.column(name), 0, set()
    for chunk in table.chunks:
        storage = getattr(chunk, "storage", chunk)
        parts = [pc.is_null(pc.struct_field(storage, part)) for part in ("bytes", "path")]
        empty = pc.or_(pc.is_null(storage), pc.and_(*parts))
        if pc.any(empty).as_py():
            missing |= {start + row for row, value in enumerate(empty.to_pylist()) if value}
        start += len(chunk)
    lost = [row for row in numbers if row in missing] if missing else []
    if lost:
        raise DataError(
            f"{source}: row {lost[0]} of {split} has no picture in column {name!r} ({len(lost):,} of "
            f"{len(numbers):,} rows).",
            key="data.options.image_column",
            remedy=_without(f"row[{name!r}] is not None", split),
        )


def _check_full(
    source: str, split: str, option: str, name: str, count: int, lost: Sequence[int], numbers: Sequence[int]
) -> None:
    if lost:
        without = _without(f"row[{name!r}] not in (None, '')", split)
        raise DataError(
            f"{source}: row {numbers[lost[0]]} of {split} has nothing in column {name!r} ({len(lost):,} of {count:,} "
            "rows).",
            key=f"data.options.{option}",
            remedy=f"Set data.options.{option} to another column, or {without[0].lower()}{without[1:]}",
        )


def _check_classes(source: str, split: str, name: str, labels: Sequence[Any], numbers: Sequence[int]) -> None:
    """Refuse what is no class: several labels at once, or a number that is not whole."""
    for row, label in enumerate(labels):
        if isinstance(label, (list, tuple, dict)):
            fault = "several labels at once"
        elif isinstance(label, float) and not math.isnan(label) and not label.is_integer():
            fault = "a number to predict"
        else:
            continue
        raise DataError(
            f"{source}: row {numbers[row]} of {split} has {fault} in column {name!r} ({label!r:.60}), expected one "
            "class.",
            key="data.options.label_column",
            remedy="Set data.options.label_column to a column with one class a row.",
        )


def _check_labels(
    source: str,
    columns: Columns,
    options: Mapping[str, str],
    labels: Mapping[str, Sequence[Any]],
    numbers: Mapping[str, Sequence[int]],
) -> str:
    """Refuse rows without a label; return the notice where -1 may be a class or stand for none.

    The hub writes -1 for no label. Where training rows have it too and the classes have no names, it can be a class.
    """
    minus_one = sum(label == -1 for label in labels["train"]) if columns.names is None else 0
    for key, values in labels.items():
        lost = [row for row, label in enumerate(values) if _is_no_label(label, bool(minus_one))]
        if lost:
            split = options[f"{key}_split"]
            raise DataError(
                f"{source}: row {numbers[key][lost[0]]} of {split} has no label in column {columns.label!r}, but "
                f"{values[lost[0]]!r} ({len(lost):,} of {len(values):,} rows).",
                key=f"data.options.{'test_split' if key == 'test' else 'label_column'}",
                remedy=_with_labels(columns.label, options) if key == "test" else _without_label(columns.label, split),
            )
    rows = len(labels["train"])
    return f"{source}: the label -1 is a class like the others ({minus_one:,} of {rows:,} rows)." if minus_one else ""


def _is_no_label(label: Any, is_class: bool) -> bool:
    return not _has(label) or (bool(label == -1) and not is_class)


def _has(value: Any) -> bool:
    """Say whether a row has something: neither null, nor an empty text, nor NaN."""
    return not (value is None or value == "" or (isinstance(value, float) and math.isnan(value)))


def _with_labels(name: str, options: Mapping[str, str]) -> str:
    return (
        "Set data.options.test_split to a split with labels; an empty one holds a fifth of each class of "
        f"{options['train_split']} out. {_without_label(name, options['test_split'])}"
    )


def _without_label(name: str, split: str) -> str:
    return _without(f"row[{name!r}] not in (None, '', -1)", split)


def _without_captions(source: str, split: str, rows: Any, options: Mapping[str, str]) -> str:
    """Return the notice about rows that give no caption."""
    if not options["caption_column"]:
        return ""
    entries = column(rows, options["caption_column"])
    count = sum(not any(isinstance(text, str) and text.strip() for text in _listed(entry)) for entry in entries)
    return f"{source}: left out {count:,} of {len(entries):,} rows of {split}, which have no caption." if count else ""


def _listed(entry: Any) -> Sequence[Any]:
    return entry if isinstance(entry, list) else [entry]


def _without(condition: str, split: str) -> str:
    """Return how to write a set without some rows."""
    return (
        "Write the set without such rows, and set data.name=hub:FOLDER:\n"
        f"    datasets.load_dataset(...)[{split!r}].filter(lambda row: {condition})"
        f".to_parquet('FOLDER/{split}-0.parquet')"
    )

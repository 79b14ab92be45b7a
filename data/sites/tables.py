"""Tables of a site: CSV files with paths of pictures, Parquet and Arrow files with pictures in them.

Shapes: N rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from umbel.core.names import shown
from umbel.data.errors import DamagedDataError, DataError, MissingDataError
from umbel.data.pictures import Form
from umbel.data.sites.description import USUAL_SPLITS, SiteData, composed
from umbel.data.sites.folder import from_files
from umbel.data.sites.rows import Pictures, Read, Rows, decode

_SUFFIXES = {"parquet": (".parquet", ".pq"), "arrow": (".arrow", ".feather", ".ipc"), "csv": (".csv",)}


def rows(site: SiteData) -> Rows:
    """List the rows of a site's table; no picture is opened.

    Raises:
        MissingDataError: There is no such file or folder.
        DamagedDataError: A file cannot be read; the message names it.
        DataError: A column is not there, or a row has nothing in one.
    """
    files = _files(site)
    tables = [_opened(site.source, path) for path in files]
    reader = _csv_reader if site.source == "csv" else _picture_reader
    read, used, pictures = reader(site, files, tables)
    label = site.columns.get("label", "label")
    columns = {role: site.columns[role] for role in ("client", "split", "group") if role in site.columns}
    values = {role: _texts(site, tables, name, f"columns.{role}") for role, name in columns.items()}
    if "split" not in values and (named := _splits_of(files)):
        values["split"] = [split for split, table in zip(named, tables, strict=True) for _ in range(len(table))]
    unused = sorted(set(tables[0].column_names) - {label, used, *columns.values()})
    notice = f"{shown(site.path)}: the columns {', '.join(unused)} are not read." if unused else ""
    return Rows(
        labels=_texts(site, tables, label, "columns.label"),
        read=read,
        clients=values.get("client"),
        splits=values.get("split"),
        groups=values.get("group"),
        notices=(notice,) if notice else (),
        files=pictures,
    )


def _files(site: SiteData) -> tuple[Path, ...]:
    path, suffixes = Path(site.path), _SUFFIXES[site.source]
    if not path.exists():
        raise MissingDataError(f"path={site.path}: there is no such file or folder.", key="path", remedy="Set path.")
    files = (path,) if path.is_file() else tuple(sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes))
    if not files:
        raise MissingDataError(
            f"path={site.path}: expected files that end in {' or '.join(suffixes)}, found none.",
            key="path",
            remedy="Set path to the folder with the files.",
        )
    return files


def _opened(source: str, path: Path) -> pa.Table:
    try:
        if source == "parquet":
            return pa.parquet.read_table(path)
        if source == "csv":
            return _csv(path)
        try:
            return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except pa.ArrowInvalid:  # Hugging Face's are streams
            return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise DamagedDataError(
            f"{shown(path)}: cannot be read as {source} ({error}).", remedy="Bring it back from a copy."
        ) from error


def _csv(path: Path) -> pa.Table:
    """Read a CSV file with a line of names; everything is text."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        lines = [line for line in reader if line]
    wrong = [number for number, line in enumerate(lines) if len(line) != len(names)]
    if wrong or len(set(names)) < len(names):
        what = f"row {wrong[0]} has {len(lines[wrong[0]])} cells" if wrong else "two columns have one name"
        raise csv.Error(f"it names {len(names)} columns, and {what}")
    return pa.table({name: pa.array([line[place] for line in lines], pa.string()) for place, name in enumerate(names)})


def _splits_of(files: Sequence[Path]) -> list[str]:
    """Return the split of each file by the beginning of its name, as the hub's files say it; none where one does not.

    `train-00000-of-00002.parquet` is of `train`.
    """
    stems = [path.stem.partition("-")[0] for path in files]
    return stems if all(stem.lower() in USUAL_SPLITS for stem in stems) else []


def _column(tables: Sequence[pa.Table], name: str, key: str) -> list[pa.ChunkedArray]:
    for table in tables:
        if name not in table.column_names:
            raise DataError(
                f"There is no column {name!r}; there are {', '.join(table.column_names)}.",
                key=key,
                remedy=f"Set {key} to one of them.",
            )
    return [table.column(name) for table in tables]


def _texts(site: SiteData, tables: Sequence[pa.Table], name: str, key: str) -> list[str]:
    """Return a column as text, [N]; numbers that stand for names of classes become these."""
    texts: list[str] = []
    for table, column in zip(tables, _column(tables, name, key), strict=True):
        names = _class_names(table, name)
        for value in column.to_pylist():
            text = names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
            if text is None or not str(text).strip() or (names and isinstance(text, int)):
                raise DataError(
                    f"{shown(site.path)}: row {len(texts)} has nothing in the column {name!r}.",
                    key=key,
                    remedy="Leave such rows out of the table, or name another column.",
                )
            texts.append(composed(str(text)))
    return texts


def _class_names(table: pa.Table, name: str) -> list[str]:
    """Return the names of the classes of a column, where Hugging Face's own description has them."""
    content = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = content.get("info", {}).get("features", {}).get(name, {})
    return list(feature.get("names", ())) if feature.get("_type") == "ClassLabel" else []


def _csv_reader(site: SiteData, files: Sequence[Path], tables: Sequence[pa.Table]) -> tuple[Read, str, Sequence[Path]]:
    name = site.columns.get("path", "path")
    paths = [
        file.parent / path
        for file, column in zip(files, _column(tables, name, "columns.path"), strict=True)
        for path in column.to_pylist()
    ]
    if missing := [path for path in paths if not path.is_file()]:
        raise MissingDataError(
            f"{len(missing):,} of {len(paths):,} pictures are not there, such as {shown(missing[0])}.",
            key="columns.path",
            remedy="Paths are from the folder of the CSV file on.",
        )
    return from_files(paths), name, paths


def _picture_reader(
    site: SiteData, files: Sequence[Path], tables: Sequence[pa.Table]
) -> tuple[Read, str, Sequence[Path]]:
    name = site.columns.get("image") or _image_column(tables[0])
    columns = _column(tables, name, "columns.image")
    starts = [0]
    for column in columns:
        starts.append(starts[-1] + len(column))

    def stored(row: int) -> tuple[str, bytes]:
        number = max(index for index, start in enumerate(starts[:-1]) if start <= row)
        value: Any = columns[number][row - starts[number]].as_py()
        what = f"row {row - starts[number]} of {shown(files[number])}"
        content = value.get("bytes") if isinstance(value, dict) else value
        if content is None and isinstance(value, dict) and value.get("path"):
            content = (files[number].parent / value["path"]).read_bytes()
        return what, content or b""

    def read(wanted: Sequence[int], form: Form) -> Pictures:
        def opened() -> Iterator[tuple[str, Callable[[], Image.Image]]]:
            for row in wanted:
                what, content = stored(row)
                yield what, lambda content=content: Image.open(io.BytesIO(content))  # type: ignore[misc]

        return decode(opened(), len(wanted), form)

    return read, name, ()


def _image_column(table: pa.Table) -> str:
    """Return the one column that can hold pictures: of bytes, or of a structure with bytes.

    Raises:
        DataError: There are none or several.
    """
    fitting = []
    for field in table.schema:
        kind = field.type.storage_type if isinstance(field.type, pa.ExtensionType) else field.type
        holds_bytes = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
        if holds_bytes or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            fitting.append(field.name)
    if len(fitting) != 1:
        raise DataError(
            f"Expected one column of pictures, found {', '.join(fitting) or 'none'} among "
            f"{', '.join(table.column_names)}.",
            key="columns.image",
            remedy="Set columns.image.",
        )
    return str(fitting[0])

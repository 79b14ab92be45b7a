"""Traces of devices: CSV or Parquet files of what some measured, such as those that FedScale publishes.

FedScale (Lai et al., ICML 2022, arXiv:2105.11367) has for each device the milliseconds of an inference of one example
(`computation`) and kilobits a second (`communication`); and for when devices are there, two lists of seconds, `active`
and `inactive`, within a period of `finish_time` seconds. Its own simulation takes three times an inference for a
training step, and so does this.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Generic, TypeVar

import torch

from umbel.core.names import nearest
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.core.virtual.config import KEY, DevicesConfig
from umbel.core.virtual.distributions import MOST

T = TypeVar("T")
_TRAINING = 3.0  # a training step, in inferences
_KILOBIT = 125.0  # bytes
_AGREE = 1e-3  # as a share: what two columns say of one thing may be rounded
_OWN, _FEDSCALE = ("speed", "download", "upload"), ("computation", "communication")
_AVAILABILITY = ("active", "inactive", "finish_time", "device")


@dataclass(frozen=True)
class Capacity:
    """What a device can do.

    Attributes:
        speed: Training examples a second.
        download: Bytes a second to it.
        upload: Bytes a second from it.
    """

    speed: float = math.inf
    download: float = math.inf
    upload: float = math.inf


@dataclass(frozen=True)
class Intervals:
    """When a device is there.

    Attributes:
        period: Seconds after which it begins anew.
        starts: Seconds within the period, in order.
        ends: The end of what begins at each start.
    """

    period: float
    starts: tuple[float, ...]
    ends: tuple[float, ...]


@dataclass(frozen=True)
class Trace(Generic[T]):
    """What a file says.

    Attributes:
        key: The configuration key that names it.
        path: The file.
        devices: Of each device or client, by its number.
        of_clients: The numbers are those of clients; else each client draws a device.
    """

    key: str
    path: str
    devices: Mapping[int, T]
    of_clients: bool


def deal(trace: Trace[T], num_clients: int, seed: int, purpose: str, everyone: bool = True) -> dict[int, T]:
    """Return what each client has of a trace.

    Args:
        trace: The trace. Where its numbers are no clients', each client draws a device, and several may draw one.
        num_clients: How many there are.
        seed: The run's seed.
        purpose: Sets the draws of different traces apart.
        everyone: Refuse a trace that leaves a client out.
    """
    if not trace.of_clients:
        source = generator(seed, 0, "devices", -1, purpose)
        devices = list(trace.devices.values())
        drawn = torch.randint(len(devices), (num_clients,), generator=source).tolist()
        return {client: devices[index] for client, index in enumerate(drawn)}
    missing = [client for client in range(num_clients) if client not in trace.devices]
    if everyone and missing:
        raise _wrong(trace.key, trace.path, f"it has no row for client {missing[0]} of {num_clients}")
    return {client: own for client, own in trace.devices.items() if client < num_clients}


def read_capacity(path: str) -> Trace[Capacity]:
    """Read a trace of speeds and bandwidths.

    A row a device: `computation` and `communication` as FedScale has them, or `speed`, `download` and `upload` in
    examples and bytes a second; `client` where the rows are clients'. Columns of the other form have to say the same.

    Raises:
        Refusal: It cannot be read so; the message has the row.
    """
    key = f"{KEY}.capacity"
    columns = _read(path, key, (*_OWN, *_FEDSCALE, "client"))
    names = _OWN if "speed" in columns else _FEDSCALE
    rows = list(zip(*(_numbers(columns, name, key, path, least=0.0) for name in names), strict=True))
    made = [Capacity(*row) if names is _OWN else _of_fedscale(*row) for row in rows]
    _check_other_form(columns, made, key, path)
    if "client" not in columns:
        return Trace(key, path, dict(enumerate(made)), False)
    clients = _whole(columns, "client", key, path)
    if twice := [client for client, number in Counter(clients).items() if number > 1]:
        raise _wrong(key, path, f"client {twice[0]} has two rows")
    return Trace(key, path, dict(zip(clients, made, strict=True)), True)


def _of_fedscale(computation: float, communication: float) -> Capacity:
    bandwidth = communication * _KILOBIT
    return Capacity(1000 / (_TRAINING * computation), bandwidth, bandwidth)


def _check_other_form(columns: Mapping[str, list[object]], made: Sequence[Capacity], key: str, path: str) -> None:
    """Refuse columns that say something else of a device than those that it is made of."""
    means: dict[str, Callable[[Capacity], tuple[float, ...]]] = {
        "speed": lambda own: (own.speed,),
        "download": lambda own: (own.download,),
        "upload": lambda own: (own.upload,),
        "computation": lambda own: (1000 / (_TRAINING * own.speed),),
        "communication": lambda own: (own.download / _KILOBIT, own.upload / _KILOBIT),
    }
    for name in (name for name in means if name in columns):
        for row, (value, own) in enumerate(zip(_numbers(columns, name, key, path, 0.0), made, strict=True), start=1):
            if wrong := [each for each in means[name](own) if not math.isclose(value, each, rel_tol=_AGREE)]:
                raise _wrong(key, path, f"{name} is {value:g} in row {row}, and {wrong[0]:g} by the other columns")


def read_availability(path: str) -> Trace[Intervals]:
    """Read a trace of when devices are there.

    A row an interval: `active` and `inactive`, its first second and its end, and `finish_time`, after which the device
    begins anew; `device`, or `client` where devices are clients'.

    Raises:
        Refusal: It cannot be read so; the message has the row or the device.
    """
    key = f"{KEY}.availability"
    columns = _read(path, key, (*_AVAILABILITY, "client"))
    whose = "client" if "client" in columns else "device"
    numbers = _whole(columns, whose, key, path)
    starts, ends = _numbers(columns, "active", key, path), _numbers(columns, "inactive", key, path)
    periods = _numbers(columns, "finish_time", key, path, least=0.0)
    by_device: dict[int, list[tuple[float, float, float]]] = {}
    for number, period, start, end in zip(numbers, periods, starts, ends, strict=True):
        by_device.setdefault(number, []).append((period, start, end))
    devices = {number: _intervals(rows, f"{whose} {number}", key, path) for number, rows in by_device.items()}
    return Trace(key, path, devices, whose == "client")


def _intervals(rows: list[tuple[float, float, float]], whose: str, key: str, path: str) -> Intervals:
    periods = {period for period, _, _ in rows}
    if len(periods) > 1:
        raise _wrong(key, path, f"{whose} has several values of finish_time")
    (period,) = periods
    ordered = sorted((start, end) for _, start, end in rows)
    if not all(0 <= start < end <= period for start, end in ordered):
        raise _wrong(key, path, f"{whose}: expected 0 <= active < inactive <= finish_time in each row")
    if any(end > following for (_, end), (following, _) in pairwise(ordered)):
        raise _wrong(key, path, f"{whose} has intervals that overlap")
    return Intervals(period, tuple(start for start, _ in ordered), tuple(end for _, end in ordered))


def content_hash(config: DevicesConfig) -> str:
    """Return the SHA-256 of the traces that a configuration names, in hexadecimal; "" where it names none.

    Raises:
        Refusal: One cannot be read.
    """
    paths = [(name, path) for name in ("capacity", "availability") if (path := getattr(config, name))]
    if not paths:
        return ""
    digest = hashlib.sha256()
    for name, path in paths:
        digest.update(hashlib.sha256(_bytes(path, f"{KEY}.{name}")).digest())
    return digest.hexdigest()


def check_hash(config: DevicesConfig) -> None:
    """Raise a `Refusal` where traces have another content than the configuration says."""
    digest = content_hash(config)
    if config.sha256 and digest != config.sha256:
        path = config.capacity or config.availability
        raise Refusal(
            f"{KEY}: the traces have the hash {digest[:12]}, expected {config.sha256[:12]} ({path}).",
            key=f"{KEY}.sha256",
            remedy=f"Bring them back from a copy; a new run takes them as they are with {KEY}.sha256= (nothing).",
        )


def _bytes(path: str, key: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _wrong(key, path, f"it cannot be read: {error.strerror}") from error


def _read(path: str, key: str, known: Sequence[str]) -> dict[str, list[object]]:
    """Return the columns of a table; refuse one that is not known, for what it was to say would be left out."""
    content = _bytes(path, key)
    columns = _csv(content, key, path) if path.lower().endswith(".csv") else _parquet(path, key)
    if not columns or not next(iter(columns.values())):
        raise _wrong(key, path, "it has no rows")
    for name in columns:
        if name not in known:
            guesses = " or ".join(nearest(name, known, 1)) or f"one of {', '.join(known)}"
            meant = (
                f"Did you mean {guesses}? If not, leave it out: " if name else "Leave it out (pandas: index=False): "
            )
            what = f"it has a column {name!r}, which umbel does not know" if name else "it has a column without a name"
            raise _wrong(key, path, what, f"{meant}docs/virtual-time.md says what a trace has.")
    return columns


def _csv(content: bytes, key: str, path: str) -> dict[str, list[object]]:
    try:
        head, *rows = csv.reader(content.decode("utf-8-sig").splitlines())
    except (ValueError, csv.Error) as error:  # no line at all, or no text
        raise _wrong(key, path, f"it is no CSV file with a line of names ({error})") from error
    names, rows = [name.strip() for name in head], [row for row in rows if row]
    _check_once(names, key, path)
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise _wrong(key, path, f"row {number} has {len(row)} values for {len(names)} names")
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def _parquet(path: str, key: str) -> dict[str, list[object]]:
    if not path.lower().endswith((".parquet", ".pq")):
        raise _wrong(key, path, "its name ends in neither .csv nor .parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise _wrong(key, path, f"it is no Parquet file ({error})") from error
    _check_once(table.column_names, key, path)
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _check_once(names: Sequence[str], key: str, path: str) -> None:
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise _wrong(key, path, f"it has two columns {twice[0]!r}")


def _numbers(
    columns: Mapping[str, list[object]], name: str, key: str, path: str, least: float = -math.inf
) -> list[float]:
    """Return a column of numbers above a bound."""
    if name not in columns:
        raise _wrong(key, path, f"it has no column {name}, but {', '.join(columns)}")
    values = []
    for row, written in enumerate(columns[name], start=1):
        try:
            value = float(written)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        if not least < value <= MOST:
            wanted = "a number" if least == -math.inf else f"a number above {least:g}"
            raise _wrong(key, path, f"{name} should be {wanted} in each row, found {written!r} in row {row}")
        values.append(value)
    return values


def _whole(columns: Mapping[str, list[object]], name: str, key: str, path: str) -> list[int]:
    values = _numbers(columns, name, key, path)
    if wrong := [value for value in values if value < 0 or value != int(value)]:
        raise _wrong(key, path, f"{name} should be a whole number, found {wrong[0]:g}")
    return [int(value) for value in values]


def _wrong(key: str, path: str, what: str, remedy: str = "docs/virtual-time.md says what a trace has.") -> Refusal:
    return Refusal(f"{key}={path}: {what}.", key=key, remedy=remedy)

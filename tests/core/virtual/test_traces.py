"""Traces of devices: what their columns mean, whose rows are whose, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umbel.core.refusal import Refusal
from umbel.core.virtual.config import DevicesConfig, check
from umbel.core.virtual.devices import make
from umbel.core.virtual.traces import Capacity, content_hash

FEDSCALE = "computation,communication\n100,80\n20,8000\n"
AVAILABILITY = "device,active,inactive,finish_time\n7,0,30,100\n7,60,90,100\n9,10,20,50\n"


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_fedscale_has_milliseconds_of_an_inference_and_kilobits(tmp_path):
    devices = make(DevicesConfig(capacity=written(tmp_path / "t.csv", FEDSCALE)), 60, 0)
    # Three times 100 ms an example is 10 / 3 examples a second, and 80 kbit/s are 10,000 bytes a second.
    slow, fast = Capacity(1000 / 300, 10_000.0, 10_000.0), Capacity(1000 / 60, 1_000_000.0, 1_000_000.0)
    assert set(devices.capacities) == {slow, fast}
    assert 15 < devices.capacities.count(slow) < 45  # each client draws a device


def test_parquet_says_the_same_as_csv(tmp_path):
    table = pa.table({"computation": [100.0, 20.0], "communication": [80, 8000]})
    pq.write_table(table, tmp_path / "t.parquet")
    from_parquet = make(DevicesConfig(capacity=str(tmp_path / "t.parquet")), 20, 5)
    assert from_parquet == make(DevicesConfig(capacity=written(tmp_path / "t.csv", FEDSCALE)), 20, 5)


def test_both_forms_may_say_the_same(tmp_path):
    text = "speed,download,upload,computation,communication\n3.333,10000,10000,100,80\n"
    devices = make(DevicesConfig(capacity=written(tmp_path / "t.csv", text)), 1, 0)
    assert devices.capacities == (Capacity(3.333, 10_000.0, 10_000.0),)


def test_rows_of_clients_are_theirs(tmp_path):
    text = "client,speed,download,upload\n1,5,50,500\n0,4,40,400\n7,1,1,1\n"
    devices = make(DevicesConfig(capacity=written(tmp_path / "t.csv", text)), 2, 0)
    assert devices.capacities == (Capacity(4.0, 40.0, 400.0), Capacity(5.0, 50.0, 500.0))
    with pytest.raises(Refusal, match="no row for client 2 of 3"):
        make(DevicesConfig(capacity=str(tmp_path / "t.csv")), 3, 0)


def test_availability_has_intervals_of_a_period(tmp_path):
    path = written(tmp_path / "t.csv", AVAILABILITY)
    devices = make(DevicesConfig(availability=path), 40, 0)
    both = [tuple(devices.is_here(client, now) for now in (5, 15, 40, 65, 95, 105)) for client in range(40)]
    assert set(both) == {(True, True, False, True, False, True), (False, True, False, True, False, False)}
    of_clients = written(tmp_path / "c.csv", AVAILABILITY.replace("device", "client"))
    devices = make(DevicesConfig(availability=of_clients), 8, 0)
    assert [devices.is_here(client, 40) for client in (0, 7)] == [True, False]  # who is not in it is always there


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no CSV file"),
        ("computation,communication\n", "no rows"),
        ("computation\n3\n", "no column communication"),
        ("computation,communication\n3,4\n5\n", "row 2 has 1 values for 2 names"),
        (
            "computation,communication\n3,4\n5,x\n",
            "communication should be a number above 0 in each row, found 'x' in row 2",
        ),
        (
            "computation,communication\n-3,4\n",
            "computation should be a number above 0 in each row, found '-3' in row 1",
        ),
        ("computation,communication\n0,4\n", "above 0"),
        ("computation,communication\nnan,4\n", "above 0"),
        ("client,computation,communication\n0,3,4\n0,3,4\n", "client 0 has two rows"),
        ("client,computation,communication\n0.5,3,4\n", "client should be a whole number, found 0.5"),
        ("Client,speed,download,upload\n0,3,4,5\n", "a column 'Client', which .* Did you mean client"),
        ("computation,communications\n3,4\n", "a column 'communications', which .* Did you mean communication"),
        ("speed,download,upload,zzz\n3,4,5,6\n", "a column 'zzz', which .* one of speed, download, upload, comp"),
        (",computation,communication\n0,3,4\n", "a column without a name.* index=False"),
        ("client,client,computation,communication\n0,1,3,4\n", "two columns 'client'"),
        (
            "speed,download,upload,computation\n10,1,1,33.33\n10,1,1,100\n",
            "computation is 100 in row 2, and 33.3333 by the other columns",
        ),
        ("speed,download,upload,communication\n1,1000,500,8\n", "communication is 8 in row 1, and 4 by the other"),
        ("upload,computation,communication\n999,100,80\n", "upload is 999 in row 1, and 10000 by the other columns"),
    ],
)
def test_a_bad_capacity_is_refused(tmp_path, text, message):
    with pytest.raises(Refusal, match=message) as refused:
        make(DevicesConfig(capacity=written(tmp_path / "t.csv", text)), 2, 0)
    assert refused.value.key == "simulation.devices.capacity"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("3,5,4,10", "expected 0 <= active < inactive <= finish_time"),
        ("3,5,14,10", "expected 0 <= active < inactive <= finish_time"),
        ("3,-1,4,10", "expected 0 <= active < inactive <= finish_time"),
        ("3,1,4,10\n3,3,6,10", "device 3 has intervals that overlap"),
        ("3,1,4,10\n3,5,6,11", "device 3 has several values of finish_time"),
        ("3,1,4,0", "finish_time should be a number above 0"),
    ],
)
def test_a_bad_availability_is_refused(tmp_path, rows, message):
    text = f"device,active,inactive,finish_time\n{rows}\n"
    with pytest.raises(Refusal, match=message) as refused:
        make(DevicesConfig(availability=written(tmp_path / "t.csv", text)), 2, 0)
    assert refused.value.key == "simulation.devices.availability"


def test_an_unknown_column_is_refused_in_every_kind_of_file(tmp_path):
    text = AVAILABILITY.replace("device", "devise")
    with pytest.raises(Refusal, match=r"a column 'devise', which .* Did you mean device") as refused:
        make(DevicesConfig(availability=written(tmp_path / "t.csv", text)), 2, 0)
    assert refused.value.key == "simulation.devices.availability"
    table = pa.table({"computation": [100.0], "communication": [80], "Client": [0]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(Refusal, match=r"a column 'Client', which .* Did you mean client"):
        make(DevicesConfig(capacity=str(tmp_path / "t.parquet")), 1, 0)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    (tmp_path / "t.pkl").write_bytes(b"")
    for name, message in (("none.csv", "cannot be read"), ("t.parquet", "no Parquet"), ("t.pkl", "ends in neither")):
        with pytest.raises(Refusal, match=message):
            make(DevicesConfig(capacity=str(tmp_path / name)), 2, 0)


def test_a_trace_that_has_changed_is_refused(tmp_path):
    config = DevicesConfig(capacity=written(tmp_path / "t.csv", FEDSCALE))
    noted = DevicesConfig(capacity=config.capacity, sha256=content_hash(config))
    make(noted, 2, 0)
    written(tmp_path / "t.csv", FEDSCALE.replace("100", "101"))
    with pytest.raises(Refusal, match="the traces have the hash") as refused:
        make(noted, 2, 0)
    assert refused.value.key == "simulation.devices.sha256"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (DevicesConfig(capacity="t.csv", upload=5.0), "upload"),
        (DevicesConfig(availability="t.csv", off_seconds=5.0), "off_seconds"),
        (DevicesConfig(on_seconds=5.0), "off_seconds"),
        (DevicesConfig(speed=5.0, sha256="0" * 64), "sha256"),
        (DevicesConfig(off_seconds=-5.0), "off_seconds"),
    ],
)
def test_devices_that_cannot_be_are_refused(config, key):
    with pytest.raises(Refusal) as refused:
        check(config)
    assert refused.value.key == f"simulation.devices.{key}"

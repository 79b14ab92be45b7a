"""Runs that come, grow, end, break and go while a shelf looks at them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import small_run
from umbel.core.files import write_sealed
from umbel.core.refusal import Refusal
from umbel.server.lock import exclusive, is_held
from umbel.simulations.runs.overview import find
from umbel.simulations.runs.tale import Tale
from umbel.simulations.watch.detail import again
from umbel.simulations.watch.followed import Followed
from umbel.simulations.watch.shelf import Shelf


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("done"), "run.name=done", "run.rounds=3", "evaluate.clients=4").path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def begun(done: Path, target: Path) -> Path:
    """A run as its folder is before its first round."""
    shutil.copytree(done, target)
    for name in ("summary.json", "metrics.parquet", "model.safetensors", "progress.jsonl"):
        (target / name).unlink()
    return target


def lines(done: Path) -> list[str]:
    return (done / "progress.jsonl").read_text().splitlines(keepends=True)


def append(folder: Path, *texts: str) -> None:
    with (folder / "progress.jsonl").open("a") as file:
        file.writelines(texts)


def rows(shelf: Shelf) -> dict[str, dict[str, Any]]:
    shelf.look()
    return {row["name"]: row for row in shelf.rows()["runs"]}


def test_a_run_tells_what_each_round_cost(done: Path) -> None:
    tale = Tale(done)
    assert tale.read_on() and not tale.read_on()
    summary = json.loads((done / "summary.json").read_text())
    assert [each.number for each in tale.rounds] == [1, 2, 3] and tale.is_over and not tale.flaw
    costs = tale.rounds[-1].costs
    assert costs["steps"] == summary["spent"]["clients"]["steps"] > 0
    assert costs["bytes_down"] == sum(summary["bytes_down"].values())
    assert costs["bytes"] == costs["bytes_up"] + costs["bytes_down"]
    assert costs["memory_bytes"] > 1e6
    trained = sum(each.stages["train"] for each in tale.rounds)
    assert trained == pytest.approx(summary["seconds"]["train"], abs=0.01)
    assert tale.rounds[0].metrics["test/accuracy"] >= 0


def test_a_run_that_grows_is_read_on_from_where_it_was(done: Path, root: Path) -> None:
    folder, told = begun(done, root / "grows"), lines(done)
    shelf = Shelf(root)
    assert rows(shelf)["grows"]["state"] == "stopped"  # nobody has begun
    ends = [number for number, line in enumerate(told, start=1) if '"event": "round"' in line]
    with exclusive(folder):
        append(folder, *told[: ends[0]], told[ends[0]], told[ends[0] + 1][:20])  # half a line
        row = rows(shelf)["grows"]
        assert (row["state"], row["round"], row["rounds"]) == ("running", 1, 3)
        assert row["phase"] == "train" and row["clients"] > 0 and row["end"] > 0
        first = shelf.detail(row["id"])
        assert first is not None and [each["round"] for each in first["told"]] == [1] and not first["trouble"]
        known = shelf.rows()["version"]
        shelf.look()
        assert not shelf.rows(known, shelf.epoch)["runs"]
        append(folder, told[ends[0] + 1][20:], *told[ends[0] + 2 : ends[1]])
        shelf.look_at_running()
        changed = shelf.rows(known, shelf.epoch)
        assert not changed["whole"] and [row["round"] for row in changed["runs"]] == [2]
        second = shelf.detail(row["id"], 1, first["generation"])
        assert second is not None and [each["round"] for each in second["told"]] == [2]
        assert second["measures"]["test/accuracy"] == {"title": "test accuracy", "whole": 1, "digits": 4}
    assert rows(shelf)["grows"]["state"] == "died"
    assert next(seen for seen in find(root) if seen.path == folder).state == "died"
    append(folder, json.dumps({"event": "end", "time": 1.0, "error": {"how": "asked"}}) + "\n")
    assert rows(shelf)["grows"]["state"] == "stopped"
    append(folder, *[json.dumps({"event": event, "time": 1.0, "round": 1}) + "\n" for event in ("begin", "resumed")])
    again = shelf.detail(row["id"], 2, first["generation"])
    assert again is not None and again["after"] == 0 and [each["round"] for each in again["told"]] == [1]


def test_a_failed_run_says_why(done: Path, root: Path) -> None:
    folder = begun(done, root / "failed")
    error = {"how": "stopped", "text": "Round 2: too few.\nclient 3"}
    append(folder, lines(done)[0], json.dumps({"event": "end", "time": 1.0, "error": error}) + "\n")
    row = rows(Shelf(root))["failed"]
    assert (row["state"], row["flaw"]) == ("failed", "Round 2: too few.")


def test_an_ended_run_shows_its_summary_and_its_clients(done: Path, root: Path) -> None:
    shutil.copytree(done, root / "done")
    shelf = Shelf(root)
    found = shelf.detail(rows(shelf)["done"]["id"])
    assert found is not None and found["state"] == "done" and len(found["told"]) == 3
    assert found["accuracies"]["rows"][0][0] == "clients"
    assert found["stages"][0][1] >= found["stages"][-1][1] and found["weights_sha256"]
    assert found["told"][-1]["phases"][0][0] == "train" and found["line"].startswith("fedavg")


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe not JSON\n",
        b'{"event": "round", "time": 1, "round": 1e999, "num_rounds": 1, "metrics": {}, "seconds": 0}\n',
        b'{"event": ["no"]}\n',
        b"[1]\n",
        b"[" * 100_000 + b"\n",
        b'{"event": "failure", "round": 1, "phase": "train", "client": {}, "node": 1, "reason": ""}\n',
    ],
    ids=["bytes", "infinite", "no-name", "list", "deep", "no-client"],
)
def test_a_line_that_tells_of_nothing_is_shown_and_the_rest_is_read(done: Path, root: Path, damage: bytes) -> None:
    folder, told = begun(done, root / "broken"), lines(done)
    (folder / "progress.jsonl").write_bytes("".join(told[:3]).encode() + damage + "".join(told[3:]).encode())
    shelf = Shelf(root)
    row = rows(shelf)["broken"]
    assert row["state"] == "damaged" and "line 4" in row["flaw"]
    found = shelf.detail(row["id"])
    assert found is not None and [each["round"] for each in found["told"]] == [1, 2, 3]
    assert "line 4" in found["trouble"]


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "run.json", "memory.json", "metrics.parquet"])
@pytest.mark.parametrize("content", [b"", b"{", b"\x00\xff", b"[]"], ids=["empty", "half", "bytes", "list"])
def test_broken_files_are_shown_and_never_an_error(done: Path, root: Path, name: str, content: bytes) -> None:
    folder = root / "broken"
    shutil.copytree(done, folder)
    if name in ("config.yaml", "run.json"):
        (folder / "summary.json").unlink()
    (folder / name).write_bytes(content)
    shelf = Shelf(root)
    row = rows(shelf)["broken"]
    found = shelf.detail(row["id"])
    assert found is not None
    if name in ("metrics.parquet", "memory.json"):
        assert row["state"] == "done" and ("trouble" not in found or name not in found["trouble"]) == (
            name == "memory.json"
        )
    else:
        assert row["state"] == "damaged" and row["flaw"]
    json.dumps(found, allow_nan=False)
    shutil.copytree(done, folder, dirs_exist_ok=True)  # it is mended
    assert rows(shelf)["broken"]["state"] == "done"


def test_runs_that_go_are_told_of_and_come_back(done: Path, root: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(done, root / name)
    shelf = Shelf(root)
    id_, known = rows(shelf)["a"]["id"], shelf.rows()["version"]
    shutil.move(root / "a", root.parent / f"{root.name}-away")
    shelf.look()
    told = shelf.rows(known, shelf.epoch)
    assert told["gone"] == [id_] and not told["runs"] and shelf.detail(id_) is None
    shutil.move(root.parent / f"{root.name}-away", root / "a")
    shelf.look()
    told = shelf.rows(known, shelf.epoch)
    assert not told["gone"] and [row["id"] for row in told["runs"]] == [id_]
    shutil.rmtree(root)
    assert rows(shelf) == {}


def test_links_that_lead_out_are_not_followed(done: Path, root: Path) -> None:
    watched, outside = root / "watched", root / "outside"
    watched.mkdir()
    shutil.copytree(done, outside / "secret")
    (watched / "way-out").symlink_to(outside)
    shutil.copytree(done, watched / "files")
    (watched / "files" / "progress.jsonl").unlink()
    (watched / "files" / "progress.jsonl").symlink_to(outside / "secret" / "progress.jsonl")
    shutil.copytree(done, watched / "real")
    (watched / "within").symlink_to(watched / "real")
    shelf = Shelf(watched)
    found = rows(shelf)
    assert set(found) == {"files", "real", "within"} and found["within"]["state"] == "done"
    assert found["files"]["state"] == "damaged" and "leads out" in found["files"]["flaw"]
    told = shelf.detail(found["files"]["id"])
    assert told is not None and not told["told"]


def test_what_is_no_file_is_not_opened(done: Path, root: Path) -> None:
    names = {"pipe": "progress.jsonl", "folder": "summary.json", "itself": "progress.jsonl", "other-pipe": "run.json"}
    for kind, name in names.items():
        shutil.copytree(done, root / kind)
        (root / kind / name).unlink()
        if kind.endswith("pipe"):
            os.mkfifo(root / kind / name)
            (root / kind / "summary.json").unlink()
        elif kind == "folder":
            (root / kind / name).mkdir()
        else:
            (root / kind / name).symlink_to(root / kind / name)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "comparison.json")
    os.mkfifo(root / "pipe-beside")
    shelf = Shelf(root)
    found = rows(shelf)
    assert set(found) == set(names)
    for kind in ("pipe", "folder", "other-pipe"):
        assert found[kind]["state"] == "damaged" and "is no file" in found[kind]["flaw"]
    told = shelf.detail(found["itself"]["id"])
    assert told is not None and told["state"] == "done" and not told["told"]
    assert "is no file" in found["itself"]["group_flaw"]


def test_runs_of_a_comparison_have_its_labels_and_order(done: Path, root: Path) -> None:
    shutil.copytree(done, root / "both" / "x")
    shelf = Shelf(root)
    row = rows(shelf)["x"]
    assert (row["group"], row["comparison"], row["label"]) == ("both", False, "")
    strategies = [{"label": "scaffold"}, {"label": "fedavg(k=1)"}]
    content = {"strategies": strategies, "runs": [{"folder": "x", "strategy": "fedavg(k=1)", "seed": 0}]}
    write_sealed(root / "both" / "comparison.json", content)
    row = rows(shelf)["x"]
    assert (row["comparison"], row["label"], row["place"], row["group_flaw"]) == (True, "fedavg(k=1)", 1, "")
    (root / "both" / "comparison.json").write_text("{}")
    row = rows(shelf)["x"]
    assert row["comparison"] and row["label"] == "" and "comparison.json" in row["group_flaw"]


def test_what_ended_is_not_read_again(done: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        shutil.copytree(done, root / f"run{number}")
    shelf = Shelf(root)
    assert len(rows(shelf)) == 20
    read: list[Path] = []
    before = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *rest, **named: read.append(self) or before(self, *rest, **named))
    shelf.look()
    assert not read


def kept(shelf: Shelf) -> list[str]:
    """The runs whose tales are in memory."""
    return sorted(run.name for run in shelf._runs.values() if run.tale.rounds)


def test_of_runs_that_do_not_run_only_those_asked_for_are_kept_in_memory(
    done: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = lines(done)
    for name in ("died0", "died1", "died2", "stops", "ends"):
        append(begun(done, root / name), *told[:-1])
    with exclusive(root / "stops"), exclusive(root / "ends"):
        shelf = Shelf(root)
        found = rows(shelf)
        assert {row["state"] for name, row in found.items() if name.startswith("died")} == {"died"}
        assert kept(shelf) == ["ends", "stops"]
        read: list[str] = []
        before = Followed._read_on
        monkeypatch.setattr(Followed, "_read_on", lambda self: read.append(self.name) or before(self))
        shelf.look()
        assert sorted(read) == ["ends", "stops"]  # what rests is not read again
    append(root / "stops", told[-1])
    shutil.copy(done / "summary.json", root / "ends" / "summary.json")
    found = rows(shelf)
    assert (found["stops"]["state"], found["ends"]["state"]) == ("stopped", "done") and kept(shelf) == []
    monkeypatch.setattr("umbel.simulations.watch.shelf._MOST_TALES", 2)
    for name in ("ends", "died0", "died1"):
        one = shelf.detail(found[name]["id"])
        assert one is not None and len(one["told"]) == 3 and one["measures"]
    assert kept(shelf) == ["died0", "died1"]
    assert next(run.ended for run in shelf._runs.values() if run.name == "ends") is None
    append(root / "died2", told[-1])
    assert rows(shelf)["died2"]["state"] == "stopped" and kept(shelf) == ["died0", "died1"]


def test_the_command_to_go_on_is_one_that_a_shell_takes() -> None:
    for path in ("results/run", "results/a b; $(rm -rf x)", "it's", "-x"):
        words = shlex.split(again(Path(path)))
        assert words[:2] == ["umbel", "resume"] and Path(words[2]) == Path(path) and not words[2].startswith("-")
    assert again(Path(os.fsdecode(b"results/name\xe9"))) == "" == again(Path("a\nb"))


def test_only_what_was_appended_is_read(root: Path) -> None:
    file = root / "progress.jsonl"
    line = json.dumps({"event": "notice", "text": "x" * 1000}) + "\n"
    file.write_text(line * 5000)
    tale = Tale(root)
    tale.read_on()
    with file.open("a") as opened:
        opened.write(line)
    size = file.stat().st_size
    assert tale._offset == size - len(line)
    assert tale.read_on() and tale._offset == size
    file.write_text(line)  # another file: from the beginning
    generation = tale.generation
    assert tale.read_on() and tale.generation > generation and len(tale.notices) == 1


def test_the_time_that_is_left(root: Path) -> None:
    tale = Tale(root)
    assert tale.expected_end(10) is None
    events: Iterator[dict[str, Any]] = (
        {"event": "round", "time": 1000.0 + 2 * n, "round": n, "num_rounds": 10, "metrics": {}, "seconds": 2.0 * n}
        for n in range(1, 5)
    )
    (root / "progress.jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    tale.read_on()
    assert tale.expected_end(10) == 1008.0 + 6 * 2.0


def test_to_look_makes_no_lock_and_holds_none(root: Path) -> None:
    assert not is_held(root) and not list(root.iterdir())
    with exclusive(root):
        assert is_held(root)
    assert not is_held(root)
    began = time.monotonic()
    with exclusive(root, 1.0):
        pass
    assert time.monotonic() - began < 0.5


def test_no_folder_is_refused(root: Path) -> None:
    with pytest.raises(Refusal, match="is no folder"):
        Shelf(root / "gone")

"""Client memory: versions, what a resume rolls back, what is kept, and the cache."""

from __future__ import annotations

import pytest
import torch

from core import files
from core.memory import MemoryRecord, MemoryStore


def record(value, **numbers):
    tensor = torch.tensor([float(value)], dtype=torch.float64)
    return MemoryRecord({"control": {"w": tensor, "a/b": tensor}, "empty": {}}, numbers)


def value(found):
    return None if found is None else found.trees["control"]["w"].item()


@pytest.fixture(params=[64, 1, 0], ids=lambda size: f"cache{size}")
def store(tmp_path, request):
    found = MemoryStore(tmp_path, cache_size=request.param)
    found.begin("first", 0)
    return found


def fresh(store, attempt="first", base_round=0):
    """The same folder as another process sees it."""
    found = MemoryStore(store.folder)
    found.begin(attempt, base_round)
    return found


def test_round_trip(store):
    store.write(1234, 1, 0, record(3, rate=0.5), 0)
    for each in (store, fresh(store)):
        found = each.read(1234, 2, 0)
        assert value(found) == 3 and found.numbers == {"rate": 0.5}
        assert found.trees["control"]["w"].dtype == torch.float64
        assert set(found.trees["control"]) == {"w", "a/b"} and found.trees["empty"] == {}
    assert store.read(1235, 2, 0) is None and store.read(234, 2, 0) is None


def test_a_step_reads_what_was_before_it(store):
    store.write(0, 1, 0, record(10), 0)
    store.write(0, 1, 1, record(11), 0)  # two phases in one round
    store.write(0, 3, 0, record(30), 0)
    for each in (store, fresh(store)):
        found = {step: value(each.read(0, *step)) for step in [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (9, 0)]}
        assert found == {(1, 0): None, (1, 1): 10, (2, 0): 11, (3, 0): 11, (3, 1): 30, (9, 0): 30}


def test_rounds_sort_as_numbers(store):
    for round_ in (9, 10, 100):
        store.write(0, round_, 0, record(round_), 0)
    assert [value(store.read(0, round_, 0)) for round_ in (10, 11, 100, 101)] == [9, 10, 10, 100]


def test_a_phase_that_runs_again_reads_the_same(store):
    store.write(0, 1, 0, record(1), 0)
    store.write(0, 2, 0, record(2), 0)
    assert value(store.read(0, 2, 0)) == 1  # the worker died after it had written
    store.write(0, 2, 0, record(22), 0)
    assert value(store.read(0, 3, 0)) == 22 and value(fresh(store).read(0, 3, 0)) == 22


def test_nothing_is_kept_that_the_checkpoint_does_not_need(store):
    for round_ in range(1, 8):
        store.write(0, round_, 0, record(round_), checkpoint_round=(round_ - 1) // 3 * 3)
    names = sorted(path.name.split(".")[0] for path in store.folder.rglob("*.safetensors"))
    assert names == ["000006", "000007"]  # a resume from 6 needs the newest up to 6
    store.write(5, 2, 0, record(2), 0)
    store.write(5, 9, 0, record(9), 6)  # seldom taken: the last before 6 is from round 2
    assert value(store.read(5, 7, 0)) == 2


def test_a_new_attempt_forgets_what_came_after_its_checkpoint(store):
    for round_ in (5, 6, 7):
        store.write(0, round_, 0, record(round_), 5)
    store.write(1, 6, 0, record(6), 5)
    second = fresh(store, "second", 5)
    assert value(second.read(0, 9, 0)) == 5 and second.read(1, 9, 0) is None
    second.write(0, 6, 0, record(66), 5)
    assert value(second.read(0, 9, 0)) == 66
    assert value(fresh(store, "second", 5).read(0, 9, 0)) == 66
    store.begin("third", 5)  # a process that stays warm, cache and all
    assert value(store.read(0, 9, 0)) == 5


def test_a_resume_of_a_resume_keeps_what_is_in_a_checkpoint(store):
    store.write(0, 1, 0, record(1), 0)
    second = fresh(store, "second", 2)
    second.write(0, 3, 0, record(3), 2)
    third = fresh(store, "third", 4)
    assert value(third.read(0, 5, 0)) == 3 and value(third.read(0, 3, 0)) == 1


def test_a_half_written_file_is_ignored(store, monkeypatch):
    store.write(0, 1, 0, record(1), 0)

    def killed(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            store.write(0, 2, 0, record(2), 0)
    folder = next(store.folder.rglob("*.safetensors")).parent
    (folder / ".000002.00.first.safetensors.abc.part").write_bytes(b"half")
    assert value(store.read(0, 9, 0)) == 1 and value(fresh(store).read(0, 9, 0)) == 1


def test_the_cache_is_not_what_was_evicted_or_forgotten(tmp_path):
    store = MemoryStore(tmp_path, cache_size=2)
    store.begin("a", 0)
    for client in range(5):
        store.write(client, 1, 0, record(client), 0)
    assert [value(store.read(client, 2, 0)) for client in (0, 4, 2, 0, 3, 1)] == [0, 4, 2, 0, 3, 1]
    store.write(0, 2, 0, record(100), 0)
    assert value(store.read(0, 3, 0)) == 100 and value(store.read(0, 2, 0)) == 0


def test_one_folder_for_a_thousand_clients(store):
    for client in (7, 999, 1000, 99_999):
        store.write(client, 1, 0, record(client), 0)
    assert {path.name for path in store.folder.iterdir()} == {"0", "1", "99"}

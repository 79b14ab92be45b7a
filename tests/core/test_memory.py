"""Client memory: the version that is asked for, what is kept, and the cache."""

from __future__ import annotations

import pytest
import torch

from umbel.core import files
from umbel.core.memory import MemoryRecord, MemoryStore, MissingMemoryError, Version


def record(value, **numbers):
    tensor = torch.tensor([float(value)], dtype=torch.float64)
    return MemoryRecord({"control": {"w": tensor, "a/b": tensor}, "empty": {}}, numbers)


def value(remembered):
    return remembered.trees["control"]["w"].item()


def at(round_, step=0, attempt="first"):
    return Version(round_, step, attempt)


@pytest.fixture(params=[64, 1, 0], ids=lambda size: f"cache{size}")
def store(tmp_path, request):
    return MemoryStore(tmp_path, cache_size=request.param)


def fresh(store):
    """The same folder as another process sees it."""
    return MemoryStore(store.folder)


def kept(store, client=0):
    return sorted(path.name.removesuffix(".safetensors") for path in store.folder.glob(f"*/{client}/*.safetensors"))


def test_round_trip(store):
    store.write(1234, at(1), record(3, rate=0.5))
    for each in (store, fresh(store)):
        remembered = each.read(1234, at(1))
        assert value(remembered) == 3 and remembered.numbers == {"rate": 0.5}
        assert remembered.trees["control"]["w"].dtype == torch.float64
        assert set(remembered.trees["control"]) == {"w", "a/b"} and remembered.trees["empty"] == {}


def test_memory_that_is_gone_is_an_error(store):
    store.write(0, at(1), record(3))
    for client, version in ((1, at(1)), (0, at(2)), (0, at(1, 1)), (0, at(1, 0, "second"))):
        with pytest.raises(MissingMemoryError, match=f"client {client} has taken part before.*round {version.round}"):
            store.read(client, version)


def test_a_phase_that_runs_again_reads_the_same(store):
    store.write(0, at(1), record(1))
    store.write(0, at(2), record(2), accepted=at(1))
    assert value(store.read(0, at(1))) == 1  # the worker died after it had written: the server still says round 1
    store.write(0, at(2), record(22), accepted=at(1))
    assert value(store.read(0, at(2))) == 22 and value(fresh(store).read(0, at(2))) == 22


def test_a_reply_that_was_refused_is_forgotten(store):
    store.write(0, at(1), record(1))
    store.write(0, at(2), record(2), accepted=at(1), checkpoint_round=1)  # the server did not take this one
    store.write(0, at(3), record(3), accepted=at(1), checkpoint_round=1)
    assert kept(store) == ["000001.00.first", "000003.00.first"]


def test_nothing_is_kept_that_no_checkpoint_needs(store):
    """A checkpoint every 3 rounds: between two of them a resume may ask for any version since the older one."""
    accepted = None
    for round_ in range(1, 10):
        store.write(0, at(round_), record(round_), accepted, checkpoint_round=(round_ - 1) // 3 * 3)
        accepted = at(round_)
    # In round 9 the accepted version (8) is newer than the checkpoint (6), which needs 6; in round 7 all up to 5 went.
    assert kept(store) == ["000006.00.first", "000007.00.first", "000008.00.first", "000009.00.first"]


def test_a_client_that_is_seldom_taken_keeps_what_it_has(store):
    store.write(5, at(2), record(2))
    store.write(5, at(9), record(9), accepted=at(2), checkpoint_round=6)
    assert value(store.read(5, at(2))) == 2  # a resume from round 6 asks for it


def test_a_new_attempt_writes_beside_the_old_one_and_drops_it(store):
    store.write(0, at(5), record(5))
    store.write(0, at(6), record(6), at(5), 5)
    store.write(0, at(7), record(7), at(6), 5)  # killed here; the checkpoint of round 5 knows version 5
    store.write(0, at(6, attempt="second"), record(66), accepted=at(5), checkpoint_round=5)
    assert kept(store) == ["000005.00.first", "000006.00.second"]
    assert value(store.read(0, at(6, attempt="second"))) == 66


def test_two_phases_in_one_round(store):
    store.write(0, at(1, 0), record(10))
    store.write(0, at(1, 1), record(11), accepted=at(1, 0), checkpoint_round=0)
    assert value(store.read(0, at(1, 0))) == 10 and value(store.read(0, at(1, 1))) == 11


def test_a_write_that_fails_leaves_what_was_there(store, monkeypatch):
    store.write(0, at(1), record(1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.write(0, at(2), record(2), accepted=at(1))
    assert kept(store) == ["000001.00.first"]
    assert not [path for path in store.folder.rglob("*") if path.name.endswith(".part")]
    assert value(fresh(store).read(0, at(1))) == 1


def test_the_cache_is_not_what_was_evicted(tmp_path):
    store = MemoryStore(tmp_path, cache_size=2)
    for client in range(5):
        store.write(client, at(1), record(client))
    assert [value(store.read(client, at(1))) for client in (0, 4, 2, 0, 3, 1)] == [0, 4, 2, 0, 3, 1]
    store.write(0, at(2), record(100), accepted=at(1))
    assert value(store.read(0, at(2))) == 100 and value(store.read(0, at(1))) == 0


def test_the_cache_holds_so_many_bytes_and_no_more(tmp_path):
    one = MemoryRecord({"t": {"w": torch.zeros(100)}})  # 400 bytes
    store = MemoryStore(tmp_path, cache_bytes=900)
    for client in (1, 2, 1, 3):
        store.write(client, Version(1, 0, "a"), one)
    assert len(store._cache) == 2 and store._cached_bytes == 800
    assert store.read(2, Version(1, 0, "a")).trees["t"]["w"].shape == (100,)  # from disk, and kept in place of 1
    assert store._cached_bytes == 800
    small = MemoryStore(tmp_path, cache_bytes=399)
    assert small.read(1, Version(1, 0, "a")).num_bytes == 400 and not small._cache


def test_one_folder_for_a_thousand_clients(store):
    for client in (0, 999, 1000, 99_999):
        store.write(client, at(1), record(client))
    assert {path.name for path in store.folder.iterdir()} == {"0", "1", "99"}

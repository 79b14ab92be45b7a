"""State that outlives a process: round trips, damage, a full disk."""

from __future__ import annotations

import errno
import json
import resource
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers import tree as T
from umbel.core import files, state
from umbel.core.files import DamagedError
from umbel.server import checkpoint
from umbel.server.checkpoint import Progress
from umbel.server.rounds import FederatedRun
from umbel.strategies import fedavg, fedopt, fedprox, scaffold, whole_models


@dataclass(frozen=True)
class Inner:
    weights: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Everything:
    """A State of everything that a State may hold."""

    base: Inner
    trees: dict
    mixed: tuple
    items: list
    number: float = 1 / 3
    count: int = 2**60
    flag: bool = True
    text: str = "ü"
    nothing: None = None


EVERYTHING = Everything(
    Inner(T(w=[1.0])),
    {"a": {"x": torch.ones(2, dtype=torch.bfloat16)}, "empty": {}},
    (1, (torch.tensor(3), "x"), ()),
    [torch.zeros(0), {"k": 2.5}],
)

STATES = [
    fedavg.State(T(w=[1.0])),
    fedprox.State(T(w=[1.0])),
    scaffold.State(T(w=[1.0]), T(w=[2.0])),
    fedopt.State(T(w=[1.0], m=[2.0]), ("m",), {"w": T(step=1.0, exp_avg=[2.0])}),
    whole_models.State(T(w=[1.0]), {"momentum_vector": T(**{"#000000": [1.0]})}, {"t": 3}),
    EVERYTHING,
]


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if hasattr(left, "__dataclass_fields__"):
        return type(left) is type(right) and same(vars(left), vars(right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def parquet(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


METRICS = parquet(round=[1, 2, 3])


@pytest.mark.parametrize("value", STATES, ids=lambda value: f"{type(value).__module__}.{type(value).__name__}")
def test_every_state_comes_back(tmp_path, value):
    path = checkpoint.write(tmp_path, Progress(round=3), value, T(w=[9.0]), METRICS)
    newest = checkpoint.latest(tmp_path)
    assert newest.folder == path and same(newest.best_model, T(w=[9.0]))
    assert newest.metrics.to_pydict() == {"round": [1, 2, 3]}
    back = state.unpack(newest.skeleton, newest.tensors, state.state_classes(value))
    assert same(back, value)
    assert not list(tmp_path.rglob("*.pkl")) and not list(tmp_path.rglob("*.pt"))


def test_unknown_classes_are_never_made():
    skeleton, tensors = state.pack(EVERYTHING)
    with pytest.raises(ValueError, match=":Everything', which this strategy does not know"):
        state.unpack(skeleton, tensors, state.state_classes(fedavg.State(T(w=1.0))))


def test_a_skeleton_says_which_classes_it_needs():
    skeleton, _ = state.pack({"a": (EVERYTHING, [fedavg.State(T(w=1.0))])})
    named = {"umbel.strategies.fedavg:State", f"{type(EVERYTHING).__module__}:Everything"}
    assert named <= state.named_classes(skeleton)
    assert "umbel.strategies.fedavg:State" in state.module_classes(fedavg.FedAvg)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_state_of_a_module_that_the_strategys_does_not_name_comes_back_too(monkeypatch, hidden):
    """Only then is a State made for its classes."""
    value, made = fedopt.State(T(w=1.0), ("w",)), []
    skeleton, tensors = state.pack(value)
    kind = fedavg.FedAvg if hidden else fedopt.FedOpt
    strategy = kind(kind.config_class())
    monkeypatch.setattr(type(strategy), "initial", lambda self, context: made.append(context) or value)
    session = SimpleNamespace(strategy=strategy, context=lambda round_: round_)
    run = SimpleNamespace(_resume=SimpleNamespace(skeleton=skeleton, tensors=tensors), session=session)
    assert same(FederatedRun._begin(run), value)
    assert made == ([0] if hidden else [])


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), {"a": b"bytes"}, {0: torch.ones(1)}], ids=["set", "object", "bytes", "key"]
)
def test_what_cannot_be_packed(value):
    with pytest.raises(TypeError, match="state"):
        state.pack(value)


def test_two_tensors_of_one_name():
    with pytest.raises(ValueError, match="a/b: two tensors"):
        state.pack({"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1)})


# Checkpoints --------------------------------------------------------------------------------------------------


def write(folder, round_):
    return checkpoint.write(folder, Progress(round=round_), fedavg.State(T(w=[float(round_)])), T(w=[0.5]), METRICS)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_progress_comes_back(tmp_path):
    progress = Progress(4, 9, 2, 0.5, {"a": 1.0}, {"b": float("nan")}, {"train": 1.5}, {"tensors": 8, "framing": 1})
    checkpoint.write(tmp_path, progress, fedavg.State(T(w=1.0)), None, METRICS)
    assert repr(checkpoint.latest(tmp_path).progress) == repr(progress)
    assert checkpoint.latest(tmp_path).best_model is None
    assert Progress().best_value == float("-inf")  # survives JSON as well
    write(tmp_path, 9)
    assert checkpoint.latest(tmp_path).progress.best_value == float("-inf")


def test_the_newest_two_are_kept(tmp_path):
    assert checkpoint.latest(tmp_path / "none yet") is None
    for round_ in (1, 2, 9, 10):
        write(tmp_path, round_)
    assert names(tmp_path) == ["round-000009", "round-000010"]
    assert checkpoint.latest(tmp_path).progress.round == 10


def test_a_million_rounds_come_after_fewer(tmp_path):
    for round_ in (999_999, 1_000_000):
        write(tmp_path, round_)
    assert checkpoint.latest(tmp_path).progress.round == 1_000_000


def test_one_that_was_passed_over_goes_when_the_next_is_written(tmp_path):
    """Else it would be one of the two that are kept, and the sound one before it would not."""
    for round_ in (5, 10):
        write(tmp_path, round_)
    cut_off(tmp_path / "round-000010")
    assert checkpoint.latest(tmp_path).progress.round == 5
    write(tmp_path, 7)
    assert names(tmp_path) == ["round-000005", "round-000007"]


def damage_nothing(path):
    pass


def cut_off(path, name="state.safetensors"):
    file = path / name
    file.write_bytes(file.read_bytes()[:-3])


def flip_a_bit(path, name="state.safetensors"):
    file = path / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def of(damage, name):
    changed = partial(damage, name=name)
    changed.__name__ = f"{damage.__name__} of {name}"
    return changed


def lose(path, name):
    (path / name).unlink()


def empty(path, name):
    (path / name).write_bytes(b"")


def lose_a_key(path):
    content = json.loads((path / "checkpoint.json").read_text())
    del content["sha256"]
    (path / "checkpoint.json").write_text(json.dumps(content))


def add_a_field(path):
    content = json.loads((path / "checkpoint.json").read_text())
    content["progress"]["surprise"] = 1
    (path / "checkpoint.json").write_text(json.dumps(content))


def change_the_progress(path):
    file = path / "checkpoint.json"
    text = file.read_text()
    assert '"num_failures": 0' in text
    file.write_text(text.replace('"num_failures": 0', '"num_failures": 3'))


def nest_without_end(path):
    (path / "checkpoint.json").write_text("[" * 100_000)


def put_a_file_in_its_place(path):
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    path.write_text("")


PIECES = ("checkpoint.json", "state.safetensors", "best.safetensors", "metrics.parquet")
DAMAGES = [
    *(of(damage, name) for damage in (cut_off, flip_a_bit, lose, empty) for name in PIECES),
    *(lose_a_key, add_a_field, change_the_progress, nest_without_end, put_a_file_in_its_place),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    write(tmp_path, 5)
    newest = write(tmp_path, 10)
    assert checkpoint.latest(tmp_path).progress.round == 10
    damage(newest)
    older = checkpoint.latest(tmp_path)
    assert older.progress.round == 5 and len(older.passed_over) == 1 and str(newest) in older.passed_over[0]
    assert state.unpack(older.skeleton, older.tensors, {"umbel.strategies.fedavg:State": fedavg.State}).model[
        "w"
    ].tolist() == [5.0]
    damage(tmp_path / "round-000005")
    with pytest.raises(DamagedError, match=r"No checkpoint can be read:\n(.|\n)*round-000010(.|\n)*\n.*round-000005"):
        checkpoint.latest(tmp_path)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["fsync", "write_tensors", "write_sealed", "rename"])
def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch, where):
    write(tmp_path, 5)
    with monkeypatch.context() as patch:
        if where == "fsync":
            patch.setattr(files.os, "fsync", no_space)
        elif where == "rename":
            patch.setattr(files.Path, "rename", no_space)
        else:
            patch.setattr(checkpoint, where, no_space)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 10)
    assert names(tmp_path) == ["round-000005"]
    assert checkpoint.latest(tmp_path).progress.round == 5
    write(tmp_path, 10)
    assert checkpoint.latest(tmp_path).progress.round == 10


def test_a_full_disk_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"round": 1})
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            files.write_json(path, {"round": 2})
    assert files.read_json(path) == {"round": 1} and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("large", [0, 1 << 30])
def test_tensor_files_are_written_as_any_file(large, tmp_path, monkeypatch):
    """Others may read them, and a full disk is an `OSError` that leaves nothing but what was there."""
    monkeypatch.setattr(files, "_LARGE", large)
    path = tmp_path / "t.safetensors"
    files.write_tensors(path, {"a": torch.ones(10)})
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="too large") as failed:
            files.write_tensors(path, {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.value.errno == errno.EFBIG
    assert files.read_tensors(path)[0]["a"].tolist() == [1.0] * 10
    assert names(tmp_path) == ["plain", "t.safetensors"]


@pytest.mark.parametrize("large", [0, 1 << 30])
def test_tensor_files_hold_shared_and_no_tensors(large, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGE", large)
    base = torch.arange(6.0)
    shared = {"a": base, "b": base, "part": base[2:4], "turned": base.view(2, 3).t()}
    files.write_tensors(tmp_path / "t.safetensors", shared, {"k": "v"})
    tensors, metadata = files.read_tensors(tmp_path / "t.safetensors")
    assert same(dict(sorted(tensors.items())), dict(sorted(shared.items()))) and metadata == {"k": "v"}
    files.write_tensors(tmp_path / "none.safetensors", {})
    assert files.read_tensors(tmp_path / "none.safetensors") == ({}, {})

"""State that outlives a process: round trips, damage, a full disk, and resumes that end with the same bits."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import small_run
from tests.helpers import tree as T
from umbel import resume
from umbel.core import files, state
from umbel.server import checkpoint
from umbel.server.checkpoint import Progress
from umbel.server.errors import RunStoppedError
from umbel.server.listener import Listener
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


@pytest.mark.parametrize("value", STATES, ids=lambda value: f"{type(value).__module__}.{type(value).__name__}")
def test_every_state_comes_back(tmp_path, value):
    path = checkpoint.write(tmp_path, Progress(round=3), value, T(w=[9.0]))
    found = checkpoint.latest(tmp_path)
    assert found.folder == path and same(found.best_model, T(w=[9.0]))
    back = state.unpack(found.skeleton, found.tensors, state.state_classes(value))
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
    return checkpoint.write(folder, Progress(round=round_), fedavg.State(T(w=[float(round_)])), None)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_progress_comes_back(tmp_path):
    progress = Progress(4, 2, 0.5, {"a": 1.0}, {"b": float("nan")}, {"train": 1.5}, {"tensors": 8, "framing": 1})
    checkpoint.write(tmp_path, progress, fedavg.State(T(w=1.0)), None)
    found = checkpoint.latest(tmp_path).progress
    assert repr(found) == repr(progress)
    assert checkpoint.latest(tmp_path).best_model is None
    assert Progress().best_value == float("-inf")  # survives JSON as well
    write(tmp_path, 9)
    assert checkpoint.latest(tmp_path).progress.best_value == float("-inf")


def test_the_newest_two_are_kept(tmp_path):
    assert checkpoint.latest(tmp_path / "none yet") is None
    for round_ in (1, 2, 10, 9):
        write(tmp_path, round_)
    assert names(tmp_path) == ["round-000009", "round-000010"]
    assert checkpoint.latest(tmp_path).progress.round == 10


def damage_nothing(path):
    pass


def cut_off(path):
    file = path / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-3])


def flip_a_bit(path):
    file = path / "state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose_a_file(path):
    (path / "checkpoint.json").unlink()


def empty_a_file(path):
    (path / "checkpoint.json").write_text("")


def lose_a_key(path):
    content = json.loads((path / "checkpoint.json").read_text())
    del content["sha256"]
    (path / "checkpoint.json").write_text(json.dumps(content))


def add_a_field(path):
    content = json.loads((path / "checkpoint.json").read_text())
    content["progress"]["surprise"] = 1
    (path / "checkpoint.json").write_text(json.dumps(content))


def empty_the_tensors(path):
    (path / "state.safetensors").write_bytes(b"")


DAMAGES = [cut_off, flip_a_bit, lose_a_file, empty_a_file, lose_a_key, add_a_field, empty_the_tensors]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    write(tmp_path, 5)
    newest = write(tmp_path, 10)
    assert checkpoint.latest(tmp_path).progress.round == 10
    damage(newest)
    found = checkpoint.latest(tmp_path)
    assert found.progress.round == 5
    assert state.unpack(found.skeleton, found.tensors, {"umbel.strategies.fedavg:State": fedavg.State}).model[
        "w"
    ].tolist() == [5.0]
    damage(tmp_path / "round-000005")
    with pytest.raises(RunStoppedError, match=r"No checkpoint can be read:\n.*round-000010.*\n.*round-000005"):
        checkpoint.latest(tmp_path)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["fsync", "write_tensors", "write_json", "rename"])
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


def test_tensor_files_hold_shared_and_no_tensors(tmp_path):
    base = torch.arange(6.0)
    shared = {"a": base, "b": base, "part": base[2:4], "turned": base.view(2, 3).t()}
    files.write_tensors(tmp_path / "t.safetensors", shared, {"k": "v"})
    found, metadata = files.read_tensors(tmp_path / "t.safetensors")
    assert same(dict(sorted(found.items())), dict(sorted(shared.items()))) and metadata == {"k": "v"}
    files.write_tensors(tmp_path / "none.safetensors", {})
    assert files.read_tensors(tmp_path / "none.safetensors") == ({}, {})


# Resume -------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no code catches."""


class KillAfter(Listener):
    def __init__(self, round_):
        self.last = round_

    def begin(self, experiment, folder):
        self.folder = folder

    def round(self, round_, *_):
        if round_ == self.last:
            raise Killed


STRATEGY_OPTIONS = [
    ("fedavg",),
    ("fedprox", "strategy.mu=0.1"),
    ("scaffold", "strategy.weighting=examples"),
    ("fedopt", "strategy.optimizer=adam", "strategy.lr=0.01", "strategy.momentum=0.9"),
    ("fedopt", "strategy.optimizer=adam", "strategy.lr=0.01", "strategy.bias_correction=true"),
    ("fedopt", "strategy.optimizer=sgd", "strategy.momentum=0.5"),
    ("fedavg", "model.name=cvt_tiny32", "model.sizes={}", "model.norm=local"),
]


def options(strategy, *more):
    return (f"strategy.name={strategy}", *more, "run.clients_per_round=3", "run.rounds=4", "checkpoint.every=2")


def killed(results, *overrides, after=3):
    listener = KillAfter(after)
    with pytest.raises(Killed):
        small_run(results, *overrides, listener=listener)
    return listener.folder


@pytest.mark.parametrize("strategy", STRATEGY_OPTIONS, ids=" ".join)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, strategy):
    whole = small_run(tmp_path / "whole", *options(*strategy))
    folder = killed(tmp_path / "killed", *options(*strategy))
    found = resume(folder)
    assert found.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert found.summary["metrics"] == whole.summary["metrics"]
    columns = ["round", "side", "client", "split", "metric", "value"]
    assert found.metrics[columns].equals(whole.metrics[columns])


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    strategy = options("scaffold")
    whole = small_run(tmp_path / "whole", *strategy)
    folder = killed(tmp_path / "killed", *strategy, after=1)
    assert resume(folder).summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_a_resume_from_the_older_checkpoint_ends_with_the_same_bits(tmp_path):
    class KillInRoundFour(KillAfter):
        def phase(self, round_, *_):
            self.current = round_

        def clients_done(self, num_clients):
            if self.current == 4 and num_clients == 3:
                raise Killed

    # The clients have written their memory of round 4 then; it must reach back to the checkpoint of round 2 as well.
    strategy = (*options("scaffold")[:-1], "checkpoint.every=1")
    whole = small_run(tmp_path / "whole", *strategy)
    listener = KillInRoundFour(-1)
    with pytest.raises(Killed):
        small_run(tmp_path / "killed", *strategy, listener=listener)
    checkpoints = files.Path(listener.folder) / "checkpoints"
    assert names(checkpoints) == ["round-000002", "round-000003"]
    flip_a_bit(checkpoints / "round-000003")
    found = resume(listener.folder)
    assert found.summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_a_run_can_go_on_for_longer(tmp_path):
    strategy = options("scaffold")
    whole = small_run(tmp_path / "whole", *strategy)
    short = small_run(tmp_path / "short", *strategy, "run.rounds=2")
    found = resume(short.path, "run.rounds=4")
    assert found.summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_a_stop_is_answered_with_a_checkpoint(tmp_path):
    class Stopper(KillAfter):
        def round(self, round_, *_):
            if round_ == self.last:
                (files.Path(self.folder) / "stop").touch()

    from umbel.server.errors import StopRequested

    strategy = (*options("scaffold")[:-1], "checkpoint.every=0")
    whole = small_run(tmp_path / "whole", *strategy)
    listener = Stopper(3)
    with pytest.raises(StopRequested):
        small_run(tmp_path / "stopped", *strategy, listener=listener)
    assert names(files.Path(listener.folder) / "checkpoints") == ["round-000003"]
    assert resume(listener.folder).summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_what_a_resume_may_not_change(tmp_path):
    folder = killed(tmp_path, *options("fedavg"))
    with pytest.raises(ValueError, match=r"client.lr cannot change in the middle of a run"):
        resume(folder, "client.lr=0.5")
    with pytest.raises(ValueError, match=r"is no run: it has no config\.yaml"):
        resume(tmp_path / "nowhere")

"""Trackers: what they are told, how they go on, and that they do no harm."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping

import pytest

import umbel
from umbel.conf.load import load, portable_hash
from umbel.core.refusal import Refusal
from umbel.simulations.compare.prepare import prepare
from umbel.simulations.trackers import names

SMALL = ("model.name=linear", "data.max_train=80", "data.num_clients=4", "client.max_steps=1", "run.rounds=2")
OWN = "run.trackers=['tests.simulations.test_trackers:recorder']"
told: list[tuple[object, ...]] = []


class Recorder(umbel.Tracker):
    """Notes what it is told; fails in the round that `fails_in` says."""

    fails_in = 0

    def open(self, run: umbel.TrackedRun) -> None:
        told.append(("open", run, run.noted("recorder")))
        run.note("recorder", "its own name")

    def log(self, round_: int, values: Mapping[str, float]) -> None:
        if round_ == self.fails_in:
            raise OSError("no route to host")
        told.append(("log", round_, dict(values)))

    def text(self, text: str) -> None:
        told.append(("text", text))

    def close(self, summary: Mapping[str, float], status: str) -> None:
        told.append(("close", dict(summary), status))


def recorder() -> Recorder:
    told.clear()
    return Recorder()


class Says(umbel.Listener):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.folder = ""

    def begin(self, experiment: umbel.Experiment, folder: str) -> None:
        self.folder = folder

    def notice(self, text: str) -> None:
        self.notices.append(text)


ON_RAY = pytest.param("ray", marks=[pytest.mark.processes, pytest.mark.filterwarnings("ignore")])


@pytest.mark.parametrize("engine", ["inline", ON_RAY])
def test_a_tracker_is_told_of_a_run(tmp_path, engine, request):
    if engine == "ray":
        request.getfixturevalue("cluster")
    result = umbel.run("digits", *SMALL, OWN, f"engine.name={engine}", "engine.workers=1", f"run.results={tmp_path}")
    kinds = [each[0] for each in told if each[0] != "text"]
    assert kinds == ["open", "log", "log", "close"]
    run = told[0][1]
    assert isinstance(run, umbel.TrackedRun)
    assert (run.folder, run.experiment, run.last_round) == (result.path, "digits", 0)
    assert run.config["client.max_steps"] == 1 and run.config["strategy.name"] == "fedavg"
    rounds = [each for each in told if each[0] == "log"]
    assert [each[1] for each in rounds] == [1, 2]
    last = rounds[-1][2]
    assert isinstance(last, dict)
    assert last["test/accuracy"] == result.summary["metrics"]["test/accuracy"]
    assert last["clients/failed"] == 0 and last["seconds"] > 0
    _, summary, status = told[-1]
    assert status == "finished" and isinstance(summary, dict)
    assert summary["metrics.test/accuracy"] == last["test/accuracy"]


def test_a_resume_goes_on_in_the_trackers_run(tmp_path):
    first = umbel.run("digits", *SMALL, OWN, f"run.results={tmp_path}")
    umbel.resume(first.path, "run.rounds=4")
    assert told[0][0] == "open" and told[0][2] == "its own name"
    assert isinstance(told[0][1], umbel.TrackedRun) and told[0][1].last_round == 2
    assert [each[1] for each in told if each[0] == "log"] == [3, 4]


def test_a_tracker_may_come_and_go_with_a_resume(tmp_path):
    first = umbel.run("digits", *SMALL, f"run.results={tmp_path}")
    umbel.resume(first.path, "run.rounds=3", OWN)
    assert [each[1] for each in told if each[0] == "log"] == [3]
    umbel.resume(first.path, "run.rounds=4", "run.trackers=[]")
    assert [each[1] for each in told if each[0] == "log"] == [3]


def test_one_that_fails_is_told_no_more_and_the_run_goes_on(tmp_path, monkeypatch):
    plain = umbel.run("digits", *SMALL, f"run.results={tmp_path}")
    monkeypatch.setattr(Recorder, "fails_in", 2)
    says = Says()
    result = umbel.run("digits", *SMALL, OWN, f"run.results={tmp_path}", listener=says)
    assert result.summary["weights_sha256"] == plain.summary["weights_sha256"]
    assert [each[0] for each in told if each[0] != "text"] == ["open", "log"]
    assert [text for text in says.notices if "run.trackers" in text and "no route to host" in text]


def test_a_run_that_fails_says_so(tmp_path):
    with pytest.raises(umbel.server.errors.RunStoppedError):
        umbel.run("digits", *SMALL, OWN, "client.lr=1e30", "run.rounds=50", f"run.results={tmp_path}")
    assert told[-1] == ("close", {}, "failed")


def not_a_tracker() -> int:
    return 3


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("tensorbord", "Did you mean 'tensorboard'"),
        ("tests.simulations.test_trackers:not_a_tracker", "found int"),
        ("tests.simulations.test_trackers:nothing", "nothing"),
    ],
)
def test_what_is_no_tracker_is_refused_before_anything_starts(tmp_path, asked, text):
    with pytest.raises(Refusal, match=text):
        umbel.run("digits", *SMALL, f"run.trackers=['{asked}']", f"run.results={tmp_path}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", names())
def test_one_that_is_not_installed_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr("umbel.simulations.trackers.find_spec", lambda module: None)
    with pytest.raises(Refusal, match=f"pip install {name}"):
        umbel.run("digits", *SMALL, f"run.trackers=[{name}]", f"run.results={tmp_path}")
    assert not list(tmp_path.iterdir())


def test_they_are_no_part_of_what_a_run_is(tmp_path):
    plain, tracked = load("digits", SMALL), load("digits", [*SMALL, OWN])
    assert portable_hash(plain) == portable_hash(tracked)
    folders = [prepare("digits", "fedavg", "1", words, tmp_path).members[0].path for words in (SMALL, (*SMALL, OWN))]
    assert folders[0] == folders[1]


@pytest.mark.parametrize("name", names())
def test_the_real_ones_take_a_run_and_its_resume(tmp_path, name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    says = Says()
    first = umbel.run("digits", *SMALL, f"run.trackers=[{name}]", f"run.results={tmp_path}", listener=says)
    umbel.resume(first.path, "run.rounds=3", listener=says)
    assert not [text for text in says.notices if "run.trackers" in text]
    accuracies = {
        round_: values["test/accuracy"] for round_, values in _by_round(first).items() if "test/accuracy" in values
    }
    assert READ[name](first.path) == pytest.approx(accuracies)


def _by_round(result: umbel.RunResult) -> dict[int, dict[str, float]]:
    frame = umbel.RunResult(result.path).metrics
    frame = frame[(frame["side"] == "server") & (frame["split"] == "test") & (frame["metric"] == "accuracy")]
    return {
        int(round_): {"test/accuracy": float(value)}
        for round_, value in zip(frame["round"], frame["value"], strict=True)
    }


def _tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {each.step: each.value for each in events.Scalars("test/accuracy")}


def _mlflow(folder):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    run = (folder / "trackers" / "mlflow.txt").read_text().strip()
    assert client.get_run(run).info.status == "FINISHED"
    assert client.get_run(run).data.params["client.max_steps"] == "1"
    return {each.step: each.value for each in client.get_metric_history(run, "test/accuracy")}


def _wandb(folder):
    import json

    from wandb.proto import wandb_internal_pb2

    found = {}
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") != "history":
                continue
            read = {each.key or ".".join(each.nested_key): each.value_json for each in record.history.item}
            items = {key: json.loads(value) for key, value in read.items()}
            found[items["_step"]] = items["test/accuracy"]
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a log as LevelDB writes it: blocks of 32 KiB, in which records may be in parts."""
    place, block, parts = 7, 32768, b""  # behind what says whose it is
    while place + 7 <= len(content):
        if block - place % block < 7:  # no room for a head: filled with zeros
            place += block - place % block
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


READ = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}

"""Whatever is damaged in a run's folder, a resume ends with the same bits or is refused with the piece named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.damages import cut, empty, flip, foreign, lose, replaced
from tests.helpers import small_run
from umbel import RunResult, resume
from umbel.conf.errors import ExperimentError
from umbel.core.files import DamagedError
from umbel.core.refusal import Refusal
from umbel.server.listener import Listener
from umbel.server.reading import configuration

OPTIONS = (
    *("strategy.name=scaffold", "run.rounds=4", "run.clients_per_round=3", "run.name=run"),
    "checkpoint.every=1",
)
Damage = Callable[[Path], None]


class KilledError(RuntimeError):
    """Stands for the end of the process."""


class Heard(Listener):
    """Keeps what it is told; can end a run after a round."""

    def __init__(self, last: int = 0) -> None:
        self.notices: list[str] = []
        self.failures: list[int] = []
        self._last = last

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        self.failures.append(client)

    def round(self, round_: int, *_: Any) -> None:
        if round_ == self._last:
            raise KilledError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The run that was never interrupted."""
    return small_run(tmp_path_factory.mktemp("whole"), *OPTIONS)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, killed after round 3, with the checkpoints of rounds 2 and 3."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KilledError):
        small_run(folder, *OPTIONS, listener=Heard(last=3))
    assert sorted(path.name for path in (folder / "run" / "checkpoints").iterdir()) == ["round-000002", "round-000003"]
    return folder / "run"


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(stopped, tmp_path / "run")


def memories(folder: Path, round_: int) -> list[Path]:
    """Return the files of what clients remember of a round."""
    files = sorted((folder / "memory").rglob(f"{round_:06d}.*.safetensors"))
    assert files
    return files


def all_of(damage: Damage, pattern: str) -> Damage:
    def apply(folder: Path) -> None:
        files = list(folder.glob(pattern))
        assert files
        for file in files:
            damage(file)

    apply.__name__ = f"{damage.__name__} {pattern}"
    return apply


def a_memory(damage: Damage, round_: int) -> Damage:
    def apply(folder: Path) -> None:
        damage(memories(folder, round_)[0])

    apply.__name__ = f"{damage.__name__} a memory of round {round_}"
    return apply


def flip_within(file: Path) -> None:
    flip(file, place=-20)


def another_progress(folder: Path) -> None:
    replaced(folder / "checkpoints" / "round-000003" / "checkpoint.json", '"num_failures": 0', '"num_failures": 7')


NEWEST = "checkpoints/round-000003"
MENDED = [
    *(all_of(damage, "metrics.parquet") for damage in (cut, lose)),
    *(all_of(damage, f"{NEWEST}/{name}") for damage, name in ((flip, "best.safetensors"), (lose, "metrics.parquet"))),
    *(a_memory(damage, 3) for damage in (flip, lose)),
    another_progress,
]


@pytest.mark.parametrize("damage", MENDED, ids=lambda damage: damage.__name__)
def test_what_is_there_twice_is_made_good(damage: Damage, folder: Path, whole: RunResult) -> None:
    damage(folder)
    heard = Heard()
    resumed = resume(folder, listener=heard)
    assert not heard.failures
    for key in ("weights_sha256", "metrics", "best_round", "num_failures"):
        assert resumed.summary[key] == whole.summary[key]
    columns = ["round", "side", "client", "split", "phase", "metric", "value"]
    assert resumed.metrics[columns].equals(whole.metrics[columns])
    is_of_newest = "metrics.parquet" not in damage.__name__ or NEWEST in damage.__name__
    assert sum(NEWEST in text for text in heard.notices) == is_of_newest


REFUSED = [
    (all_of(damage, f"*/round-*/{name}"), "round-000002")
    for damage, name in ((flip, "best.safetensors"), (cut, "metrics.parquet"), (foreign, "checkpoint.json"))
] + [
    (all_of(damage, name), name)
    for damage in (cut, empty, foreign, flip_within)
    for name in ("config.yaml", "run.json", "memory.json")
]  # fmt: skip


@pytest.mark.parametrize(("damage", "named"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_not_is_refused(damage: Damage, named: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(DamagedError, match=named) as refused:
        resume(folder)
    assert refused.value.remedy
    assert not (folder / "summary.json").exists()


def test_a_memory_that_no_checkpoint_can_do_without(folder: Path) -> None:
    """Both checkpoints need what clients remember of round 2, the older one of all, the newer of who paused."""
    for file in (folder / "memory").rglob("*.safetensors"):
        flip(file)
    with pytest.raises(DamagedError, match=r"client \d cannot remember round"):
        resume(folder)


def test_another_configuration_is_refused(folder: Path) -> None:
    replaced(folder / "config.yaml", "lr: 0.05", "lr: 0.25")
    with pytest.raises(DamagedError, match=r"config\.yaml is damaged.*umbel run .*config\.yaml"):
        resume(folder)


@pytest.mark.parametrize("rounds", [1, 2])
def test_fewer_rounds_are_refused(rounds: int, folder: Path) -> None:
    with pytest.raises(Refusal, match=r"3 rounds of .* are done.*run\.rounds=3 or more") as refused:
        resume(folder, f"run.rounds={rounds}")
    assert refused.value.key == "run.rounds"
    assert resume(folder, "run.rounds=3").summary["rounds"] == 3


def test_a_resume_remembers_what_it_was_told(folder: Path, whole: RunResult) -> None:
    """The next one goes on to the same end, and the configuration gives the same run again."""
    with pytest.raises(KilledError):
        resume(folder, "run.rounds=6", "checkpoint.every=2", listener=Heard(last=5))
    longer = resume(folder)
    assert longer.summary["rounds"] == 6
    again = small_run(folder.parent / "again", *OPTIONS, "run.rounds=6")
    assert longer.summary["weights_sha256"] == again.summary["weights_sha256"]
    assert "rounds: 6" in configuration(folder)


def test_a_run_that_goes_on_has_not_ended(whole: RunResult, tmp_path: Path) -> None:
    """Its old summary would be of other metrics."""
    folder = shutil.copytree(whole.path, tmp_path / "run")
    with pytest.raises(KilledError):
        resume(folder, "run.rounds=6", listener=Heard(last=5))
    with pytest.raises(ExperimentError, match="has not ended"):
        dict(RunResult(folder).summary)


def test_data_and_device_may_have_moved(tmp_path: Path) -> None:
    picture = tmp_path / "here" / "pictures"
    for name in ("one", "two"):
        (picture / name).mkdir(parents=True)
    _draw(picture)
    options = ("data.name=image_folder", f"data.path={picture}", "data.options={image_size: 8}", "data.num_clients=2")
    small = ("data.max_train=0", "data.max_test=0", "data.partition=iid", "run.results=" + str(tmp_path / "runs"))
    with pytest.raises(KilledError):
        small_run(tmp_path, *options, *small, "run.name=moved", "checkpoint.every=1", listener=Heard(last=1))
    (tmp_path / "here").rename(tmp_path / "there")
    moved = f"data.path={tmp_path / 'there' / 'pictures'}"
    resumed = resume(tmp_path / "runs" / "moved", moved, "client.device=cpu")
    assert resumed.summary["rounds"] == 2
    assert resume(tmp_path / "runs" / "moved", "run.rounds=3").summary["rounds"] == 3  # the new place is kept


def _draw(folder: Path) -> None:
    from PIL import Image

    for number, name in enumerate(("one", "two")):
        for index in range(12):
            Image.new("L", (8, 8), 60 + 100 * number + index).save(folder / name / f"{index}.png")


def test_half_a_line_of_progress_is_dropped(folder: Path) -> None:
    file = folder / "progress.jsonl"
    file.write_bytes(file.read_bytes() + b'{"event": "clients_do')
    assert resume(folder).summary["rounds"] == 4
    assert b"clients_do{" not in file.read_bytes() and b"clients_do\n" not in file.read_bytes()

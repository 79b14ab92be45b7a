"""Virtual time of runs: what a round takes by hand, who is cut off, who is away, and that a resume goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import SMALL, bits, small_run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.server.listener import Listener
from umbel.server.session import Session
from umbel.simulations import api

RATES = ("simulation.devices.speed=50", "simulation.devices.download=1e6", "simulation.devices.upload=2e5")
FEDAVG = ("client.epochs=2", "evaluate.every=2")


class Asked(Listener):
    """Notes how many clients each phase asks."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        self.numbers.append(num_clients)


def trace(path: Path, *seconds: float) -> str:
    """Write a trace in which an example takes each client so many seconds, and bytes none to speak of."""
    rows = [f"{client},{1 / each},1e15,1e15" for client, each in enumerate(seconds)]
    path.write_text("\n".join(["client,speed,download,upload", *rows]), encoding="utf-8")
    return f"simulation.devices.capacity={path}"


def by_round(result: Any, metric: str) -> list[float]:
    rows = result.metrics.query(f"metric == '{metric}' and side == 'server' and split == 'train'")
    values: list[float] = rows.sort_values("round").value.tolist()
    return values


def test_a_round_takes_down_and_work_and_up_of_the_slowest(tmp_path: Path) -> None:
    result = small_run(tmp_path, *RATES, *FEDAVG)
    session = Session(load("digits", [*SMALL, *FEDAVG]))
    size = 4 * result.summary["num_parameters"]
    longest = 2 * int(session.data.num_train.max()) / 50
    a_round = size / 1e6 + longest + size / 2e5
    assert by_round(result, "virtual_seconds") == pytest.approx([a_round, 2 * a_round], rel=1e-12)
    assert result.summary["virtual_seconds"] == by_round(result, "virtual_seconds")[-1]
    assert result.summary["num_late"] == 0
    # Time alone changes no bits, and without devices nothing is said of it.
    plain = small_run(tmp_path, *FEDAVG)
    assert bits(plain) == bits(result) and "virtual_seconds" not in plain.summary
    assert not by_round(plain, "virtual_seconds")


def test_the_first_of_those_asked_are_taken(tmp_path: Path) -> None:
    asked = Asked()
    options = ("run.clients_per_round=2", "run.over_sample=2", "run.rounds=1", "data.partition=iid")
    first = small_run(tmp_path, *options, trace(tmp_path / "t.csv", 3, 1, 9, 2), listener=asked)
    # All four would be asked, and clients 1 and 3 are the first.
    train = Session(load("digits", [*SMALL, *options[3:]])).data.num_train.tolist()
    assert first.summary["virtual_seconds"] == pytest.approx(max(train[1], 2 * train[3]))
    assert first.summary["num_late"] == 2 and asked.numbers == [2]
    assert first.summary["coverage"]["rounds"][0]["selected"] == 2
    # What it comes to is the mean of these two.
    others_slower = small_run(tmp_path, *options, trace(tmp_path / "o.csv", 300, 1, 900, 2))
    others_first = small_run(tmp_path, *options, trace(tmp_path / "f.csv", 1, 300, 2, 900))
    assert bits(others_slower) == bits(first) != bits(others_first)


def test_a_deadline_cuts_off_and_the_server_waits_for_it(tmp_path: Path) -> None:
    options = ("data.partition=iid", "run.rounds=2", trace(tmp_path / "t.csv", 0.1, 0.2, 50, 0.3))
    result = small_run(tmp_path, *options, "run.deadline=100")
    assert by_round(result, "virtual_seconds") == [100, 200] and by_round(result, "num_late") == [1, 2]
    # As many as are needed are waited for whatever it says, if that can be at all.
    three = ("run.deadline=100", "run.min_replies=1.0", "run.clients_per_round=3")
    every = small_run(tmp_path, *options, *three, "run.rounds=3")
    assert every.summary["num_late"] == 0 and every.summary["virtual_seconds"] > 1000
    with pytest.raises(Refusal, match="until 4 clients are done"):
        small_run(tmp_path, *options, *three[:2])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*RATES, "run.deadline=0.01"), r"run\.deadline=0\.01 can never be met"),
        ((*RATES, "run.clients_per_round=3", "run.over_sample=2"), r"run\.over_sample=2 can never be met"),
        (("run.deadline=3",), r"run\.deadline=3\.0 goes by the times"),
        (("run.clients_per_round=2", "run.over_sample=1"), r"run\.over_sample=1 goes by the times"),
        (("simulation.devices.speed=-5",), r"simulation\.devices\.speed should be a number above 0"),
        (("simulation.devices.upload={name: lognormal, media: 5}",), "median is missing"),
        (("simulation.devices.upload={name: normal, mean: 5}",), "Unknown distribution 'normal'"),
        (("simulation.devices.capacity=nowhere.csv",), "it cannot be read"),
    ],
)
def test_what_can_never_be_is_refused_and_leaves_no_folder(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(Refusal, match=message):
        small_run(tmp_path, *overrides)
    assert not list(tmp_path.iterdir())


def test_who_is_away_is_not_selected(tmp_path: Path) -> None:
    # Clients 0 and 1 are there from 0 to 50 of each 100 seconds, 2 from 50 on, and 3 from 80.
    rows = ["client,active,inactive,finish_time", "0,0,50,100", "1,0,50,100", "2,50,100,100", "3,80,100,100"]
    (tmp_path / "a.csv").write_text("\n".join(rows), encoding="utf-8")
    session = Session(load("digits", [*SMALL, f"simulation.devices.availability={tmp_path / 'a.csv'}"]))
    (phase,) = session.strategy.every_phase()
    assert [session.cohorts.of(phase, 1, {}, now) for now in (0.0, 60.0, 90.0)] == [(0, 1), (2,), (2, 3)]
    assert session.cohorts.begins(phase, 60.0) == 60.0
    two = Session(
        load("digits", [*SMALL, f"simulation.devices.availability={tmp_path / 'a.csv'}", "run.min_replies=2"])
    )
    assert two.cohorts.begins(phase, 60.0) == 80.0  # when a second one has come


class Ends(Listener):
    """Asks a run to stop after a round."""

    def begin(self, experiment: Any, folder: str) -> None:
        self._folder = Path(folder)

    def round(self, round_: int, num_rounds: int, metrics: Any, seconds: float) -> None:
        if round_ == 2:
            (self._folder / "stop").touch()


def test_a_resume_goes_on_in_virtual_time_and_with_the_same_devices(tmp_path: Path) -> None:
    text = "computation,communication\n" + "\n".join(f"{ms},{kbit}" for ms, kbit in ((9, 700), (50, 90), (200, 3000)))
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    trace = f"simulation.devices.capacity={tmp_path / 't.csv'}"  # who comes again goes through more in MOON
    options = (trace, "run.rounds=4", "run.clients_per_round=3", "strategy.name=moon")
    whole = small_run(tmp_path, *options, "run.name=whole")
    with pytest.raises(api.StopRequested):
        small_run(tmp_path, *options, "run.name=cut", listener=Ends())
    with pytest.raises(ExperimentError, match=r"simulation\.devices\.upload cannot change"):
        api.resume(tmp_path / "cut", "simulation.devices.upload=5")
    (tmp_path / "t.csv").write_text(text.replace("50,90", "50,91"), encoding="utf-8")
    with pytest.raises(Refusal, match="the traces have the hash"):
        api.resume(tmp_path / "cut")
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    resumed = api.resume(tmp_path / "cut")
    assert by_round(resumed, "virtual_seconds") == by_round(whole, "virtual_seconds")
    assert resumed.summary["virtual_seconds"] == whole.summary["virtual_seconds"] > 0
    assert bits(resumed) == bits(whole)

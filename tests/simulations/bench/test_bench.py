"""`umbel bench`: its figures are what the processes say, its advice follows from them, and its refusals come first."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tests.end_to_end.test_engines import SMALL
from umbel import run
from umbel.conf.load import load
from umbel.core.wire.work import ClientTime
from umbel.server.listener import Listener
from umbel.simulations.bench import loop
from umbel.simulations.bench.advice import advice
from umbel.simulations.bench.measure import LOOP, Contender, Row, contenders, row_of
from umbel.simulations.commands.main import main
from umbel.simulations.plots.runs import png
from umbel.simulations.plots.timeline import timeline

FEW = (*SMALL, "client.batch_size=16")


def time_of(client: int, process: int, began: float, seconds: float) -> list[float]:
    return list(ClientTime(client, process, began, seconds))


ROUND = {
    "seconds": 4.0,
    "ended": 105.0,
    "stages": {"train": 3.0, "server": 0.5, "evaluate": 0.75, "checkpoint": 0.25},
    "clients": {
        "train": [time_of(0, 7, 100.0, 1.0), time_of(1, 7, 101.0, 1.0), time_of(2, 8, 100.0, 1.0)],
        "evaluate": [time_of(0, 7, 103.0, 9.0)],
    },
}


def test_figures_are_taken_from_what_processes_say():
    answer = {"rounds": [ROUND, ROUND | {"seconds": 6.0}, ROUND | {"seconds": 5.0}], "counts_from": 30.0}
    row = row_of(Contender("ray, 2 workers"), answer, began=10.0, memory_bytes=5)
    assert (row.round, row.startup, row.memory_bytes) == (5.0, 20.0, 5)
    assert row.stages == {"clients": 2.0, "exchange": 3.0, "server": 0.5}
    assert row.busy == pytest.approx(1.5 / 3.0)  # process 7 for two of three seconds, 8 for one
    assert (row.evaluation, row.checkpoint) == (0.75, 0.25)
    assert row.longest == pytest.approx(9.0 / 5.0)
    assert row.times[0]["train"][2] == ClientTime(2, 8, 100.0, 1.0)


def row(name: str, round_: float, **more: object) -> Row:
    stages = {"clients": round_ * 0.9, "exchange": round_ * 0.95, "server": round_ * 0.05}
    times = [{"train": [ClientTime(0, 7, 0.0, 0.1), ClientTime(1, 8, 0.0, 0.1)]}] if name.endswith(" workers") else []
    words = {"stages": stages, "times": times, "busy": 0.95, "memory_bytes": 1 << 40} | more
    return Row(name, more.pop("overrides", ()), "", 1.0, (round_,), **words)  # type: ignore[arg-type]


def test_advice_follows_from_the_figures():
    ray = Contender("ray, 2 workers", ("engine.name=ray", "engine.workers=2"))
    rows = [
        row(LOOP, 2.0, throughput={16: 100.0, 32: 105.0, 64: 190.0}),
        row("inline", 2.1, evaluation=4.2),
        Row("inline, channels-last", ("engine.name=inline", "client.channels_last=true"), "", 1.0, (1.05,)),
        Row("inline, step", ("engine.name=inline", "client.compile=step"), "", 1.0, (2.0,)),
        Row(**{**vars(row(ray.name, 1.155)), "overrides": ray.overrides}),
    ]
    assert advice(rows, 16) == [
        "engine.name=ray engine.workers=2 takes 0.55 of a round in one process.",
        "client.channels_last=true takes 0.50 of a round (same results but for rounding: other bits).",
        "A round takes 1.05 of the same training in a plain loop: umbel itself costs next to nothing.",
        "A batch of 64 goes through 1.9 times as many examples a second as one of 16 (client.batch_size); it changes "
        "what is learnt.",
        "An evaluation takes 4.20 s, 2.0 times a round: evaluate.every says how often.",
    ]


def test_advice_says_what_keeps_it_from_being_faster():
    slow = [row(LOOP, 1.0), row("inline", 2.0, stages={"clients": 1.1, "exchange": 1.9, "server": 0.05})]
    (said,) = advice(slow, 16)
    assert said == (
        "A round takes 2.00 of the same training in a plain loop; most of the rest is handing out, checks and adding "
        "up (850.0 ms a round)."
    )
    short = advice([row("inline", 0.01), row("ray, 2 workers", 0.02)], 16)
    assert short[0].startswith("Workers do not pay here: 2.00 of a round in one process (rounds are so short")
    uneven = advice([row("inline", 2.0), row("ray, 2 workers", 1.5, longest=0.9)], 16)
    assert uneven[1] == "One client takes 90% of a round, and no number of workers makes it shorter."
    waits = advice([row("inline", 2.0), row("ray, 2 workers", 1.5, busy=0.6)], 16)
    assert waits[1] == "Its workers are at clients 60% of the time that a phase takes."
    assert advice([Row("inline", failure="it ended without a word")], 16) == []


def test_more_workers_are_advised_where_workers_pay(monkeypatch):
    monkeypatch.setattr("umbel.simulations.bench.advice.num_cpus", lambda: 8)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1 << 44))
    pays, not_so = (advice([row("inline", 2.0), row("ray, 2 workers", each)], 16) for each in (1.1, 2.2))
    assert pays[-1] == "There are 8 cores, and memory for 32 workers: try more of them (--workers)."
    assert not_so == ["Workers do not pay here: 1.10 of a round in one process. engine.name=inline"]


def test_who_is_measured():
    experiment = load("digits", FEW)
    names = [each.name for each in contenders(experiment, ["processes", "ray"], [1, 4], ["step"], True)]
    workers = [f"{engine}, {number} workers" for engine in ("processes", "ray") for number in (1, 4)]
    assert names == [LOOP, "inline", "inline, step", *workers]
    assert contenders(experiment, ["ray"], [], [], has_loop=False) == [Contender("inline", ("engine.name=inline",))]


@pytest.mark.parametrize("options", [("client.epochs=2",), ("client.epochs=0", "client.max_steps=3"), ()])
def test_the_loop_does_the_steps_of_the_experiment(options):
    experiment = load("digits", [*FEW, "data.partition=iid", *options])
    steps = [number for _, number in loop.rounds(experiment, 2)]
    sizes = run_sizes(experiment)
    local = experiment.local
    if local.max_steps:
        assert steps == [6 * 3] * 2  # six clients a round
    else:
        assert len(set(sizes)) == 1
        assert steps == [6 * local.epochs * math.ceil(sizes[0] / 16)] * 2


def run_sizes(experiment) -> list[int]:
    from umbel.conf.federation import federation

    data = federation(experiment)
    return [len(data.client(client).train) for client in range(experiment.data.num_clients)]


class Times(Listener):
    def __init__(self):
        self.told = []

    def time_spent(self, round_, stages, clients):
        self.told.append((round_, dict(stages), {phase: list(each) for phase, each in clients.items()}))


def told(*options: str) -> list:
    times = Times()
    run("digits", *FEW, "evaluate.clients=-1", *options, listener=times)
    return times.told


def check_times(rounds: list, num_processes: int) -> None:
    assert [round_ for round_, _, _ in rounds] == [1, 2]
    for _, stages, clients in rounds:
        assert len(clients["train"]) == 6 and len({each.client for each in clients["train"]}) == 6
        busy = [sum(each.seconds for each in clients["train"] if each.process == process) for process in
                {each.process for each in clients["train"]}]  # fmt: skip
        assert len(busy) <= num_processes and 0 < max(busy) <= stages["train"]
        assert stages["server"] >= 0
    assert "evaluate" not in rounds[0][2] and len(rounds[1][2]["evaluate"]) == 8


def test_a_listener_is_told_when_which_process_was_at_which_client(tmp_path):
    rounds = told(f"run.results={tmp_path}")
    check_times(rounds, 1)
    clients = rounds[0][2]["train"]
    assert all(before.began + before.seconds <= after.began + 1e-3 for before, after in itertools.pairwise(clients))


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_likewise_on_workers(engine, tmp_path):
    check_times(told(f"engine.name={engine}", "engine.workers=2", f"run.results={tmp_path}"), 2)


def test_the_timeline_has_a_bar_for_each_client():
    clients = [ClientTime(client, client % 2, 100.0 + client, 1.0) for client in range(6)]
    figure = timeline([{"train": clients}, {"evaluate": clients[:2]}], [104.0, 107.0], "title")
    (axes,) = figure.axes
    assert len(axes.patches) == 8 and [text.get_text() for text in axes.get_legend().get_texts()] == [
        "train",
        "evaluate",
    ]
    assert axes.patches[1].get_x() == pytest.approx(1.0) and axes.patches[1].get_width() == pytest.approx(1.0)
    assert png(figure).startswith(b"\x89PNG")
    assert png(timeline([], [], "nobody")).startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.processes
def test_the_command_measures_and_writes(tmp_path: Path):
    words = ["bench", "digits", *FEW, "--rounds", "2", "--warm", "1", "--workers", "none", "-o", str(tmp_path / "b")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "b" / "bench.json").read_text())
    by_name = {each["name"]: each for each in content["rows"]}
    assert by_name.keys() == {LOOP, "inline"}
    assert all(
        len(each["rounds"]) == 2 and each["round"] > 0 and each["memory_bytes"] > 1e7 for each in by_name.values()
    )
    assert set(by_name[LOOP]["throughput"]) == {"16", "32", "64"}
    assert 0 < by_name["inline"]["stages"]["clients"] <= by_name["inline"]["stages"]["exchange"]
    assert (tmp_path / "b" / "inline.png").read_bytes().startswith(b"\x89PNG")
    assert "a round" in done.output and content["advice"]


@pytest.mark.slow
@pytest.mark.processes
def test_a_contender_that_fails_says_why_and_others_go_on(tmp_path: Path):
    (tmp_path / "broken.py").write_text(
        "from umbel.strategies.fedavg import FedAvg\n\n\n"
        "class Broken(FedAvg):\n"
        "    def update(self, state, folded, server):\n"
        "        raise RuntimeError('the server is on fire')\n"
    )
    words = ["bench", "digits", *FEW, "strategy.name=broken:Broken", "--rounds", "1", "--warm", "1"]
    runner = CliRunner(env={"PYTHONPATH": str(tmp_path)})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        done = runner.invoke(main, [*words, "--workers", "none", "-o", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    rows = {each["name"]: each for each in json.loads((tmp_path / "b" / "bench.json").read_text())["rows"]}
    assert "the server is on fire" in rows["inline"]["failure"] and "failure" in rows["inline"]
    assert not rows[LOOP].get("failure") and "the server is on fire" in done.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--modes", "stpe"), "unknown mode 'stpe'"),
        (("--workers", "two"), "expected numbers such as 1,2,4"),
        (("--workers", "0"), "at least one each"),
        (("model.name=cnm",), "cnm"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(words, said, tmp_path):
    done = CliRunner().invoke(main, ["bench", "digits", *words, "-o", str(tmp_path / "b")])
    assert done.exit_code == 2 and said.lower() in done.output.lower(), done.output
    assert not (tmp_path / "b").exists()

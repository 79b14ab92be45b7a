"""The yardstick of simulation: its arithmetic, what it reads, and that the plain loop does umbel's work.

No contender is raced here.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.places import BENCHMARKS
from umbel import run

Import = Callable[[str], ModuleType]


@pytest.fixture
def get(monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    """Import a module as the script would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in [name for name in sys.modules if name == "simulation" or name.partition(".")[0] == "yardstick"]:
        del sys.modules[name]


@pytest.fixture
def measured(get: Import) -> list[Any]:
    """Two repeats of three contenders, one of which fails in the second."""
    make = get("yardstick.measure").Measurement
    return [
        make("plain", 1, 0.5, rounds=2.0, startup=3.0, end_bytes=200_000_000, num_steps=40, first_step=2.5),
        make("plain", 2, 0.7, rounds=4.0, startup=5.0, end_bytes=200_000_000, num_steps=40, first_step=4.5),
        make("forked-2", 1, 0.5, rounds=1.0, startup=6.0, end_bytes=300_000_000, num_steps=40, others=0.25),
        make("forked-2", 2, 0.7, rounds=3.0, startup=8.0, end_bytes=500_000_000, num_steps=36),
        make("pfl-2", 1, 0.5, rounds=3.0, startup=1.0, end_bytes=100_000_000),
        make("pfl-2", 2, 0.7, "pip has no pfl"),
    ]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ratios_are_taken_within_a_repeat(get: Import, measured: list[Any]) -> None:
    ratios = get("yardstick.table").ratios
    assert ratios(measured, "forked-2", lambda each: each.rounds) == [0.5, 0.75]
    assert ratios(measured, "plain", lambda each: each.rounds) == [1.0, 1.0]
    assert ratios(measured, "pfl-2", lambda each: each.rounds) == [1.5]  # the repeat in which it failed has none
    assert ratios([each for each in measured if each.contender != "plain"], "pfl-2", lambda each: each.rounds) == []


def test_the_tables_have_medians_and_spreads(get: Import, measured: list[Any]) -> None:
    table = get("yardstick.table")
    time = table.time_table(measured, num_rounds=10)
    assert len({line.count("|") for line in time}) == 1
    assert cells(time[2])[:6] == ["plain", "3.50", "4.00", "3.00 (2.00-4.00)", "300.0", "1.00 (1.00-1.00)"]
    assert cells(time[3])[:6] == ["forked-2", "", "7.00", "2.00 (1.00-3.00)", "200.0", "0.62 (0.50-0.75)"]
    work = table.work_table(measured)
    assert len({line.count("|") for line in work}) == 1
    assert cells(work[3])[2:4] == ["400", "2.00 (1.50-2.50)"]
    assert [cells(line)[5] for line in work[2:]] == ["40", "36, 40", "not seen"]
    assert table.loads(measured) == "0.50, 0.70"
    assert table.spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0-3.0)" and table.spread([]) == ""


def test_what_a_reader_must_know_is_said(get: Import, measured: list[Any]) -> None:
    workload = get("yardstick.workload").Workload("e", (), (8, 8, 8), 2, 1, 4, 0.1, rounds=10)
    assert workload.num_steps == 40
    lines = get("yardstick.table").remarks(measured, workload)
    assert len(lines) == 3
    assert "forked-2, repeat 2: 36 steps, not 40" in lines[0]
    assert "pfl-2, repeat 2: no figures, since pip has no pfl" in lines[1]
    assert "NOT QUIET: in 1 of 6" in lines[2] and "0.25 (forked-2, repeat 1)" in lines[2]
    unequal = get("yardstick.workload").Workload("e", (), (8, 4, 8), 2, 1, 4, 0.1, rounds=10)
    assert unequal.num_steps is None
    assert len(get("yardstick.table").remarks(measured, unequal)) == 2


def test_a_profile_adds_up_to_the_round(get: Import) -> None:
    make, stages = get("yardstick.measure").Measurement, get("yardstick.stages").STAGES
    spent = dict.fromkeys(stages, (0.0, 0)) | {"train": (1.0, 20), "fold": (0.5, 10)}
    one = make("umbel-inline", 1, rounds=2.0, stages={"driver": spent})
    lines = get("yardstick.table").profile_table([one], num_rounds=10)
    shown = {cells(line)[0]: cells(line)[1] for line in lines[2:]}
    assert shown["train"] == "100.00 (2.0)" and shown["fold"] == "50.00 (1.0)" and shown["write"] == "0.00 (0.0)"
    assert shown["rest"] == "50.00" and shown["a round"] == "200.00"


def test_the_command_line(get: Import, capsys: pytest.CaptureFixture[str]) -> None:
    simulation, known = get("simulation"), get("yardstick.contenders")
    asked = simulation.arguments([])
    assert (asked.experiment, asked.overrides, asked.rounds, asked.repeats) == ("bench_cnn", [], 60, 5)
    assert [each.name for each in asked.chosen] == list(known.ALL)
    asked = simulation.arguments(
        ["--experiment", "bench_cvt_13", "client.lr=0.1", "--contenders", "umbel-ray-2, plain"]
    )
    assert (asked.experiment, asked.overrides) == ("bench_cnn", ["model.name=cvt_13", "client.lr=0.1"])
    assert asked.rounds == 3 and [each.name for each in asked.chosen] == ["plain", "umbel-ray-2"]
    profiled = [each.name for each in simulation.arguments(["--profile"]).chosen]
    assert profiled == ["umbel-inline", "umbel-processes-2", "umbel-ray-2"]
    assert [each.name for each in known.rotated(known.chosen("plain,pfl-1,pfl-2"), 4)] == ["pfl-1", "pfl-2", "plain"]
    for wrong, said in {
        "--contenders=umbel-ray2": "'umbel-ray-2'",
        "--repeats=0": "1 or more",
        "fast": "key=value",
    }.items():
        with pytest.raises(SystemExit):
            simulation.arguments([wrong])
        assert said in capsys.readouterr().err


def test_a_stage_has_its_own_seconds_only(get: Import, tmp_path: Path) -> None:
    hooks = get("yardstick.hooks")
    counts, passed = hooks.Counts(tmp_path), [0.0]

    def spend(seconds: float) -> float:
        passed[0] += seconds
        return seconds

    timer = hooks.Timer(counts, lambda: passed[0])
    inner = timer.timed(spend, "train")
    outer = timer.timed(lambda: [inner(2.0), spend(0.5), inner(3.0)], "fold")
    assert outer() == [2.0, 0.5, 3.0]
    with pytest.raises(TypeError):
        inner(None)  # whatever it raises, the next one is timed as before
    assert outer() == [2.0, 0.5, 3.0]
    ((_, numbers),) = hooks.read(tmp_path).items()
    spent = hooks.by_stage(numbers)
    assert spent["train"] == (10.0, 5) and spent["fold"] == (1.0, 2) and spent["write"] == (0.0, 0)
    assert hooks.steps({1: numbers}) == 0 and hooks.first_step({1: numbers}) is None


def test_every_function_of_a_stage_is_there(get: Import) -> None:
    stages = get("yardstick.stages")
    for module, functions in stages.FUNCTIONS.items():
        assert set(functions.values()) <= set(stages.STAGES)
        holder = importlib.import_module(module)
        for name in functions:
            owner, _, attribute = name.rpartition(".")
            assert callable(getattr(getattr(holder, owner) if owner else holder, attribute)), f"{module}.{name}"


def test_roles_are_the_first_process_and_those_that_train(get: Import) -> None:
    measure, hooks = get("yardstick.measure"), get("yardstick.hooks")
    stages = get("yardstick.stages").STAGES
    idle = [0.0] * (2 + 2 * len(stages))
    place = 2 + 2 * stages.index("train")
    trained = [*idle[:place], 3.0, 6.0, *idle[place + 2 :]]
    roles = measure.roles(
        {7: idle, 9: trained}, {5: idle, 7: trained, 9: [*trained[:place], 7.0, 8.0, *idle[place + 2 :]]}, 5
    )
    assert list(roles) == ["driver", "worker 1", "worker 2"]
    assert roles["worker 1"]["train"] == (3.0, 6) and roles["worker 2"]["train"] == (4.0, 2)
    assert hooks.by_stage(idle)["train"] == (0.0, 0)


def test_a_process_is_seen_from_outside(get: Import, tmp_path: Path) -> None:
    """A contender of the test keeps to the protocol; another one ends too early, and its last words are the reason."""
    known, measure = get("yardstick.contenders"), get("yardstick.measure")

    @dataclass(frozen=True)
    class Own(known.Contender):  # type: ignore[misc, name-defined]
        def command(self) -> list[str]:
            return [sys.executable, "-c", self.script]

    good = (
        "from yardstick.marks import Clock, assignment, outcome; clock = Clock(); clock.begin(); clock.end(); "
        "outcome().write_text(str(assignment()[0]['words']))"
    )
    one = measure.run(Own("good", good, {"words": "done"}), tmp_path, tmp_path / "out")
    assert not one.failure and (tmp_path / "out").read_text() == "done"
    assert one.num_processes == 1 and one.end_bytes > 1e6 and one.peak_bytes >= one.end_bytes
    assert 0 <= one.rounds < one.startup < one.whole and one.num_steps is None and one.first_step is None
    bad = measure.run(Own("bad", "raise SystemExit('no such thing')"), tmp_path, tmp_path / "none")
    assert bad.failure == "it ended before its rounds were over: no such thing"


@pytest.mark.slow
def test_the_plain_loop_does_what_umbel_does(get: Import, tmp_path: Path) -> None:
    """With one batch a client and everybody in every round nothing is left to chance: steps and weights agree."""
    prepare, plain, training = get("yardstick.prepare"), get("yardstick.plain"), get("yardstick.training")
    hooks, judge = get("yardstick.hooks"), get("yardstick.judge")
    overrides = ("data.num_clients=3", "data.options.num_examples=24", "run.clients_per_round=3", "client.batch_size=8")
    folder, counted = tmp_path / "work", {name: tmp_path / name for name in ("plain", "umbel")}
    for path in (folder, *counted.values()):
        path.mkdir()
    workload = prepare.prepare("bench_cnn", overrides, folder).lasting(1, 2)
    assert workload == type(workload).read(folder).lasting(1, 2) and workload.num_steps == 6
    hook = register_optimizer_step_post_hook(hooks.Counts(counted["plain"]).count_step)
    begun: list[int] = []
    model = plain.run(workload, folder, False, lambda: begun.append(hooks.steps(hooks.read(counted["plain"]))))
    hook.remove()
    hook = register_optimizer_step_post_hook(hooks.Counts(counted["umbel"]).count_step)
    result = run("bench_cnn", *overrides, "run.rounds=3", f"run.results={tmp_path / 'results'}")
    hook.remove()
    assert begun == [3]
    assert hooks.steps(hooks.read(counted["plain"])) == hooks.steps(hooks.read(counted["umbel"])) == 9
    ours = judge.state_of(result.path / "model.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    first, before = training.build(workload, folder).state_dict(), judge.judge(workload, folder, model.state_dict())
    assert any(not torch.equal(first[name], tensor) for name, tensor in model.state_dict().items())
    assert judge.judge(workload, folder, ours) == pytest.approx(before, rel=1e-5)
    assert json.loads((folder / "workload.json").read_text())["num_parameters"] == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_work_that_the_plain_loop_does_not_do_is_refused(get: Import, tmp_path: Path) -> None:
    for override in ("client.momentum=0.9", "client.channels_last=true", "strategy.name=fedprox", "evaluate.every=1"):
        with pytest.raises(SystemExit, match="plain SGD"):
            get("yardstick.prepare").prepare("bench_cnn", (override,), tmp_path)

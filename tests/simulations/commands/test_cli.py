"""The command line: what it prints, refuses and leaves behind."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console

from tests.simulations.commands.command_line import TINY, umbel
from umbel.conf.load import load
from umbel.core.files import read_json
from umbel.simulations.commands import display
from umbel.simulations.commands.watcher import JsonLines


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    results = tmp_path_factory.mktemp("results")
    return results, umbel("run", "digits", *TINY, f"run.results={results}")


def test_last_line_is_the_folder_and_it_holds_the_summary(finished: tuple[Path, Result]) -> None:
    results, result = finished
    assert result.exit_code == 0, result.output
    folder = Path(result.stdout.splitlines()[-1])
    assert folder.is_absolute()
    assert folder.parent == results
    assert read_json(folder / "summary.json")["rounds"] == 2


def test_without_a_terminal_rounds_are_json_lines_without_control_characters(
    finished: tuple[Path, Result],
) -> None:
    _, result = finished
    lines = [json.loads(line) for line in result.stdout.splitlines()[:-1]]
    assert [line["event"] for line in lines] == ["begin", "round", "round"]
    assert lines[0]["folder"] == result.stdout.splitlines()[-1]
    assert [(line["round"], line["rounds"]) for line in lines[1:]] == [(1, 2), (2, 2)]
    assert 0 <= lines[-1]["test/accuracy"] <= 1
    assert "\x1b" not in result.output


def test_quiet_prints_only_the_folder(tmp_path: Path) -> None:
    result = umbel("run", "digits", *TINY, "run.rounds=1", f"run.results={tmp_path}", "--quiet")
    assert result.exit_code == 0
    assert result.output.splitlines() == [str(next(tmp_path.iterdir()))]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digits", "run.round=3"], "Did you mean run.rounds"),
        (["digits", "runs.rounds=3"], "Did you mean run.rounds"),
        (["digits", "strategy.name=fedavgg"], "'fedavg'"),
        (["digits", "strategy.name=fedprox", "strategy.mo=1"], "strategy.mu"),
        (["digits", "strategy.name=flwr:FedMedien"], "flwr:FedMedian"),
        (["digits", "model.name=cvt_tiny"], "'cvt_tiny32'"),
        (["digits", "data.name=digit"], "'digits'"),
        (["digits", "data.partition=dirichlett"], "'dirichlet'"),
        (["digits", "data.name=synthetic", "data.options.noize=1"], "'noise'"),
        (["digitz"], "'digits'"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["digits", "run.rounds=many"], "run.rounds"),
        (["digits", "engine.name=rya"], "'ray'"),
        (["digits", "run.rounds"], "key=value"),
        (["digits", "run.participation=2"], "run.participation"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_starts(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = umbel("run", *arguments, f"run.results={tmp_path / 'results'}")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [("data.num_clients=4000", "data.num_clients=4000"), ("model.sizes.widht=3", "model.sizes.widht")],
)
def test_what_is_found_wrong_while_setting_up_leaves_no_folder(tmp_path: Path, override: str, said: str) -> None:
    result = umbel("run", "digits", *TINY, override, f"run.results={tmp_path}")
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_name_is_not_used_twice(finished: tuple[Path, Result]) -> None:
    results, first = finished
    name = Path(first.stdout.splitlines()[-1]).name
    result = umbel("run", "digits", *TINY, f"run.results={results}", f"run.name={name}")
    assert result.exit_code == 2
    assert "umbel resume" in result.stderr
    assert (results / name / "summary.json").is_file()


def test_missing_data_say_the_install_command(tmp_path: Path) -> None:
    result = umbel("run", "digits", "data.name=fashion_mnist", f"data.path={tmp_path}", f"run.results={tmp_path}/r")
    assert result.exit_code == 2
    assert "apt" in result.stderr
    fetched = umbel("data", "fetch", "fashion_mnist", f"data.path={tmp_path}")
    assert fetched.exit_code == 2
    assert "apt" in fetched.stderr


def test_the_live_display_fits_80_columns_and_shows_what_it_should() -> None:
    screen = io.StringIO()
    shown = display.Display(Console(file=screen, width=80, height=24, force_terminal=True, color_system=None))
    experiment = load("digits", ["run.rounds=8", "strategy.name=fedprox", "strategy.mu=0.1"])
    shown.begin(experiment, "/results/run")
    values = {"test/accuracy": 0.5, "validation/accuracy": 0.25, "test/loss": 1.5}
    values |= {"clients/test/accuracy_mean": 0.4, "clients/test/accuracy_worst10": 0.125}
    shown.phase(1, "train", 10)
    for client in range(5):
        shown.failure(1, "train", client, 7, "[red]out of memory")
    shown.round(1, 8, values, 2.0)
    shown.phase(2, "train", 10)
    shown.clients_done(6)
    shown.round(2, 8, values, 4.0)
    shown.phase(3, "train", 10)
    shown.clients_done(6)
    shown.close()
    frame = screen.getvalue()[-2500:]
    for text in (
        "fedprox(mu=0.1) · cvt_tiny32 · digits, dirichlet(0.3) · 10 clients",
        "Round 3/8",
        "left",
        "6 of 10 clients done",
        "validation 0.2500   test 0.5000",
        "mean 0.4000   worst 10 % 0.1250",
        "failures 5",
        "client 0 on node 7: [red]out of memory",
        "and 2 more",
    ):
        assert text in frame
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame).splitlines()) <= 80


def test_metrics_that_are_no_number_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines().round(1, 2, {"test/accuracy": float("nan")}, 1.0)
    assert json.loads(capsys.readouterr().out)["test/accuracy"] is None


def test_metrics_have_five_digits(capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines().round(1, 2, {"test/accuracy": 0.97666666666, "test/loss": 123456.7, "steps": 7.0}, 1.23456)
    line = json.loads(capsys.readouterr().out)
    assert (line["test/accuracy"], line["test/loss"], line["steps"], line["seconds"]) == (0.97667, 123460.0, 7.0, 1.235)


def test_stop_and_resume_refuse_what_is_no_run(tmp_path: Path, finished: tuple[Path, Result]) -> None:
    for command in ("stop", "resume"):
        result = umbel(command, tmp_path)
        assert result.exit_code == 2
        assert "is no run" in result.stderr
    over = umbel("stop", finished[1].stdout.splitlines()[-1])
    assert over.exit_code == 2
    assert "ended already" in over.stderr


def test_resume_refuses_another_experiment(finished: tuple[Path, Result]) -> None:
    folder = Path(finished[1].stdout.splitlines()[-1])
    result = umbel("resume", folder, "client.lr=1")
    assert result.exit_code == 2
    assert "client.lr" in result.stderr
    assert (folder / "summary.json").is_file()


LONG = "9" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", LONG, "."],
        ["evaluate", LONG, "data.name=digits"],
        ["export", LONG, "--onnx"],
        ["resume", LONG],
        ["explain", LONG],
        ["report", LONG],
        ["stop", LONG],
        ["federate", "status", "--home", LONG],
        ["compare", "digits", *TINY, "-s", "fedavg", "--output", LONG],
        ["run", "digits", *TINY, f"model.init={LONG}"],
        ["run", "digits", *TINY, "data.name=imagenet_lt", f"data.options.lists={LONG}"],
    ],
    ids=lambda arguments: arguments[0] + arguments[-1][:10],
)
def test_what_is_no_path_is_refused_in_a_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = umbel(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert len(result.stderr) < 1000 and result.stderr.count("\n") == 1 and "Traceback" not in result.output
    assert not list(tmp_path.rglob("*"))

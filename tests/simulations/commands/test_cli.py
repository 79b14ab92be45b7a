"""The command line: what it prints, refuses and leaves behind."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tests.places import ROOT
from umbel.conf.load import load
from umbel.core.files import read_json
from umbel.simulations.commands import catalogue, display
from umbel.simulations.commands.data import text_map
from umbel.simulations.commands.data_view import statistics
from umbel.simulations.commands.main import KINDS, main
from umbel.simulations.commands.supervision import Stopper
from umbel.simulations.commands.watcher import JsonLines, Watcher

TINY = ("model.name=cnn", "run.rounds=2", "data.num_clients=4", "data.max_train=200", "client.epochs=1")


def umbel(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from umbel.simulations.commands.main import main; main()", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


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


def _event(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    found: dict[str, object] = json.loads(process.stdout.readline())
    return found


def test_sigterm_saves_and_resume_ends_with_the_same_weights(tmp_path: Path) -> None:
    arguments = ("digits", *TINY, "run.rounds=100", "checkpoint.every=200")
    process = start("run", *arguments, f"run.results={tmp_path / 'stopped'}")
    assert _event(process)["event"] == "begin"
    assert _event(process)["event"] == "round"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    folder = next((tmp_path / "stopped").iterdir())
    assert f"Go on with: umbel resume {folder}" in said
    assert not (folder / "summary.json").exists()
    stopped_after = int(said.split("Stopped after round ")[1].split(".")[0])
    assert 1 <= stopped_after < 100

    rounds = f"run.rounds={stopped_after + 2}"
    resumed = umbel("resume", folder, rounds)
    assert resumed.exit_code == 0, resumed.output
    assert resumed.stdout.splitlines()[-1] == str(folder)
    whole = umbel("run", *arguments, rounds, f"run.results={tmp_path / 'whole'}")
    uninterrupted = Path(whole.stdout.splitlines()[-1])
    assert (
        read_json(folder / "summary.json")["weights_sha256"]
        == (read_json(uninterrupted / "summary.json")["weights_sha256"])
    )


def test_ctrl_c_in_the_middle_of_a_round_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupts(JsonLines):
        def phase(self, round_: int, phase: str, num_clients: int) -> None:
            super().phase(round_, phase, num_clients)
            if round_ == 3:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(display, "watcher", lambda *_: Interrupts())
    result = umbel("run", "digits", *TINY, "run.rounds=5", f"run.results={tmp_path}")
    assert result.exit_code == 130, result.output
    assert f"Stopped after round 2. Go on with: umbel resume {next(tmp_path.iterdir())}" in result.stderr


def test_a_second_signal_while_saving_is_answered_and_a_late_one_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stopper() as stopper:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # nothing is raised into the saving
    assert signal.getsignal(signal.SIGTERM) is before
    with Stopper() as stopper:
        stopper.watcher = Watcher()
        stopper.watcher.round(5, 5, {}, 1.0)
        signal.raise_signal(signal.SIGINT)  # all rounds are done: the results are written


def test_the_live_display_fits_80_columns_and_shows_what_it_should() -> None:
    screen = io.StringIO()
    shown = display.Display(Console(file=screen, width=80, height=24, force_terminal=True, color_system=None))
    experiment = load("digits", ["run.rounds=8", "strategy.name=fedprox", "strategy.mu=0.1"])
    shown.begin(experiment, "/results/run")
    found = {"test/accuracy": 0.5, "validation/accuracy": 0.25, "test/loss": 1.5}
    found |= {"clients/test/accuracy_mean": 0.4, "clients/test/accuracy_worst10": 0.125}
    shown.phase(1, "train", 10)
    for client in range(5):
        shown.failure(1, "train", client, 7, "[red]out of memory")
    shown.round(1, 8, found, 2.0)
    shown.phase(2, "train", 10)
    shown.clients_done(6)
    shown.round(2, 8, found, 4.0)
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


def test_stop_asks_a_run_to_stop(tmp_path: Path) -> None:
    process = start("run", "digits", *TINY, "run.rounds=500", f"run.results={tmp_path}")
    folder = Path(str(_event(process)["folder"]))
    assert umbel("stop", folder).exit_code == 0
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "umbel resume" in said


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


@pytest.mark.parametrize("kind", KINDS)
def test_list_has_every_name_with_a_line(kind: str) -> None:
    result = umbel("list", kind)
    assert result.exit_code == 0, result.output
    entries = catalogue.entries(kind)
    assert entries
    for entry in entries:
        assert entry.name in result.stdout
        assert entry.line
    plain = json.loads(umbel("list", kind, "--json").stdout)
    assert [entry["name"] for entry in plain] == [entry.name for entry in entries]


def test_list_of_a_part() -> None:
    every, some = umbel("list", "models"), umbel("list", "models", "cvt_t")
    assert "strides" not in every.stdout  # sizes of sixty models are too much at once
    assert "cvt_tiny32" in some.stdout and "strides=null" in some.stdout and "cvt_13" not in some.stdout
    assert [entry["name"] for entry in json.loads(umbel("list", "models", "cvt_t", "--json").stdout)] == ["cvt_tiny32"]
    nothing = umbel("list", "models", "cvt_tini32")
    assert nothing.exit_code == 2
    assert "Did you mean" in nothing.stderr and "cvt_tiny32" in nothing.stderr


def test_options_are_explained() -> None:
    options = {
        f"{entry.name}.{option.name}": option for entry in catalogue.entries("strategies") for option in entry.options
    }
    assert options["fedprox.mu"].default == 0.01
    assert "proximal" in options["fedprox.mu"].doc
    keys = {option.name: option for entry in catalogue.entries("keys") for option in entry.options}
    for key in ("data.num_clients", "engine.workers", "run.results", "run.seed", "model.name", "strategy.name"):
        assert keys[key].doc, key
    undocumented = [name for name, option in keys.items() if not option.doc]
    assert undocumented == []


def test_data_show_writes_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    result = umbel("data", "show", "digits", "data.num_clients=4", "--output", picture)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "divergence" in result.stderr
    facts = json.loads(umbel("data", "show", "digits", "--json", "--output", picture).stdout)
    assert facts["num_clients"] == 10
    assert facts["num_examples"] == sum(map(sum, facts["counts"]))


def test_statistics_of_a_partition() -> None:
    import numpy as np

    apart = statistics(np.array([[4, 0], [0, 4]]))
    # Each client against the even mix: H(3/4, 1/4) - (0 + 1) / 2 bits.
    assert apart["divergence_mean"] == pytest.approx(0.8112781 - 0.5)
    assert apart["classes_per_client"] == {"min": 1, "median": 1.0, "max": 1}
    same = statistics(np.array([[2, 2], [6, 6]]))
    assert same["divergence_max"] == 0
    assert same["examples_per_client"] == {"min": 4, "median": 8.0, "max": 12}
    assert text_map(np.array([[4, 0], [1, 4]]), ("a", "b"))[1:] == ["       0  ██    4", "       1  ▒▒██  5"]


def test_data_fetch_says_what_is_there() -> None:
    result = umbel("data", "fetch", "digits")
    assert result.exit_code == 0, result.output
    assert "1,438 training and 359 test examples" in result.stdout
    assert "licence" in result.stdout
    assert umbel("data", "fetch", "digitz").exit_code == 2


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(command, click.Group):
        below = [_commands(child, (*path, name)) for name, child in command.commands.items()]
        return [path, *(found for some in below for found in some)]
    return [path]


@pytest.mark.parametrize("path", _commands(main), ids=lambda path: " ".join(path) or "umbel")
def test_help_teaches_by_example(path: tuple[str, ...]) -> None:
    result = umbel(*path, "--help")
    assert result.exit_code == 0
    command = " ".join(["umbel", *path])
    assert re.search(rf"^ +{command} ?.*$", result.stdout, re.MULTILINE)
    assert "\\b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 90


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys, umbel, umbel.simulations.commands.main;"
        "print([name for name in ('torch', 'flwr', 'numpy', 'rich', 'ray', 'pandas') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

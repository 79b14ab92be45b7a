"""Comparisons: how they are asked for, their numbers, what they leave behind, what they use again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.helpers import compared
from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.core.files import read_json
from umbel.simulations.commands.main import main
from umbel.simulations.compare.comparison import Comparison, Item, Member, read_comparison
from umbel.simulations.compare.prepare import compose, folder_name, parse_seeds, parse_strategies
from umbel.simulations.compare.tables import cell, difference_cell, frame, latex, markdown

TINY = ("model.name=cnn", "run.rounds=2", "data.num_clients=4", "data.max_train=200", "client.epochs=1")


def umbel(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("fedavg", ["fedavg"]),
        ("fedavg, fedprox(mu=0.1),scaffold", ["fedavg", "fedprox(mu=0.1)", "scaffold"]),
        ("fedopt( optimizer = adam,lr=0.1 )", ["fedopt(optimizer=adam, lr=0.1)"]),
        ("flwr:FedTrimmedAvg(beta=0.2),my.module:Class", ["flwr:FedTrimmedAvg(beta=0.2)", "my.module:Class"]),
        ("fedprox(mu=1),fedprox(mu=2)", ["fedprox(mu=1)", "fedprox(mu=2)"]),
        ("a(list=[1,2],other={x:1}),b", ["a(list=[1,2], other={x:1})", "b"]),
    ],
)
def test_strategies_are_read(text: str, labels: list[str]) -> None:
    assert [item.label for item in parse_strategies(text)] == labels


@pytest.mark.parametrize("text", ["", "fedprox(mu=1", "fedprox)mu=1(", "fedprox(mu)", "a,a", "fedprox:mu=(1)x"])
def test_what_is_no_list_of_strategies_is_refused(text: str) -> None:
    with pytest.raises(ExperimentError, match="--strategies"):
        parse_strategies(text)


def test_seeds_are_counted_or_listed() -> None:
    assert parse_seeds("3", 0) == (0, 1, 2)
    assert parse_seeds("2", 5) == (5, 6)
    assert parse_seeds("1,5,7", 0) == (1, 5, 7)
    assert parse_seeds("4,", 0) == (4,)
    for text in ("0", "", "x", "1,1", "-1"):
        with pytest.raises(ExperimentError, match="--seeds"):
            parse_seeds(text, 0)


def test_options_of_the_file_hold_for_its_own_strategy_only(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("strategy: {name: fedprox, mu: 0.5}\n")
    items = parse_strategies("fedprox,fedprox(mu=2),fedavg")
    options = [compose(str(file), item, 3, ()).strategy.options.get("mu") for item in items]
    assert options == [0.5, 2.0, None]
    assert compose(str(file), items[0], 3, ()).run.seed == 3


def test_folders_differ_when_results_may_and_only_then() -> None:
    item = Item("fedprox(mu=0.1)", "fedprox", ("mu=0.1",))

    def name(*overrides: str) -> str:
        return folder_name(item, compose("digits", item, 0, overrides))

    assert name().startswith("fedprox-mu0.1-s0-")
    assert name() == name("engine.name=ray", "checkpoint.every=1", "run.results=/elsewhere")
    many = Item("fedprox(" + "x" * 300 + ")", "fedprox", ("mu=0.1",))
    assert len(folder_name(many, compose("digits", many, 0, ()))) < 120
    assert len({name(), name("run.rounds=3"), name("client.lr=0.3"), name("evaluate.clients=0")}) == 4


def made(values: dict[str, list[float]]) -> Comparison:
    """Make a comparison whose test accuracies are given, one a seed."""
    return compared({label: [{"test_last": value} for value in accuracies] for label, accuracies in values.items()})


def test_numbers_of_a_comparison() -> None:
    # Means 0.5 and 0.7; deviations by n - 1; differences 0.1, 0.2, 0.3, error 0.1 / sqrt(3).
    comparison = made({"a": [0.4, 0.5, 0.6], "b": [0.5, 0.7, 0.9]})
    assert comparison.mean_and_deviation("a", "test_last") == pytest.approx((0.5, 0.1))
    assert comparison.mean_and_deviation("b", "test_last") == pytest.approx((0.7, 0.2))
    difference = comparison.differences("test_last")["b"]
    assert (difference.mean, difference.error) == pytest.approx((0.2, 0.1 / math.sqrt(3)))
    assert cell(comparison, "b", "test_last") == "0.7000 ± 0.2000"
    assert cell(comparison, "b", "test_best") == "–"
    assert difference_cell(comparison, "a") == "reference"
    assert difference_cell(comparison, "b") == "+0.2000 ± 0.0577 (p=.250)"  # 2 of 2^3 choices of signs are as extreme


def test_a_best_is_told_from_all_others_or_not_marked() -> None:
    above = [0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.96, 0.97]
    below, far = [value - 0.1 for value in above], [value - 0.2 for value in above]
    three = made({"a": below, "b": above, "c": far})
    assert three.best("test_last") == "b" and cell(three, "b", "test_last").endswith(" *")
    assert "* best" in markdown(three)
    # c is as far below, b is not above a in every seed: no best.
    close = made({"a": [*above[:7], 0.99], "b": above, "c": far})
    assert close.best("test_last") is None and "*" not in cell(close, "b", "test_last")


def test_too_few_seeds_mark_nothing_and_say_how_many_would() -> None:
    two = made({"a": [0.1] * 5, "b": [0.9] * 5})
    assert two.best("test_last") is None
    assert "Of 5 seeds the smallest p is 0.062" in markdown(two) and "6 seeds could tell" in markdown(two)
    four = made({label: [0.1 * number] * 7 for number, label in enumerate("abcd")})
    assert four.best("test_last") is None and "takes 8 seeds" in markdown(four)
    assert difference_cell(four, "d") == "+0.3000 ± 0.0000 (p=.047)"  # three tests: 3 / 2^6
    single = made({"a": [0.5], "b": [0.9]})
    assert single.best("test_last") is None
    assert math.isnan(single.differences("test_last")["b"].error)
    assert "One seed" in markdown(single)
    assert cell(single, "b", "test_last") == "0.9000" and difference_cell(single, "b") == "+0.4000"


def test_a_comparison_is_written_and_its_runs_are_used_again(tmp_path: Path) -> None:
    arguments = ("compare", "digits", *TINY, "--strategies", "fedavg,fedprox(mu=0.1)", "--seeds", "2")
    output = ("--output", tmp_path / "c")
    first = umbel(*arguments, *output)
    assert first.exit_code == 0, first.output
    assert first.stdout.splitlines()[-1] == str(tmp_path / "c")
    for name in ("comparison.json", "table.md", "table.tex", "table.csv", "curves.png", "partition.png", "report.html"):
        assert (tmp_path / "c" / name).stat().st_size
        is_told = name not in ("comparison.json", "table.tex", "table.csv")
        assert not is_told or str(tmp_path / "c" / name) in first.stderr.replace("\n", "")
    assert "fedprox(mu=0.1)" in first.stderr
    assert "What to try next" in first.stderr
    events = [json.loads(line) for line in first.stdout.splitlines()[:-1]]
    assert [event["how"] for event in events if event["event"] == "member"] == ["new"] * 4

    content = read_json(tmp_path / "c" / "comparison.json")
    runs = {(run["strategy"], run["seed"]): run for run in content["runs"]}
    assert set(runs) == {(label, seed) for label in ("fedavg", "fedprox(mu=0.1)") for seed in (0, 1)}
    summary = read_json(tmp_path / "c" / runs["fedavg", 1]["folder"] / "summary.json")
    assert runs["fedavg", 1]["test_last"] == summary["metrics"]["test/accuracy"]
    assert runs["fedavg", 1]["weights_sha256"] == summary["weights_sha256"]
    # mean = (x + y) / 2 of the two seeds
    both = [runs["fedavg", seed]["test_last"] for seed in (0, 1)]
    assert content["table"]["fedavg"]["test_last"]["mean"] == pytest.approx(sum(both) / 2)
    again = read_comparison(tmp_path / "c")
    assert markdown(again) == (tmp_path / "c" / "table.md").read_text()

    # A third run of a strategy is new; a stopped one is gone on with; the others are there.
    stopped = tmp_path / "c" / runs["fedavg", 0]["folder"]
    (stopped / "summary.json").unlink()
    second = umbel(*arguments[:-4], "--strategies", "fedavg", "--seeds", "3", *output)
    assert second.exit_code == 0, second.output
    events = [json.loads(line) for line in second.stdout.splitlines()[:-1]]
    assert [event["how"] for event in events if event["event"] == "member"] == ["resumed", "reused", "new"]
    assert read_json(stopped / "summary.json")["weights_sha256"] == runs["fedavg", 0]["weights_sha256"]

    written = {path: path.read_bytes() for path in (tmp_path / "c").glob("*/progress.jsonl")}
    third = umbel(*arguments[:-4], "--strategies", "fedavg", "--seeds", "3", *output)
    events = [json.loads(line) for line in third.stdout.splitlines()[:-1]]
    assert [event["how"] for event in events if event["event"] == "member"] == ["reused"] * 3
    assert len(written) == 5 and all(path.read_bytes() == content for path, content in written.items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategies", "fedavgg"], "'fedavg'"),
        (["--strategies", "fedprox(mo=1)"], "strategy.mu"),
        (["--strategies", "fedavg", "--seeds", "many"], "--seeds"),
        (["--strategies", "fedavg", "run.seed=3"], "--seeds"),
        (["--strategies", "fedavg", "data.num_clients=4000"], "data.num_clients"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_starts(tmp_path: Path, arguments: list[str], said: str) -> None:
    result = umbel("compare", "digits", *TINY, f"run.results={tmp_path / 'results'}", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not (tmp_path / "results").exists()


def test_the_table_is_written_for_papers_and_programs() -> None:
    values = {"a_b": [0.5, 0.6, 0.7, 0.8], "c(x=1)": [0.6, 0.7, 0.8, 0.9]}
    given = {label: [{"test_last": each, "mb_per_round": 1.5} for each in row] for label, row in values.items()}
    made = compared(given)
    text = latex(made)
    rules = (r"\toprule", r"\bottomrule", r"\begin{tabular}{lrrr}")
    for line in (*rules, r"a\_b & 0.6500 $\pm$ 0.1291", "reference", "p=.125"):
        assert line in text, line
    assert "±" not in text and r"test, last" in text
    rows = frame(made)
    assert set(rows.strategy) == set(values) and set(rows.measure) == {"test_last", "mb_per_round"}
    (row,) = rows[(rows.strategy == "c(x=1)") & (rows.measure == "test_last")].to_dict("records")
    assert row["mean"] == pytest.approx(0.75) and row["low"] < 0.75 < row["high"]
    assert row["difference_mean"] == pytest.approx(0.1) and row["difference_corrected"] == 0.125


def test_budgets_that_are_not_equal_are_said() -> None:
    costs = {"a": (100, 1000, 50), "b": (109, 1000, 50), "c": (150, 1000, 25)}
    values = {
        label: [{"test_last": 0.5, "steps": steps, "examples": examples, "bytes": moved}] * 2
        for label, (steps, examples, moved) in costs.items()
    }
    text = markdown(compared(values))
    assert "Budgets are not equal: beside a, c has 1.5 times the steps and 0.5 times the bytes (--budget" in text
    assert "beside" not in markdown(compared({label: values[label] for label in "ab"}))


def test_a_budget_that_is_not_known_is_said(tmp_path: Path) -> None:
    item = Item("a", "a")
    members = tuple(Member(each, 0, Experiment(), tmp_path / each.label) for each in (item, Item("b", "b")))
    members[0].__dict__["costs"] = {"steps": math.nan}
    asked = Comparison(tmp_path, (item, members[1].item), (0,), members, "digits", (), "steps")
    assert asked.budgeted(members[0]) is members[0]
    with pytest.raises(ExperimentError, match="none that is known"):
        asked.budgeted(members[1])
    members[0].__dict__["costs"] = {"steps": 12}
    assert asked.budgeted(members[1]).experiment.run.budget == "steps=12"


def test_a_budget_makes_steps_equal(tmp_path: Path) -> None:
    """GGEUR's completed data are more steps a round: it ends after fewer rounds, FedAvg's run is as it would be."""
    arguments = ["compare", "digits", "data.encoder=pca:8", "model.name=linear", *TINY[1:], "run.rounds=6", "-q"]
    arguments += ["--strategies", "fedavg,ggeur(complete=all),fedprox(mu=0.1)", "--seeds", "1"]
    done = umbel(*arguments, "--budget", "steps", "--output", tmp_path / "c")
    assert done.exit_code == 0, done.output
    members = {member.item.name: member for member in read_comparison(tmp_path / "c").members}
    rounds = {name: member.summary["rounds"] for name, member in members.items()}
    assert rounds["fedavg"] == rounds["fedprox"] == 6 > rounds["ggeur"] and not members["fedavg"].summary["ended"]
    steps = {name: member.costs["steps"] for name, member in members.items()}
    assert abs(steps["ggeur"] - steps["fedavg"]) <= steps["ggeur"] / rounds["ggeur"] / 2
    assert members["fedprox"].experiment.run.budget == f"steps={steps['fedavg']}"
    # As a comparison without a budget: the reference is used again, the others are other runs.
    rounds_only = umbel(*arguments[:-5], "--json", *arguments[-4:], "--output", tmp_path / "c")
    events = [json.loads(line) for line in rounds_only.stdout.splitlines()[:-1]]
    assert [event["how"] for event in events if event["event"] == "member"] == ["reused", "new", "new"]
    again = umbel(*arguments, "--budget", "steps", "--output", tmp_path / "c")
    assert again.exit_code == 0 and {m.path for m in read_comparison(tmp_path / "c").members} == {
        m.path for m in members.values()
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--budget", "joules"],
        ["--budget", "steps", "run.budget=steps=5"],
        ["--budget", "bytes", "run.patience=2"],
        ["--budget", "steps", "client.lr_schedule=cosine"],
    ],
)
def test_a_budget_that_cannot_be_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    done = umbel("compare", "digits", *TINY, "--strategies", "fedavg", *arguments, "--output", tmp_path / "c")
    assert done.exit_code == 2 and "--budget" in done.stderr
    assert not (tmp_path / "c").exists()

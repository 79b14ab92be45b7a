"""Tuning: equally many trials, chosen by validation data, the same again; and comparisons with what was chosen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.simulations.commands.command_line import event, start, umbel
from umbel.conf.errors import ExperimentError
from umbel.core.files import DamagedError, read_json, read_sealed, write_sealed
from umbel.simulations.compare.comparison import read_comparison
from umbel.simulations.compare.tables import markdown
from umbel.simulations.tune.search import Search
from umbel.simulations.tune.space import parsed
from umbel.simulations.tune.tuned import Tuned, read

TINY = ("model.name=mlp", "run.rounds=2", "data.num_clients=4", "data.max_train=200", "client.epochs=1")
SPACE = ("client.lr=log:0.001..1", "strategy.mu=log:1e-4..1")
TRIALS = 3
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _needs_optuna() -> None:
    pytest.importorskip("optuna", reason="pip install 'optuna>=5,<6'")


def tune(output: Path, *more: str, trials: int = TRIALS, strategies: str = "fedavg,fedprox") -> list[str]:
    """Return how each run of a tuning came to be."""
    arguments = ("tune", "digits", *TINY, *SPACE, "-s", strategies, "--trials", trials, "--json", "--output", output)
    done = umbel(*arguments, *more)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(output)
    events = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
    return [each["how"] for each in events if each["event"] == "member"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tuning of two contenders with three trials each."""
    pytest.importorskip("optuna", reason="pip install 'optuna>=5,<6'")
    folder = tmp_path_factory.mktemp("tuned") / "t"
    assert tune(folder) == ["new"] * 2 * TRIALS
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    shutil.copytree(made, tmp_path / "t")
    return tmp_path / "t"


def trials(folder: Path) -> pd.DataFrame:
    """Return the table of trials without what a clock said."""
    return pd.read_csv(folder / "trials.csv").drop(columns="seconds")


def chosen(folder: Path) -> dict[str, Any]:
    """Return what was chosen, by contender, without what a clock said."""
    return {each.label: (dict(each.values), each.value, each.trial) for each in read(folder).chosen}


def test_proposals_are_a_function_of_what_was_told() -> None:
    dimensions = (parsed("client.lr", "log:0.001..0.3", float), parsed("client.epochs", "1..5", int),
                  parsed("client.optimizer", "choice:sgd,adam", str))  # fmt: skip
    first = {"client.lr": "0.05", "client.epochs": "1", "client.optimizer": "sgd"}

    def asked(number: int, failed: int = -1, seed: int = 3) -> list[dict[str, str]]:
        proposals, one = [], Search(dimensions, seed, True, first)
        for index in range(number):
            proposals.append(one.ask())
            one.tell(None if index == failed else -abs(float(proposals[-1]["client.lr"]) - 0.1))
        return proposals

    many = asked(16)
    assert many[0] == first and asked(12) == many[:12]
    best = min(range(10), key=lambda index: abs(float(many[index]["client.lr"]) - 0.1))
    without = asked(16, failed=best)
    assert without[:10] == many[:10] and without != many  # ten are drawn, the others go by what was told
    assert asked(3, seed=4)[1:] != many[1:3]
    assert all(0.001 <= float(each["client.lr"]) <= 0.3 and each["client.epochs"] in "12345" for each in many)


def test_trials_are_equally_many_and_the_best_by_validation_is_chosen(made: Path) -> None:
    table, tuned = trials(made), read(made)
    assert table.contender.tolist() == ["fedavg", "fedprox"] * TRIALS
    assert tuned.trials == TRIALS and tuned.metric == "validation/accuracy" and tuned.seeds == (1_000_000,)
    for each in tuned.chosen:
        own = table[table.contender == each.label].reset_index(drop=True)
        summaries = [read_json(made / run / "summary.json") for run in own.runs]
        assert own["validation/accuracy"].tolist() == [one["metrics"]["validation/accuracy"] for one in summaries]
        assert own.steps.sum() == each.costs["steps"] == sum(one["spent"]["clients"]["steps"] for one in summaries)
        assert {one["seed"] for one in summaries} == {1_000_000}
        best = own["validation/accuracy"].idxmax()
        assert (each.trial, each.value) == (best, own["validation/accuracy"][best]) and own.chosen.tolist()[best]
        assert {key: float(text) for key, text in each.values.items()} == {key: own[key][best] for key in each.values}
    # The first is the experiment's own: client.lr of digits, mu of FedProx.
    assert table["client.lr"].tolist()[:2] == [0.05, 0.05] and table["strategy.mu"].tolist()[1] == 0.01
    assert not [column for column in table.columns if "test" in column]
    for name in ("tuned.yaml", "tuning.md", "tuning.png"):
        assert (made / name).stat().st_size


def test_trials_that_go_on_at_once_are_the_same(made: Path, tmp_path: Path) -> None:
    assert tune(tmp_path / "t", "--at-once", "2", trials=2) == ["new"] * 4
    one_by_one = trials(made)
    pd.testing.assert_frame_equal(
        trials(tmp_path / "t").drop(columns="chosen"), one_by_one[one_by_one.trial < 2].drop(columns="chosen")
    )


def test_what_test_data_say_changes_nothing(made: Path, copy: Path) -> None:
    """Test metrics that speak for the worst trial, or that are not there, give the same choice."""
    table = trials(made)
    for number, run in enumerate(dict.fromkeys(table.runs)):
        file = copy / run / "summary.json"
        content = read_sealed(file)
        metrics = {key: value for key, value in content["metrics"].items() if "test/" not in key}
        worst = table["validation/accuracy"].idxmin()
        if number % 2:
            metrics |= {"test/accuracy": float(run == table.runs[worst]), "clients/test/accuracy_mean": 1.0}
        assert metrics != content["metrics"]
        write_sealed(file, {**content, "metrics": metrics})
    assert tune(copy) == ["reused"] * 2 * TRIALS
    assert chosen(copy) == chosen(made) and trials(copy).equals(table)


def test_validation_data_do_change_it(made: Path, copy: Path) -> None:
    table = trials(made)
    last = table[table.contender == "fedavg"].runs.tolist()[-1]
    content = read_sealed(copy / last / "summary.json")
    write_sealed(
        copy / last / "summary.json", {**content, "metrics": {**content["metrics"], "validation/accuracy": 2.0}}
    )
    assert tune(copy) == ["reused"] * 2 * TRIALS
    assert chosen(copy)["fedavg"][1:] == (2.0, TRIALS - 1) and chosen(copy)["fedprox"] == chosen(made)["fedprox"]


def test_after_kill_9_the_same_trials_come(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    process = start(
        "tune", "digits", *TINY, *SPACE, "-s", "fedavg,fedprox", "--trials", str(TRIALS), "--json", "--output", output
    )
    try:
        seen = 0
        while seen < 4:  # in the fourth run
            seen += event(process)["event"] == "member"
    finally:
        process.kill()
        process.communicate()
    assert not (output / "tuned.yaml").exists()
    ways = tune(output)
    assert ways[:3] == ["reused"] * 3 and ways[3] in ("new", "resumed", "reused") and ways[5] == "new"
    assert trials(output).equals(trials(made)) and chosen(output) == chosen(made)


def test_more_trials_go_on_with_the_same(made: Path, copy: Path) -> None:
    assert tune(copy, trials=TRIALS + 1) == ["reused"] * 2 * TRIALS + ["new"] * 2
    before, after = trials(made).drop(columns="chosen"), trials(copy).drop(columns="chosen")
    assert after[: 2 * TRIALS].equals(before) and read(copy).trials == TRIALS + 1


def test_whom_a_contender_stands_beside_changes_nothing_for_it(made: Path, copy: Path) -> None:
    assert tune(copy, strategies="fedprox") == ["reused"] * TRIALS
    assert chosen(copy) == {"fedprox": chosen(made)["fedprox"]}


def test_a_trial_that_diverges_counts_and_is_not_chosen(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {name: digits}\nclient: {lr: 1e+30}\n")
    done = umbel(
        "tune", file, *TINY, "client.lr=choice:0.05,1e+30", "-s", "fedavg", "--trials", 4, "-q", "-o", tmp_path
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    table = trials(tmp_path)
    assert table["client.lr"][0] == 1e30 and 0.05 in table["client.lr"].tolist()  # its own comes first
    assert table[table["client.lr"] == 1e30]["validation/accuracy"].isna().all()
    (found,) = read(tmp_path).chosen
    assert found.values == {"client.lr": "0.05"} and found.diverged == (table["client.lr"] == 1e30).sum()
    assert f"{found.diverged} of 4 trials diverged" in done.stderr
    again = umbel(
        "tune", "digits", *TINY, "client.lr=choice:1e30,2e30", "-s", "fedavg", "--trials", 2, "-q", "-o", tmp_path
    )
    assert again.exit_code == 3 and "No trial of fedavg came to a number" in again.stderr


def test_the_lowest_loss_over_two_seeds_is_chosen(tmp_path: Path) -> None:
    done = umbel(
        "tune", "digits", *TINY, "client.lr=choice:0.001,0.5,0.01", "-s", "fedavg", "--trials", 3, "-q",
        "--metric", "validation/loss", "--seeds", "7,8", "-o", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    table, (found,) = trials(tmp_path), read(tmp_path).chosen
    means = [
        sum(read_json(tmp_path / run / "summary.json")["metrics"]["validation/loss"] for run in runs.split()) / 2
        for runs in table.runs
    ]
    assert table["validation/loss"].tolist() == means and len(set(means)) > 1
    assert found.value == min(means) and found.trial == means.index(min(means))
    if found.values["client.lr"] == "0.5":
        assert "upper end" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("client.lr=0.1..1", "data.server_validation=0"), "data.server_validation or data.client_validation to 0.1"),
        (("client.lr=0.1..1", "evaluate.every=0"), "none are evaluated"),
        (("client.lr=0.1..1", "--metric", "test/accuracy"), "validation data only"),
        (("client.lr=0.1..1", "--metric", "best/test/accuracy"), "validation data only"),
        (("client.lr=0.1..1", "--metric", "clients/validation/accuracy_mean"), "data.client_validation to 0.1"),
        (("client.lr=-1..1",), "client.lr"),
        (("client.optimizer=choice:sgd,adamm",), "client.optimizer"),
        (("client.lr=0.1..1", "client.lr=0.1"), "sets what is searched"),
        (("client.lr=0.1..1", "run.seed=3"), "run.seed is no key of tuning"),
        ((), "Nothing is searched for fedavg"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = umbel("tune", "digits", *TINY, *arguments, "-s", "fedavg", "--output", tmp_path / "t")
    assert done.exit_code == 2 and said in done.stderr, done.output
    assert not (tmp_path / "t").exists()
    assert "tune.strategies" in umbel("tune", "digits", "client.lr=0.1..1", "-o", tmp_path / "t").stderr


def test_a_comparison_has_the_tuned_values_and_says_so(made: Path, tmp_path: Path) -> None:
    arguments = ("compare", "digits", *TINY, "--tuned", made, "--seeds", "1", "-q", "--output", tmp_path / "c")
    done = umbel(*arguments, "-s", "fedavg,fedprox,scaffold", "--untuned", "scaffold", "data.alpha=0.5")
    assert done.exit_code == 0, done.output
    comparison, tuned = read_comparison(tmp_path / "c"), read(made)
    for each in tuned.chosen:
        (member,) = comparison.of(each.label)
        assert member.experiment.client.lr == float(each.values["client.lr"])
        assert member.experiment.strategy.options.get("mu") == (
            float(each.values["strategy.mu"]) if "strategy.mu" in each.values else None
        )
    assert comparison.of("scaffold")[0].experiment.client.lr == 0.05 and comparison.untuned == ["scaffold"]
    text = (tmp_path / "c" / "table.md").read_text()
    assert text == markdown(comparison) and comparison.tuned == tuned
    fedavg = tuned.of("fedavg")
    assert fedavg and f"fedavg {fedavg.in_words} ({fedavg.costs['steps']:,.0f} steps" in text
    for words in (
        f"Tuned by {TRIALS} trials each on validation/accuracy, seeds of their own (1000000)",
        "Not tuned, with the experiment's own values: scaffold; this is not fair.",
        "Tuned under other settings: data.alpha=0.3, here 0.5.",
    ):
        assert words in text
    page = (tmp_path / "c" / "report.html").read_text()
    assert "<h2>Tuning</h2>" in page and f"--tuned {made}" in page and "--untuned scaffold" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-s", "fedavg,scaffold"), "scaffold was not tuned"),
        (("-s", "fedavg,fedprox(mu=0.1)"), "fedprox(mu=0.1) was not tuned"),
        (("-s", "fedavg", "--untuned", "scaffold"), "which is not compared"),
        (("-s", "fedavg", "--untuned", "fedavg"), "which was tuned"),
        (("-s", "fedavg", "--seeds", "5,1000000"), "Seed 1000000"),
        (("-s", "fedavg", "client.lr=0.1"), "client.lr=0.1 would set what was tuned"),
    ],
)
def test_a_comparison_that_would_not_be_fair_is_refused(
    made: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = umbel("compare", "digits", *TINY, "--tuned", made, *arguments, "--output", tmp_path / "c")
    assert done.exit_code == 2 and said in done.stderr, done.output
    assert not (tmp_path / "c").exists()


def test_what_was_chosen_is_kept_as_it_was_written(made: Path, copy: Path) -> None:
    tuned = read(made)
    assert read(made / "tuned.yaml") == tuned == Tuned.from_dict(tuned.as_dict(), made)
    file = copy / "tuned.yaml"
    file.write_text(file.read_text().replace("trials: 3", "trials: 30"))
    with pytest.raises(DamagedError, match=r"tuned\.yaml is damaged"):
        read(copy)
    with pytest.raises(ExperimentError, match=r"has no tuned\.yaml"):
        read(copy / "nowhere")
    done = umbel("compare", "digits", "-s", "fedavg", "--untuned", "fedavg", "--output", copy / "c")
    assert done.exit_code == 2 and "--untuned says nothing without --tuned" in done.stderr

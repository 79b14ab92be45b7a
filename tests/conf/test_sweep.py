"""The blocks of a file that are for comparisons: `compare` and `sweep`, and the option of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from umbel import load
from umbel.conf.errors import ExperimentError
from umbel.conf.load import asked
from umbel.conf.sweep import MOST_SETTINGS, Setting, parse

PRODUCT = "sweep: {data.alpha: [0.1, 1], model.name: [cnn, linear]}\n"
NAMED = "sweep:\n- {name: iid, data.partition: iid}\n- {name: few, data.partition: dirichlet, data.alpha: 0.1}\n"


def file(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(f"data: {{name: digits}}\n{text}")
    return str(path)


def test_a_product_has_every_choice_of_values(tmp_path: Path) -> None:
    settings = asked(file(tmp_path, PRODUCT)).settings
    assert [each.overrides for each in settings] == [
        (f"data.alpha={alpha}", f"model.name={model}") for alpha in ("0.1", "1") for model in ("cnn", "linear")
    ]
    assert settings[0].label == "data.alpha=0.1,model.name=cnn"
    assert parse(["data.alpha=0.1,1", "model.name=cnn, linear"]) == settings


def test_named_settings_keep_their_names(tmp_path: Path) -> None:
    settings = asked(file(tmp_path, NAMED)).settings
    assert settings == (
        Setting("iid", ("data.partition=iid",)),
        Setting("few", ("data.partition=dirichlet", "data.alpha=0.1")),
    )


def test_values_that_are_no_words_come_through_as_they_are(tmp_path: Path) -> None:
    text = "sweep: {model.operators: [{dcls: {layers: depthwise}}, {}], data.heads: [shared, per_task]}\n"
    path = file(tmp_path, text)
    operators = [load(path, each.overrides).model.operators for each in asked(path).settings[::2]]
    assert operators == [{"dcls": {"layers": "depthwise"}}, {}]
    (both, none) = parse(["model.operators={a: 1, b: [1,2]},{}"])
    assert both.overrides == ("model.operators={a: 1, b: [1,2]}",) and none.overrides == ("model.operators={}",)


def test_the_block_compare_is_read_as_the_command_line(tmp_path: Path) -> None:
    found = asked(file(tmp_path, "compare: {strategies: [fedavg, 'fedprox(mu=0.1)'], seeds: [1, 5], budget: steps}\n"))
    assert (found.strategies, found.seeds, found.budget) == ("fedavg,fedprox(mu=0.1)", "1,5,", "steps")
    assert asked(file(tmp_path, "compare: {at_once: auto}\n")).at_once == "auto" and not found.at_once
    few = asked(file(tmp_path, "compare: {strategies: 'fedavg,scaffold', seeds: 4}\n"))
    assert (few.strategies, few.seeds, few.budget, few.settings) == ("fedavg,scaffold", "4", "", ())
    assert asked(file(tmp_path, "compare:\nsweep:\n")) == asked("digits")


def test_one_run_takes_no_sweep_unless_it_says_which_setting(tmp_path: Path) -> None:
    path = file(tmp_path, PRODUCT + "compare: {seeds: 4}\n")
    with pytest.raises(ExperimentError, match=r"4 settings.*umbel compare.*data.alpha=0.1 model.name=cnn"):
        load(path, ["data.alpha=1"])
    assert load(path, ["data.alpha=1", "model.name=linear"]).model.name == "linear"
    assert load(file(tmp_path, NAMED), ["data.partition=iid"]).data.partition == "iid"
    # Blocks are no keys: what sets one on the command line is refused as ever.
    with pytest.raises(ExperimentError, match=r"Unknown key .compare\.seeds"):
        load("digits", ["compare.seeds=3"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sweep: {run.seed: [1, 2]}", "--seeds"),
        ("sweep: {strategy.name: [fedavg, scaffold]}", "--strategies"),
        ("sweep: {description: [a, b]}", "with its section"),
        ("sweep: {data.alpha: 0.1}", "list of values"),
        ("sweep: {data.alpha: []}", "list of values"),
        ("sweep: {data.alpha: [1, 1]}", "1 twice"),
        ("sweep: 3", "`sweep` is a mapping"),
        ("sweep: [{name: a}]", "sets nothing"),
        ("sweep: [{data.alpha: 1}]", "no name"),
        ("sweep: [{name: a, data.alpha: 1}, {name: a, data.alpha: 2}]", "a twice"),
        (f"sweep: {{data.alpha: {list(range(1, MOST_SETTINGS + 2))}}}", f"{MOST_SETTINGS} are allowed"),
        ("compare: [fedavg]", "`compare` is a mapping"),
        ("compare: {strategis: [fedavg]}", "strategies"),
        ("compare: {budget: [steps, bytes]}", "compare.budget"),
        ("compare: {at_once: [1, 2]}", "compare.at_once"),
        ("compare: {seeds: {}}", "compare.seeds"),
    ],
)
def test_blocks_of_another_form_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        asked(file(tmp_path, text + "\n"))
    assert said in str(refused.value)


@pytest.mark.parametrize("option", ["data.alpha", "data.alpha=", "=1", "data.alpha=1,,2", "data.alpha=1,1", "seed=1"])
def test_options_of_another_form_are_refused(option: str) -> None:
    with pytest.raises(ExperimentError, match="--sweep"):
        parse([option])
    with pytest.raises(ExperimentError, match=r"names data\.alpha twice"):
        parse(["data.alpha=1", "data.alpha=2"])

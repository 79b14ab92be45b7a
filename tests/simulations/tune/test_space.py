"""What may be searched: how it is written, for whom it is, what is refused, where a range ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_dict, load
from umbel.core.refusal import Refusal
from umbel.server.errors import RunStoppedError
from umbel.simulations.compare.prepare import parse_strategies
from umbel.simulations.tune import search
from umbel.simulations.tune.carry_out import Run, Trial, common_metric
from umbel.simulations.tune.prepare import prepare
from umbel.simulations.tune.space import Dimension, contenders, own_values, parsed, split


def test_ranges_are_told_from_overrides() -> None:
    overrides, space = split(
        (
            "client.lr=log:0.001..0.3",
            "client.epochs=1..5",
            "client.optimizer=choice:sgd,adam",
            "fedprox(mu=0.1).client.lr=.1...3",
            "data.path=../there..here",
            "run.rounds=3",
        )
    )
    assert overrides == ("data.path=../there..here", "run.rounds=3")
    assert space == {
        "client.lr": "log:0.001..0.3",
        "client.epochs": "1..5",
        "client.optimizer": "choice:sgd,adam",
        "fedprox(mu=0.1).client.lr": ".1...3",
    }
    with pytest.raises(ExperimentError, match="searched twice"):
        split(("client.lr=0.1..0.2", "client.lr=0.1..0.3"))


@pytest.mark.parametrize(
    ("text", "hint", "found"),
    [
        ("log:0.001..0.3", float, Dimension("k", "log:0.001..0.3", (), 0.001, 0.3, True, False)),
        ("0..1", float, Dimension("k", "0..1", (), 0.0, 1.0, False, False)),
        ("1..5", int, Dimension("k", "1..5", (), 1.0, 5.0, False, True)),
        ("log:1..64", int, Dimension("k", "log:1..64", (), 1.0, 64.0, True, True)),
        ("0..1", None, Dimension("k", "0..1", (), 0.0, 1.0, False, True)),
        ("0.0..1", None, Dimension("k", "0.0..1", (), 0.0, 1.0, False, False)),
        (".1...3", float, Dimension("k", ".1...3", (), 0.1, 0.3, False, False)),
        ("choice: a, b", str, Dimension("k", "choice: a, b", ("a", "b"))),
    ],
)
def test_what_is_written_is_read(text: str, hint: type | None, found: Dimension) -> None:
    assert parsed("k", text, hint) == found


@pytest.mark.parametrize(
    ("text", "hint", "said"),
    [
        ("log:0..1", float, "above 0"),
        ("2..1", float, "a larger one"),
        ("1..1", int, "a larger one"),
        ("1..2.5", int, "whole number"),
        ("0..1", bool, "no number"),
        ("log:a..b", float, "no range"),
        ("log:0.1", float, "no range"),
        ("choice:a", str, "two values"),
        ("choice:a,a", str, "none twice"),
        ("choice:a,,b", str, "none empty"),
    ],
)
def test_what_is_no_range_is_refused(text: str, hint: type, said: str) -> None:
    with pytest.raises(ExperimentError, match=said) as refused:
        parsed("client.k", text, hint)
    assert refused.value.key == "client.k" and "log:0.001..0.3" in refused.value.remedy


def test_keys_go_to_those_that_have_them() -> None:
    items = parse_strategies("fedavg,fedprox,moon(temperature=1),flwr:FedTrimmedAvg")
    found = contenders(
        items,
        {
            "client.lr": "log:0.001..0.3",
            "strategy.mu": "log:1e-4..1",
            "fedprox.client.lr": "log:0.01..1",
            "moon(temperature=1).client.momentum": "0..0.9",
            "flwr:FedTrimmedAvg.beta": "0.0..0.4",
        },
    )
    assert {each.item.label: {one.key: one.text for one in each.dimensions} for each in found} == {
        "fedavg": {"client.lr": "log:0.001..0.3"},
        "fedprox": {"client.lr": "log:0.01..1", "strategy.mu": "log:1e-4..1"},
        "moon(temperature=1)": {
            "client.lr": "log:0.001..0.3",
            "strategy.mu": "log:1e-4..1",
            "client.momentum": "0..0.9",
        },
        "flwr:FedTrimmedAvg": {"client.lr": "log:0.001..0.3", "strategy.beta": "0.0..0.4"},
    }


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"fedprox.mu": "0.1..1"}, "Nothing is searched for fedavg"),
        ({"client.lrr": "0.1..1"}, "client.lr"),
        ({"client.device": "choice:cpu,cuda"}, "client.device"),
        ({"strategy.nu": "0.1..1"}, "strategy.mu"),
        ({"fedprox.nu": "0.1..1"}, "strategy.mu"),
        ({"scaffold.mu": "0.1..1"}, "fedprox.mu"),
        ({"data.alpha": "0.1..1"}, "Unknown key to search"),
        ({"run.rounds": "1..5"}, "Unknown key to search"),
        ({"client.lr": "0.1..1", "strategy.mu": "0.1..1"}, "in the brackets of fedprox"),
    ],
)
def test_what_cannot_be_searched_is_refused(space: dict[str, str], said: str) -> None:
    mine = "fedavg,fedprox(mu=0.1)" if "brackets" in said else "fedavg,fedprox"
    with pytest.raises(ExperimentError, match=said):
        contenders(parse_strategies(mine), space)


def test_numbers_are_short_and_within_their_range() -> None:
    rate = parsed("client.lr", "log:0.001234567..0.3", float)
    assert rate.written(0.0123456789) == "0.01235"
    assert rate.ends == ("0.001234567", "0.3") and rate.written(0.00123) == "0.001234567"
    whole = parsed("client.epochs", "1..5", int)
    assert whole.ends == ("1", "5") and whole.written(3) == "3"


def test_the_ends_of_a_range() -> None:
    rate = parsed("client.lr", "log:0.001..1", float)  # a twentieth: up to 10^-2.85, from 10^-0.15
    assert [rate.edge(text) for text in ("0.001", "0.0014", "0.0015", "0.03", "0.7", "0.71", "1")] == [
        "lower", "lower", "", "", "", "upper", "upper",
    ]  # fmt: skip
    even = parsed("client.momentum", "0..1", float)
    assert [even.edge(text) for text in ("0.05", "0.06", "0.94", "0.95")] == ["lower", "", "", "upper"]
    sizes = parsed("client.batch_size", "choice:32,8,16", int)
    assert [sizes.edge(text) for text in ("8", "16", "32")] == ["lower", "", "upper"]
    assert parsed("k", "choice:1,2", int).edge("1") == "" and parsed("k", "choice:a,b,c", str).edge("a") == ""


def test_the_experiments_own_values_are_tried_where_they_are_searched() -> None:
    plain = as_dict(load("digits", ["client.lr=0.0123456789", "client.nesterov=true", "client.momentum=0.5"]))
    rate, flag = parsed("client.lr", "0..1", float), parsed("client.nesterov", "choice:true,false", bool)
    assert own_values((rate, flag), plain) == {"client.lr": "0.0123456789", "client.nesterov": "true"}
    assert own_values((rate, parsed("client.momentum", "0.6..0.9", float)), plain) is None
    assert own_values((parsed("strategy.beta", "0.0..1", None),), plain) is None


def test_the_space_may_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "data: {name: digits}\n"
        "tune:\n  strategies: fedavg,fedprox\n  trials: 4\n  space:\n"
        "    client.lr: log:0.001..0.3\n    client.epochs: 1..5\n    fedprox.mu: 'choice:0.01,0.1'\n"
    )
    tune = load(str(file)).tune
    assert (tune.strategies, tune.trials) == ("fedavg,fedprox", 4)
    assert tune.space == {"client.lr": "log:0.001..0.3", "client.epochs": "1..5", "fedprox.mu": "choice:0.01,0.1"}
    with pytest.raises(ExperimentError, match=r"tune\.trials"):
        load(str(file), ["tune.trials=0"])


def test_contenders_that_the_block_leaves_out_are_those_of_the_comparison(tmp_path: Path) -> None:
    file, block = tmp_path / "mine.yaml", "data: {name: digits}\ncompare: {strategies: [fedavg, 'fedprox(mu=0.5)']}\n"
    file.write_text(block + "tune: {space: {client.lr: 0.1..1}}\n")
    assert [each.item.label for each in prepare(str(file), ()).contenders] == ["fedavg", "fedprox(mu=0.5)"]
    assert [each.item.label for each in prepare(str(file), (), strategies="moon").contenders] == ["moon"]
    file.write_text(block + "tune: {strategies: scaffold, space: {client.lr: 0.1..1}}\n")
    assert [each.item.label for each in prepare(str(file), ()).contenders] == ["scaffold"]


def test_the_choice_goes_by_what_all_have() -> None:
    def trial(*metrics: str) -> Trial:
        return Trial(0, {}, (Run(Path("run"), dict.fromkeys(metrics, 0.5), {}),))

    server, clients = "validation/accuracy", "clients/validation/accuracy_mean"
    assert common_metric("", [trial(server, clients), trial(clients, server)]) == server
    assert common_metric("", [trial(server, clients), trial(clients)]) == clients
    assert common_metric("validation/f1", [trial(server, "validation/f1"), trial("validation/f1")]) == "validation/f1"
    assert common_metric("", [trial(), trial()]) == "" and common_metric("", [trial(), trial(server)]) == server
    with pytest.raises(RunStoppedError, match=r"all have validation/loss: name one of these by --metric"):
        common_metric("", [trial(server, "validation/loss"), trial("validation/rsum", "validation/loss")])
    with pytest.raises(RunStoppedError, match=r"\(validation/f2\)"):
        common_metric("validation/f2", [trial(server)])


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "find_spec", lambda module: None)
    with pytest.raises(Refusal) as refused:
        search.check_installed()
    assert refused.value.remedy == "pip install 'optuna>=5,<6'"

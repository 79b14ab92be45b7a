"""Every operator in CvT and in the CNN runs a federated round; what is refused; how an experiment names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import bits
from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.models import operators

BASES = ("cvt_tiny32", "cnn")
# 12 px, so that each base has maps of several sides; 5 clients: a block of 4 and one of 1.
SMALL = (
    "data.name=synthetic",
    "data.options={num_examples: 100, num_test: 20, num_classes: 3, image_size: 12, noise: 0.5, attributes: 4}",
    *("data.num_clients=5", "data.partition=iid", "client.epochs=0", "client.max_steps=2", "client.batch_size=8"),
    *("run.rounds=1", "run.seed=5", "evaluate.every=0", "checkpoint.every=0"),
)
OPTIONS = {
    "wconv": "{trainable: true}",
    "dcls": "{size: 7, count: 5, share: stage}",
    "e2gc": "{group_size: 8}",
    "glsim": "{num_top: 3}",
}
ALL = [(base, operator) for base in BASES for operator in operators.names()]


def overrides(base: str, operator: str) -> tuple[str, ...]:
    options = OPTIONS.get(operator, "{}")
    return (*SMALL, f"model.name={base}", f"model.operators={{{operator}: {options}}}")


def plain(base: str) -> tuple[str, ...]:
    return (*SMALL, f"model.name={base}")


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each base's bits without an operator."""
    folder = tmp_path_factory.mktemp("without")
    return {base: bits(run("digits", *plain(base), f"run.results={folder}")) for base in BASES}


@pytest.mark.parametrize(("base", "operator"), ALL)
def test_a_round_in_one_process(base: str, operator: str, without: dict[str, str], tmp_path: Path) -> None:
    chosen = overrides(base, operator)
    results = [run("digits", *chosen, f"run.results={tmp_path}") for _ in range(2)]
    assert all(result.summary["num_failures"] == 0 for result in results)
    assert bits(results[0]) == bits(results[1]) != without[base]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.operators={wconf: {}}"], r"Unknown operator 'wconf'.*wconv"),
        (["model.operators={wconv: {densty: 1}}"], r"model\.operators\.wconv\.densty.*density"),
        (["model.operators={wconv: 3}"], r"model\.operators\.wconv is a mapping of options"),
        (["model.operators.wconv.densty=1"], r"model\.operators\.wconv\.densty"),
        (["model.operator={wconv: {}}"], r"model\.operator'.*model\.operators"),
        (["model.operators={dcls: {}}", "strategy.name=fot"], r"fot projects changes.*model\.operators\.dcls"),
    ],
)
def test_what_cannot_be_is_refused_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        load("digits", overrides)


def test_operators_of_an_experiment_travel_in_its_hash_and_yaml() -> None:
    from umbel.conf.load import as_yaml, portable_hash

    experiment = load("digits", ["model.operators.wconv.density=[0.7]", "model.name=cnn"])
    assert experiment.model.operators == {"wconv": {"density": [0.7]}}
    assert load("x", text=as_yaml(experiment)) == experiment
    others = [load("digits", ["model.name=cnn", *more]) for more in ([], ["model.operators.wconv.density=[0.8]"])]
    assert len({portable_hash(each) for each in (experiment, *others)}) == 3

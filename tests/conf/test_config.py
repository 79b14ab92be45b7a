"""Experiments: what is refused, and how; what survives a round trip; what the hash sees."""

from __future__ import annotations

import pytest

from tests.helpers import small_run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_yaml, build_strategy, describe, experiment_names, known_keys, load, portable_hash
from umbel.core.training import LocalConfig
from umbel.data import MissingDataError
from umbel.strategies import fedprox, registry


def test_defaults_and_overrides():
    composed = load("digits", ["run.rounds=3", "client.lr=1e-3", "strategy.name=fedprox", "strategy.mu=2e-1"])
    assert (composed.run.rounds, composed.client.lr, composed.strategy.options["mu"]) == (3, 1e-3, 0.2)
    assert composed.strategy.options == {"mu": 0.2, "server_lr": 1.0, "weighting": "examples"}
    assert isinstance(composed.client, LocalConfig) and composed.name == "digits"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("client.lr=1e-3", lambda e: e.client.lr, 1e-3),
        ("client.lr=1E-3", lambda e: e.client.lr, 1e-3),
        ("client.lr=.5", lambda e: e.client.lr, 0.5),
        ("client.lr=1", lambda e: e.client.lr, 1.0),
        ("data.seed=null", lambda e: e.data.seed, None),
        ("data.seed=7", lambda e: e.data.seed, 7),
        ("description=a=b", lambda e: e.description, "a=b"),
        ("data.options={a: [1, 2], b: 1e-3}", lambda e: e.data.options, {"a": [1, 2], "b": 1e-3}),
        ("data.options.num_test=5", lambda e: e.data.options, {"num_test": 5}),
        ("engine.memory_bytes=1024", lambda e: e.engine.memory_bytes, 1024),
    ],
)
def test_values_of_overrides(override, read, expected):
    composed = read(load("digits", ["data.name=synthetic", override] if "options" in override else [override]))
    assert composed == expected and type(composed) is type(expected)


def test_later_overrides_win():
    assert load("digits", ["run.rounds=3", "run.rounds=4"]).run.rounds == 4


def test_lists_in_model_sizes():
    composed = load("digits", ["model.name=cvt_tiny32", "model.sizes.dims=[8,16,32]"])
    assert list(composed.model.sizes["dims"]) == [8, 16, 32]


REFUSED = [
    ("run.round=3", "Unknown key 'run.round'. Did you mean run.rounds"),
    ("cleint.lr=3", "Unknown key 'cleint.lr'. Did you mean client.lr"),
    ("strategy.mue=3", r"Unknown key 'strategy.mue'"),
    ("run=3", "run is a section. Set a key in it"),
    ("strategy=fedprox", "strategy is a section. Set strategy.name=fedprox"),
    ("run.rounds.x=3", "run.rounds.x"),
    ("run.rounds=many", "run.rounds: .*many"),
    ("run.rounds=2.5", "run.rounds: .*2.5"),
    ("run.rounds=true", "run.rounds: "),
    ("client.lr=fast", "client.lr: .*fast"),
    ("strategy.server_lr=fast", "strategy.server_lr: .*fast"),
    ("client.lr=[1]", "client.lr: "),
    ("data.options=3", "data.options"),
    ("run.rounds", "An override is key=value"),
    ("=3", "An override is key=value"),
    ("strategy.name=fedprx", "strategy.name.*Did you mean 'fedprox'"),
    ("strategy.name=nowhere.to_be:Found", "nowhere.to_be:Found.*key strategy.name"),
    ("model.name=cvt_tiny", "model.name.*Did you mean .*'cvt_tiny32'"),
    ("data.name=digit", "data.name.*Did you mean 'digits'"),
    ("data.partition=dirichlett", "data.partition.*Did you mean 'dirichlet'"),
    ("data.augment=flips", "data.augment.*Did you mean 'flip'"),
    ("model.norm=batch", "model.norm"),
    ("engine.name=rey", "engine.name.*Did you mean 'ray'"),
    ("engine.name=process", "engine.name.*Did you mean 'processes'"),
    ("client.optimizer=sgdm", "client.optimizer.*Did you mean 'sgd'"),
    ("client.precision=fp8", "client.precision"),
    ("client.device=gpu", "client.device"),
    ("run.rounds=0", "run.rounds should be at least 1, found 0"),
    ("client.lr=-1", "client.lr should be at least 0"),
    ("client.lr=.nan", "client.lr should be at least 0"),
    ("run.participation=0", "run.participation"),
    ("run.participation=1.5", "run.participation"),
    ("run.clients_per_round=11", "run.clients_per_round=11 is more than data.num_clients=10"),
    ("run.min_replies=11", "run.min_replies=11 can never be met"),
    ("run.min_replies=0", "run.min_replies should be above 0, found 0"),
    ("run.min_replies=0.0", "run.min_replies should be above 0"),
    (
        "run.min_replies=2.0",
        "run.min_replies=2.0 is written with a point.*For a number of replies write 2; .*write 1.0",
    ),
    ("run.min_replies=50%", "run.min_replies: expected a whole number or a number"),
    ("data.client_test=1", "data.client_test"),
    ("data.alpha=0", "data.alpha"),
    ("evaluate.clients=-2", "evaluate.clients"),
    ("strategy.weighting=batches", "strategy.weighting"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[override for override, _ in REFUSED])
def test_refused(override, message):
    with pytest.raises(ExperimentError, match=message):
        load("digits", [override])


@pytest.mark.parametrize(
    ("written", "cohort", "needed"),
    [("1", 10, 1), ("3", 10, 3), ("1.0", 10, 10), ("0.5", 10, 5), ("0.75", 10, 8), ("0.07", 100, 7), ("0.01", 4, 1)],
)
def test_min_replies_with_a_point_is_a_share_of_the_cohort(written, cohort, needed):
    composed = load("digits", [f"run.min_replies={written}"])
    assert composed.run.replies_needed(cohort) == needed
    again = load("again", (), as_yaml(composed))
    assert repr(again.run.min_replies) == repr(composed.run.min_replies) == written


COMBINATIONS = [
    (["client.epochs=0"], "client.epochs=0 and client.max_steps=0"),
    (["client.nesterov=true"], "client.nesterov=true needs client.momentum"),
    (["client.optimizer=adam", "client.momentum=0.9"], "client.momentum goes with client.optimizer=sgd"),
    (["data.client_validation=0.5", "data.client_test=0.5"], "leave nothing to train on"),
    (["run.participation=0.1", "run.min_replies=2"], "run.min_replies=2 can never be met: a round selects 1"),
    (["strategy.name=scaffold", "client.clip_norm=1"], "client.clip_norm=0, or strategy.option=I"),
    (["strategy.name=fedopt", "strategy.bias_correction=true"], "strategy.optimizer=adam"),
    (["strategy.name=fedprox", "strategy.mu=-1"], "strategy.mu"),
]


@pytest.mark.parametrize(("overrides", "message"), COMBINATIONS, ids=[" ".join(o) for o, _ in COMBINATIONS])
def test_combinations_that_cannot_be(overrides, message):
    with pytest.raises(ExperimentError, match=message):
        load("digits", overrides)


def test_files_that_are_no_experiments(tmp_path):
    with pytest.raises(ExperimentError, match=r"'digts'.*Did you mean 'digits'"):
        load("digts")
    with pytest.raises(ExperimentError, match="There is no experiment file"):
        load(str(tmp_path / "none.yaml"))
    for text, message in (("[1, 2]", "is a mapping"), ("a: [", "not valid YAML"), ("", "is a mapping")):
        path = tmp_path / "own.yaml"
        path.write_text(text)
        with pytest.raises(ExperimentError, match=message):
            load(str(path))
    path.write_text("run: {rounds: 7}\ndata:\n")
    assert load(str(path)).run.rounds == 7 and load(str(path)).name == "own"


@pytest.mark.parametrize("name", experiment_names())
def test_every_shipped_experiment_loads_and_survives(name):
    composed = load(name)
    assert composed.name == name and describe(name) == composed.description and len(composed.description) > 10
    assert load("came-in-a-message", text=as_yaml(composed)) == composed
    assert portable_hash(load("x", text=as_yaml(composed))) == portable_hash(composed)
    build_strategy(composed)


def test_tiny_numbers_survive():
    composed = load("digits", ["client.lr=1e-7", "strategy.server_lr=1e20", "data.seed=3"])
    assert load("x", text=as_yaml(composed)) == composed


@pytest.mark.parametrize(
    "override",
    [
        "engine.name=ray",
        "engine.workers=3",
        "run.results=/elsewhere",
        "run.name=mine",
        "run.rounds=99",
        "client.device=cpu",
        "data.path=/data",
        "checkpoint.every=1",
        "evaluate.every=7",
    ],
)
def test_what_a_site_decides_is_not_in_the_hash(override):
    assert portable_hash(load("digits", [override])) == portable_hash(load("digits"))


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=1",
        "client.lr=0.06",
        "client.precision=fp64",
        "strategy.server_lr=0.5",
        "strategy.weighting=uniform",
        "strategy.name=fedopt",
        "data.num_clients=9",
        "data.alpha=0.4",
        "data.seed=1",
        "model.name=cnn",
        "model.norm=group",
        "model.sizes.mlp_ratio=1",
        "run.threads=2",
        "run.clients_per_round=3",
    ],
)
def test_what_fixes_the_bits_is_in_the_hash(override):
    assert portable_hash(load("digits", [override])) != portable_hash(load("digits"))


def test_a_strategy_from_a_package():
    composed = load("digits", ["strategy.name=umbel.strategies.fedprox:FedProx", "strategy.mu=0.5"])
    strategy = build_strategy(composed)
    assert isinstance(strategy, fedprox.FedProx) and strategy.config.mu == 0.5
    with pytest.raises(ExperimentError, match=r"Did you mean strategy.mu"):
        load("digits", ["strategy.name=umbel.strategies.fedprox:FedProx", "strategy.mux=0.5"])


@pytest.mark.parametrize("name", registry.names())
def test_every_option_is_a_key(name):
    keys = known_keys(name)
    assert {f"strategy.{option}" for option in registry.options(name)} < set(keys)
    assert {"run.rounds", "client.lr", "data.options", "model.sizes", "strategy.name"} < set(keys)


SHRUNK = (
    "data.max_train=2000",
    "data.min_examples=1",
    "data.max_test=50",
    "run.rounds=1",
    "evaluate.clients=2",
    "client.max_steps=2",
    "engine.name=inline",
    "client.device=cpu",
)


def levels(name: str) -> set[tuple[str, str]]:
    """What an experiment is made of."""
    composed = load(name)
    chosen = {"partition": composed.data.partition, "model": composed.model.name, "strategy": composed.strategy.name}
    return {("data", composed.data.name), *chosen.items()}  # test_operators_federated.py runs each operator


def covering() -> set[str]:
    """Few experiments that have each level of those that need neither a pretrained encoder nor the hub."""
    hub = ("cifar10", "cifar100", "coco_captions", "digits4", "office_home", "tiny_imagenet")
    rest = {n: levels(n) for n in experiment_names() if not load(n).data.encoder and load(n).data.name not in hub}
    taken: dict[str, set[tuple[str, str]]] = {}
    while rest and (missing := set.union(*rest.values()) - set().union(*taken.values())):
        best = max(sorted(rest), key=lambda each: len(rest[each] & missing))
        taken[best] = rest.pop(best)
    return {*taken, "digits"}


COVERING = covering()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in COVERING else pytest.mark.exhaustive) for n in experiment_names()],
)
def test_every_shipped_experiment_runs_a_round(name, tmp_path):
    from umbel import run

    at_once = ["data.rounds_per_task=0"] if load(name).schedule.is_sequence else []  # one round has no second task
    try:
        composed = run(name, *SHRUNK, *at_once, f"run.results={tmp_path}")
    except MissingDataError as error:
        pytest.skip(f"{name}: {error}")
    assert composed.summary["rounds"] == 1 and len(composed.summary["weights_sha256"]) == 64
    assert composed.summary["num_failures"] == 0


def test_a_refused_experiment_leaves_nothing_behind(tmp_path):
    with pytest.raises(ExperimentError):
        small_run(tmp_path, "client.lr=fast")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("override", ["data.augment=flip", "data.partition=permuted_tasks"])
def test_what_changes_images_does_not_go_with_embeddings(override: str) -> None:
    with pytest.raises(ExperimentError, match=r"changes images.*data\.encoder=pixels"):
        load("digits", [override, "data.encoder=pixels"])


@pytest.mark.parametrize("name", ["a, b", "../up", ".hidden", "a/b"])
def test_a_run_is_named_like_a_folder(name: str) -> None:
    """Clients keep their memory under this name, and refuse others."""
    with pytest.raises(ExperimentError, match=r"run\.name"):
        load("digits", [f"run.name='{name}'"])

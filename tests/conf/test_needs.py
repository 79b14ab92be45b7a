"""What strategies need of an experiment, and of its data: refused by name and by import path, with key and remedy."""

from __future__ import annotations

import pytest

from tests.strategies.creamfl.pairs import PAIRS
from umbel.conf.check import strategy_of
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import federation
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.server.session import Session

PATHS = {
    "ggeur": "umbel.strategies.ggeur:GGEUR",
    "fot": "umbel.strategies.fot.method:FOT",
    "fedloge": "umbel.strategies.fedloge:FedLoGe",
    "creamfl": "umbel.strategies.creamfl:CreamFL",
    "scaffold": "umbel.strategies.scaffold:Scaffold",
    "fednova": "umbel.strategies.fednova:FedNova",
    "fedper": "umbel.strategies.fedper:FedPer",
    "fedrep": "umbel.strategies.fedrep:FedRep",
    "lgfedavg": "umbel.strategies.lgfedavg:LGFedAvg",
    "fedproto": "umbel.strategies.fedproto:FedProto",
    "ccvr": "umbel.strategies.ccvr:CCVR",
    "fedntd": "umbel.strategies.fedntd:FedNTD",
    "fedmd": "umbel.strategies.fedmd:FedMD",
    "fedgems": "umbel.strategies.fedgems:FedGEMS",
    "fedet": "umbel.strategies.fedet:FedET",
    "replay": "umbel.strategies.continual.replay:Replay",
}
TASKS = ("data.partition=split_tasks", "data.rounds_per_task=2", "run.rounds=10")
EMBEDDED = ("model.name=linear", "data.encoder=pixels")
WRONG = [
    ("ggeur", ("model.name=linear",), "data.encoder"),
    ("ggeur", ("model.name=linear", "strategy.base=umbel.strategies.fedavg:FedAvg"), "data.encoder"),
    ("ggeur", (*EMBEDDED, *TASKS), "data.rounds_per_task"),
    ("ggeur", (*EMBEDDED, "strategy.base=scaffold", "client.clip_norm=1"), "client.clip_norm"),
    ("ggeur", (*EMBEDDED, "strategy.base=umbel.strategies.creamfl:CreamFL"), "strategy.base"),
    ("ggeur", (*EMBEDDED, "strategy.base=umbel.strategies.ggeur:GGEUR"), "strategy.base"),
    ("ggeur", (*EMBEDDED, "strategy.base=fedprox", "strategy.base_options={mu: -1}"), "strategy.base_options.mu"),
    ("ggeur", (*EMBEDDED, "strategy.base=fedprox", "strategy.base_options={mu: fast}"), "strategy.base_options.mu"),
    ("ggeur", ("strategy.refresh=2", "strategy.base=fot", "model.operators={dcls: {}}"), "strategy.refresh"),
    ("ggeur", (*EMBEDDED, "strategy.augment=false", "strategy.base=fedloge", *TASKS), "data.rounds_per_task"),
    ("fot", ("model.operators={dcls: {}}",), "model.operators.dcls"),
    ("fedloge", TASKS, "data.rounds_per_task"),
    ("fedloge", ("client.clip_norm=1",), "client.clip_norm"),
    ("scaffold", ("client.optimizer=adam",), "client.optimizer"),
    ("scaffold", ("client.clip_norm=1",), "client.clip_norm"),
    ("fednova", ("client.optimizer=adam",), "client.optimizer"),
    ("fednova", ("client.clip_norm=1",), "client.clip_norm"),
    ("fednova", ("client.lr=0.5", "strategy.mu=2"), "strategy.mu"),
    ("fedper", ("evaluate.collapse=true",), "evaluate.collapse"),
    ("fedrep", ("evaluate.collapse=true",), "evaluate.collapse"),
    ("lgfedavg", ("evaluate.collapse=true",), "evaluate.collapse"),
    ("fedproto", ("evaluate.collapse=true",), "evaluate.collapse"),
    ("ccvr", ("run.patience=2",), "run.patience"),
    ("fedper", ("model.init=elsewhere",), "model.init"),
    ("ggeur", (*EMBEDDED, "strategy.base=fedper"), "strategy.base"),
    ("fedntd", (*TASKS, "data.heads=per_task"), "data.heads"),
    ("replay", ("client.class_weights=balanced",), "client.class_weights"),
    ("fedmd", ("data.public=0",), "data.public"),
    ("fedmd", ("data.public=0.2", *TASKS), "data.rounds_per_task"),
    ("fedmd", ("data.public=0.2", "data.partition=split_tasks", "data.heads=per_task"), "data.heads"),
    ("fedmd", ("data.public=0.2", "model.norm=local"), "model.norm"),
    ("fedmd", ("data.public=0.2", "evaluate.collapse=true"), "evaluate.collapse"),
    ("fedgems", ("data.public=0",), "data.public"),
    ("fedgems", ("data.public=0.2", *TASKS), "data.rounds_per_task"),
    ("fedgems", ("data.public=0.2", "data.partition=split_tasks", "data.heads=per_task"), "data.heads"),
    ("fedgems", ("data.public=0.2", "model.norm=local"), "model.norm"),
    ("fedgems", ("data.public=0.2", "evaluate.collapse=true"), "evaluate.collapse"),
    ("fedet", ("data.public=0",), "data.public"),
    ("fedet", ("data.public=0.2", *TASKS), "data.rounds_per_task"),
    ("fedet", ("data.public=0.2", "data.partition=split_tasks", "data.heads=per_task"), "data.heads"),
    ("fedet", ("data.public=0.2", "model.norm=local"), "model.norm"),
    ("fedet", ("data.public=0.2", "evaluate.collapse=true"), "evaluate.collapse"),
    ("creamfl", ("data.public=0",), "data.public"),
    ("creamfl", ("data.text_encoder=",), "data.text_encoder"),
    ("creamfl", ("strategy.num_both=1",), "data.num_clients"),
    ("creamfl", ("data.augment=flip",), "data.augment"),
    ("creamfl", ("data.partition=split_tasks",), "data.partition"),
    ("creamfl", ("evaluate.collapse=true",), "evaluate.collapse"),
    ("creamfl", ("model.norm=local",), "model.norm"),
    ("creamfl", ("model.operators={wconv: {}}",), "model.operators"),
]


@pytest.mark.parametrize("by_path", [False, True], ids=["name", "path"])
@pytest.mark.parametrize(("name", "overrides", "key"), WRONG, ids=[f"{n} {o[-1]}" for n, o, _ in WRONG])
def test_what_a_strategy_does_not_go_with_is_refused(name, overrides, key, by_path):
    rest = PAIRS if name == "creamfl" else ()
    given = [*rest, f"strategy.name={PATHS[name] if by_path else name}", *overrides]
    with pytest.raises(ExperimentError) as caught:
        load("digits", given)
    assert caught.value.key == key and key in str(caught.value)
    assert caught.value.remedy or ".base_options." in key


@pytest.mark.parametrize("by_path", [False, True], ids=["name", "path"])
def test_what_a_strategy_does_not_find_in_the_data_is_refused(by_path):
    name = f"strategy.name={PATHS['ggeur'] if by_path else 'ggeur'}"
    wrong = load("digits", [name, *EMBEDDED, "strategy.domains=true"])
    with pytest.raises(Refusal, match=r"other domains, and these data have none\. Set strategy\.domains=false"):
        Session(wrong)
    Session(load("digits", [name, *EMBEDDED]))


def test_a_strategy_over_a_base_asks_it_about_the_data():
    composed = load("digits", ["strategy.name=ggeur", *EMBEDDED, "strategy.base=fedprox"])
    data = federation(composed)
    from umbel.strategies.fedprox import FedProx

    asked = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FedProx, "check_data", lambda self, given: asked.append(given))
        strategy_of(composed).check_data(data)
    assert asked == [data]

"""Phases: each has a name of its own, is found by it, and keeps its exchange under a strategy that goes over it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.end_to_end.test_engines import SMALL, STRATEGIES
from tests.helpers import unequal
from umbel.client.worker import Worker
from umbel.conf.load import load
from umbel.core.fold_tree import FoldTree
from umbel.core.names import UnknownNameError
from umbel.core.records import Payload
from umbel.core.refusal import Refusal
from umbel.core.wire.work import Work
from umbel.server.session import Session
from umbel.strategies import fedavg, registry, scaffold
from umbel.strategies.base import Phase, by_name, over
from umbel.strategies.fedavg import FedAvg
from umbel.strategies.fot import method as fot
from umbel.strategies.ggeur import method as ggeur


def names(phases: tuple[Phase[Any], ...]) -> list[str]:
    return [phase.name for phase in phases]


def session_of(strategy: str) -> Session:
    return Session(load("digits", [*SMALL, *STRATEGIES[strategy]]))


@pytest.mark.parametrize("name", registry.names())
def test_every_phase_has_a_name_of_its_own(name):
    kind = registry.find(name)
    strategy = kind(kind.config_class())
    every = names(strategy.every_phase())
    assert every and len(set(every)) == len(every) and "evaluate" not in every
    assert names(tuple(strategy.phase(each) for each in every)) == every


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_round_has_some_of_all_phases_in_their_order(name):
    session = session_of(name)
    every = names(session.strategy.every_phase())
    first = names(session.phases(session.strategy.initial(session.context(0))))
    assert first and first == [each for each in every if each in first]


def test_a_phase_that_is_not_there():
    with pytest.raises(UnknownNameError, match=r"FOT has no phase 'skech'.*train, sketch.*Did you mean 'sketch'"):
        fot.FOT(fot.Config()).phase("skech")


class Twice(FedAvg):
    """A round of two phases of one name."""

    def every_phase(self):
        return (*super().every_phase(), *super().every_phase())


class Evaluating(FedAvg):
    """A phase that is called like the loop's own exchange."""

    def every_phase(self):
        return (replace(super().every_phase()[0], name="evaluate"),)


class Shaping(FedAvg):
    """A phase that is called like one of GGEUR's."""

    def every_phase(self):
        return (replace(super().every_phase()[0], name="geometry"),)


@pytest.mark.parametrize("kind", [Twice, Evaluating])
def test_names_that_are_not_distinct_are_refused_before_anything_starts(kind):
    with pytest.raises(Refusal, match=r"(two phases of a round are|own exchange is) called '(train|evaluate)'"):
        kind(fedavg.Config()).phase("train")
    with pytest.raises(Refusal, match="another name"):
        Session(load("digits", [*SMALL, f"strategy.name={__name__}:{kind.__name__}"]))


def test_a_base_whose_phase_is_called_like_one_of_ggeurs_is_refused():
    base = f"{__name__}:Shaping"
    with pytest.raises(Refusal, match=r"called 'geometry' \(key strategy\.base\)"):
        ggeur.GGEUR(ggeur.Config(base=base))
    assert names(ggeur.GGEUR(ggeur.Config(base=base, augment=False)).every_phase()) == ["geometry"]


def test_a_step_of_the_server_has_no_exchange():
    step: Phase[int] = Phase.of_server("learn", lambda state, server: state + server.round, lambda state: {"x": state})
    assert step.who == "server" and step.update(3, None, unequal().server(4)) == 7 and step.measured(7) == {"x": 7}
    for asked in (step.broadcast, step.local, step.fold):
        with pytest.raises(TypeError, match="'learn' is a step of the server alone"):
            asked(None, None)


@pytest.mark.parametrize("kind", [FedAvg, scaffold.Scaffold])
def test_over_keeps_the_bases_exchange(kind):
    """The same bits as alone, in a State that has the base's inside."""
    alone, above = unequal(), unequal()
    strategy = kind(kind.config_class())
    (train,) = strategy.every_phase()
    lifted: Phase[tuple[str, Any]] = over(train, get=lambda state: state[1], put=lambda state, base: (state[0], base))
    assert (lifted.name, lifted.who, lifted.groups) == ("train", "sample", ())
    state = strategy.initial(alone.server())
    pair = ("own", state)
    for round_ in (1, 2):
        state = alone.round(strategy, state, round_)
        sent = lifted.broadcast(pair, above.server(round_))
        fold = lifted.fold()
        replies = FoldTree(fold, above.num_clients)
        for k in range(above.num_clients):
            client = above.client(k, round_, lambda record, k=k: above.memory.update({k: record}))
            replies.add_reply(k, k, lifted.local(sent, client))
        pair = lifted.update(pair, fold.finish(replies.root()), above.server(round_))
    assert pair[0] == "own"
    assert torch.equal(pair[1].model["w"], state.model["w"])


def test_over_shows_the_base_another_server_and_client():
    problem, seen = unequal(), []

    def update(state, folded, server):
        seen.append(server.num_examples)
        return state

    def broadcast(state, server):
        seen.append(server.num_examples)
        return FedAvg(fedavg.Config()).send_model(state, server)

    (train,) = FedAvg(fedavg.Config()).every_phase()
    lifted: Phase[fedavg.State] = over(
        replace(train, broadcast=broadcast, update=update, measured=lambda state: {"w": 1.0}),
        get=lambda state: state,
        put=lambda state, base: base,
        server=lambda state, server: replace(server, num_examples=99),
        client=lambda payload, client: client.with_data(client.train_data.take(torch.arange(1))),
    )
    state = FedAvg(fedavg.Config()).initial(problem.server())
    sent = lifted.broadcast(state, problem.server(1))
    assert lifted.local(sent, problem.client(2, 1, lambda record: None)).num_examples == 1
    assert lifted.update(state, None, problem.server(1)) is state and lifted.measured(state) == {"w": 1.0}
    assert seen == [99, 99]


# ---- what is sent and asked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "trees"), [("scaffold", {"model"}), ("fedloge", {"model"}), ("creamfl", set())])
def test_what_clients_receive_to_evaluate(strategy, trees):
    session = session_of(strategy)
    state = session.strategy.initial(session.context(0))
    sent = session.strategy.evaluated(state, session.context(1))
    assert set(sent.trees) == trees
    for tree in sent.trees.values():  # of FedLoGe psi as it is trained: clients realign it
        assert all(torch.equal(tensor, state.model[name]) for name, tensor in tree.items())


def test_a_worker_names_the_phase_that_its_strategy_lacks(tmp_path: Path) -> None:
    worker = Worker(load("digits", [*SMALL, *STRATEGIES["fot"]]), tmp_path)
    work = Work("run", "a", 1, 0, "trains", worker.config_hash, 0, 1, {0: 0})
    with pytest.raises(UnknownNameError, match=r"FOT has no phase 'trains'\. .*: train, sketch, train_and_sketch\."):
        worker.run(work, Payload())


def test_two_names_in_a_table_of_phases():
    (train,) = FedAvg(fedavg.Config()).every_phase()
    other = replace(train, name="other")
    assert by_name([train, other]) == {"train": train, "other": other}

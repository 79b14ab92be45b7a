"""A worker holds each of its clients to what the server lets it count, before it adds their replies up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.end_to_end.test_engines import SMALL
from umbel.client.lending import LentPayload
from umbel.client.worker import Worker
from umbel.conf.load import load
from umbel.core.fold_tree import FoldTree
from umbel.core.folds import WeightedMean
from umbel.core.wire.messages import decode_work, encode_payload, encode_work
from umbel.core.wire.work import Outcome, Work, share
from umbel.server.session import Session
from umbel.strategies.base import EVALUATE

COHORT = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    return Worker(load("digits", [*SMALL, "data.client_test=0.2", "data.alpha=10"]), tmp_path_factory.mktemp("memory"))


@pytest.fixture(scope="module")
def session(worker: Worker) -> Session:
    return Session(worker.experiment)


def work(worker: Worker, phase: str, clients: tuple[int, ...] = COHORT) -> Work:
    whole = Work("run", "a", 1, 0, phase, worker.config_hash, 0, len(COHORT))
    return share(whole, COHORT, clients)


def run(worker: Worker, session: Session, asked: Work) -> Outcome:
    context = session.context(1)
    state = session.strategy.initial(session.context(0))
    phase = session.strategy.evaluated(state, context)
    payload = phase if asked.phase == EVALUATE else session.phases(state)[0].broadcast(state, context)
    return worker.run(asked, payload)


def test_a_client_that_counts_too_many_is_lost_alone_though_all_are_added_up_here(worker, session):
    num_train = session.data.num_train.tolist()
    asked = work(worker, "train")
    allowed = dict(enumerate(num_train[: len(COHORT)]))
    outcome = run(worker, session, replace(asked, most_examples=allowed))
    assert not outcome.failures and outcome.nodes[0][2].num_replies == 4
    fewer = run(worker, session, replace(asked, most_examples={**allowed, 2: num_train[2] - 1}))
    assert fewer.failures.keys() == {2}
    assert f"at most {num_train[2] - 1}, found {num_train[2]}" in fewer.failures[2]
    ((level, index, kept),) = fewer.nodes
    assert (level, index, kept.num_replies) == (2, 0, 3)
    assert kept.num_examples == sum(num_train[:4]) - num_train[2]


def test_so_is_one_that_was_evaluated_on_more_than_it_has(worker, session):
    held_out = session.data.num_held_out.tolist()
    assert min(held_out[:4]) > 1
    asked = work(worker, EVALUATE)
    allowed = dict(enumerate(held_out[: len(COHORT)]))
    assert not run(worker, session, replace(asked, most_examples=allowed)).failures
    fewer = run(worker, session, replace(asked, most_examples={**allowed, 1: held_out[1] - 1}))
    assert fewer.failures.keys() == {1}
    assert f"at most {held_out[1] - 1:,}" in fewer.failures[1]


def test_what_clients_may_count_travels_with_their_work(worker, session):
    allowed = {0: 5, 1: 7, 3: 2.5}
    asked = share(replace(work(worker, "train"), most_examples=allowed), COHORT, {1, 2, 3})
    state = session.strategy.initial(session.context(0))
    payload = session.phases(state)[0].broadcast(state, session.context(1))
    content = encode_work(asked, payload, encode_payload(payload))
    assert decode_work(content)[0].most_examples == {1: 7, 3: 2.5}


def test_a_share_that_is_run_in_parts_is_that_of_one_process(worker, session):
    """Whoever runs which clients, and in which parts, the branches of the tree go together to the same bits."""
    asked, state = work(worker, "train"), session.strategy.initial(session.context(0))
    (phase,) = session.phases(state)
    payload = phase.broadcast(state, session.context(1))
    whole = FoldTree(phase.fold(), len(COHORT))
    for parts in ([[0, 1], [2]], [[3]]):  # two processes
        share_of_it = worker.share(asked, LentPayload.of(payload))
        for part in parts:
            share_of_it.run(part)
        outcome = share_of_it.outcome()
        for client, reply in outcome.singles.items():
            whole.add_reply(COHORT.index(client), client, reply)
        for level, index, partial in outcome.nodes:
            whole.add(level, index, partial)
    ((_, _, alone),) = worker.run(asked, payload).nodes
    together = whole.root()
    assert together.num_examples == alone.num_examples and together.numbers == alone.numbers
    for tree, tensors in alone.trees.items():
        assert all(torch.equal(together.trees[tree][name], tensor) for name, tensor in tensors.items())


def test_a_reply_whose_sum_cannot_be_made_once_its_sibling_is_there_fails_alone(worker, session, monkeypatch):
    """It waits as it came; a fold of somebody's own may raise later, when it is added up."""
    lift, num_lifts = WeightedMean.lift, []

    def once(fold, tree, num_examples, client):
        num_lifts.append(client)
        if client == 2:
            raise OverflowError("a fold of somebody's own")
        return lift(fold, tree, num_examples, client)

    monkeypatch.setattr(WeightedMean, "lift", once)
    monkeypatch.setattr(WeightedMean, "is_sum", False)  # which one of somebody's own never is
    outcome = run(worker, session, work(worker, "train"))
    assert outcome.failures == {2: "OverflowError: a fold of somebody's own"}
    assert outcome.nodes[0][2].num_replies == 3 and sorted(num_lifts) == list(COHORT)


def test_num_held_out_is_what_evaluations_come_to(session):
    data = session.data
    for client in range(data.num_clients):
        train, validation, test = data.client_indices(client)
        assert data.num_train[client] == len(train)
        assert data.num_held_out[client] == len(validation) + len(test)

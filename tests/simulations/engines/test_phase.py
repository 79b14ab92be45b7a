"""Who runs which clients: each once and in the order of the tree, however workers differ, and whichever die."""

from __future__ import annotations

import random
import time
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.core.fold_tree import FoldTree
from umbel.core.folds import WeightedMean, product
from umbel.core.records import Payload, Reply
from umbel.core.wire.work import Outcome, Work, share, squads
from umbel.server.errors import RunStoppedError
from umbel.server.port import Task
from umbel.simulations.engines.phase import Pace, WorkersPhase
from umbel.simulations.engines.workers import Limits, WorkerDiedError, WorkerFailedError

FOLD = product({"delta": WeightedMean()}, ["loss"])


def reply_of(client):
    value = torch.randn(3, generator=torch.Generator().manual_seed(client), dtype=torch.float64) * 10 ** (client % 9)
    return Reply({"delta": {"w": value}}, {"loss": float(value[0])}, client % 4 + 1)


class Actor:
    """A worker that runs what it has been given when it is waited for."""

    def __init__(self, cluster):
        self.cluster, self.queue, self.is_dead, self.closing = cluster, deque(), False, None

    def step(self):
        """Run the first of the queue; return it."""
        reference = self.queue.popleft()
        opening, clients, closes = reference.asked
        if opening is not None:
            self.work, self.seconds = opening, {}
            self.tree = FoldTree(FOLD, self.work.num_leaves)
        if self.is_dead or self.cluster.kills(clients):
            self.is_dead = True
            reference.content = WorkerDiedError("it died", by_machine=self.cluster.loses_machines)
            return reference
        for client in clients:
            self.cluster.num_runs[client] = self.cluster.num_runs.get(client, 0) + 1
            self.seconds[client] = 0.01
            self.tree.add_reply(self.work.leaves[client], client, reply_of(client))
        if closes:
            outcome = Outcome(singles=dict(self.tree.replies()), seconds=self.seconds)
            outcome.nodes = list(self.tree.nodes())
            reference.content = outcome
        return reference


class Cluster:
    """The workers as a test wants them.

    Args:
        num_workers: How many.
        source: Decides who is quicker.
        kills: Says whether a worker dies at some clients.
    """

    def __init__(self, num_workers, source, kills=lambda clients: False):
        self.kills, self._source, self.num_runs, self.num_replaced = kills, source, {}, 0
        self.num_given = self.num_closed = 0
        self.spans = []
        self.loses_machines = False
        self._actors = [Actor(self) for _ in range(num_workers)]
        self._speeds = [source.random() ** 3 + 0.01 for _ in range(num_workers)]

    def all(self):
        return list(self._actors)

    def replace(self, worker):
        self.num_replaced += 1
        place = self._actors.index(worker)
        self._actors[place] = Actor(self)
        return self._actors[place]

    def is_there(self, worker):
        return True

    def look(self):
        pass

    def lay(self, task):
        return task.work

    def give(self, worker, opening, clients, closes):
        assert not (worker.closing and not worker.closing.is_taken), "its answer would be overwritten"
        reference = SimpleNamespace(actor=worker, asked=(opening, clients, closes), content=None, is_taken=False)
        worker.closing = reference if closes else None
        self.num_given, self.num_closed = self.num_given + 1, self.num_closed + closes
        worker.queue.append(reference)
        self.spans.append(clients)
        return reference

    def wait(self, references, seconds):
        speeds = [self._speeds[self._actors.index(each.actor)] for each in references]
        (chosen,) = self._source.choices(references, speeds)
        assert chosen.actor.step() is chosen  # a worker runs what it has been given in order
        return chosen

    def take(self, reference):
        reference.is_taken = True
        if isinstance(reference.content, Exception):
            raise reference.content
        return reference.content


def spread(cluster, cohort, pace=None, seconds=60.0, together=1, limits=Limits(10.0, 10.0)):  # noqa: B008 - frozen
    """Run a phase and return what came of it: the sum's bits and the failures."""
    who = squads(cohort, together, lambda client: client % 2)
    work = share(Work("run", "a", 1, 0, "train", "hash", 0, len(cohort), squads=who), cohort, set(cohort))
    counts = []
    phase = WorkersPhase(
        Task(1, work, Payload({"model": {"w": torch.zeros(2)}})),
        cluster,
        lambda client: client % 4 + 1,
        pace or Pace(),
        limits,
    )
    tree, failures, num_taken = FoldTree(FOLD, len(cohort)), {}, 0
    for answer in phase.answers(time.monotonic() + seconds):
        num_taken += len(answer.outcome.seconds) if answer.outcome is not None else 0
        counts.append(num_taken + answer.pending)
        if answer.outcome is None:
            continue
        for client, text in answer.outcome.failures.items():
            failures[client] = text
            tree.add_reply(work.leaves[client], client, None)
        for client, reply in answer.outcome.singles.items():
            tree.add_reply(work.leaves[client], client, reply)
        for level, index, partial in answer.outcome.nodes:
            tree.add(level, index, partial)
    return tree.root(), failures, counts


def alone(cohort, failed=()):
    tree = FoldTree(FOLD, len(cohort))
    for place, client in enumerate(cohort):
        tree.add_reply(place, client, None if client in failed else reply_of(client))
    return tree.root()


def same(left, right):
    assert (left.numbers, left.num_examples, left.num_replies) == (right.numbers, right.num_examples, right.num_replies)
    return not left.num_replies or torch.equal(left.trees["delta"]["w"], right.trees["delta"]["w"])


COHORTS = st.sets(st.integers(0, 200), min_size=1, max_size=40).map(sorted)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(COHORTS, st.integers(1, 7), st.integers(0, 10**6), st.sampled_from([None, 1e-4, 0.01, 5.0]))
def test_each_client_runs_once_and_the_bits_are_those_of_one_process(cohort, num_workers, seed, seconds):
    pace = Pace()
    if seconds is not None:
        pace.note("train", seconds, 1.0)
    cluster = Cluster(num_workers, random.Random(seed))
    total, failures, counts = spread(cluster, cohort, pace)
    assert same(total, alone(cohort)) and not failures
    assert cluster.num_runs == dict.fromkeys(cohort, 1)
    assert counts[-1] == len(cohort) and counts == sorted(counts)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(COHORTS, st.integers(1, 5), st.integers(0, 10**6))
def test_workers_that_die_at_random_change_no_bit(cohort, num_workers, seed):
    """Each at most twice in all, so that nobody is given up."""
    source, left = random.Random(seed), [2]

    def kills(clients):
        if left[0] and source.random() < 0.3:
            left[0] -= 1
            return True
        return False

    cluster = Cluster(num_workers, random.Random(seed + 1), kills)
    total, failures, _ = spread(cluster, cohort)
    assert same(total, alone(cohort)) and not failures
    assert cluster.num_replaced == 2 - left[0]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(COHORTS, st.integers(1, 4), st.integers(0, 10**6))
def test_those_who_kill_every_worker_are_given_up_and_no_others(cohort, num_workers, seed):
    guilty = set(random.Random(seed).sample(cohort, min(2, len(cohort))))
    cluster = Cluster(num_workers, random.Random(seed), lambda clients: bool(guilty & set(clients)))
    total, failures, _ = spread(cluster, cohort)
    assert failures.keys() == guilty and all("died 3 times" in text for text in failures.values())
    assert same(total, alone(cohort, guilty))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(COHORTS, st.integers(1, 7), st.integers(0, 10**6), st.sampled_from([None, 1e-4, 5.0]), st.integers(2, 9))
def test_who_trains_at_once_is_given_at_once(cohort, num_workers, seed, seconds, together):
    """Whoever takes over from whom."""
    pace = Pace()
    if seconds is not None:
        pace.note("train", seconds, 1.0)
    cluster = Cluster(num_workers, random.Random(seed))
    total, failures, _ = spread(cluster, cohort, pace, together=together)
    assert same(total, alone(cohort)) and not failures
    for squad in squads(cohort, together, lambda client: client % 2):
        assert sum(not set(squad).isdisjoint(span) for span in cluster.spans) == 1
    assert cluster.num_runs == dict.fromkeys(cohort, 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(COHORTS, st.integers(2, 5), st.integers(0, 10**6))
def test_nobody_waits_for_workers_that_do_not_come_back(cohort, num_workers, seed):
    """All but one of them die and are never there again: their machine is gone."""
    cluster = Cluster(num_workers, random.Random(seed))
    survivor = cluster.all()[seed % num_workers]
    cluster.loses_machines = True
    originals = set(map(id, cluster.all()))
    for actor in cluster.all():
        actor.is_dead = actor is not survivor
    cluster.is_there = lambda worker: id(worker) in originals
    total, failures, _ = spread(cluster, cohort)
    assert same(total, alone(cohort)) and not failures
    assert cluster.num_replaced < num_workers


def test_a_run_stops_when_no_worker_comes_any_more():
    cluster = Cluster(2, random.Random(0))
    cluster.is_there = lambda worker: False
    cluster.wait = lambda references, seconds: time.sleep(seconds)
    with pytest.raises(RunStoppedError, match=r"No worker has come within 0\.05 s"):
        spread(cluster, [1, 2, 3], limits=Limits(10.0, 0.05))


def test_one_that_dies_while_it_starts_is_started_again_a_few_times():
    cluster = Cluster(1, random.Random(0))
    cluster.wait = lambda references, seconds: time.sleep(min(seconds, 0.01))

    def is_there(worker):
        raise WorkerDiedError("no space left on device")

    cluster.is_there = is_there
    with pytest.raises(RunStoppedError, match="while it started: no space left on device"):
        spread(cluster, [1, 2, 3], limits=Limits(10.0, 0.5))
    assert cluster.num_replaced == 3


def test_past_half_of_the_time_each_span_is_handed_over_and_none_waits_behind_it():
    """So that what was done in time is there when the time is over."""
    cluster, cohort = Cluster(3, random.Random(0)), list(range(40))
    total, failures, _ = spread(cluster, cohort, seconds=0.0)  # done before anybody looks at the time
    assert same(total, alone(cohort)) and not failures
    assert cluster.num_closed == cluster.num_given > 10
    at_ease = Cluster(3, random.Random(0))
    spread(at_ease, cohort)
    assert at_ease.num_closed == 3 < at_ease.num_given


def test_a_slow_worker_is_relieved_of_what_it_has_not_begun():
    """The first of two does one span while the other does all else: what it was given ahead it runs itself."""
    cluster = Cluster(2, random.Random(0))
    slow = cluster.all()[0]
    by_slow = []

    def wait(references, seconds):
        others = [each for each in references if each.actor is not slow]
        chosen = (others or references)[0]
        if not others:
            by_slow.extend(chosen.asked[1])
        assert chosen.actor.step() is chosen
        return chosen

    cluster.wait = wait
    cohort = list(range(64))
    total, failures, _ = spread(cluster, cohort)
    assert same(total, alone(cohort)) and not failures
    assert len(by_slow) == 16  # two spans of eight, as long as nobody knows how long clients take


def test_what_fails_on_a_worker_as_a_whole_is_the_failure_of_its_clients():
    cluster = Cluster(2, random.Random(0))
    broken = cluster.all()[0]

    def take(reference):
        reference.is_taken = True
        if reference.actor is broken:
            raise WorkerFailedError("ValueError: another experiment")
        return reference.content

    cluster.take = take
    cohort = list(range(10))
    total, failures, _ = spread(cluster, cohort)
    assert failures and all(text == "ValueError: another experiment" for text in failures.values())
    assert same(total, alone(cohort, failures))

"""Clients that train at once: what comes of them is what comes of each by itself, whoever is there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.end_to_end.test_engines import SMALL
from umbel.client import ahead
from umbel.client.ahead import Turn, at_once
from umbel.client.worker import Worker
from umbel.conf.load import load
from umbel.core.losses import CrossEntropy
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.core.training import LocalConfig, TrainReport
from umbel.core.training.fallbacks import told_to
from umbel.core.training.together import Done
from umbel.core.tree import subtract
from umbel.core.wire.work import Outcome, Work, share, squads
from umbel.server.session import Session
from umbel.strategies.base import ClientContext, Phase
from umbel.strategies.fedavg import FedAvg

COHORT = (0, 1, 2, 3)
# Tensors whose length is no multiple of a vector's.
ODD = ("model.name=mlp", "model.sizes={hidden: 9}", "client.batch_size=7")
IID = (*SMALL, "data.partition=iid", "client.precision=fp64", "client.batch_size=8")


def one_round(folder, *options: str, here: tuple[int, ...] = COHORT) -> tuple[Outcome, Session]:
    """Let those clients of a cohort that are here train, and return what came of it."""
    worker = Worker(load("digits", [*IID, *options]), folder)
    session = Session(worker.experiment)
    state = session.strategy.initial(session.context(0))
    phase = session.phases(state)[0]
    whole = Work(
        "run", "a", 1, 0, phase.name, worker.config_hash, 0, len(COHORT), squads=session.cohorts.squads(COHORT, 1)
    )
    return worker.run(share(whole, COHORT, here), phase.broadcast(state, session.context(1))), session


def replies(folder, *options: str, here: tuple[int, ...] = COHORT) -> dict[int, dict[str, torch.Tensor]]:
    """Return what each client changed; those that are here are no siblings, so that their replies travel singly."""
    return told(folder, *options, here=here)[0]


def told(folder, *options: str, here: tuple[int, ...] = COHORT) -> tuple[dict[int, dict[str, torch.Tensor]], list[str]]:
    """Return the same, and what trained without a mode."""
    outcome, _ = one_round(folder, *options, here=here)
    assert not outcome.failures and not outcome.nodes and not outcome.notices
    return {client: dict(reply.trees["delta"]) for client, reply in outcome.singles.items()}, outcome.fallbacks


def said_alone(folder, *options: str) -> str:
    """Return what is said of clients that train with the bits that they have one by one, which is asserted."""
    at_once, texts = told(folder / "a", *options, "client.together=4", here=(0, 2))
    alone, nothing = told(folder / "b", *options, here=(0, 2))
    assert at_once.keys() == alone.keys() == {0, 2} and not nothing
    assert all(torch.equal(at_once[client][name], tensor) for client in alone for name, tensor in alone[client].items())
    (text,) = texts
    return text


@pytest.mark.parametrize(
    "options",
    [
        ("strategy.name=fedavg", "client.momentum=0.9"),
        ("strategy.name=fedprox", "strategy.mu=0.5", "client.optimizer=adam", "data.augment=flip_crop"),
        ("strategy.name=scaffold", "client.class_weights=balanced"),
        ("strategy.name=feddyn", "strategy.alpha=0.5"),
        ("strategy.name=fedbabu", "client.weight_decay=0.1"),
        ("strategy.name=fedrep", "strategy.head_epochs=2"),
    ],
)
def test_replies_are_those_of_clients_that_train_one_by_one(options, tmp_path):
    here = (0, 3)
    alone, at_once = (replies(tmp_path / each, *options, f"client.together={each}", here=here) for each in ("1", "4"))
    assert at_once.keys() == alone.keys() == set(here)
    for client in here:
        for name, tensor in alone[client].items():
            torch.testing.assert_close(at_once[client][name], tensor, rtol=0, atol=1e-10)
    if "fedrep" not in options[0]:  # of which only the head, that never travels, trains at once
        assert any(not torch.equal(at_once[0][name], alone[0][name]) for name in alone[0])  # it was done otherwise


def test_bits_do_not_depend_on_who_else_is_here(tmp_path):
    some, fewer = (
        replies(tmp_path / str(len(here)), "client.together=4", "client.precision=fp32", *ODD, here=here)
        for here in ((1, 2), (2,))
    )
    assert all(torch.equal(some[2][name], tensor) for name, tensor in fewer[2].items())


def test_a_model_with_noise_trains_one_by_one_and_says_so(tmp_path):
    said = said_alone(tmp_path, "model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}")
    assert said.startswith("client.together=4: mlp trains one client after the other, for torch.func.vmap refuses it")


def test_an_objective_of_ones_own_trains_one_by_one_and_says_so(tmp_path):
    said = said_alone(tmp_path, "strategy.name=fedntd")
    assert said.endswith("trains one client after the other, for its objective is a function that may read anything.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("no room")])
def test_what_one_process_cannot_do_is_said_with_what_it_means_for_bits(error, tmp_path, monkeypatch):
    def fails(*given: object) -> None:
        raise error

    monkeypatch.setattr(ahead, "train_together", fails)
    said = said_alone(tmp_path)
    assert f"where they cannot train at once ({type(error).__name__}: {error})" in said
    assert said.endswith("so that another run, or engine, may end with other bits.")


def test_further_trainings_of_a_turn_are_one_by_one_and_that_is_said(tmp_path):
    """The head trains first, then the body."""
    at_once, texts = told(tmp_path / "a", "strategy.name=fedrep", "client.together=4", here=(0, 2))
    alone, nothing = told(tmp_path / "b", "strategy.name=fedrep", here=(0, 2))
    assert at_once.keys() == alone.keys() == {0, 2} and not nothing
    assert texts == [
        "client.together=4: clients train more than once in a turn, the first time at once, then one by one."
    ]


def test_what_is_said_is_said_again_in_the_next_run(tmp_path):
    """Once a run, not once a process."""
    noisy = ("model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}", "client.together=4")
    first, second = (told(tmp_path / each, *noisy, here=(0, 2))[1] for each in "ab")
    assert first == second and len(first) == 1


class Sharpened(FedAvg):
    """Trains on logits that are multiplied by five."""

    def every_phase(self) -> tuple[Phase, ...]:
        return tuple(replace(phase, local=self.half) for phase in super().every_phase())

    def half(self, payload: Payload, client: ClientContext) -> Reply:
        before = payload.trees["model"]
        model = client.model(before)
        handle = model.register_forward_hook(lambda module, given, logits: 5.0 * logits)
        try:
            report = client.train(model)
        finally:
            handle.remove()
        return Reply({"delta": subtract(client.weights(model), before)}, {"loss": report.loss}, client.num_examples)


def test_what_a_half_does_to_the_model_while_it_trains_counts(tmp_path):
    assert "has hooks" in said_alone(tmp_path, f"strategy.name={__name__}:Sharpened")


def job_of(trainer, client: int, num_examples: int = 4, **more: object) -> object:
    """Train a line as a client's half might."""
    model = LINES.setdefault(client, nn.Linear(2, 2))
    x, y = torch.ones(num_examples, 2), torch.zeros(num_examples).long()
    words = {"batches": generator(0), "noise": generator(0), "loss": CrossEntropy()}
    return trainer(model, x, y, LocalConfig(device="cpu"), **words, **more)


LINES: dict[int, nn.Linear] = {}


def test_squads_are_consecutive_clients_with_equally_many_examples():
    sizes = {10: 5, 11: 7, 12: 5, 13: 5, 14: 5, 15: 7, 16: 7}
    assert squads(tuple(sizes), 4, sizes.__getitem__) == ((10, 12, 13), (15, 16))
    assert squads(tuple(sizes), 2, sizes.__getitem__) == ((12, 13),)
    assert squads(tuple(sizes), 1, lambda client: pytest.fail("nobody asks")) == ()


def test_who_has_come_to_train_is_done_at_once_and_others_train_alone():
    asked: list[set[int]] = []
    given: dict[int, list[TrainReport]] = {}

    def turn(client: int, trainer) -> Turn[int]:
        try:
            given.setdefault(client, []).append(job_of(trainer, client))
        except BaseException as error:  # noqa: BLE001 - as a worker's guard does
            return Turn(None, repr(error), 1.0)
        return Turn(client, "", 1.0)

    def do(jobs) -> dict[int, Done]:
        asked.append(set(jobs))
        report = TrainReport(0.5, 3, 0.1)
        return {client: Done(job.state, report) for client, job in jobs.items() if client != 12}

    taken = at_once([10, 12], turn, do)
    assert list(taken) == [10, 12]
    assert all(answer.answer == client and not answer.failure for client, answer in taken.items())
    assert asked == [{10, 12}]
    assert given[10] == [TrainReport(0.5, 3, 0.1)]  # it ran up to there, and again
    assert len(given[12]) == 1 and given[12] != given[10]  # nobody did it: it trained by itself
    assert taken[10].seconds >= 2.0


def test_an_optimiser_that_goes_on_is_one_clients_alone():
    times: list[int] = []

    def turn(client: int, trainer) -> Turn[TrainReport]:
        times.append(client)
        return Turn(job_of(trainer, client, moments={}), "", 0.0)

    heard: list[str] = []
    with told_to(heard):
        taken = at_once([0, 1], turn, lambda jobs: pytest.fail("nothing to do"))
    assert heard == ["client.together=1: what trains with an optimiser that goes on trains one by one."]
    assert times == [0, 1] and all(turn.answer.moments == {} for turn in taken.values())


def test_a_half_that_does_otherwise_the_second_time_trains_itself():
    """What came of other examples is not what it asks for."""
    times: list[int] = []

    def turn(client: int, trainer) -> Turn[TrainReport]:
        times.append(client)
        try:
            return Turn(job_of(trainer, client, 4 if times.count(client) == 1 else 6), "", 0.0)
        except BaseException as error:  # noqa: BLE001
            return Turn(None, repr(error), 0.0)

    def do(jobs) -> dict[int, Done]:
        return {client: Done(job.state, TrainReport(-1.0, 9, 0.1)) for client, job in jobs.items()}

    heard: list[str] = []
    with told_to(heard):
        taken = at_once([0, 1], turn, do)
    (said,) = heard
    assert "asked for another training when it ran again" in said
    assert times == [0, 1, 0, 1]
    assert all(turn.answer.num_steps == 1 and turn.answer.loss > 0 for turn in taken.values())


def test_halves_that_do_not_train_run_once():
    times: list[int] = []

    def turn(client: int, trainer) -> Turn[int]:
        times.append(client)
        return Turn(client, "", 0.0)

    def do(jobs) -> dict[int, Done]:
        pytest.fail("there is nothing to do")

    taken = at_once([4, 5, 6], turn, do)
    assert times == [4, 5, 6] == [turn.answer for turn in taken.values()]

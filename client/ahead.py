"""Clients that train at once, though each runs its half of a strategy by itself and knows nothing of the others.

A client's half runs up to where it trains, which is noted and not done. What all have noted is done at once. Then each
half runs again from its beginning, and where it trains it receives what came of it, provided that all which training
reads is to the bit what was noted; else it trains then and there. So whatever a half does, it ends as it would by
itself, but for the rounding of its training. One that does not train has run once, and is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from umbel.client.deadline import attempt
from umbel.client.host import Host
from umbel.client.shared import gradients_on
from umbel.core import training
from umbel.core.spent import count, count_trained, counted
from umbel.core.training import TrainReport
from umbel.core.training.config import LocalConfig
from umbel.core.training.fallbacks import OTHER_BITS, tell
from umbel.core.training.steps import UnfitError, state_of
from umbel.core.training.together import Done, Job, train_together

T = TypeVar("T")
_OTHERWISE = "a client's half asked for another training when it ran again, and its client trained"


class _Noted(BaseException):
    """A client has come to its training; no `except Exception` of its own stands in the way."""


@dataclass(frozen=True)
class Turn(Generic[T]):
    """What came of a client's turn.

    Attributes:
        answer: What it answers; None where it failed.
        failure: Why.
        seconds: How long it took.
        began: When, in seconds since the epoch; the last time where it was in several parts.
    """

    answer: T | None
    failure: str
    seconds: float
    began: float = 0.0


class _Notes:
    """Stands in for `train`: notes what is to be done, and ends the client's half."""

    job: Job | None = None

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, config: LocalConfig, **words: object
    ) -> TrainReport:
        if words.get("moments") is not None:  # an optimiser that goes on is one client's alone
            tell(f"client.together={config.together}: what trains with an optimiser that goes on trains one by one.")
            return training.train(model, images, labels, config, **words)  # type: ignore[arg-type]
        words.pop("moments", None)
        self.job = Job.of(model, images, labels, config, **words)  # type: ignore[arg-type]
        raise _Noted


class _Gives:
    """Stands in for `train`: gives what came of a job where the same is asked for, and else trains."""

    def __init__(self, job: Job, done: Done) -> None:
        self._job, self._done, self._gave = job, done, False

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, config: LocalConfig, **words: object
    ) -> TrainReport:
        if words.get("moments") is not None or not self._is_asked(model, images, labels, config, words):
            why = "clients train more than once in a turn, the first time at once, then" if self._gave else _OTHERWISE
            tell(f"client.together={config.together}: {why} one by one.")
            return training.train(model, images, labels, config, **words)  # type: ignore[arg-type]
        self._gave = True
        model.train()
        with torch.no_grad():
            for name, tensor in state_of(model).items():
                tensor.copy_(self._done.state[name])
        count(self._done.report.num_steps, self._done.report.num_examples)
        count_trained(model, self._done.report.num_examples)
        return self._done.report

    def _is_asked(
        self, model: nn.Module, images: Tensor, labels: Tensor, config: LocalConfig, words: Mapping[str, object]
    ) -> bool:
        others = {name: value for name, value in words.items() if name != "moments"}
        return self._job.is_same(Job.of(model, images, labels, config, **others))  # type: ignore[arg-type]


def at_once(
    clients: Sequence[int],
    turn: Callable[[int, training.Trainer], Turn[T]],
    do: Callable[[Mapping[int, Job]], Mapping[int, Done]],
) -> dict[int, Turn[T]]:
    """Let clients of a squad take their turns, training at once.

    Args:
        clients: Those of the squad that run here.
        turn: Gives a client its turn, with what stands in for `train`.
        do: Does jobs, by client, at once; one that is missing was not done.
    """
    turns: dict[int, Turn[T]] = {}
    jobs: dict[int, Job] = {}
    for client in clients:
        notes = _Notes()
        turns[client] = turn(client, notes)
        if notes.job is not None:
            jobs[client] = notes.job
    begin = time.perf_counter()
    with counted():  # each counts its own when its turn comes
        done = do(jobs) if jobs else {}
    share = (time.perf_counter() - begin) / max(len(jobs), 1)
    for client, job in jobs.items():
        before = turns[client].seconds + share
        now = turn(client, _Gives(job, done[client]) if client in done else training.train)
        turns[client] = replace(now, seconds=before + now.seconds)
    return turns


def do_at_once(host: Host, jobs: Mapping[int, Job], squad: Sequence[int], client_seconds: float) -> dict[int, Done]:
    """Do clients' training at once as far as that goes, and say where it does not.

    Each has the slot that it has in its squad. Those whom a node does not run, who fail, or whose job is of another
    form are made up for, and a client's bits are the same wherever it runs.

    Args:
        host: Whose model they train; others are left out.
        jobs: By client.
        squad: All clients of the squad.
        client_seconds: How long one client may take.
    """
    forms: dict[Hashable, list[int]] = {}
    asked, model = host.experiment.client.together, host.experiment.model.name
    told = f"client.together={asked}: {model} trains one client after the other"
    for client, job in jobs.items():
        try:
            if job.model is not host.model:
                raise UnfitError("each of its clients trains a model of its own")
            forms.setdefault(job.form(), []).append(client)
        except UnfitError as error:
            tell(f"{told}, for {error}.")
    done: dict[int, Done] = {}
    for clients in forms.values():
        slots, whose = [squad.index(client) for client in clients], f"Training of {clients}"
        act = partial(_together, [jobs[client] for client in clients], slots, len(squad))
        with gradients_on():
            said = attempt(act, client_seconds * len(clients), whose)
        if said.made is None:  # memory, time: of this process
            tell(f"{told} where they cannot train at once ({said.failure}); {OTHER_BITS}.")
        elif isinstance(said.made, UnfitError):
            tell(f"{told}, for {said.made}.")
        else:
            done |= zip(clients, said.made, strict=True)
    return done


def _together(jobs: Sequence[Job], slots: Sequence[int], width: int) -> list[Done] | UnfitError:
    """Do jobs at once; return why they cannot be, if that is of the model, and so in all processes."""
    try:
        return train_together(jobs, slots, width)
    except UnfitError as error:
        return error

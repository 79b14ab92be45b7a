"""Who takes part in a phase: which clients are drawn, who of them drops out, and whose replies come in time.

Every draw is from a generator of its round and purpose, so that it is the same whatever was drawn before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from umbel.conf.schema import Experiment
from umbel.core.records import Payload
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.core.training import modes
from umbel.core.virtual.devices import Devices
from umbel.core.virtual.turns import Places, Turn, turn
from umbel.core.wire.work import squads
from umbel.data.federation import Federation
from umbel.server.errors import RunStoppedError
from umbel.strategies.base import Phase, ServerContext
from umbel.strategies.phase import Visit


class Cohorts:
    """The clients of each phase of a run.

    Args:
        experiment: The experiment.
        data: Whose examples are where.
        virtual: The clients' devices in virtual time; None without.
        device: Where clients train.
    """

    def __init__(self, experiment: Experiment, data: Federation, virtual: Devices | None, device: torch.device) -> None:
        self._experiment, self._data, self._virtual, self._device = experiment, data, virtual, device
        self._num_train: list[int] = data.num_train.tolist()

    def begins(self, phase: Phase[Any], now: float) -> float:
        """Return the virtual second at which a phase selects its clients: once enough of them are there.

        Raises:
            RunStoppedError: That is never so.
        """
        if self._virtual is None or phase.who != "sample":
            return now
        least, everyone = self._experiment.run.min_replies, range(self._experiment.data.num_clients)
        try:
            return self._virtual.when(self._drawable(everyone), now, least if isinstance(least, int) else 1)
        except Refusal as error:
            raise RunStoppedError(str(error)) from error

    def of(
        self, phase: Phase[Any], round_: int, earlier: dict[str, tuple[int, ...]], now: float = 0.0
    ) -> tuple[int, ...]:
        """Return the clients of a phase in their fixed order, ascending.

        Args:
            phase: The phase.
            round_: The round.
            earlier: Cohorts of the round's earlier phases by name.
            now: The virtual second; of those that come and go, who is away then is not drawn.
        """
        if phase.who == "server":
            return ()
        if phase.who == "clients":
            return phase.clients
        if phase.who.startswith("same:"):
            return earlier[phase.who.removeprefix("same:")]
        everyone = self._experiment.data.num_clients
        if phase.who == "everyone":
            return tuple(range(everyone))
        here = self._here(now)
        if phase.groups:
            return self._draw_groups(phase.groups, round_, here)
        number = min(self._experiment.num_sampled + self._experiment.run.over_sample, len(here))
        return self._draw(number, here, round_, "sample")

    def _here(self, now: float) -> Sequence[int]:
        """Return the clients that are there."""
        everyone = range(self._experiment.data.num_clients)
        if self._virtual is None or not self._virtual.presences:
            return everyone
        return [client for client in everyone if self._virtual.is_here(client, now)]

    def turn(
        self,
        phase: Phase[Any],
        state: Any,
        server: ServerContext,
        cohort: tuple[int, ...],
        payload: Payload,
        begins: float,
        remembering: Container[int] = (),
        is_first: bool = False,
    ) -> Turn:
        """Return whose replies come in time, of those that a phase selected, and when it ends in virtual time.

        Args:
            phase: The phase.
            state: The State that it begins with.
            server: The server as the strategy sees it in this round.
            cohort: The clients that it selected.
            payload: What each of them receives.
            begins: The virtual second at which it begins.
            remembering: The clients that remember something.
            is_first: Nobody has been asked for anything yet: what can never be can still be refused.

        Raises:
            Refusal: Too few clients could ever meet `run.deadline`, whichever are selected.
        """
        virtual, run, out = self._virtual, self._experiment.run, self.dropped_out(cohort, server.round)
        if virtual is None or phase.ends is not None:
            return Turn(cohort, (), begins if phase.ends is None else phase.ends, out)
        bytes_up = phase.fold().num_bytes(payload)

        def ends(client: int, remembers: bool) -> float:
            comes = virtual.next_here(client, begins) if phase.who == "everyone" else begins
            own = self._num_train_of(client, server.round)
            most = phase.most_examples(state, own)
            own = own if math.isinf(most) else int(most)
            processed = phase.num_processed(self._experiment.local, own)
            processed += phase.besides(state, Visit(server, own, remembers))
            return comes + virtual.seconds(client, processed, payload.num_bytes, bytes_up)

        takes_first = bool(run.over_sample) and phase.who == "sample"
        take = min(self._experiment.num_sampled, len(cohort)) if takes_first else len(cohort)
        deadline = begins + run.deadline if run.deadline else math.inf
        least = min(run.replies_needed(len(cohort)), take)
        if is_first and run.deadline:
            # Who comes anew may go through more than whoever comes again, or less.
            self._check_deadline(lambda client: min(ends(client, True), ends(client, False)), deadline, least)
        asked = {client: ends(client, client in remembering) for client in cohort if client not in out}
        places = None
        if takes_first and phase.groups:  # a group is not shut out because another is faster
            of_group, _ = self._quotas(phase.groups, self._here(begins), self._source(server.round, "sample"))
            places = Places(phase.groups, of_group)
        come = turn(asked, begins, take, least, deadline, places)
        if takes_first:  # who drops out is not among the first
            return come
        return replace(come, clients=tuple(sorted({*come.clients, *out})), dropped_out=out)

    def squads(self, cohort: Sequence[int], round_: int) -> tuple[tuple[int, ...], ...]:
        """Return which clients of a phase train at once: see `client.together`."""
        num_together = modes.num_together(self._experiment.client, self._device)
        return squads(cohort, num_together, lambda client: self._num_train_of(client, round_))

    def _check_deadline(self, ends: Callable[[int], float], deadline: float, least: int) -> None:
        """Refuse a deadline that fewer clients can meet than a phase needs, whichever are selected."""
        fastest = sorted(map(ends, range(self._experiment.data.num_clients)))[:least]
        if fastest[-1] > deadline:
            run, needed = self._experiment.run, f"{least} clients" if least > 1 else "a client"
            raise Refusal(
                f"run.deadline={run.deadline:g} can never be met: it is {fastest[-1] - deadline + run.deadline:.6g} "
                f"virtual seconds at least until {needed} {'are' if least > 1 else 'is'} done.",
                key="run.deadline",
                remedy="Raise it, or let devices be faster (simulation.devices).",
            )

    def _num_train_of(self, client: int, round_: int) -> int:
        """Return the training examples of a client, in a sequence those of the round's task."""
        schedule, tasks = self._experiment.schedule, self._data.pool.tasks
        if not schedule.is_sequence or tasks is None:
            shown = self._data.partition.repeats if schedule.is_sequence else 1  # in each task, where pixels differ
            return self._num_train[client] // shown
        return int((tasks[self._data.client_indices(client)[0]] == schedule.task(round_)).sum())

    def evaluation(self, round_: int) -> tuple[int, ...]:
        """Return the clients that evaluate on their own data."""
        everyone, asked = self._experiment.data.num_clients, self._experiment.evaluate.clients
        if asked < 0 or asked >= everyone:
            return tuple(range(everyone))
        return self._draw(asked, range(everyone), round_, "evaluate")

    def idle(self, cohort: Sequence[int], round_: int) -> frozenset[int]:
        """Return the clients of a cohort that have nothing to train on: no example of the round's task."""
        schedule, tasks = self._experiment.schedule, self._data.pool.tasks
        if not schedule.is_sequence or tasks is None:
            return frozenset()
        is_now = tasks == schedule.task(round_)
        return frozenset(client for client in cohort if not bool(is_now[self._data.client_indices(client)[0]].any()))

    def dropped_out(self, cohort: Sequence[int], round_: int) -> frozenset[int]:
        """Return the clients that are out for a round by `run.dropout`: each by itself, with that probability.

        As many stay as `run.min_replies` asks for, or no resume would ever come past the round.
        """
        share = self._experiment.run.dropout
        if not share:
            return frozenset()
        draws = torch.rand(self._experiment.data.num_clients, generator=self._source(round_, "dropout")).tolist()
        out = sorted((client for client in cohort if draws[client] < share), key=draws.__getitem__)
        return frozenset(out[: max(len(cohort) - self._experiment.run.replies_needed(len(cohort)), 0)])

    def _draw(self, number: int, members: Sequence[int], round_: int, purpose: str) -> tuple[int, ...]:
        chosen = self._choose(members, number, self._source(round_, purpose), purpose)
        return tuple(sorted(chosen))

    def _drawable(self, members: Sequence[int]) -> Sequence[int]:
        """Return those that a round may draw: by examples, nobody without any."""
        by_examples = self._experiment.run.sampling == "examples"
        return [client for client in members if self._num_train[client]] if by_examples else members

    def _source(self, round_: int, purpose: str) -> torch.Generator:
        return generator(self._experiment.run.seed, round_, "server", -1, purpose)

    def _choose(self, members: Sequence[int], number: int, source: torch.Generator, purpose: str) -> list[int]:
        """Draw so many of `members`, none twice: uniformly, or for training by `run.sampling`."""
        if purpose != "sample" or self._experiment.run.sampling == "uniform":
            return [members[index] for index in torch.randperm(len(members), generator=source)[:number].tolist()]
        weights = self._data.num_train[list(members)].double()
        number = min(number, int((weights > 0).sum()))  # who has nothing to train on is never drawn
        if not number:
            return []
        return [members[index] for index in torch.multinomial(weights, number, generator=source).tolist()]

    def _quotas(
        self, groups: tuple[int, ...], here: Sequence[int], source: torch.Generator
    ) -> tuple[list[int], list[int]]:
        """Return how many of each group a round takes, and how many it asks: as many and those of `run.over_sample`."""
        sizes = torch.bincount(torch.tensor([groups[client] for client in here])).tolist()
        start = Fraction(int(torch.randint(0, 2**32, (), generator=source)), 2**32)
        takes = min(self._experiment.num_sampled, len(here))
        taken = quotas(takes, sizes, start)
        more = min(self._experiment.run.over_sample, len(here) - takes)
        if not more:
            return taken, taken
        rest = quotas(more, [size - quota for size, quota in zip(sizes, taken, strict=True)], start)
        return taken, [quota + other for quota, other in zip(taken, rest, strict=True)]

    def _draw_groups(self, groups: tuple[int, ...], round_: int, here: Sequence[int]) -> tuple[int, ...]:
        """Draw from each group in proportion to its size, at least one while there are enough to draw."""
        source = self._source(round_, "sample")
        _, asked = self._quotas(groups, here, source)
        chosen: list[int] = []
        for group, quota in enumerate(asked):
            members = [client for client in here if groups[client] == group]
            chosen.extend(self._choose(members, quota, source, "sample"))
        return tuple(sorted(chosen))


def quotas(number: int, sizes: Sequence[int], start: Fraction) -> list[int]:
    """Share a number among groups in proportion to their sizes, at least one each if it goes round.

    What a whole number cannot express is left to chance (systematic sampling): over rounds with `start` drawn
    uniformly, groups get their exact share, and none is shut out because another comes first.

    Args:
        number: How many in all, at most the sum of the sizes.
        sizes: Size of each group; an empty one gets nothing.
        start: In [0, 1).
    """
    shares = [Fraction(number * size, sum(sizes)) for size in sizes]
    least = int(number >= sum(size > 0 for size in sizes))
    quota = [least if size else 0 for size in sizes]
    rest = number - sum(quota)
    above = [max(share - least, Fraction(0)) for share in shares]
    reached, taken = start, 0
    for group, weight in enumerate(above):
        reached += weight * rest / sum(above) if rest else 0
        quota[group] += math.floor(reached) - taken
        taken = math.floor(reached)
    return quota

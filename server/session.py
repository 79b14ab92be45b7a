"""What one run of the server works with: experiment, strategy, data, model, cohorts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from umbel.conf import initial
from umbel.conf.federation import at_server, build_model, federation, local_names
from umbel.conf.load import build_strategy, portable_hash
from umbel.conf.schema import Experiment
from umbel.core import device as devices
from umbel.core.kept import Kept
from umbel.core.records import Payload
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.core.training import modes
from umbel.core.training.config import LocalConfig
from umbel.core.virtual import devices as fleet
from umbel.core.virtual.turns import Turn, turn
from umbel.core.wire.work import squads
from umbel.data import transforms
from umbel.data.sites.agreement import Agreement
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.weights import load_state, names_of_shared
from umbel.server.errors import RunStoppedError
from umbel.server.flower import strategies as flower
from umbel.server.same_data import agreed_data, same_data
from umbel.strategies.base import Phase, ServerContext, Strategy, by_name
from umbel.strategies.whole_models import WholeModels


class Session:
    """The server's experiment, composed and loaded.

    Args:
        experiment: The experiment.
        agreement: What sites with data of their own agreed on; None loads the experiment's data.
    """

    def __init__(self, experiment: Experiment, agreement: Agreement | None = None) -> None:
        devices.set_threads(experiment.run.threads)
        self.experiment = experiment
        self.config_hash = portable_hash(experiment)
        self.strategy: Strategy[Any] = build_strategy(experiment)
        by_name(self.strategy.every_phase())  # refuses names that are not distinct, before anything starts
        if isinstance(self.strategy, WholeModels):
            flower.bind(self.strategy)
        self.data = federation(experiment) if agreement is None else at_server(experiment, agreement)
        self.agreed = {} if agreement is None else agreement.shared()
        self.check_data = same_data(self.data) if agreement is None else agreed_data(agreement)
        self.strategy.check_data(self.data)
        self.device = devices.resolve(experiment.client.device)
        devices.make_repeatable(self.device)
        self.dtype = devices.parameter_dtype(experiment.client.precision)
        self._start: dict[str, Tensor] = {}
        self.local_names = local_names(experiment, self._initial)
        self.shared_names = names_of_shared(self._initial, self.local_names)
        self.num_train: list[int] = self.data.num_train.tolist()
        simulated = experiment.simulation.devices
        num_clients, seed = experiment.data.num_clients, experiment.run.seed
        self.virtual = fleet.make(simulated, num_clients, seed) if simulated.is_set else None
        self.prepare = Kept(self._prepare)

    @cached_property
    def _initial(self) -> Model:
        """The global model as it is before the first round."""
        return self.build_model()

    def forget_initial(self) -> None:
        """Let the model go that the global one was before the first round; it is built anew when it is asked for."""
        self.__dict__.pop("_initial", None)

    def start(self) -> str:
        """Give the global model the weights of `model.init`, if there is one; return what is to be said of it.

        A run that goes on from a checkpoint need not: all of them are in it.

        Raises:
            Refusal: They cannot be read, or do not fit.
        """
        if not self.experiment.model.init:
            return ""
        start = initial.start(self.experiment, self._initial, self.data)
        self._start = start.tensors
        load_state(self._initial, self._start, partial=True)
        return start.notice

    @property
    def trains(self) -> tuple[LocalConfig, Model, torch.device]:
        """How and what clients train, and where this process would: for `umbel.core.training.modes`."""
        return self.experiment.client, self._initial, self.device

    def build_model(self) -> Model:
        """Build the global model as it is before the first round."""
        model = build_model(self.experiment, self.data)
        load_state(model, self._start, partial=True)
        return model

    def full_state(self, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return all parameters and buffers of the generic model: the shared ones, the rest as initialised.

        A strategy whose model is not the experiment's alone (CreamFL's pair of encoders) gives all of it.
        """
        if self.strategy.own_model:
            return {name: tensor.detach().cpu() for name, tensor in shared.items()}
        state = self._initial.state_dict()
        own = {name: shared[name].cpu() if name in shared else tensor.clone() for name, tensor in state.items()}
        return own | {name: tensor.detach().cpu() for name, tensor in shared.items()}

    def _prepare(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return (images, labels) on the device, normalised; `prepare` does so once for each set of examples."""
        images = transforms.normalize(examples.images.to(self.device), self.data.mean, self.data.std, self.dtype)
        return images, examples.labels.to(self.device)

    def context(self, round_: int) -> ServerContext:
        """Return the server as a strategy sees it in a round."""
        validation = self.data.server.validation
        return ServerContext(
            seed=self.experiment.run.seed,
            round=round_,
            num_rounds=self.experiment.run.rounds,
            num_clients=self.experiment.data.num_clients,
            local=self.experiment.local,
            build_model=self.build_model,
            shared_names=self.shared_names,
            validation=validation if len(validation) else None,
            device=self.device,
            prepare=self.prepare,
            num_sampled=self.experiment.num_sampled,
            num_examples=self._num_examples(round_),
            schedule=self.experiment.schedule,
            task_of_class=self.data.task_of_class if self.experiment.data.heads == "per_task" else None,
            public=self.data.public if len(self.data.public_index) else None,
            vocabulary=self.data.vocabulary,
            num_train=self.num_train,
            devices=self.virtual,
        )

    def _num_examples(self, round_: int) -> int:
        """Return the training examples of all clients, in a sequence those of the round's task (by its share)."""
        everything, schedule = int(self.data.num_train.sum()), self.experiment.schedule
        if not schedule.is_sequence:
            return everything
        tasks = self.data.partition.tasks
        share = 1 / schedule.num_tasks if tasks is None else float((tasks == schedule.task(round_)).double().mean())
        return round(everything * share)

    def phases(self, state: Any) -> tuple[Phase[Any], ...]:
        """Return the phases of the round that begins with a State.

        Raises:
            Refusal: Two have the same name, or one that of the evaluation.
        """
        return tuple(by_name(self.strategy.phases(state)).values())

    def begins(self, phase: Phase[Any], now: float) -> float:
        """Return the virtual second at which a phase selects its clients: once enough of them are there.

        Raises:
            RunStoppedError: That is never so.
        """
        if self.virtual is None or phase.who != "sample":
            return now
        least, everyone = self.experiment.run.min_replies, range(self.experiment.data.num_clients)
        try:
            return self.virtual.when(self._drawable(everyone), now, least if isinstance(least, int) else 1)
        except Refusal as error:
            raise RunStoppedError(str(error)) from error

    def cohort(
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
        everyone = self.experiment.data.num_clients
        if phase.who == "everyone":
            return tuple(range(everyone))
        here: Sequence[int] = range(everyone)
        if self.virtual is not None and self.virtual.presences:
            here = [client for client in here if self.virtual.is_here(client, now)]
        number = min(self.experiment.num_sampled + self.experiment.run.over_sample, len(here))
        if phase.groups:
            return self._draw_groups(number, phase.groups, round_, here)
        return self._draw(number, here, round_, "sample")

    def turn(
        self,
        phase: Phase[Any],
        state: Any,
        round_: int,
        cohort: tuple[int, ...],
        payload: Payload,
        begins: float,
        is_first: bool = False,
    ) -> Turn:
        """Return whose replies come in time, of those that a phase selected, and when it ends in virtual time.

        Args:
            phase: The phase.
            state: The State that it begins with.
            round_: The round.
            cohort: The clients that it selected.
            payload: What each of them receives.
            begins: The virtual second at which it begins.
            is_first: Nobody has been asked for anything yet: what can never be can still be refused.

        Raises:
            Refusal: Too few clients could ever meet `run.deadline`, whichever are selected.
        """
        virtual, run, out = self.virtual, self.experiment.run, self.dropped_out(cohort, round_)
        if virtual is None or phase.ends is not None:
            return Turn(cohort, (), begins if phase.ends is None else phase.ends, out)
        bytes_up = phase.fold().num_bytes(payload)

        def ends(client: int) -> float:
            comes = virtual.next_here(client, begins) if phase.who == "everyone" else begins
            own = self._num_train_of(client, round_)
            most = phase.most_examples(state, own)
            processed = phase.num_processed(self.experiment.local, own if math.isinf(most) else int(most))
            return comes + virtual.seconds(client, processed, payload.num_bytes, bytes_up)

        takes_first = bool(run.over_sample) and phase.who == "sample"
        take = min(self.experiment.num_sampled, len(cohort)) if takes_first else len(cohort)
        deadline = begins + run.deadline if run.deadline else math.inf
        least = min(run.replies_needed(len(cohort)), take)
        if is_first and run.deadline:
            self._check_deadline(ends, deadline, least)
        come = turn({client: ends(client) for client in cohort if client not in out}, begins, take, least, deadline)
        if takes_first:  # who drops out is not among the first
            return come
        return replace(come, clients=tuple(sorted({*come.clients, *out})), dropped_out=out)

    def squads(self, cohort: Sequence[int], round_: int) -> tuple[tuple[int, ...], ...]:
        """Return which clients of a phase train at once: see `client.together`."""
        num_together = modes.num_together(self.experiment.client, self.device)
        return squads(cohort, num_together, lambda client: self._num_train_of(client, round_))

    def _check_deadline(self, ends: Callable[[int], float], deadline: float, least: int) -> None:
        """Refuse a deadline that fewer clients can meet than a phase needs, whichever are selected."""
        fastest = sorted(map(ends, range(self.experiment.data.num_clients)))[:least]
        if fastest[-1] > deadline:
            run, needed = self.experiment.run, f"{least} clients" if least > 1 else "a client"
            raise Refusal(
                f"run.deadline={run.deadline:g} can never be met: it is {fastest[-1] - deadline + run.deadline:.6g} "
                f"virtual seconds at least until {needed} {'are' if least > 1 else 'is'} done.",
                key="run.deadline",
                remedy="Raise it, or let devices be faster (simulation.devices).",
            )

    def _num_train_of(self, client: int, round_: int) -> int:
        """Return the training examples of a client, in a sequence those of the round's task."""
        schedule, tasks = self.experiment.schedule, self.data.pool.tasks
        if not schedule.is_sequence or tasks is None:
            return self.num_train[client]
        return int((tasks[self.data.client_indices(client)[0]] == schedule.task(round_)).sum())

    def evaluation_cohort(self, round_: int) -> tuple[int, ...]:
        """Return the clients that evaluate on their own data."""
        everyone, asked = self.experiment.data.num_clients, self.experiment.evaluate.clients
        if asked < 0 or asked >= everyone:
            return tuple(range(everyone))
        return self._draw(asked, range(everyone), round_, "evaluate")

    def idle(self, cohort: Sequence[int], round_: int) -> frozenset[int]:
        """Return the clients of a cohort that have nothing to train on: no example of the round's task."""
        schedule, tasks = self.experiment.schedule, self.data.pool.tasks
        if not schedule.is_sequence or tasks is None:
            return frozenset()
        is_now = tasks == schedule.task(round_)
        return frozenset(client for client in cohort if not bool(is_now[self.data.client_indices(client)[0]].any()))

    def dropped_out(self, cohort: Sequence[int], round_: int) -> frozenset[int]:
        """Return the clients that are out for a round by `run.dropout`: each by itself, with that probability.

        As many stay as `run.min_replies` asks for, or no resume would ever come past the round.
        """
        share = self.experiment.run.dropout
        if not share:
            return frozenset()
        draws = torch.rand(self.experiment.data.num_clients, generator=self._source(round_, "dropout")).tolist()
        out = sorted((client for client in cohort if draws[client] < share), key=draws.__getitem__)
        return frozenset(out[: max(len(cohort) - self.experiment.run.replies_needed(len(cohort)), 0)])

    def _draw(self, number: int, members: Sequence[int], round_: int, purpose: str) -> tuple[int, ...]:
        chosen = self._choose(members, number, self._source(round_, purpose), purpose)
        return tuple(sorted(chosen))

    def _drawable(self, members: Sequence[int]) -> Sequence[int]:
        """Return those that a round may draw: by examples, nobody without any."""
        by_examples = self.experiment.run.sampling == "examples"
        return [client for client in members if self.num_train[client]] if by_examples else members

    def _source(self, round_: int, purpose: str) -> torch.Generator:
        return generator(self.experiment.run.seed, round_, "server", -1, purpose)

    def _choose(self, members: Sequence[int], number: int, source: torch.Generator, purpose: str) -> list[int]:
        """Draw so many of `members`, none twice: uniformly, or for training by `run.sampling`."""
        if purpose != "sample" or self.experiment.run.sampling == "uniform":
            return [members[index] for index in torch.randperm(len(members), generator=source)[:number].tolist()]
        weights = self.data.num_train[list(members)].double()
        number = min(number, int((weights > 0).sum()))  # who has nothing to train on is never drawn
        if not number:
            return []
        return [members[index] for index in torch.multinomial(weights, number, generator=source).tolist()]

    def _draw_groups(self, number: int, groups: tuple[int, ...], round_: int, here: Sequence[int]) -> tuple[int, ...]:
        """Draw from each group in proportion to its size, at least one while there are enough to draw."""
        sizes = torch.bincount(torch.tensor([groups[client] for client in here])).tolist()
        source = self._source(round_, "sample")
        start = Fraction(int(torch.randint(0, 2**32, (), generator=source)), 2**32)
        chosen: list[int] = []
        for group, quota in enumerate(quotas(number, sizes, start)):
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

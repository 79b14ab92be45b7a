"""FedBuff: federated learning with buffered asynchronous aggregation.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba. AISTATS 2022, arXiv:2106.06639, algorithm 1, in delta form. Nobody
waits for the slowest: a client begins with the model that there is when a place is free, and the server moves each time
that a buffer of K changes is full. Which client is there when is a matter of virtual time (`simulation.devices`).

| paper | here | meaning |
|---|---|---|
| w^t | `State.model`, t is `State.version` | the server's model after t updates |
| M_c, concurrency | `run.clients_per_round`, `run.participation` | clients that train at the same time |
| K | `Config.buffer_size` | changes in a full buffer, which are a round |
| tau_i | payload number `staleness.<i>` | updates since client i got its model |
| s(tau) | `staleness_weight` | weight of a change that begins tau updates ago |
| Delta_i | tree `delta` before its weight | change of client i |
| eta_g | `Config.server_lr` | server learning rate |

    w^{t+1} = w^t + eta_g / K * sum_{i in buffer} s(tau_i) Delta_i,    s(tau) = 1 / sqrt(1 + tau)

What comes and goes when does not depend on what is learned. So a round is computed once its buffer is known to be full:
its K clients train together, each from the model of its own version (payload trees `model`, `model.<tau>`), and weigh
their change themselves, so that it can be added up wherever it arises. The State keeps the models with which those that
are under way began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.training import num_processed
from umbel.core.tree import num_bytes, scale
from umbel.core.virtual.devices import Devices
from umbel.strategies.base import (
    ClientContext,
    Phase,
    ServerContext,
    Setting,
    Strategy,
    initial_model,
    server_step,
    train_and_subtract,
)
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedBuff.

    Attributes:
        buffer_size: Changes K that the server waits for before it moves; 10 in the paper.
        server_lr: Server learning rate eta_g.
        exponent: Of the staleness weight s(tau) = (1 + tau)^-exponent; the paper has 0.5, 0 weighs all alike.
        weighting: `uniform`, as the paper, or `examples`, which weighs a client by n_k as well.
    """

    buffer_size: Annotated[int, Ge(1)] = 10
    server_lr: Annotated[float, Ge(0)] = 1.0
    exponent: Annotated[float, Ge(0)] = 0.5
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "uniform"


@dataclass(frozen=True)
class Flight:
    """A client under way.

    Attributes:
        client: Its number.
        version: Version of the model that it began with.
        lands: The virtual second at which its change reaches the server.
    """

    client: int
    version: int
    lands: float


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: w^t.
        version: t, the updates so far.
        buffer: The K flights that land next: the round to come.
        flying: Those that are still under way when it is full.
        now: The virtual second at which it is full.
        earlier: The earlier models that these began with, by version.
    """

    model: dict[str, Tensor]
    version: int
    buffer: tuple[Flight, ...]
    flying: tuple[Flight, ...]
    now: float
    earlier: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def staleness_weight(tau: int, exponent: float) -> float:
    """Return s(tau) = (1 + tau)^-exponent."""
    return float((1 + tau) ** -exponent)


def fill(
    flying: Sequence[Flight],
    now: float,
    version: int,
    size: int,
    concurrency: int,
    num_clients: int,
    devices: Devices,
    seconds: Callable[[int], float],
    source: torch.Generator,
) -> tuple[tuple[Flight, ...], tuple[Flight, ...], float]:
    """Let time go on until a buffer is full: land who is back, then begin with others in the places that are free.

    A client is in a buffer once. Who is away does not begin; who has begun lands.

    Args:
        flying: Who is under way.
        now: The virtual second.
        version: Of the model that whoever begins now begins with.
        size: K.
        concurrency: How many are under way at once.
        num_clients: How many clients there are, K at least.
        devices: When they are there.
        seconds: How long a client is under way.
        source: Draws who begins.

    Returns:
        The buffer in the order of landing, who is still under way, and the second at which the buffer is full.
    """
    buffer: list[Flight] = []
    while True:
        queue = sorted(flying, key=lambda flight: (flight.lands, flight.client))
        landed = [flight for flight in queue if flight.lands <= now][: size - len(buffer)]
        buffer, flying = [*buffer, *landed], queue[len(landed) :]
        if len(buffer) == size:
            return tuple(buffer), tuple(flying), now
        busy = {flight.client for flight in (*flying, *buffer)}
        idle = [client for client in range(num_clients) if client not in busy]
        here = [client for client in idle if devices.is_here(client, now)]
        order = torch.randperm(len(here), generator=source)[: concurrency - len(flying)]
        begun = [here[index] for index in order.tolist()]
        flying = [*flying, *(Flight(client, version, now + seconds(client)) for client in begun)]
        times = [flight.lands for flight in flying]
        if len(flying) < concurrency:
            times += [devices.next_here(client, now) for client in set(idle).difference(here)]
        now = max(now, min(times))


class FedBuff(Strategy[State]):
    """Clients train at their own speed; the server moves with every K changes."""

    config_class = Config
    config: Config
    is_asynchronous = True

    def check(self, setting: Setting) -> None:
        run, size = setting.run, self.config.buffer_size
        if not setting.simulation.devices.is_set:
            raise Refusal(
                "strategy.name=fedbuff goes by who is done when, and simulation.devices says nothing of it.",
                key="simulation.devices.speed",
                remedy="Set it, such as simulation.devices.speed='{name: lognormal, median: 100, sigma: 0.8}'.",
            )
        if size > setting.data.num_clients:
            raise Refusal(
                f"strategy.buffer_size={size} is never full: a client is in it once, and there are "
                f"data.num_clients={setting.data.num_clients}.",
                key="strategy.buffer_size",
                remedy=f"Set it to {setting.data.num_clients} or less.",
            )
        if isinstance(run.min_replies, int) and run.min_replies > size:
            raise Refusal(
                f"run.min_replies={run.min_replies} can never be met: a round has strategy.buffer_size={size} replies.",
                key="run.min_replies",
                remedy=f"Set it to {size} or less.",
            )
        for key, value, off in (
            ("run.sampling", run.sampling, "uniform"),
            ("run.over_sample", run.over_sample, 0),
            ("run.deadline", run.deadline, 0.0),
            ("data.rounds_per_task", setting.data.rounds_per_task, 0),
        ):
            if value != off:
                raise Refusal(
                    f"{key}={value} has no part in strategy.name=fedbuff: clients begin one by one, and none waits.",
                    key=key,
                    remedy=f"Set {key}={off}.",
                )

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        return State(model, 0, *self._fill((), 0.0, 0, num_bytes(model), server))

    def _fill(
        self, flying: Sequence[Flight], now: float, version: int, size_bytes: int, server: ServerContext
    ) -> tuple[tuple[Flight, ...], tuple[Flight, ...], float]:
        """Return the next buffer, as `fill`."""
        devices = server.devices
        assert devices is not None, "check refuses an experiment without"

        def seconds(client: int) -> float:
            processed = num_processed(server.local, server.num_train[client])
            return devices.seconds(client, processed, size_bytes, size_bytes)

        size, concurrency, source = self.config.buffer_size, server.num_sampled, server.rng("begin")
        return fill(flying, now, version, size, concurrency, server.num_clients, devices, seconds, source)

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send_versions, self.train, self.fold, self.update, "clients"),)

    def phases(self, state: State) -> tuple[Phase[State], ...]:
        clients = tuple(sorted(flight.client for flight in state.buffer))
        return tuple(replace(phase, clients=clients, ends=state.now) for phase in self.every_phase())

    def send_versions(self, state: State, server: ServerContext) -> Payload:
        staleness = {flight.client: state.version - flight.version for flight in state.buffer}
        trees = {f"model.{tau}": state.earlier[str(state.version - tau)] for tau in sorted({*staleness.values()} - {0})}
        numbers = {f"staleness.{client}": float(tau) for client, tau in sorted(staleness.items())}
        return Payload({"model": state.model} | trees, numbers, one_of=frozenset({"model", *trees}))

    def train(self, payload: Payload, client: ClientContext) -> Reply:
        tau = int(payload.numbers.get(f"staleness.{client.id}", 0))  # whom no buffer has is asked by `umbel explain`
        model = payload.trees[f"model.{tau}" if tau else "model"]
        reply = train_and_subtract(Payload({"model": model}), client)
        return replace(reply, trees={"delta": scale(reply.trees["delta"], staleness_weight(tau, self.config.exponent))})

    def fold(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        model = server_step(state.model, folded.trees["delta"], self.config.server_lr)
        version = state.version + 1
        buffer, flying, now = self._fill(state.flying, state.now, version, num_bytes(model), server)
        models = state.earlier | {str(state.version): state.model}
        used = sorted({flight.version for flight in (*buffer, *flying)} - {version})
        return State(model, version, buffer, flying, now, {str(each): models[str(each)] for each in used})

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

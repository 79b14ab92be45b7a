"""Replay: a tiny episodic memory on each client.

Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr, Ranzato. On tiny episodic memories in continual learning, 2019,
arXiv:1902.10486, algorithm 1 with reservoir sampling (algorithm R of Vitter, ACM TOMS 11(1), 1985), in delta form.

| paper | here | meaning |
|---|---|---|
| theta | `State.model` | global model |
| M, mem_sz | memory tree `kept`, `Config.memory` | examples of its own that a client keeps, how many at most |
| n | memory number `seen` | examples that were offered to the memory so far |
| B_n, B_M | a batch of the current task, as many drawn from M | |

    client, training      a step is on B_n and B_M together: the mean loss over both; B_M anew for each step, without
                          replacement within it where M has enough
    end of a task         each of the client's examples of the task is offered to M: while there is room it goes in;
                          then example n takes the place of a random one with probability mem_sz / n

So M is a uniform sample of all that the client has had in the tasks that ended. The paper's stream offers each example
when it is first trained on; here tasks last for rounds, and an example that a client still has need not be remembered,
so that it is offered when its task ends. With mem_sz = 0 this is FedAvg, bit for bit.

M stays with the client: it lies in the client's own memory, as images as they came, and no reply has anything of it.
What a client sends is the change of its model and its mean loss, as under FedAvg, both of what it trained on.

Legend: K kept examples, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.spent import count
from umbel.core.training import LocalConfig, Objective, num_processed
from umbel.core.training.loop import augmentation_source
from umbel.data.types import Examples
from umbel.models.base import Model
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
from umbel.strategies.fedavg import Config as FedAvgConfig
from umbel.strategies.fedavg import mean_fold
from umbel.strategies.phase import no_pass
from umbel.strategies.setting import refuse_without_sequence


@dataclass(frozen=True)
class Config(FedAvgConfig):
    """Hyper-parameters of replay.

    Attributes:
        memory: mem_sz, examples of earlier tasks that each client keeps at most; 0 keeps none, and is FedAvg.
    """

    memory: Annotated[int, Ge(0)] = 100


@dataclass(frozen=True)
class State:
    """What the server keeps: nothing of what clients remember.

    Attributes:
        model: theta, the global model's shared state.
        keep_next: The next round is the last of a task that another follows.
        replays: Clients have kept examples of a task.
    """

    model: dict[str, Tensor]
    keep_next: bool
    replays: bool


def reservoir(memory: int, num_kept: int, num_seen: int, num_new: int, source: torch.Generator) -> Tensor:
    """Return which examples are kept after more were offered, [K] int64.

    Args:
        memory: mem_sz.
        num_kept: Examples that are kept so far: numbers 0 .. num_kept - 1 of the result.
        num_seen: Examples that were offered so far.
        num_new: Examples that are offered now, one after the other: the numbers from num_kept on.
        source: Draws whose place each takes.
    """
    kept = list(range(num_kept))
    counts = torch.arange(num_seen + 1, num_seen + num_new + 1)
    places = (torch.rand(num_new, generator=source, dtype=torch.float64) * counts).long().tolist()
    for new, place in enumerate(places, num_kept):
        if len(kept) < memory:
            kept.append(new)
        elif place < memory:
            kept[place] = new
    return torch.tensor(kept, dtype=torch.int64)


def draw(num_kept: int, size: int, source: torch.Generator) -> Tensor:
    """Return numbers [size] of kept examples: without replacement while there are enough, else each in turn."""
    rounds = -(-size // num_kept)
    return torch.cat([torch.randperm(num_kept, generator=source) for _ in range(rounds)])[:size]


class Replay(Strategy[State]):
    """FedAvg whose clients go over examples of earlier tasks, which they keep to themselves."""

    config_class = Config
    config: Config

    def check(self, setting: Setting) -> None:
        if not self.config.memory:
            return
        if setting.client.class_weights != "none":
            raise Refusal(
                "strategy.name=replay trains on batches of a client's examples and of its memory, and "
                f"client.class_weights={setting.client.class_weights} weighs classes by how many of its examples they "
                "have, which those of earlier tasks have none of.",
                key="client.class_weights",
                remedy="Set client.class_weights=none.",
            )
        refuse_without_sequence(setting, "replay", "strategy.memory", "0")

    def initial(self, server: ServerContext) -> State:
        return State(initial_model(server), self._ends(server, 1), replays=False)

    def _ends(self, server: ServerContext, round_: int) -> bool:
        return self.config.memory > 0 and server.schedule.hands_over(round_)

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (
            Phase("train", self.send_model, self.local, self.fold, self.after_train),
            Phase(
                "keep",
                lambda state, server: Payload({}),
                self.keep,
                lambda: product({}),
                self.after_keep,
                who="everyone",
                num_processed=no_pass,
            ),
        )

    def phases(self, state: State) -> tuple[Phase[State], ...]:
        train, keep = self.every_phase()
        if state.replays:
            train = replace(train, num_processed=self.num_processed)
        return (train, keep) if state.keep_next else (train,)

    # ---- train: as FedAvg, on twice the batch ----------------------------------------------------------------

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through, of the task and of its memory."""
        return 2 * num_processed(local, own)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        memory = client.memory
        if memory is None or "kept" not in memory.trees:
            return train_and_subtract(payload, client)
        return train_and_subtract(payload, client, objective=self._both(memory, client))

    def _both(self, memory: MemoryRecord, client: ClientContext) -> Objective:
        """Return the mean loss over a batch and as many kept examples."""
        kept = memory.trees["kept"]
        # The same ones for all rounds of a task, so that they are prepared once.
        old = client.keep("kept", memory.numbers["seen"], lambda: Examples(kept["images"], kept["labels"]))
        images, labels = client.prepare(old)
        loss, drawn, augment = client.training_loss(), client.rng("replay"), client.augment
        varied = augmentation_source(client.rng("replayed augmentation"))

        def objective(model: Model, x: Tensor, y: Tensor) -> Tensor:
            index = draw(len(labels), len(y), drawn).to(y.device)
            old = images[index] if augment is None else augment(images[index], varied)
            count(0, len(index))
            return loss(model(torch.cat([x, old])), torch.cat([y, labels[index]]))

        return objective

    def fold(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def after_train(self, state: State, folded: Folded, server: ServerContext) -> State:
        model = server_step(state.model, folded.trees["delta"], self.config.server_lr)
        ends = state.keep_next or self._ends(server, server.round + 1)  # else `after_keep` looks ahead
        return replace(state, model=model, keep_next=ends)

    # ---- keep: what the task leaves on the client ------------------------------------------------------------

    def keep(self, payload: Payload, client: ClientContext) -> Reply:
        known = client.memory or MemoryRecord()
        own, kept = client.train_data, known.trees.get("kept", {})
        seen, before = int(known.numbers.get("seen", 0)), len(kept["labels"]) if kept else 0
        index = reservoir(self.config.memory, before, seen, len(own), client.rng("reservoir"))
        new = {"images": own.images.cpu(), "labels": own.labels.cpu()}
        both = {name: torch.cat([kept[name], each]) if kept else each for name, each in new.items()}
        trees = {"kept": {name: each[index] for name, each in both.items()}}
        client.remember(MemoryRecord(trees, {"seen": float(seen + len(own))}))
        return Reply({}, {}, client.num_examples)

    def after_keep(self, state: State, folded: Folded, server: ServerContext) -> State:
        return State(state.model, self._ends(server, server.round + 1), replays=True)

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

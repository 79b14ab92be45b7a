"""A server and clients with linear models and five public examples, for tests that call strategies' halves by hand."""

from __future__ import annotations

import torch

from tests.contexts import client_context
from umbel import models
from umbel.core.memory import MemoryRecord
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.strategies.base import ClientContext, ServerContext

F64 = torch.float64
CLASSES, SIDE = 3, 2
LOCAL = LocalConfig(epochs=1, batch_size=0, lr=0.25, device="cpu", precision="fp64")
PUBLIC = Examples(torch.randn(5, 1, SIDE, SIDE, generator=generator(1), dtype=F64), torch.tensor([0, 1, 2, 0, 1]))
PRIVATE = Examples(torch.randn(4, 1, SIDE, SIDE, generator=generator(2), dtype=F64), torch.tensor([2, 2, 1, 0]))


def linear() -> Model:
    return models.build("linear", CLASSES, SIDE, 1).double()


def server_of(round_: int = 1) -> ServerContext:
    def build() -> Model:
        return build_seeded(linear, 0, F64)

    return ServerContext(
        seed=0,
        round=round_,
        num_rounds=3,
        num_clients=3,
        local=LOCAL,
        build_model=build,
        shared_names=frozenset(build().state_dict()),
        validation=None,
        device=torch.device("cpu"),
        prepare=lambda examples: (examples.images, examples.labels),
        public=PUBLIC,
    )


def client_of(number: int = 0, remembered: list[MemoryRecord] | None = None, **changes: object) -> ClientContext:
    remember = [].append if remembered is None else remembered.append
    return client_context(
        PRIVATE, CLASSES, **{"id": number, "local": LOCAL, "public": PUBLIC, "remember": remember, **changes}
    )

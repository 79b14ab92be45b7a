"""CreamFL's server and clients, driven by hand, and what models say without a `Reader`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.strategies.creamfl.pairs import DIMENSION, PAIRS, PUBLIC
from umbel.client.host import Clients, Host
from umbel.conf.load import load
from umbel.core.memory import MemoryRecord, MemoryStore
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.models.pair import Encoders
from umbel.server.session import Session
from umbel.strategies.creamfl.architectures import server_model
from umbel.strategies.creamfl.method import State

MODALITIES = ("image", "text")
NOISY = (  # what tells training from evaluation: batch norm, dropout
    "strategy.image_models=[cnn]",
    "strategy.image_sizes={cnn: {width: 2, hidden: 8, norm: batch}}",
    "strategy.text_sizes={gru: {width: 8, dropout: 0.5}, transformer: {width: 8, depth: 1, heads: 2, dropout: 0.5}}",
    "strategy.server_text_sizes={width: 16, depth: 1, heads: 2, dropout: 0.5}",
    "model.sizes={width: 4, hidden: 16, norm: batch}",
)


def unit(rows: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, DIMENSION, generator=generator(seed)), dim=1)


def read(model: Encoders, tables: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the representations of whole tables in evaluation mode, without a `Reader`; leave the mode as it was."""
    was, made = model.training, {}
    model.eval()
    with torch.no_grad():
        for name in model.modalities:
            encode = model.encode_image if name == "image" else model.encode_text
            made[name] = encode(tables[name])
    model.train(was)
    return made


class Halves:
    """The server and the clients of one small experiment, driven by hand."""

    def __init__(self, folder: Path, *options: str) -> None:
        experiment = load("digits", [*PAIRS, *options])
        self.session = Session(experiment)
        self.strategy = self.session.strategy
        self.phase = self.strategy.phase("contrast")
        self._clients = Clients(Host(experiment), MemoryStore(folder))
        self.remembered: dict[int, MemoryRecord] = {}

    def client(self, number: int, round_: int = 1):
        """A client with what it remembers."""

        def remember(record: MemoryRecord) -> None:
            self.remembered[number] = record

        return self._clients.context(number, round_, self.phase.name, self.remembered.get(number), remember)

    def tables(self) -> dict[str, torch.Tensor]:
        """The public images and texts, as models read them."""
        public = self.session.data.public
        return {"image": self.session.prepare(public)[0], "text": public.tokens}

    def said(self, seed: int = 50) -> State:
        """A server as initialised that says anything of the public set."""
        said = {name: unit(PUBLIC, seed + number) for number, name in enumerate(MODALITIES)}
        return replace(self.strategy.initial(self.session.context(0)), representations=said)

    def payload(self, state: State, round_: int = 1) -> Payload:
        return self.phase.broadcast(state, self.session.context(round_))

    def fold(self, replies: dict[int, Reply]):
        fold = self.phase.fold()
        total = fold.zero()
        for client, reply in replies.items():
            total = fold.add(total, client, reply)
        return fold.finish(total)

    def encoders(self, state: State) -> Encoders:
        """The server's encoders as they are in a state."""
        model = server_model(self.strategy.config, self.session.context(1))
        model.load_state_dict(state.model)
        return model

    def distilled(self, state: State, ensemble: dict[str, torch.Tensor]) -> State:
        """The state after a round in which one client replied, whose representations alone are the ensemble."""
        folded = self.fold({4: Reply({"representations": ensemble}, {"loss": 1.0}, 5)})
        return self.phase.update(state, folded, self.session.context(1))


def descend(model: Encoders, loss: torch.Tensor, lr: float) -> None:
    """Take a step of plain gradient descent."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            if gradient is not None:
                parameter -= lr * gradient


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The names of what is not the same to the bit."""
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}

"""FedMD: federated learning via model distillation, of models that need not be alike.

Li, Wang. 2019, arXiv:1910.03581, algorithm 1.

| paper | here | meaning |
|---|---|---|
| D_0 | `data.public` | labelled examples that all parties have |
| D_k, f_k | the client's data, memory tree `party` | party k's private data, and its own model, of any architecture |
| d_j | the payload's `rows` | the part of D_0 that round j is about |
| f_k(x_i) | reply's tree `scores` | class scores, before the softmax |
| f~(x_i) = 1/m sum_k f_k(x_i) | `State.consensus` | their mean |

    first time      a party trains on D_0, then on D_k
    communicate     it sends f_k(x_i) of the round's public examples
    digest          it trains f_k to say f~ of them
    revisit         it trains on D_k, as clients do in other methods

No weights travel, and parties agree on nothing but the classes. The loss of the digest is the mean absolute difference
of the scores, as in the authors' code (`loss=absolute`), or their squared one.

The paper has no model at the server. Here it has one, the experiment's, as a party without private data: it trains on
D_0, digests, and says nothing, so that no party's model knows of it. It is what is evaluated, saved and hashed; each
party's own model, which is what the paper reports, is what clients evaluate.

Legend: M public examples of a round, C classes, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from torch import Tensor

from umbel.core.folds import Folded, Product, product
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.training import Objective
from umbel.core.tree import Tree
from umbel.models.weights import shared_state
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, initial_model
from umbel.strategies.creamfl.public import fingerprint
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold
from umbel.strategies.parties import (
    OfParties,
    check_public,
    learn,
    public_of,
    rows_of,
    scores_of,
    state_of,
    train,
    train_on_numbers,
)
from umbel.strategies.phase import Visit, no_pass

_LOSSES = {"absolute": F.l1_loss, "squared": F.mse_loss}


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedMD.

    Attributes:
        models: Architectures of the parties' models; client k has number k modulo their number.
        sizes: Sizes of a model, by its name in `models`.
        transfer_epochs: Passes over D_0, and then over D_k, when a party first takes part; the server's over D_0.
        digest_epochs: Passes over the round's public examples.
        loss: `absolute` or `squared` difference of the scores, the mean over examples and classes.
        public_per_round: Public examples of a round, drawn anew for each; 0 takes all.
        weighting: `uniform` as in the paper, or `examples`.
    """

    models: Annotated[list[str], MinLen(1)] = field(default_factory=lambda: ["cnn", "mlp"])
    sizes: dict[str, Any] = field(default_factory=dict)
    transfer_epochs: Annotated[int, Ge(0)] = 5
    digest_epochs: Annotated[int, Ge(1)] = 1
    loss: Annotated[str, OneOf(*_LOSSES)] = "absolute"
    public_per_round: Annotated[int, Ge(0)] = 0
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "uniform"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: The server's own model, of the experiment.
        consensus: `scores` [M, C] float32, f~ of the last round; empty before it.
    """

    model: dict[str, Tensor]
    consensus: dict[str, Tensor]


def digest_objective(consensus_MC: Tensor, loss: str) -> Objective:
    """Return the distance to the consensus of (model, images [B, ...], numbers of public examples [B])."""
    distance = _LOSSES[loss]
    return lambda model, x, index: distance(model(x), consensus_MC[index].to(x.dtype))


class FedMD(OfParties[State]):
    """Parties with models of their own, which learn from what all of them say of public examples."""

    config_class = Config
    config: Config

    def initial(self, server: ServerContext) -> State:
        self.parties.try_all(server)
        return State(initial_model(server), {})

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (
            Phase(
                "score",
                self.ask,
                self.score,
                self.fold_scores,
                self.after_scores,
                num_processed=no_pass,
                besides=self.scored,
            ),
            Phase(
                "digest",
                self.tell,
                self.digest,
                self.fold_losses,
                self.after_digest,
                who="same:score",
                besides=self.digested,
            ),
        )

    # ---- score: what each party says of the public examples ---------------------------------------------------

    def scored(self, state: State, visit: Visit) -> int:
        """Return the examples that a party goes through: those it scores, and all there are when it first comes."""
        transfers = 0 if visit.remembers else self.config.transfer_epochs
        return len(self._rows(visit.server)) + transfers * (len(public_of(visit.server)) + visit.own)

    def _rows(self, server: ServerContext) -> Tensor:
        return rows_of(len(public_of(server)), self.config.public_per_round, server.rng("public"))

    def ask(self, state: State, server: ServerContext) -> Payload:
        numbers = {"public": fingerprint(public_of(server)), "classes": float(len(server.build_model().head.weight))}
        return Payload({"index": {"rows": self._rows(server).to(torch.int32)}}, numbers)

    def score(self, payload: Payload, client: ClientContext) -> Reply:
        public = check_public(payload, client)
        model, loss = self.parties.remembered(client), 0.0
        if client.memory is None or "party" not in client.memory.trees:
            epochs = self.config.transfer_epochs
            train(client, "transfer", model, public, epochs)
            loss = train(client, "private", model, client.train_data, epochs)
        client.remember(MemoryRecord({"party": state_of(model)}))
        said = scores_of(model, client.prepare(public)[0][payload.trees["index"]["rows"].long().to(client.device)])
        return Reply({"scores": {"scores": said}}, {"loss": loss}, client.num_examples)

    def fold_scores(self) -> Product:
        return product({"scores": mean_fold(self.config.weighting, _scores_like)}, numbers=["loss"])

    def after_scores(self, state: State, folded: Folded, server: ServerContext) -> State:
        return State(state.model, {"scores": folded.trees["scores"]["scores"].float()})

    # ---- digest, and revisit ----------------------------------------------------------------------------------

    def digested(self, state: State, visit: Visit) -> int:
        """Return the public examples that a party goes through, before it revisits its own."""
        return self.config.digest_epochs * len(self._rows(visit.server))

    def tell(self, state: State, server: ServerContext) -> Payload:
        return Payload({"index": {"rows": self._rows(server).to(torch.int32)}, "consensus": state.consensus})

    def digest(self, payload: Payload, client: ClientContext) -> Reply:
        model, rows = self.parties.remembered(client), payload.trees["index"]["rows"].long()
        images = client.prepare(public_of(client))[0][rows.to(client.device)]
        to = digest_objective(payload.trees["consensus"]["scores"].to(client.device), self.config.loss)
        train_on_numbers(client, "digest", model, images, self.config.digest_epochs, to)
        loss = train(client, "revisit", model, client.train_data)
        client.remember(MemoryRecord({"party": state_of(model)}))
        return Reply({}, {"loss": loss}, client.num_examples)

    def fold_losses(self) -> Product:
        return product({}, numbers=["loss"])

    def after_digest(self, state: State, folded: Folded, server: ServerContext) -> State:
        model, public = server.model(state.model), public_of(server)
        images, labels = server.prepare(public)
        if server.round == 1:
            learn(server, "transfer", model, images, labels, self.config.transfer_epochs)
        rows = self._rows(server).to(server.device)
        to = digest_objective(state.consensus["scores"].to(server.device), self.config.loss)
        numbers = torch.arange(len(rows), device=server.device)
        learn(server, "digest", model, images[rows], numbers, self.config.digest_epochs, to)
        learned = shared_state(model)
        return State({name: learned[name].cpu() for name in state.model}, state.consensus)

    # ---- what is evaluated ------------------------------------------------------------------------------------

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def representations(self, state: State) -> dict[str, Tensor]:
        return state.consensus

    def evaluated(self, state: State, server: ServerContext) -> Payload:
        return Payload({})  # clients evaluate what they have

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        return {"model": Predictor(self.parties.remembered(client).eval())}


def _scores_like(payload: Payload) -> Tree:
    """Return what a party should send, without content."""
    rows, classes = len(payload.trees["index"]["rows"]), int(payload.numbers["classes"])
    return {"scores": torch.empty(rows, classes, dtype=torch.float32, device="meta")}

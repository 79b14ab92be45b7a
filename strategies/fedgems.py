"""FedGEMS: a larger model at the server learns from itself where it is right, and from clients where it is not.

Cheng, Wu, Xiao, Liu, Liu. "FedGEMS: Federated Learning of Larger Server Models via Selective Knowledge Fusion", 2021,
arXiv:2110.11027.

| paper | here | meaning |
|---|---|---|
| X_0, y_0 | `data.public` | labelled examples that the server and all clients have |
| f_k, X_k | memory tree `party`, the client's data | a client's model, of any architecture, and its private data |
| f_s | `State.model` | the server's model, larger than theirs |
| S_correct, S_incorrect | `select` | public examples that the server classifies rightly, and wrongly |
| l_global | `State.knowledge`, `pool` | what the server said of an example when it was last right |
| H(l_k), alpha_k | `entropy`, `weights_of` | how sure a client is, and the weight of what it says |
| epsilon | `Config.epsilon` | share of the labels in a loss that distils |

    client     distil from the server: epsilon CE(y) + (1 - epsilon) KL(server || client) on X_0; train on X_k;
               say f_k(x_i) of those x_i in S_incorrect of which the server knows nothing
    server     x_i in S_correct                     CE(y), and l_global(x_i) <- f_s(x_i)
               x_i in S_incorrect, l_global known   epsilon CE(y) + (1 - epsilon) KL(l_global || f_s)
               the others                           epsilon CE(y) + (1 - epsilon) KL(sum_k alpha_k f_k || f_s)
               alpha_k = softmax over the clients k that are right of 1 / H(f_k(x_i))

No weights travel. An example about which no client is right leaves the server its label alone.

Legend: K clients that replied, P public examples, W of them that are asked for, C classes, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval, MinLen
from torch import Tensor

from umbel.core.collecting import Collect
from umbel.core.folds import Folded, Product, product
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.training import Objective
from umbel.core.tree import Tree
from umbel.models.weights import shared_state
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, initial_model
from umbel.strategies.creamfl.public import fingerprint
from umbel.strategies.parties import (
    OfParties,
    check_public,
    learn,
    public_of,
    scores_of,
    state_of,
    train,
    train_on_numbers,
)
from umbel.strategies.phase import Visit

_ENSEMBLES = ("entropy", "mean")
_LEAST_ENTROPY = 1e-6  # nats; who is surer than that is as sure as all who are


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedGEMS.

    Attributes:
        models: Architectures of the clients' models; client k has number k modulo their number.
        sizes: Sizes of a model, by its name in `models`.
        ensemble: Of the clients that are right, each weighs by its `entropy`, as in the paper, or all alike: `mean`.
        epsilon: Share of the labels' cross-entropy where something is distilled; the rest is of the distillation.
        digest_epochs: A client's passes over the public set, towards what the server says.
        server_epochs: The server's passes over the public set.
    """

    models: Annotated[list[str], MinLen(1)] = field(default_factory=lambda: ["cnn", "mlp"])
    sizes: dict[str, Any] = field(default_factory=dict)
    ensemble: Annotated[str, OneOf(*_ENSEMBLES)] = "entropy"
    epsilon: Annotated[float, Interval(ge=0, le=1)] = 0.75
    digest_epochs: Annotated[int, Ge(0)] = 1
    server_epochs: Annotated[int, Ge(1)] = 5


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: f_s, of the experiment.
        knowledge: Of the public examples: `says` [P, C] float32, what it says now; `pool` [P, C] float32, what it said
            when it was last right, zeros where it never was; `known` [P] uint8, whether it ever was.
    """

    model: dict[str, Tensor]
    knowledge: dict[str, Tensor]


def select(says_PC: Tensor, labels_P: Tensor, known_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which public examples the server is right about, knows from before, and asks clients for.

    Args:
        says_PC: Class scores of the server.
        labels_P: Labels.
        known_P: Whether it was right about an example before, bool.

    Returns:
        Three masks [P], of which each example is in one: S_correct; S_incorrect with l_global; S_incorrect without.
    """
    right_P = says_PC.argmax(1) == labels_P
    return right_P, ~right_P & known_P, ~right_P & ~known_P


def entropy(scores: Tensor) -> Tensor:
    """Return the entropy [...] in nats of the softmax of class scores [..., C]."""
    log_p = scores.double().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def weights_of(scores_KWC: Tensor, labels_W: Tensor, ensemble: str = "entropy") -> Tensor:
    """Return alpha [K, W]: a softmax of 1 / H over the clients that are right, 0 for the others, float64.

    Where no client is right, all of them have 0. Those that are right weigh the same under `ensemble` `mean`.
    """
    right_KW = scores_KWC.argmax(-1) == labels_W
    sure_KW = 1 / entropy(scores_KWC).clamp_min(_LEAST_ENTROPY)
    sure_KW = (sure_KW if ensemble == "entropy" else torch.zeros_like(sure_KW)).masked_fill(~right_KW, -torch.inf)
    return sure_KW.softmax(0).masked_fill(~right_KW, 0.0)


def fuse(scores_KWC: Tensor, labels_W: Tensor, ensemble: str = "entropy") -> tuple[Tensor, Tensor]:
    """Return what clients together say, sum_k alpha_k f_k [W, C] float32, and whether anybody is right, [W] bool."""
    alpha_KW = weights_of(scores_KWC, labels_W, ensemble)
    fused_WC = torch.einsum("kw,kwc->wc", alpha_KW, scores_KWC.double()).float()
    return fused_WC, alpha_KW.sum(0) > 0


def divergence(target_BC: Tensor, scores_BC: Tensor) -> Tensor:
    """Return KL(softmax target || softmax scores) of each row, [B]."""
    target, log_q = target_BC.log_softmax(1), scores_BC.log_softmax(1)
    return (target.exp() * (target - log_q)).sum(1)


def distilling(labels_P: Tensor, targets_PC: Tensor, taught_P: Tensor, epsilon: float) -> Objective:
    """Return the loss of (model, images [B, ...], numbers of public examples [B]).

    Args:
        labels_P: Labels of the public examples.
        targets_PC: Class scores to distil from.
        taught_P: Which examples have any, bool; the others have their label alone.
        epsilon: Share of the labels where there are both.
    """

    def loss(model: Any, x: Tensor, index: Tensor) -> Tensor:
        scores = model(x).float() if x.dtype != torch.float64 else model(x)
        of_label = F.cross_entropy(scores, labels_P[index], reduction="none")
        of_target = divergence(targets_PC[index].to(scores.dtype), scores)
        both = epsilon * of_label + (1 - epsilon) * of_target
        return torch.where(taught_P[index], both, of_label).mean()

    return loss


class FedGEMS(OfParties[State]):
    """A server's larger model and clients' own, which say to one another what they think of public examples."""

    config_class = Config
    config: Config

    def initial(self, server: ServerContext) -> State:
        self.parties.try_all(server)
        images, labels = server.prepare(public_of(server))
        says = scores_of(server.build_model().to(server.device), images)
        nothing = {"pool": torch.zeros_like(says), "known": torch.zeros(len(labels), dtype=torch.uint8)}
        return State(initial_model(server), self._noted({"says": says, **nothing}, labels.cpu()))

    @staticmethod
    def _noted(knowledge: Tree, labels_P: Tensor) -> dict[str, Tensor]:
        """Return the knowledge with what the server says of S_correct in its pool."""
        says, known = knowledge["says"], knowledge["known"].bool()
        right_P, _, _ = select(says, labels_P, known)
        pool = torch.where(right_P[:, None], says, knowledge["pool"])
        return {"says": says, "pool": pool, "known": (known | right_P).to(torch.uint8)}

    def every_phase(self) -> tuple[Phase[State], ...]:
        measured, besides = self.measured, self.besides
        return (Phase("teach", self.send, self.local, self.fold, self.update, measured=measured, besides=besides),)

    def besides(self, state: State, visit: Visit) -> int:
        """Return the public examples that a client digests, once the server has learned, and those it is asked for."""
        epochs = self.config.digest_epochs if visit.server.round > 1 else 0
        return epochs * len(public_of(visit.server)) + len(self._asked(state, visit.server))

    @staticmethod
    def measured(state: State) -> Mapping[str, float]:
        """Return the share of public examples that the server is, or was, right about."""
        return {"public/known": state.knowledge["known"].float().mean().item()}

    def _asked(self, state: State, server: ServerContext) -> Tensor:
        """Return the public examples that clients are asked for, int64 [W], ascending."""
        known = state.knowledge["known"].bool()
        return select(state.knowledge["says"], public_of(server).labels, known)[2].nonzero()[:, 0]

    # ---- a client -------------------------------------------------------------------------------------------------

    def send(self, state: State, server: ServerContext) -> Payload:
        """Send what the server says of all public examples, once it has learned, and which it asks for."""
        says = {"says": state.knowledge["says"]} if server.round > 1 else {}
        rows = self._asked(state, server).to(torch.int32)
        numbers = {"public": fingerprint(public_of(server)), "classes": float(state.knowledge["says"].shape[1])}
        return Payload({"server": says, "index": {"rows": rows}}, numbers)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        public = check_public(payload, client)
        model, (images, labels) = self.parties.remembered(client), client.prepare(public)
        if says := payload.trees["server"]:
            taught = torch.ones(len(public), dtype=torch.bool, device=client.device)
            loss = distilling(labels, says["says"].to(client.device), taught, self.config.epsilon)
            train_on_numbers(client, "digest", model, images, self.config.digest_epochs, loss)
        private = train(client, "private", model, client.train_data)
        client.remember(MemoryRecord({"party": state_of(model)}))
        rows = payload.trees["index"]["rows"].long().to(client.device)
        said = {"scores": scores_of(model, images[rows])} if len(rows) else {}
        return Reply({"scores": said}, {"loss": private}, client.num_examples)

    def fold(self) -> Product:
        return product({"scores": Collect(_scores_like)}, numbers=["loss"])

    # ---- the server -----------------------------------------------------------------------------------------------

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        model, (images, labels) = server.model(state.model), server.prepare(public_of(server))
        targets, taught = self.targets(state, folded, server)
        loss = distilling(labels, targets.to(server.device), taught.to(server.device), self.config.epsilon)
        numbers = torch.arange(len(labels), device=server.device)
        learn(server, "public", model, images, numbers, self.config.server_epochs, loss)
        says = scores_of(model, images)
        learned = shared_state(model)
        knowledge = self._noted({**state.knowledge, "says": says}, labels.cpu())
        return State({name: learned[name].cpu() for name in state.model}, knowledge)

    def targets(self, state: State, folded: Folded, server: ServerContext) -> tuple[Tensor, Tensor]:
        """Return what the server distils from, [P, C], and of which examples, [P]: its pool's, and what clients say."""
        knowledge, labels = state.knowledge, public_of(server).labels
        _, taught, _ = select(knowledge["says"], labels, knowledge["known"].bool())
        targets, rows = knowledge["pool"].clone(), self._asked(state, server)
        if len(rows):
            said = folded.trees["scores"]["scores"].float()
            targets[rows], taught[rows] = fuse(said, labels[rows], self.config.ensemble)
        return targets, taught

    # ---- what is evaluated ----------------------------------------------------------------------------------------

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def representations(self, state: State) -> dict[str, Tensor]:
        return {"says": state.knowledge["says"]}

    def evaluated(self, state: State, server: ServerContext) -> Payload:
        return Payload({})  # clients evaluate what they have

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        return {"model": Predictor(self.parties.remembered(client).eval())}


def _scores_like(payload: Payload) -> Tree:
    """Return what a client should send, without content: nothing where it is asked for nothing."""
    rows, classes = len(payload.trees["index"]["rows"]), int(payload.numbers["classes"])
    return {"scores": torch.empty(rows, classes, dtype=torch.float32, device="meta")} if rows else {}

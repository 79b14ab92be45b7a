"""FedET: small models of several kinds are trained on clients, and together teach a larger one at the server.

Cho, Manoel, Joshi, Sim, Dimitriadis. "Heterogeneous Ensemble Knowledge Transfer for Training Large Models in Federated
Learning" (Fed-ET), IJCAI 2022, arXiv:2204.12703.

| paper | here | meaning |
|---|---|---|
| M, w_k | `State.small`, reply's tree `small` | small models, one an architecture; client k's after training |
| w-bar | `State.model` | the server's large model |
| representation layer | `represent` of `Represented` | a layer of one shape that all models have before the last |
| P | `data.public` | examples of which the server alone makes use, without their labels |
| s_k(x) | `scores_of` | class scores of client k's model |
| alpha_k(x) | `weights_of` | its weight: the variance of s_k(x) over the classes, among the clients |
| s-hat(x), y_s(x) | `consensus` | sum_k alpha_k(x) s_k(x), and its largest class |
| s_div(x) | `consensus` | the same sum over the clients whose largest class is another |
| lambda | `Config.diversity` | weight of the diversity |

    client     receives its small model, trains it on its private data, and sends it back
    server     the large model's representation layer <- the mean of the clients'
               the large model learns CE(y_s(x)) + lambda KL(s_div(x) || large(x)) on P; where all agree, CE alone
               each small model <- the mean of the clients' of its architecture; its representation layer <- the large
               model's

Legend: K clients that replied, P public examples, C classes, R width of the representation layer, B batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from umbel.core.collecting import Collect, replies_in
from umbel.core.device import parameter_dtype
from umbel.core.folds import Folded, Product, product
from umbel.core.ranges import OneOf
from umbel.core.records import BadReplyError, Payload, Reply
from umbel.core.rng import build_seeded
from umbel.core.training import Objective
from umbel.core.tree import Tree
from umbel.core.wire.limits import Size
from umbel.models.base import Model
from umbel.models.weights import load_state, shared_state
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext
from umbel.strategies.fedavg import WEIGHTINGS
from umbel.strategies.fedgems import divergence
from umbel.strategies.parties import (
    OfParties,
    learn,
    public_of,
    scores_of,
    state_of,
    train,
)

_LAYER = "represent."  # parameters of the representation layer


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedET.

    Attributes:
        models: Architectures of the small models; client k has number k modulo their number.
        sizes: Sizes of a model, by its name in `models`.
        width: R, features of the representation layer.
        diversity: lambda, weight of the divergence from those who disagree with the consensus.
        server_epochs: The server's passes over the public set.
        weighting: Of clients in the means of small models and of representation layers: `examples` or `uniform`.
    """

    models: Annotated[list[str], MinLen(1)] = field(default_factory=lambda: ["cnn", "mlp"])
    sizes: dict[str, Any] = field(default_factory=dict)
    width: Annotated[int, Ge(1)] = 64
    diversity: Annotated[float, Ge(0)] = 0.05
    server_epochs: Annotated[int, Ge(1)] = 5
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "examples"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: The large model, parameters and buffers of a `Represented`.
        small: The small models' shared state, names after their architecture's number: `0/head.weight`.
        numbers: Of the last round: `disagreement`, the share of what clients said of P that is not the consensus.
    """

    model: dict[str, Tensor]
    small: dict[str, Tensor]
    numbers: dict[str, float] = field(default_factory=dict)


class Represented(Model):
    """A model of the zoo whose features [B, D] go through a layer of its own to [B, R], and through one that all share.

    Args:
        trunk: The model; its head is dropped.
        width: R.
        num_classes: C.
    """

    def __init__(self, trunk: Model, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = width, trunk.in_channels, trunk.image_size
        self.trunk = trunk
        self.trunk.head = nn.Identity()  # type: ignore[assignment]  # no part of what it computes
        self.enter = nn.Linear(trunk.num_features, width)
        self.represent = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the representation [B, R] of images [B, I, H, W]."""
        found: Tensor = F.relu(self.represent(F.relu(self.enter(self.trunk.features(x)))))
        return found


def weights_of(scores_KPC: Tensor, among_KP: Tensor | None = None) -> Tensor:
    """Return alpha [K, P]: each client's variance over the classes, as a share of that of all, float64.

    Clients that tell no class from another have no variance; where that is so of all, they weigh the same.

    Args:
        scores_KPC: Class scores.
        among_KP: Which clients count for an example, bool; the others have 0, as all have where nobody counts.
    """
    among = torch.ones_like(scores_KPC[..., 0], dtype=torch.bool) if among_KP is None else among_KP
    spread_KP = scores_KPC.double().var(-1, unbiased=False).masked_fill(~among, 0.0)
    spread_KP = torch.where(spread_KP.sum(0) > 0, spread_KP, among.double())
    return spread_KP / spread_KP.sum(0).clamp_min(torch.finfo(torch.float64).tiny)


def consensus(scores_KPC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what clients say together, what those say who disagree, and who does.

    Args:
        scores_KPC: Class scores of each client.

    Returns:
        s-hat [P, C]; s_div [P, C], zeros where nobody disagrees; who disagrees, [K, P] bool. Scores are float32.
    """
    scores = scores_KPC.double()
    agreed_PC = torch.einsum("kp,kpc->pc", weights_of(scores), scores)
    other_KP = scores.argmax(-1) != agreed_PC.argmax(-1)
    diverse_PC = torch.einsum("kp,kpc->pc", weights_of(scores, other_KP), scores)
    return agreed_PC.float(), diverse_PC.float(), other_KP


def objective(agreed_PC: Tensor, diverse_PC: Tensor, disputed_P: Tensor, diversity: float) -> Objective:
    """Return the large model's loss of (model, images [B, ...], numbers of public examples [B]).

    Args:
        agreed_PC: s-hat.
        diverse_PC: s_div.
        disputed_P: Which examples somebody disagrees about, bool.
        diversity: lambda.
    """
    labels_P = agreed_PC.argmax(1)

    def loss(model: Any, x: Tensor, index: Tensor) -> Tensor:
        scores = model(x).float() if x.dtype != torch.float64 else model(x)
        apart = divergence(diverse_PC[index].to(scores.dtype), scores)
        of_consensus = F.cross_entropy(scores, labels_P[index])
        return of_consensus + diversity * torch.where(disputed_P[index], apart, 0.0).mean()

    return loss


def mean_of(trees: Sequence[Tree], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted mean of trees of the same names and shapes, taken in float64 and cast once."""
    shares = (torch.tensor(weights, dtype=torch.float64) / sum(weights)).tolist()
    return {
        name: torch.stack([w * tree[name].double() for w, tree in zip(shares, trees, strict=True)])
        .sum(0)
        .to(like.dtype)
        for name, like in trees[0].items()
    }


def part(tree: Tree, turn: int) -> dict[str, Tensor]:
    """Return the small model of a number out of the tree of all."""
    start = f"{turn}/"
    return {name.removeprefix(start): tensor for name, tensor in tree.items() if name.startswith(start)}


def numbered(tree: Tree, turn: int) -> dict[str, Tensor]:
    """Return a small model as a part of the tree of all."""
    return {f"{turn}/{name}": tensor for name, tensor in tree.items()}


class SmallModels(Collect):
    """Keeps the model of each client: one of those of the payload's tree `small`, whole, whichever it is."""

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        sent = payload.trees["small"]
        expected = {name: tensor for name, tensor in sent.items() if name.startswith(f"{_turn(tree)}/")}
        if not expected or {n: (t.shape, t.dtype) for n, t in tree.items()} != {
            n: (t.shape, t.dtype) for n, t in expected.items()
        }:
            raise BadReplyError(f"{what}: expected one of the small models that were sent, found {len(tree)} tensors")
        super().check(what, tree, payload)

    def most(self, payload: Payload, num_replies: int) -> Size:
        tensors = payload.trees["small"]
        row = sum(8 * (tensor.numel() + 2) for tensor in tensors.values())  # and whose it is, of how many examples
        return Size(row * num_replies, 3 * len(tensors))


class FedET(OfParties[State]):
    """A large model at the server, taught by a weighted consensus of clients' small ones."""

    config_class = Config
    config: Config
    own_model = True

    def initial(self, server: ServerContext) -> State:
        self.parties.try_all(server)
        classes, small = len(server.build_model().head.weight), dict[str, Tensor]()
        for turn in range(len(self.config.models)):
            small |= numbered(_shared(self.small(turn, server, classes)), turn)
        return State(state_of(self.large(server)), small)

    def small(self, turn: int, context: ServerContext | ClientContext, num_classes: int) -> Represented:
        """Return the small model of a number as it begins, on the CPU, for public examples or a client's own."""
        name = self.config.models[turn]
        like = context.train_data if isinstance(context, ClientContext) else public_of(context)
        return build_seeded(
            lambda: Represented(self.parties.build(name, like, num_classes), self.config.width, num_classes),
            context.seed,
            parameter_dtype(context.local.precision),
            turn,
            "small",
        )

    def large(self, server: ServerContext, tree: Tree | None = None) -> Represented:
        """Return the large model as it begins, or of a State's tree, on the CPU: the experiment's is its trunk."""

        def build() -> Represented:
            trunk = server.build_model()
            return Represented(trunk, self.config.width, len(trunk.head.weight))

        model = build_seeded(build, server.seed, parameter_dtype(server.local.precision), purpose="large")
        if tree is not None:
            model.load_state_dict(dict(tree))
        return model

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (Phase("train", self.send, self.local, self.fold, self.update, measured=self.measured),)

    @staticmethod
    def measured(state: State) -> Mapping[str, float]:
        return state.numbers

    # ---- a client -------------------------------------------------------------------------------------------------

    def send(self, state: State, server: ServerContext) -> Payload:
        return Payload({"small": state.small})

    def own(self, payload: Payload, client: ClientContext) -> tuple[int, Represented]:
        """Return which of the small models is the client's, and that one on its device."""
        turn = self.parties.turn(client.id)
        model = self.small(turn, client, client.num_classes)
        load_state(model, part(payload.trees["small"], turn))
        return turn, model.to(client.device)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        turn, model = self.own(payload, client)
        loss = train(client, "private", model, client.train_data)
        return Reply({"small": numbered(_shared(model), turn)}, {"loss": loss}, client.num_examples)

    def fold(self) -> Product:
        return product({"small": SmallModels()}, numbers=["loss"])

    # ---- the server -----------------------------------------------------------------------------------------------

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        came = []  # which small model a reply is says the reply: a client may send another than is its turn
        for _, n, tree in replies_in(folded.trees["small"]):
            turn = int(_turn(tree))
            came.append((turn, n if self.config.weighting == "examples" else 1, part(tree, turn)))
        large = self.large(server, state.model).to(server.device)
        layer = mean_of([_layer(tree) for _, _, tree in came], [n for _, n, _ in came])
        load_state(large, layer, partial=True)
        share = self._distil(large, came, server)
        taught = state_of(large)
        small = dict(state.small)
        for turn in range(len(self.config.models)):
            own = [(n, tree) for whose, n, tree in came if whose == turn]
            mean = mean_of([tree for _, tree in own], [n for n, _ in own]) if own else {}
            small |= numbered(mean | _layer(taught), turn)
        return State(taught, small, {"disagreement": share})

    def _distil(self, large: Represented, came: Sequence[tuple[int, int, Tree]], server: ServerContext) -> float:
        """Teach the large model in place what the small ones agree on; return the share of them that disagree."""
        images, _ = server.prepare(public_of(server))
        said = []
        for turn, _, tree in came:
            model = self.small(turn, server, len(large.head.weight))
            load_state(model, tree)
            said.append(scores_of(model.to(server.device), images))
        agreed, diverse, other = consensus(torch.stack(said))
        agreed, diverse, disputed = (each.to(server.device) for each in (agreed, diverse, other.any(0)))
        to = objective(agreed, diverse, disputed, self.config.diversity)
        numbers = torch.arange(len(images), device=server.device)
        learn(server, "public", large, images, numbers, self.config.server_epochs, to)
        return other.float().mean().item()

    # ---- what is evaluated ----------------------------------------------------------------------------------------

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        return {"model": Predictor(self.large(server, state.model).to(server.device).eval())}

    def evaluated(self, state: State, server: ServerContext) -> Payload:
        return self.send(state, server)

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        return {"model": Predictor(self.own(payload, client)[1].eval())}


def _turn(tree: Tree) -> str:
    """Return the number before the names of a small model's part of the tree of all."""
    return next(iter(tree), "").partition("/")[0]


def _shared(model: Model) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in shared_state(model).items()}


def _layer(tree: Tree) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tree.items() if name.startswith(_LAYER)}

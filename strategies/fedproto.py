"""FedProto: federated prototype learning across heterogeneous clients.

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang. AAAI 2022, arXiv:2105.00243, algorithm 1.

| paper | here | meaning |
|---|---|---|
| omega_i = (phi_i, nu_i) | memory of client i | its own model, all of it |
| f_i(phi_i; x) | `features` | embedding of an image |
| C_i^(j) | `class_sums` (equation 3) | local prototype: mean embedding of its examples of class j |
| C bar^(j) | `State.prototypes` (equation 6) | global prototype |
| lambda | `Config.strength` | weight of the distance to the global prototypes |
| L_S, L_R | the client's loss, `distance` | supervised loss, distance |

    client   omega_i <- SGD of L_S + lambda L_R(C_i, C bar); replies with C_i^(j) of its classes
    server   C bar^(j) <- sum_i |D_{i,j}| C_i^(j) / N_j, over the clients with class j

No weights travel: every client has a model of its own, which begins as initialised, and all that they agree on is
where a class lies among the features. With lambda = 0 each is trained at home, bit for bit as under `local`.

The paper writes the mean over clients with a factor 1 / |N_j| on top of weights that sum to 1, which would shrink it;
it is left out. L_R is in the paper a sum over classes of the distance between local and global prototype, which a step
knows of its batch alone (`distance=prototypes`); the authors' code, and the default here, has the mean squared
difference between each embedding and its class's global prototype (`distance=examples`). Local prototypes are taken
after training, in evaluation mode. A class that nobody has in a round keeps its prototype. Predictions by the nearest
prototype are over all classes that have one.

Legend: N examples, B batch, D features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.ranges import OneOf
from umbel.core.records import BadReplyError, Payload, Reply
from umbel.core.training import LocalConfig, Objective, num_processed
from umbel.core.tree import Tree
from umbel.models.base import Model
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Setting, Strategy
from umbel.strategies.fedavg import WEIGHTINGS
from umbel.strategies.neural_collapse import features_of
from umbel.strategies.setting import refuse_collapse_of_own_parts

DISTANCES = ("examples", "prototypes")
_ROUNDED = 1 + 1e-6  # counts travel in the model's dtype
_UNLIKELY = 30.0  # how far below all others the logit of a class without a prototype is


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedProto.

    Attributes:
        strength: lambda, weight of the distance to the global prototypes; 0 leaves every client alone.
        distance: `examples`, the mean squared difference of embeddings and their class's prototype; or `prototypes`,
            the sum over a batch's classes of the distance between its mean embedding and the prototype.
        weighting: `examples` weighs a client's prototype by its examples of the class, `uniform` gives each the same.
    """

    strength: Annotated[float, Ge(0)] = 1.0
    distance: Annotated[str, OneOf(*DISTANCES)] = "examples"
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "examples"


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        prototypes: `mean` [C, D], C bar, 0 for classes that nobody has had; and `present` [C], 1 for the others.
    """

    prototypes: dict[str, Tensor]


def distance(z_BD: Tensor, labels_B: Tensor, mean_CD: Tensor, present_C: Tensor, form: str) -> Tensor:
    """Return L_R [] of a batch; examples of a class without a prototype are at none.

    Args:
        z_BD: Embeddings.
        labels_B: Their classes.
        mean_CD: C bar.
        present_C: 1 for classes that have a prototype.
        form: `examples`: the mean over B and D of (z - C bar^(y))^2; `prototypes`: the sum over classes of
            ||mean of z of class j - C bar^(j)||.
    """
    if form == "examples":
        return ((z_BD - mean_CD[labels_B]).square() * present_C[labels_B][:, None]).mean()
    own_BC = F.one_hot(labels_B, len(mean_CD)).to(z_BD.dtype)
    counts = own_BC.sum(0)
    local_CD = own_BC.T @ z_BD / counts.clamp(min=1)[:, None]
    known = (counts > 0) & (present_C > 0)
    apart: Tensor = torch.linalg.vector_norm(local_CD[known] - mean_CD[known], dim=1)
    return apart.sum()


def nearness(z_BD: Tensor, mean_CD: Tensor, present_C: Tensor) -> Tensor:
    """Return logits [B, C] of prediction by the nearest prototype: minus the distance.

    Those of classes without a prototype are below all others.
    """
    logits = -torch.cdist(z_BD, mean_CD)
    return torch.where(present_C > 0, logits, logits.min(1, keepdim=True).values - _UNLIKELY)


def class_sums(z_ND: Tensor, labels_N: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return how many examples each class has, [C], and the sums of their embeddings, [C, D], in float64."""
    counts = torch.bincount(labels_N, minlength=num_classes).double()
    return counts, torch.zeros(num_classes, z_ND.shape[1]).double().index_add_(0, labels_N, z_ND.double())


class _PrototypeSums(Sum):
    """Sums of prototypes, `mean`, and of what they count, `present`: of nobody below 0 or more than its examples.

    Args:
        weighting: `examples`: `present` are a client's examples of each class; `uniform`: 1 for each that it has.
    """

    def __init__(self, weighting: str) -> None:
        super().__init__("prototypes")
        self.weighting = weighting

    def check(self, what: str, tree: Tree, payload: Payload) -> None:
        super().check(what, tree, payload)
        self._check_present(what, tree, 1)

    def check_accumulator(self, what: str, accumulator: Tree, payload: Payload, clients: Sequence[int]) -> None:
        super().check_accumulator(what, accumulator, payload, clients)
        self._check_present(what, accumulator, len(clients))

    def _check_present(self, what: str, tree: Tree, num_clients: int) -> None:
        most = num_clients if self.weighting == "uniform" else math.inf
        present = tree["present"]
        if bool(((present < 0) | (present > most * _ROUNDED)).any()):
            raise BadReplyError(
                f"{what}: 'present' should be from 0 to {most:g} of a class, found {float(present.min()):g} to "
                f"{float(present.max()):g}"
            )

    def check_examples(self, what: str, tree: Tree, most: float) -> None:
        count = float(tree["present"].sum(dtype=torch.float64))
        if count > most * _ROUNDED:  # uniform too: who has a class has an example of it
            raise BadReplyError(f"{what}: 'present' comes to {count:g} examples, at most {most:g} can be")

    def check_weights(self, what: str, accumulator: Tree, num_examples: int, most: Mapping[int, float]) -> None:
        super().check_weights(what, accumulator, num_examples, most)
        self.check_examples(what, accumulator, min(num_examples, sum(most.values())))


class FedProto(Strategy[State]):
    """Models of clients' own, whose features agree on where each class lies."""

    config_class = Config
    config: Config
    local_parts = ("body", "head")
    is_generic = False

    def check(self, setting: Setting) -> None:
        refuse_collapse_of_own_parts(setting, "fedproto")

    def initial(self, server: ServerContext) -> State:
        weight = server.build_model().head.weight.detach().cpu()
        return State({"mean": torch.zeros_like(weight), "present": torch.zeros(len(weight), dtype=weight.dtype)})

    def every_phase(self) -> tuple[Phase[State], ...]:
        processed = self.num_processed
        return (Phase("train", self.send, self.local, self.fold, self.update, num_processed=processed),)

    def num_processed(self, local: LocalConfig, own: int) -> int:
        """Return the examples that a client goes through: in training, and once for its prototypes."""
        return num_processed(local, own) + own

    def send(self, state: State, server: ServerContext) -> Payload:
        return Payload({"prototypes": state.prototypes})

    def evaluated(self, state: State, server: ServerContext) -> Payload:
        return self.send(state, server)

    def local(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model({})
        report = client.train(model, objective=self.objective(payload, client))
        counts, sums = class_sums(*features_of(model, client), client.num_classes)
        if self.config.weighting == "uniform":
            counts, sums = (counts > 0).double(), sums / counts.clamp(min=1)[:, None]
        dtype = payload.trees["prototypes"]["mean"].dtype
        own = {"mean": sums.to(dtype), "present": counts.to(dtype)}
        return Reply({"prototypes": own}, {"loss": report.loss}, client.num_examples)

    def objective(self, payload: Payload, client: ClientContext) -> Objective | None:
        """Return L of (model, images [B, ...], labels [B]); None where no prototype is to be near to."""
        mean, present = (payload.trees["prototypes"][name].to(client.device) for name in ("mean", "present"))
        if not self.config.strength or not present.any():
            return None
        supervised, strength, form = client.training_loss(), self.config.strength, self.config.distance

        def objective(model: Model, x: Tensor, y: Tensor) -> Tensor:
            z = model.features(x)
            return supervised(model.head(z), y) + strength * distance(z, y, mean, present, form)

        return objective

    def fold(self) -> Product:
        return product({"prototypes": _PrototypeSums(self.config.weighting)}, numbers=["loss"])

    def update(self, state: State, folded: Folded, server: ServerContext) -> State:
        before, summed = state.prototypes, folded.trees["prototypes"]
        has = summed["present"] > 0
        means = (summed["mean"] / torch.where(has, summed["present"], 1.0)[:, None]).to(before["mean"].dtype)
        mean = torch.where(has[:, None], means, before["mean"])
        return State({"mean": mean, "present": torch.maximum(before["present"], has.to(before["present"].dtype))})

    def model(self, state: State) -> dict[str, Tensor]:
        """Return nothing: no part of the model is shared."""
        return {}

    def representations(self, state: State) -> dict[str, Tensor]:
        return state.prototypes

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        """Evaluate a client's model by its head (`model`), and by the nearest global prototype (`prototype`)."""
        model = client.model({}).eval()
        mean, present = (payload.trees["prototypes"][name].to(client.device) for name in ("mean", "present"))
        return {
            "model": Predictor(model),
            "prototype": Predictor(lambda x: nearness(model.features(x).to(mean.dtype), mean, present)),
        }

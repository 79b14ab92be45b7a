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
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from torch import Tensor

from umbel.core import training
from umbel.core.device import parameter_dtype
from umbel.core.folds import Folded, Product, product
from umbel.core.losses import CrossEntropy
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded
from umbel.core.training import LocalConfig, Objective
from umbel.core.tree import Tree
from umbel.data.federation import Federation
from umbel.data.types import Examples
from umbel.models import registry
from umbel.models.base import Model
from umbel.models.weights import shared_state
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Setting, Strategy, initial_model
from umbel.strategies.creamfl.public import fingerprint
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold
from umbel.strategies.phase import no_pass
from umbel.strategies.setting import refuse_collapse_of_own_parts

_BATCH = 256
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


def rows_of(num_public: int, asked: int, source: torch.Generator) -> Tensor:
    """Return the public examples of a round, ascending, int64 [M]; `asked` of them, all with 0."""
    if not 0 < asked < num_public:
        return torch.arange(num_public)
    return torch.randperm(num_public, generator=source)[:asked].sort().values


def digest_objective(consensus_MC: Tensor, loss: str) -> Objective:
    """Return the distance to the consensus of (model, images [B, ...], numbers of public examples [B])."""
    distance = _LOSSES[loss]
    return lambda model, x, index: distance(model(x), consensus_MC[index].to(x.dtype))


def scores_of(model: Model, images: Tensor) -> Tensor:
    """Return the class scores [M, C] of images, float32 on the CPU."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch).float().cpu() for batch in torch.split(images, _BATCH)])


class FedMD(Strategy[State]):
    """Parties with models of their own, which learn from what all of them say of public examples."""

    config_class = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for name in config.sizes:
            if name not in config.models:
                raise Refusal(
                    f"strategy.sizes has sizes of {name!r}, and no party has such a model.",
                    key=f"strategy.sizes.{name}",
                    remedy=f"Name one of {', '.join(config.models)}, or put it into strategy.models.",
                )
        for name in config.models:
            if not isinstance(config.sizes.get(name, {}), Mapping):
                raise Refusal(
                    f"strategy.sizes.{name} should be a mapping, found {config.sizes[name]!r}.",
                    key=f"strategy.sizes.{name}",
                    remedy="Write the sizes as {hidden: 32}.",
                )
            registry.check(name, config.sizes.get(name, {}))

    def check(self, setting: Setting) -> None:
        wrong = [
            (not setting.data.public, "data.public", "needs public examples, and there are none", "data.public=0.1"),
            (
                setting.data.rounds_per_task > 0,
                "data.rounds_per_task",
                "distils what parties say of all classes, and a sequence hides those of other tasks",
                "data.rounds_per_task=0",
            ),
            (
                setting.data.heads == "per_task",
                "data.heads",
                "distils what parties say of all classes, and heads of tasks hide those of others",
                "data.heads=shared",
            ),
            (
                setting.model.norm == "local",
                "model.norm",
                "sends no model of which a part could stay with a client",
                "model.norm to another rule",
            ),
        ]
        for is_so, key, why, instead in wrong:
            if is_so:
                raise Refusal(f"strategy.name=fedmd {why}.", key=key, remedy=f"Set {instead}.")
        refuse_collapse_of_own_parts(setting, "fedmd")

    def check_data(self, federation: Federation) -> None:
        if not federation.public.images.shape[1]:
            raise Refusal(
                "strategy.name=fedmd classifies images, and these data have none.",
                key="data.name",
                remedy="Choose a set that has images.",
            )

    def initial(self, server: ServerContext) -> State:
        model, public = server.build_model(), _public(server)
        images = server.prepare(public.take(torch.arange(min(2, len(public)))))[0]
        for name in dict.fromkeys(self.config.models):  # what fails, fails before anything starts
            scores_of(self._fresh(name, server, public, len(model.head.weight), 0).to(server.device), images)
        return State(initial_model(server), {})

    def _fresh(
        self, name: str, context: ServerContext | ClientContext, public: Examples, num_classes: int, client: int
    ) -> Model:
        size = public.images.shape[-1] if public.images.ndim == 4 else 1
        sizes, channels = self.config.sizes.get(name, {}), public.images.shape[1]
        dtype = parameter_dtype(context.local.precision)
        return build_seeded(
            lambda: registry.build(name, num_classes, size, channels, **sizes), context.seed, dtype, client, "party"
        )

    def party(self, client: ClientContext) -> Model:
        """Return f_k as the client remembers it, or as initialised."""
        name = self.config.models[client.id % len(self.config.models)]
        model = self._fresh(name, client, _public(client), client.num_classes, client.id)
        if client.memory is not None and "party" in client.memory.trees:
            model.load_state_dict(dict(client.memory.trees["party"]))
        return model.to(client.device)

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (
            Phase("score", self.ask, self.score, self.fold_scores, self.after_scores, num_processed=no_pass),
            Phase("digest", self.tell, self.digest, self.fold_losses, self.after_digest, who="same:score"),
        )

    # ---- score: what each party says of the public examples ---------------------------------------------------

    def _rows(self, server: ServerContext) -> Tensor:
        return rows_of(len(_public(server)), self.config.public_per_round, server.rng("public"))

    def ask(self, state: State, server: ServerContext) -> Payload:
        numbers = {"public": fingerprint(_public(server)), "classes": float(len(server.build_model().head.weight))}
        return Payload({"index": {"rows": self._rows(server).to(torch.int32)}}, numbers)

    def score(self, payload: Payload, client: ClientContext) -> Reply:
        public = _public(client)
        if payload.numbers["public"] != fingerprint(public):
            raise ValueError("This client has another public set than the server: data.public must be the same set.")
        model, loss = self.party(client), 0.0
        if client.memory is None or "party" not in client.memory.trees:
            epochs = self.config.transfer_epochs
            _train(client, "transfer", model, public, epochs)
            loss = _train(client, "private", model, client.train_data, epochs)
        client.remember(MemoryRecord({"party": _state(model)}))
        said = scores_of(model, client.prepare(public)[0][payload.trees["index"]["rows"].long().to(client.device)])
        return Reply({"scores": {"scores": said}}, {"loss": loss}, client.num_examples)

    def fold_scores(self) -> Product:
        return product({"scores": mean_fold(self.config.weighting, _scores_like)}, numbers=["loss"])

    def after_scores(self, state: State, folded: Folded, server: ServerContext) -> State:
        return State(state.model, {"scores": folded.trees["scores"]["scores"].float()})

    # ---- digest, and revisit ----------------------------------------------------------------------------------

    def tell(self, state: State, server: ServerContext) -> Payload:
        return Payload({"index": {"rows": self._rows(server).to(torch.int32)}, "consensus": state.consensus})

    def digest(self, payload: Payload, client: ClientContext) -> Reply:
        model, rows = self.party(client), payload.trees["index"]["rows"].long()
        images = client.prepare(_public(client))[0][rows.to(client.device)]
        numbers = torch.arange(len(rows), device=client.device)
        # As they were when the consensus was taken: not varied, whatever data.augment says.
        plain = replace(client, prepare=lambda examples: (images, numbers), augment=None)
        to = digest_objective(payload.trees["consensus"]["scores"].to(client.device), self.config.loss)
        _train(plain, "digest", model, _public(client), self.config.digest_epochs, to)
        loss = _train(client, "revisit", model, client.train_data)
        client.remember(MemoryRecord({"party": _state(model)}))
        return Reply({}, {"loss": loss}, client.num_examples)

    def fold_losses(self) -> Product:
        return product({}, numbers=["loss"])

    def after_digest(self, state: State, folded: Folded, server: ServerContext) -> State:
        model, public = server.model(state.model), _public(server)
        images, labels = server.prepare(public)
        if server.round == 1:
            _learn(server, "transfer", model, images, labels, self.config.transfer_epochs)
        rows = self._rows(server).to(server.device)
        to = digest_objective(state.consensus["scores"].to(server.device), self.config.loss)
        numbers = torch.arange(len(rows), device=server.device)
        _learn(server, "digest", model, images[rows], numbers, self.config.digest_epochs, to)
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
        return {"model": Predictor(self.party(client).eval())}


def _public(context: ServerContext | ClientContext) -> Examples:
    """Return D_0."""
    if context.public is None:
        raise Refusal("FedMD needs public examples, and there are none.", key="data.public", remedy="Set data.public.")
    return context.public


def _epochs(local: LocalConfig, epochs: int | None) -> LocalConfig:
    return local if epochs is None else replace(local, epochs=epochs, max_steps=0)


def _train(
    client: ClientContext,
    what: str,
    model: Model,
    examples: Examples,
    epochs: int | None = None,
    objective: Objective | None = None,
) -> float:
    """Train a party's model on examples, by their labels without an objective; return the mean loss.

    With an objective of any kind, since the parties' models are not alike and cannot train together.
    """
    if epochs == 0:
        return 0.0
    seen = replace(client, local=_epochs(client.local, epochs), phase=f"{client.phase}/{what}").with_data(examples)
    if objective is None:
        loss = seen.training_loss()
        return seen.train(model, objective=lambda model, x, y: loss(model(x), y)).loss
    return seen.train(model, objective=objective).loss


def _learn(
    server: ServerContext,
    what: str,
    model: Model,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    objective: Objective | None = None,
) -> None:
    """Train the server's model in place, by the loss of the section `client` without an objective."""
    if epochs == 0:
        return
    local, batches, noise = _epochs(server.local, epochs), server.rng(what), server.rng(f"{what} noise")
    loss = CrossEntropy(local.label_smoothing, local.class_weights)
    training.train(
        model,
        images,
        labels,
        local,
        batches=batches,
        noise=noise,
        round_=server.round,
        loss=loss if objective else loss.of(labels, len(model.head.weight)),
        objective=objective,
    )


def _state(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _scores_like(payload: Payload) -> Tree:
    """Return what a party should send, without content."""
    rows, classes = len(payload.trees["index"]["rows"]), int(payload.numbers["classes"])
    return {"scores": torch.empty(rows, classes, dtype=torch.float32, device="meta")}

"""GGEUR: geometry-guided embedding uncertainty representation, against label and domain skew.

Ma, Dai, Huang, Ye. "Geometric Knowledge-Guided Localized Global Distribution Alignment for Federated Learning",
CVPR 2025, arXiv:2503.06457.

| paper | here | meaning |
|---|---|---|
| f | an embedding of a frozen encoder (`data.encoder`) | what is augmented and classified |
| n_kc, mu_kc, Sigma_kc | `class_statistics` | a client's counts, means, biased covariances |
| Sigma_c | `pool_statistics` (equation 4) | covariance of all clients' embeddings of a class, exactly |
| xi_m, lambda_m | `geometry` | its directions and variances, broadcast once |
| beta = sum_m eps_m lambda_m xi_m | `sample` | what is added to an embedding |
| T | `Config.target` | examples of a class after completion |
| p_dc | `State.prototypes` | mean of a class in a domain |

    first round   everyone sends statistics; the server pools them and sends the geometry of each class back
    every round   each class that a client holds is completed to T with draws around its own embeddings (algorithm 1),
                  with `domains` also around the other domains' prototypes (algorithm 2), with `complete=all` also
                  where it holds none, around the class's mean; then the base strategy trains on that

The base (`strategy.base`) is any strategy of this project. Draws are the same in every round and are not stored:
they come from a generator of client and class.

Where the authors' code differs, the default is the form behind their figures: draws have variance lambda_m
(`scale=sqrt`), not lambda_m squared as the equation says (`eig`). Their code never sends the averaged model back;
here the base is what it says it is. In several domains Sigma_c holds the spread between domains as well, from which
draws around each domain's prototype then spread twice: `within_only=true` leaves it out. There their code also
multiplies the ten smallest variances by 5 to 1 (`legacy_small_eig_scale`), and in one domain it may take the
covariance from as many clients as cover four fifths of a class (`guide`).

Beyond the paper: sums with the Gaussian mechanism (`umbel.strategies.ggeur.noise`), and features of a model under
training (`refresh`): its head then trains on completed features, its trunk on real images.

Legend: N examples, D features, C classes, R kept directions, A anchors, K clients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.gathered import Collect, Moments
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.tree import Tree
from umbel.data.federation import Federation
from umbel.data.types import Examples
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Setting, Strategy
from umbel.strategies.ggeur.bases import make_base
from umbel.strategies.ggeur.combinations import check_combinations, check_setting
from umbel.strategies.ggeur.completion import SCALES, completion, num_drawn, sample
from umbel.strategies.ggeur.pooling import (
    ClassStatistics,
    Prototypes,
    class_statistics,
    counts_like,
    pool_statistics,
    sizes,
    sums_like,
)
from umbel.strategies.ggeur.releases import WIRES, gaussian_sigma, guided, pooled_geometry, release
from umbel.strategies.ggeur.remembered import PREFIX, classes_of, complete, for_base, received
from umbel.strategies.ggeur.shapes import Geometry, geometry
from umbel.strategies.head_on_draws import head_on_draws

__all__ = [
    "GGEUR",
    "ClassStatistics",
    "Config",
    "Geometry",
    "State",
    "class_statistics",
    "completion",
    "geometry",
    "pool_statistics",
    "sample",
]

COUNTS = Phase("counts", "everyone")
STATISTICS = Phase("statistics", "everyone")
GEOMETRY = Phase("geometry", "everyone")
_CHUNK = 512  # images whose features are computed at once
NOISES = ("local", "distributed")


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of GGEUR; each of its parts can be turned off.

    Attributes:
        base: The strategy that trains on the completed embeddings.
        base_options: Its hyper-parameters.
        augment: Without it, GGEUR is its base.
        target: T, examples of each class on each client after completion; 0 takes the number that all clients
            together have of the class.
        draws: Draws around each of a client's own embeddings, of which those that are needed are kept; 0 makes as
            many as are needed.
        scale: `sqrt` or `eig`, see `sample`.
        rank: R, directions of each class that are sent; 0 sends all.
        within_only: Leave the spread between clients out of the covariance.
        complete: `held`: only classes that a client has; `all`: also those that it lacks, around their mean.
        domains: Draw around the other domains' prototypes too.
        draws_per_prototype: Draws around each of them.
        keep_own: Draws around a client's own embeddings of a class in the mixture with those around prototypes, of
            which T - n are kept; 0 takes T - n of them, the authors have 500 (Digits) and 50 (Office-Home).
        min_count: A client withholds classes of which it has fewer examples: one alone would be sent as the mean.
        release: `moments`: a client sends its counts, means and covariances; `sums`: counts and sums of embeddings and
            of their products for all classes, which can be added up without being seen (secure aggregation).
        wire: `float32` or `float64`, in which moments travel; sums are always float64.
        guide: Only the clients with the most examples of a class, as many as cover this share of it, contribute to
            its mean and covariance (the authors' guided set has 0.8); 0 takes everyone.
        legacy_small_eig_scale: Multiply the ten smallest variances of a class by 5 to 1, as the authors' code does.
        clip: B, embeddings that are longer are shortened to it for the statistics; 0 clips nothing.
        epsilon: Of the Gaussian mechanism on the sums; 0 adds no noise.
        delta: Likewise.
        unit: Length in which embeddings are measured when noise is added. 0 takes B, which gives n, sum f and sum f f'
            noise of like weight; 1 is the plain form of sensitivity sqrt(1 + B^2 + B^4).
        noise: `local`: each client adds all the noise, so that its reply alone is private; `distributed`: each adds
            the Kth part of its variance, so that only the sum over all clients is (needs secure aggregation).
        secret_noise: Take the noise from the operating system rather than from the run's seed, which the server knows.
        refresh: Take the statistics again every so many rounds, on features of the global model; 0 takes them once,
            on embeddings of a frozen encoder, as the paper does.
    """

    base: str = "fedavg"
    base_options: dict[str, Any] = field(default_factory=dict)
    augment: bool = True
    target: Annotated[int, Ge(0)] = 0
    draws: Annotated[int, Ge(0)] = 0
    scale: Annotated[str, OneOf(*SCALES)] = "sqrt"
    rank: Annotated[int, Ge(0)] = 0
    within_only: bool = False
    complete: Annotated[str, OneOf("held", "all")] = "held"
    domains: bool = False
    draws_per_prototype: Annotated[int, Ge(0)] = 50
    keep_own: Annotated[int, Ge(0)] = 0
    min_count: Annotated[int, Ge(1)] = 1
    release: Annotated[str, OneOf("moments", "sums")] = "moments"
    wire: Annotated[str, OneOf(*WIRES)] = "float32"
    guide: Annotated[float, Interval(ge=0, le=1)] = 0.0
    legacy_small_eig_scale: bool = False
    clip: Annotated[float, Ge(0)] = 0.0
    epsilon: Annotated[float, Ge(0)] = 0.0
    delta: Annotated[float, Interval(gt=0, lt=1)] = 1e-5
    unit: Annotated[float, Ge(0)] = 0.0
    noise: Annotated[str, OneOf(*NOISES)] = "local"
    secret_noise: bool = False
    refresh: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        base: The base strategy's State.
        geometry: `eigenvalues` [C, R] and `eigenvectors` [C, D, R], float32; empty before the first round.
        means: `mean` [C, D], float32, where clients complete classes that they lack; else empty.
        counts: Examples of each class over all clients.
        prototypes: Mean [D] of each class in each domain, as `<domain>/<class>`.
        num_examples: Examples of all clients together after completion; 0 before.
        guide: Numbers of the clients that contribute to each class, by its number, where there is a guided set.
        age: Rounds since the statistics were taken.
    """

    base: Any
    geometry: dict[str, Tensor]
    means: dict[str, Tensor]
    counts: tuple[float, ...]
    prototypes: dict[str, Tensor]
    num_examples: int
    guide: dict[str, Tensor] = field(default_factory=dict)
    age: int = 0


class GGEUR(Strategy[State]):
    """Another strategy, on embeddings completed in the shape of all clients' classes."""

    config_class = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_combinations(config)
        self.base: Strategy[Any] = make_base(config, GGEUR)
        self.sigma = gaussian_sigma(config)

    def check(self, setting: Setting) -> None:
        check_setting(self.config, setting)
        self.base.check(setting)

    def check_data(self, federation: Federation) -> None:
        if self.config.augment and self.config.domains and federation.pool.domains is None:
            raise Refusal(
                "strategy.domains=true draws around prototypes of other domains, and these data have none.",
                key="strategy.domains",
                remedy="Set strategy.domains=false, or choose a data.name with domains.",
            )
        self.base.check_data(federation)

    def initial(self, server: ServerContext) -> State:
        state = State(self.base.initial(server), {}, {}, (), {}, 0)
        if self.config.augment and self.config.rank and self.config.rank > (width := self._width(state, server)):
            raise Refusal(
                f"strategy.rank={self.config.rank} is more than the {width} directions that there are.",
                key="strategy.rank",
                remedy="Set it to at most that; 0 sends all.",
            )
        return state

    def _width(self, state: State, server: ServerContext) -> int:
        """Return D: the width of what the encoder gives, or with `refresh` of what the model gives its head."""
        if self.config.refresh:
            return int(self.base.model(state.base)["head.weight"].shape[1])
        model = server.build_model()
        return model.in_channels * model.image_size**2

    def phases(self, state: State) -> tuple[Phase, ...]:
        due = not state.geometry or 0 < self.config.refresh <= state.age
        first = (STATISTICS, GEOMETRY) if self.config.augment and due else ()
        counts = (COUNTS,) if first and self.config.guide else ()
        return (*counts, *first, *self.base.phases(state.base))

    def broadcast(self, phase: Phase, state: State, server: ServerContext) -> Payload:
        if phase.name in (COUNTS.name, STATISTICS.name):
            model = self.base.model(state.base)
            classes, features = len(model["head.weight"]), self._width(state, server)
            trees: dict[str, Tree] = {"guide": state.guide} if phase.name == STATISTICS.name else {}
            if self.config.refresh and phase.name == STATISTICS.name:
                trees["model"] = model
            numbers = {"classes": float(classes), "features": float(features), "clients": float(server.num_clients)}
            return Payload(trees, numbers)
        if phase.name == GEOMETRY.name:
            trees = {"geometry": state.geometry, "means": state.means, "prototypes": state.prototypes}
            return Payload(trees, {f"count/{label}": count for label, count in enumerate(state.counts)})
        return self.base.broadcast(phase, state.base, server)

    def local(self, phase: Phase, payload: Payload, client: ClientContext) -> Reply:
        if phase.name == COUNTS.name:
            counts = torch.bincount(client.train_data.labels.cpu(), minlength=client.num_classes)
            return Reply({"counts": {"count": counts.to(torch.int32)}}, {}, client.num_examples)
        if phase.name == STATISTICS.name:
            return self._statistics(payload, client)
        if phase.name == GEOMETRY.name:
            record = received(payload, client.round)
            client.remember(record)
            drawn = 0
            if not self.config.refresh:
                drawn = sum(
                    num_drawn(len(own), target, **more) for own, target, more in classes_of(self.config, client, record)
                )
            return Reply({}, {}, client.num_examples + drawn)
        return self.base.local(phase, payload, self._completed(payload, client) if self.config.augment else client)

    def fold(self, phase: Phase) -> Product:
        if phase.name == COUNTS.name:
            return product({"counts": Collect(counts_like)})
        if phase.name == STATISTICS.name:
            pooled = Sum(sums_like) if self.config.release == "sums" else Moments(self.config.within_only, sizes)
            folds = {"statistics": pooled, **({"prototypes": Prototypes()} if self.config.domains else {})}
            return product(folds, ["epsilon", "delta", "sigma"] if self.config.epsilon else [])
        if phase.name == GEOMETRY.name:
            return product({})
        return self.base.fold(phase)

    def update(self, phase: Phase, state: State, folded: Folded, server: ServerContext) -> State:
        if phase.name == COUNTS.name:
            return replace(state, **guided(folded, self.config.guide))
        if phase.name == STATISTICS.name:
            return self._shape(state, folded, server)
        if phase.name == GEOMETRY.name:
            return replace(state, num_examples=0 if self.config.refresh else folded.num_examples, age=0)
        base = self.base.update(phase, state.base, folded, self._counted(state, server))
        return replace(state, base=base, age=state.age + (phase == self.base.phases(state.base)[-1]))

    def measured(self, phase: Phase, state: State) -> Mapping[str, float]:
        return self.base.measured(phase, state.base)

    def finish(self, state: State, server: ServerContext) -> State:
        return replace(state, base=self.base.finish(state.base, self._counted(state, server)))

    @staticmethod
    def _counted(state: State, server: ServerContext) -> ServerContext:
        """Return the server with the number of examples that clients have after completion."""
        return replace(server, num_examples=state.num_examples) if state.num_examples else server

    def model(self, state: State) -> dict[str, Tensor]:
        return self.base.model(state.base)

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        return self.base.predictors(state.base, server)

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        return self.base.personal(payload, for_base(client))

    def _features(self, payload: Payload, client: ClientContext) -> tuple[Tensor, Tensor]:
        """Return the features and labels of a client's examples: its embeddings, or those of the global model."""
        images, labels = client.prepare(client.train_data)
        if not self.config.refresh:
            return images.flatten(1), labels
        model = client.model(payload.trees["model"]).eval()
        with torch.no_grad():
            return torch.cat([model.features(chunk) for chunk in torch.split(images, _CHUNK)]), labels

    def _statistics(self, payload: Payload, client: ClientContext) -> Reply:
        return release(self.config, self.sigma, payload, client, *self._features(payload, client))

    def _shape(self, state: State, folded: Folded, server: ServerContext) -> State:
        """Turn the pooled statistics into the geometry that is sent."""
        config, tree = self.config, folded.trees["statistics"]
        num_classes = len(self.base.model(state.base)["head.weight"])
        replies = folded.num_replies / (server.num_clients if config.noise == "distributed" else 1)
        found = pooled_geometry(config, self.sigma * math.sqrt(replies), tree, num_classes)
        directions = {"eigenvalues": found.eigenvalues_CR.float(), "eigenvectors": found.eigenvectors_CDR.float()}
        means = {"mean": found.mean_CD.float()} if config.complete == "all" else {}
        prototypes = {
            name: (packed[1:] / packed[0]).float() for name, packed in folded.trees.get("prototypes", {}).items()
        }
        counts = tuple(found.count_C.tolist())
        if config.guide:  # of everyone, unless nobody of the guided set could say what the class looks like
            counts = tuple(every if guiding else 0.0 for every, guiding in zip(state.counts, counts, strict=True))
        return replace(state, geometry=directions, means=means, counts=counts, prototypes=prototypes)

    def _completed(self, payload: Payload, client: ClientContext) -> ClientContext:
        """Return the client with its classes completed."""
        memory = client.memory
        if memory is None or f"{PREFIX}geometry" not in memory.trees:
            return for_base(client)  # it failed when the geometry was sent: it trains on what it has
        if not self.config.refresh:
            came = memory.numbers.get(f"{PREFIX}round", 0.0)
            completed = client.keep("ggeur", came, lambda: self._complete(client, memory))
            return for_base(client).with_data(completed)
        features, labels = self._features(payload, client)
        seen = replace(client.train_data, images=features.float().cpu(), labels=labels.cpu())
        completed = self._complete(client.with_data(seen), memory)
        return head_on_draws(for_base(client), completed)

    def _complete(self, client: ClientContext, memory: MemoryRecord) -> Examples:
        return complete(self.config, client, memory)

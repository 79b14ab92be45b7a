"""GGEUR: geometry-guided embedding uncertainty representation, against label and domain skew.

Ma, Dai, Huang, Ye. "Geometric Knowledge-Guided Localized Global Distribution Alignment for Federated Learning",
CVPR 2025, arXiv:2503.06457.

| paper | here | meaning |
|---|---|---|
| f | an embedding of a frozen encoder (`data.encoder`) | what is augmented and classified |
| n_kc, mu_kc, Sigma_kc | `class_statistics` | a client's counts, means, biased covariances |
| Sigma_c | `fold_statistics` (equation 4) | covariance of all clients' embeddings of a class, exactly |
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

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from umbel.core.collecting import Collect, Moments
from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.tree import Tree
from umbel.data.federation import Federation
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Setting, Strategy, by_name, over
from umbel.strategies.ggeur.bases import make_base
from umbel.strategies.ggeur.combinations import check_combinations, check_setting
from umbel.strategies.ggeur.completion import SCALES
from umbel.strategies.ggeur.pooling import (
    Prototypes,
    counts_like,
    sizes,
    sums_like,
)
from umbel.strategies.ggeur.releases import WIRES, features_of, gaussian_sigma, guided, release, shaped
from umbel.strategies.ggeur.remembered import PREFIX, complete, for_base, num_new, received
from umbel.strategies.head_on_draws import head_on_draws
from umbel.strategies.phase import no_pass, one_pass

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
    target: Annotated[int, Interval(ge=0, le=10_000_000)] = 0
    draws: Annotated[int, Interval(ge=0, le=10_000_000)] = 0
    scale: Annotated[str, OneOf(*SCALES)] = "sqrt"
    rank: Annotated[int, Ge(0)] = 0
    within_only: bool = False
    complete: Annotated[str, OneOf("held", "all")] = "held"
    domains: bool = False
    draws_per_prototype: Annotated[int, Interval(ge=0, le=10_000_000)] = 50
    keep_own: Annotated[int, Interval(ge=0, le=10_000_000)] = 0
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
        by_name(self.every_phase(), "strategy.base")  # refuses a base with a phase called like one of these

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

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (*self._shaping(), *map(self._of_base, self.base.every_phase()))

    def phases(self, state: State) -> tuple[Phase[State], ...]:
        due = not state.geometry or 0 < self.config.refresh <= state.age
        *earlier, last = self.base.phases(state.base)
        return (*(self._shaping() if due else ()), *map(self._of_base, earlier), self._of_base(last, ends=True))

    def _shaping(self) -> tuple[Phase[State], ...]:
        """Return the phases that give everyone the geometry, before those of the base."""
        if not self.config.augment:
            return ()
        counts, statistics, geometry = (
            Phase("counts", self.send_sizes, self.count, self.fold_counts, self.after_counts, "everyone"),
            Phase(
                "statistics", self.send_guide, self.describe, self.fold_statistics, self.after_statistics, "everyone"
            ),
            Phase(
                "geometry",
                self.send_geometry,
                self.keep,
                self.fold_nothing,
                self.after_geometry,
                "everyone",
                most_examples=self._most_examples,
            ),
        )
        counts, geometry = (replace(each, num_processed=no_pass) for each in (counts, geometry))
        shaping = (replace(statistics, num_processed=one_pass), geometry)
        return (counts, *shaping) if self.config.guide else shaping

    # ---- counts: who has the most examples of each class, and so speaks for it --------------------------------

    def send_sizes(self, state: State, server: ServerContext) -> Payload:
        classes = len(self.base.model(state.base)["head.weight"])
        features, clients = self._width(state, server), server.num_clients
        return Payload({}, {"classes": float(classes), "features": float(features), "clients": float(clients)})

    def count(self, payload: Payload, client: ClientContext) -> Reply:
        counts = torch.bincount(client.train_data.labels.cpu(), minlength=client.num_classes)
        return Reply({"counts": {"count": counts.to(torch.int32)}}, {}, client.num_examples)

    def fold_counts(self) -> Product:
        return product({"counts": Collect(counts_like)})

    def after_counts(self, state: State, folded: Folded, server: ServerContext) -> State:
        return replace(state, **guided(folded, self.config.guide))

    # ---- statistics: counts, means and covariances of clients are pooled (equation 4) -------------------------

    def send_guide(self, state: State, server: ServerContext) -> Payload:
        trees: dict[str, Tree] = {"guide": state.guide}
        if self.config.refresh:
            trees["model"] = self.base.model(state.base)
        return Payload(trees, self.send_sizes(state, server).numbers)

    def describe(self, payload: Payload, client: ClientContext) -> Reply:
        return release(self.config, self.sigma, payload, client, *features_of(self.config, payload, client))

    def fold_statistics(self) -> Product:
        pooled = Sum(sums_like) if self.config.release == "sums" else Moments(self.config.within_only, sizes)
        folds = {"statistics": pooled, **({"prototypes": Prototypes()} if self.config.domains else {})}
        return product(folds, ["epsilon", "delta", "sigma"] if self.config.epsilon else [])

    def after_statistics(self, state: State, folded: Folded, server: ServerContext) -> State:
        num_classes = len(self.base.model(state.base)["head.weight"])
        return replace(state, **shaped(self.config, self.sigma, folded, num_classes, server.num_clients, state.counts))

    # ---- geometry: the directions and variances of each class go out ------------------------------------------

    def send_geometry(self, state: State, server: ServerContext) -> Payload:
        trees = {"geometry": state.geometry, "means": state.means, "prototypes": state.prototypes}
        return Payload(trees, {f"count/{label}": count for label, count in enumerate(state.counts)})

    def keep(self, payload: Payload, client: ClientContext) -> Reply:
        record = received(payload, client.round)
        client.remember(record)
        return Reply({}, {}, client.num_examples + (0 if self.config.refresh else num_new(self.config, client, record)))

    def fold_nothing(self) -> Product:
        return product({})

    def after_geometry(self, state: State, folded: Folded, server: ServerContext) -> State:
        return replace(state, num_examples=0 if self.config.refresh else folded.num_examples, age=0)

    # ---- the base's phases, on completed classes --------------------------------------------------------------

    def _of_base(self, phase: Phase[Any], ends: bool = False) -> Phase[State]:
        """Return a phase of the base, whose clients have their classes completed; it may end a round."""
        return over(
            phase,
            get=lambda state: state.base,
            put=lambda state, base: replace(state, base=base, age=state.age + ends),
            server=self._counted,
            client=self._completed,
            most_examples=self._most_examples,
        )

    def _most_examples(self, state: State, own: int) -> float:
        """Return the most examples of a client whose classes are completed: each gets T of a class at most."""
        return own + sum(self.config.target or round(count) for count in state.counts if count > 0)

    @staticmethod
    def _counted(state: State, server: ServerContext) -> ServerContext:
        """Return the server with the number of examples that clients have after completion."""
        return replace(server, num_examples=state.num_examples) if state.num_examples else server

    def _completed(self, payload: Payload, client: ClientContext) -> ClientContext:
        """Return the client with its classes completed, as the base sees it."""
        if not self.config.augment:
            return client
        memory = client.memory
        if memory is None or f"{PREFIX}geometry" not in memory.trees:
            return for_base(client)  # it failed when the geometry was sent: it trains on what it has
        if not self.config.refresh:
            version = memory.numbers.get(f"{PREFIX}round", 0.0)  # the round in which the geometry came
            completed = client.keep("ggeur", version, lambda: complete(self.config, client, memory))
            return for_base(client).with_data(completed)
        features, labels = features_of(self.config, payload, client)
        seen = replace(client.train_data, images=features.float().cpu(), labels=labels.cpu())
        completed = complete(self.config, client.with_data(seen), memory)
        return head_on_draws(for_base(client), completed)

    # ---- what is evaluated: the base's -----------------------------------------------------------------------

    def finish(self, state: State, server: ServerContext) -> State:
        return replace(state, base=self.base.finish(state.base, self._counted(state, server)))

    def model(self, state: State) -> dict[str, Tensor]:
        return self.base.model(state.base)

    def evaluated(self, state: State, server: ServerContext) -> Payload:
        return self.base.evaluated(state.base, server)

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        return self.base.predictors(state.base, server)

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        return self.base.personal(payload, for_base(client))

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.gathered import Collect, Moments, collected
from umbel.core.memory import MemoryRecord
from umbel.core.names import unknown
from umbel.core.records import Payload, Reply
from umbel.core.rng import generator
from umbel.core.training import LocalConfig
from umbel.core.tree import Tree
from umbel.data.types import Examples
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Strategy
from umbel.strategies.ggeur import noise as privacy
from umbel.strategies.ggeur.completion import SCALES, completion, foreign_prototypes, num_drawn, sample
from umbel.strategies.ggeur.pooling import (
    ClassStatistics,
    Prototypes,
    class_statistics,
    counts_like,
    covering_clients,
    domain_means,
    from_sums,
    from_tree,
    pool_statistics,
    sizes,
    statistics_tree,
    sums_like,
    sums_tree,
)
from umbel.strategies.ggeur.shapes import Geometry, denoise, geometry, inflate_smallest
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
_MEMORY = "ggeur:"  # trees of a client's memory that are not the base's
_CHUNK = 512  # images whose features are computed at once
RELEASES, NOISES = ("moments", "sums"), ("local", "distributed")
WIRES = {"float32": torch.float32, "float64": torch.float64}
REFRESHABLE = ("fedavg", "fedprox", "fedopt")


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
    target: int = 0
    draws: int = 0
    scale: str = "sqrt"
    rank: int = 0
    within_only: bool = False
    complete: str = "held"
    domains: bool = False
    draws_per_prototype: int = 50
    keep_own: int = 0
    min_count: int = 1
    release: str = "moments"
    wire: str = "float32"
    guide: float = 0.0
    legacy_small_eig_scale: bool = False
    clip: float = 0.0
    epsilon: float = 0.0
    delta: float = 1e-5
    unit: float = 0.0
    noise: str = "local"
    secret_noise: bool = False
    refresh: int = 0


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
        from umbel.strategies import registry

        check_config(config)
        if config.base.startswith(registry.FLOWER_PREFIX):
            raise ValueError(f"strategy.base={config.base}: Flower's own cannot be a base; choose one of ours")
        kind = registry.find(config.base)
        known = registry.options(config.base)
        for key in config.base_options.keys() - known.keys():
            raise unknown(f"option of {config.base}", key, known, key=f"strategy.base_options.{key}")
        if kind is GGEUR:
            raise ValueError("strategy.base=ggeur: GGEUR goes over another strategy, not over itself")
        if kind.own_model:
            raise ValueError(
                f"strategy.base={config.base} trains models of its own, and GGEUR completes what goes into the "
                "experiment's linear head: choose a strategy.base that trains model.name, such as fedavg"
            )
        self.base: Strategy[Any] = kind(kind.config_class(**config.base_options))
        self.sigma = gaussian_sigma(config)

    def check(self, local: LocalConfig) -> None:
        self.base.check(local)

    def initial(self, server: ServerContext) -> State:
        state = State(self.base.initial(server), {}, {}, (), {}, 0)
        if self.config.augment and self.config.rank and self.config.rank > (width := self._width(state, server)):
            raise ValueError(
                f"strategy.rank={self.config.rank} is more than the {width} directions that there are; 0 sends all"
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
            trees = {f"{_MEMORY}{name}": tree for name, tree in payload.trees.items()}
            numbers = {"round": float(client.round), **payload.numbers}
            record = MemoryRecord(trees, {f"{_MEMORY}{name}": value for name, value in numbers.items()})
            client.remember(record)
            drawn = 0
            if not self.config.refresh:
                drawn = sum(num_drawn(len(own), target, **more) for own, target, more in self._classes(client, record))
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
        return self.base.personal(payload, self._of_base(client))

    def _features(self, payload: Payload, client: ClientContext) -> tuple[Tensor, Tensor]:
        """Return the features and labels of a client's examples: its embeddings, or those of the global model."""
        images, labels = client.prepare(client.train_data)
        if not self.config.refresh:
            return images.flatten(1), labels
        model = client.model(payload.trees["model"]).eval()
        with torch.no_grad():
            return torch.cat([model.features(chunk) for chunk in torch.split(images, _CHUNK)]), labels

    def _statistics(self, payload: Payload, client: ClientContext) -> Reply:
        config = self.config
        features, labels = self._features(payload, client)
        taken = privacy.clip_rows(features, config.clip) if config.clip else features
        found = class_statistics(taken, labels, client.num_classes)
        found = ClassStatistics(*(part.cpu() for part in found.parts))
        if config.release == "moments":
            tree = statistics_tree(found, config.min_count, WIRES[config.wire])
            if guide := payload.trees["guide"]:
                tree = {label: row for label, row in tree.items() if client.id in guide[label].tolist()}
        else:
            tree = sums_tree(found, config.min_count)
        trees: dict[str, Tree] = {"statistics": tree}
        if config.domains:
            domains = client.train_data.domains
            trees["prototypes"] = domain_means(taken.cpu(), client.train_data.labels, domains, config.min_count)
        if not config.epsilon:
            return Reply(trees, {}, client.num_examples)
        sigma = self.sigma / math.sqrt(payload.numbers["clients"] if config.noise == "distributed" else 1.0)
        source = None if config.secret_noise else client.rng("privacy")
        noised = privacy.add_noise(tree["sums"], sigma, config.unit or config.clip, source)
        numbers = {"epsilon": config.epsilon, "delta": config.delta, "sigma": sigma}
        return Reply({"statistics": {"sums": noised}}, numbers, 1)  # not num_examples: it would be exact

    def _shape(self, state: State, folded: Folded, server: ServerContext) -> State:
        """Turn the pooled statistics into the geometry that is sent."""
        config, tree = self.config, folded.trees["statistics"]
        num_classes = len(self.base.model(state.base)["head.weight"])
        replies = folded.num_replies / (server.num_clients if config.noise == "distributed" else 1)
        sigma = self.sigma * math.sqrt(replies)  # of the sum
        sums = config.release == "sums"
        pooled = from_sums(tree["sums"], least=3 * sigma) if sums else from_tree(tree, num_classes)
        found = geometry(pooled, config.rank or None)
        if config.epsilon:
            found = denoise(found, sigma, config.unit or config.clip)
        if config.legacy_small_eig_scale:
            found = inflate_smallest(found)
        directions = {"eigenvalues": found.eigenvalues_CR.float(), "eigenvectors": found.eigenvectors_CDR.float()}
        means = {"mean": found.mean_CD.float()} if config.complete == "all" else {}
        prototypes = {
            name: (packed[1:] / packed[0]).float() for name, packed in folded.trees.get("prototypes", {}).items()
        }
        counts = tuple(found.count_C.tolist())
        if config.guide:  # of everyone, unless nobody of the guided set could say what the class looks like
            counts = tuple(every if guiding else 0.0 for every, guiding in zip(state.counts, counts, strict=True))
        return replace(state, geometry=directions, means=means, counts=counts, prototypes=prototypes)

    def _of_base(self, client: ClientContext) -> ClientContext:
        """Return the client as its base sees it: without GGEUR's part of the memory, which stays."""
        memory = client.memory
        if memory is None:
            return client
        own_trees = {name: tree for name, tree in memory.trees.items() if name.startswith(_MEMORY)}
        own_numbers = {name: value for name, value in memory.numbers.items() if name.startswith(_MEMORY)}
        trees = {name: tree for name, tree in memory.trees.items() if name not in own_trees}
        numbers = {name: value for name, value in memory.numbers.items() if name not in own_numbers}

        def remember(record: MemoryRecord) -> None:
            client.remember(MemoryRecord({**record.trees, **own_trees}, {**record.numbers, **own_numbers}))

        return replace(client, memory=MemoryRecord(trees, numbers) if trees or numbers else None, remember=remember)

    def _completed(self, payload: Payload, client: ClientContext) -> ClientContext:
        """Return the client with its classes completed."""
        memory = client.memory
        if memory is None or f"{_MEMORY}geometry" not in memory.trees:
            return self._of_base(client)  # it failed when the geometry was sent: it trains on what it has
        if not self.config.refresh:
            came = memory.numbers.get(f"{_MEMORY}round", 0.0)
            completed = client.keep("ggeur", came, lambda: self._complete(client, memory))
            return self._of_base(client).with_data(completed)
        features, labels = self._features(payload, client)
        seen = replace(client.train_data, images=features.float().cpu(), labels=labels.cpu())
        completed = self._complete(client.with_data(seen), memory)
        return head_on_draws(self._of_base(client), completed)

    def _classes(self, client: ClientContext, memory: MemoryRecord) -> Iterator[tuple[Tensor, int, dict[str, Any]]]:
        """Yield for each class the client's embeddings [N, D], T, and what else there is to draw around."""
        prototypes = memory.trees.get(f"{_MEMORY}prototypes", {})
        means = memory.trees.get(f"{_MEMORY}means", {}).get("mean")
        data = client.train_data
        features = data.images.flatten(1)
        own_domains = set() if data.domains is None else set(data.domains.tolist())
        num_classes = len(memory.trees[f"{_MEMORY}geometry"]["eigenvalues"])
        counts = torch.tensor([memory.numbers[f"{_MEMORY}count/{label}"] for label in range(num_classes)])
        for label, count in enumerate(counts.tolist()):
            # A class that nobody described has no shape, and draws would be copies of their anchors.
            target = (self.config.target or round(count)) if count > 0 else 0
            more = {
                "foreign_AD": foreign_prototypes(prototypes, label, own_domains),
                "per_prototype": self.config.draws_per_prototype,
                "keep_own": self.config.keep_own,
                "mean_D": None if means is None else means[label],
            }
            yield features[data.labels == label], target, more

    def _complete(self, client: ClientContext, memory: MemoryRecord) -> Examples:
        """Return the client's embeddings, and what is drawn to complete each class."""
        sent = memory.trees[f"{_MEMORY}geometry"]
        unused = torch.empty(0)  # draws need neither means nor counts
        shape = Geometry(sent["eigenvalues"], sent["eigenvectors"], unused, unused)
        drawn, labels = [client.train_data.images.flatten(1)], [client.train_data.labels]
        for label, (own, target, more) in enumerate(self._classes(client, memory)):
            source, scale, draws = self._source(client, label), self.config.scale, self.config.draws
            new = completion(shape, label, own, target, source, scale=scale, draws=draws, **more)
            drawn.append(new)
            labels.append(torch.full((len(new),), label, dtype=torch.int64))
        return Examples(torch.cat(drawn), torch.cat(labels))

    def _source(self, client: ClientContext, label: int) -> torch.Generator:
        """Return the generator of a class's draws: the same in every round where the features are."""
        round_ = client.round if self.config.refresh else 0
        return generator(client.seed, round_, "ggeur", client.id, f"class {label}")


def guided(folded: Folded, share: float) -> dict[str, Any]:
    """Return the State's `guide` and `counts` out of the counts [C] that each client sent."""
    replies = collected(folded.trees["counts"])
    counts_KC = torch.stack([tree["count"] for _, _, tree in replies]).to(torch.int64)
    numbers = torch.tensor([client for client, _, _ in replies])
    needed = covering_clients(counts_KC, share)
    guide = {str(label): numbers[needed[:, label]] for label in range(counts_KC.shape[1])}
    return {"guide": guide, "counts": tuple(float(count) for count in counts_KC.sum(0).tolist())}


def gaussian_sigma(config: Config) -> float:
    """Return the deviation of the noise that makes one release of sums (epsilon, delta)-private; 0 without.

    In the unit of the embeddings that `config` chooses; the sensitivity is that of B in the same unit.
    """
    if not config.epsilon:
        return 0.0
    bound = config.clip / (config.unit or config.clip)
    return privacy.sensitivity(bound) * privacy.noise_multiplier(config.epsilon, config.delta)


def check_config(config: Config) -> None:
    """Raise `ValueError` for values and combinations that cannot be."""
    choices = {
        "scale": SCALES,
        "complete": ("held", "all"),
        "release": RELEASES,
        "wire": tuple(WIRES),
        "noise": NOISES,
    }
    for key, allowed in choices.items():
        if getattr(config, key) not in allowed:
            raise ValueError(f"strategy.{key} should be one of {', '.join(allowed)}, found {getattr(config, key)!r}")
    for key in ("target", "draws", "rank", "draws_per_prototype", "keep_own", "clip", "epsilon", "unit", "refresh"):
        if not 0 <= getattr(config, key) < math.inf:
            raise ValueError(f"strategy.{key} should be at least 0 and finite, found {getattr(config, key)}")
    if config.min_count < 1:
        raise ValueError(f"strategy.min_count should be at least 1, found {config.min_count}")
    if not 0 < config.delta < 1:
        raise ValueError(f"strategy.delta should be above 0 and below 1, found {config.delta}")
    if not 0 <= config.guide <= 1:
        raise ValueError(f"strategy.guide is a share in [0, 1], found {config.guide}")
    if config.keep_own and not config.domains:
        raise ValueError("strategy.keep_own is for mixtures with other domains' prototypes: set strategy.domains=true")
    if config.release == "sums":
        for key in ("within_only", "guide"):
            if getattr(config, key):
                raise ValueError(f"strategy.{key} needs each client's own statistics: set strategy.release=moments")
        if config.wire != "float32":
            raise ValueError("strategy.wire is for strategy.release=moments; sums always travel in float64")
    if config.legacy_small_eig_scale and config.rank:
        raise ValueError("strategy.legacy_small_eig_scale changes the smallest directions: set strategy.rank=0")
    if config.refresh and config.base not in REFRESHABLE:
        raise ValueError(
            f"strategy.refresh={config.refresh} trains head and trunk apart, which works with strategy.base="
            f"{', '.join(REFRESHABLE)}, found {config.base}"
        )
    if config.epsilon:
        _check_privacy(config)


def _check_privacy(config: Config) -> None:
    """Raise `ValueError` for what would break the stated (epsilon, delta)."""
    if config.release != "sums":
        raise ValueError("strategy.epsilon is for sums: set strategy.release=sums")
    if not config.clip:
        raise ValueError("strategy.epsilon needs strategy.clip, the largest length of an embedding that counts")
    reasons = {
        "domains": "prototypes would travel without noise: set strategy.domains=false",
        "refresh": "it is spent in one release: set strategy.refresh=0",
    }
    for key, reason in reasons.items():
        if getattr(config, key):
            raise ValueError(f"strategy.epsilon does not go with strategy.{key}: {reason}")
    if config.min_count > 1:
        raise ValueError("strategy.epsilon does not go with strategy.min_count above 1: whether a class is there tells")

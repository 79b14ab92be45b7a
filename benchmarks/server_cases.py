"""What `server_steps.py` measures: each case makes its inputs, times its step, and returns seconds and a check.

The docstring of `server_steps.py` says what the cases are for.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from umbel.core.rng import generator
from umbel.strategies import creamfl, fot, ggeur
from umbel.strategies.fot import layers

Measured = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        classes: C.
        features: D of embeddings.
        clients: Clients of GGEUR and FOT.
        examples: Examples of a class on a client.
        draws: Draws around each original example.
        inputs: d of FOT's layer.
        columns: Inputs (patches) of a client.
        rank: Directions that the basis has.
        small_inputs: d where the plain way is measured too.
        public: P.
        parties: K of CreamFL.
        width: D of representations.
        small_public: P where the plain way is measured too.
    """

    classes: int = 100
    features: int = 512
    clients: int = 10
    examples: int = 50
    draws: int = 9
    inputs: int = 4608
    columns: int = 8000
    rank: int = 1000
    small_inputs: int = 1152
    public: int = 50_000
    parties: int = 20
    width: int = 256
    small_public: int = 2000


TINY = Sizes(3, 8, 2, 12, 3, 24, 60, 5, 16, 40, 3, 6, 20)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return normal numbers."""
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and what came out."""
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


# GGEUR --------------------------------------------------------------------------------------------------------


def statistics_of(sizes: Sizes, clients: int, made: list[float] | None = None) -> Iterator[ggeur.ClassStatistics]:
    """Make each client's statistics when it is its turn, as replies stream in, and note the seconds that it took."""
    labels = torch.arange(sizes.classes).repeat(sizes.examples)
    for client in range(clients):
        data = normal(len(labels), sizes.features, seed=client)
        seconds, statistics = timed(partial(ggeur.class_statistics, data, labels, sizes.classes))
        (made if made is not None else []).append(seconds)
        yield statistics


def ggeur_pool(sizes: Sizes) -> Measured:
    """Pool all clients; the time to make their statistics is taken off."""
    made: list[float] = []
    seconds, pooled = timed(lambda: ggeur.pool_statistics(statistics_of(sizes, sizes.clients, made)))
    return {"seconds": seconds - sum(made), "check": float(pooled.covariance_CDD.diagonal(dim1=1, dim2=2).mean())}


def ggeur_geometry(sizes: Sizes) -> Measured:
    """Decompose every class's covariance."""
    pooled = ggeur.pool_statistics(statistics_of(sizes, 1))
    seconds, shape = timed(lambda: ggeur.geometry(pooled))
    return {"seconds": seconds, "check": float(shape.eigenvalues_CR.mean())}


def _one_class(sizes: Sizes) -> tuple[ggeur.ClassStatistics, Tensor]:
    one = Sizes(1, sizes.features, 1, 4 * sizes.features)
    return next(statistics_of(one, 1)), normal(sizes.examples, sizes.features, seed=9)


def ggeur_draws(sizes: Sizes) -> Measured:
    """Complete a class: its geometry, and all draws in one product."""
    statistics, anchors = _one_class(sizes)

    def draw() -> Tensor:
        return ggeur.sample(ggeur.geometry(statistics), 0, anchors, sizes.draws, generator(1))

    seconds, drawn = timed(draw)
    return {"seconds": seconds, "check": float(drawn.double().square().mean())}


def ggeur_draws_plain(sizes: Sizes) -> Measured:
    """Complete a class the authors' way: a distribution for each original example."""
    statistics, anchors = _one_class(sizes)
    covariance = statistics.covariance_CDD[0].double()

    def draw() -> Tensor:
        values, vectors = torch.linalg.eigh(covariance)
        positive = (vectors * values.clamp_min(0)) @ vectors.T + 1e-6 * torch.eye(len(values), dtype=values.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            parts = [
                torch.distributions.MultivariateNormal(anchor.double(), positive).sample((sizes.draws,))
                for anchor in anchors
            ]
        return torch.cat(parts)

    seconds, drawn = timed(draw)
    return {"seconds": seconds, "check": float(drawn.square().mean())}


# FOT ----------------------------------------------------------------------------------------------------------


def inputs_of(inputs: int, columns: int, client: int) -> Tensor:
    """Return inputs whose directions differ in size, as a network's do: half of the energy in a fiftieth of them."""
    return normal(inputs, columns, seed=client) / torch.arange(1, inputs + 1)[:, None].sqrt()


def basis_of(inputs: int, rank: int) -> Tensor:
    """Return orthonormal directions [D, R]."""
    return torch.linalg.qr(normal(inputs, rank, seed=99))[0]


def fot_sketch(sizes: Sizes) -> Measured:
    """A client's sketch, d / 2 columns wide."""
    data, basis = inputs_of(sizes.inputs, sizes.columns, 0), basis_of(sizes.inputs, sizes.rank)
    seconds, (_, energy) = timed(lambda: fot.residual_sketch(data, basis, sizes.inputs // 2, generator(1)))
    return {"seconds": seconds, "check": energy}


def fot_expand(sizes: Sizes) -> Measured:
    """The basis grown by a sketch."""
    basis = basis_of(sizes.inputs, sizes.rank)
    sketch = inputs_of(sizes.inputs, sizes.inputs // 2, 0)
    sketch = sketch - basis @ (basis.T @ sketch)
    seconds, grown = timed(lambda: fot.expand_basis(basis, sketch, 0.8, 0.95))
    return {"seconds": seconds, "check": grown.shape[1]}


def fot_small(sizes: Sizes) -> Measured:
    """Gram matrices of all clients, one after the other (`width=0`), and the basis that they give."""
    d = sizes.small_inputs

    def grow() -> Tensor:
        gram = torch.zeros(d, d)
        for client in range(sizes.clients):
            data = inputs_of(d, sizes.columns // 4, client)
            gram += data @ data.T
        return layers.grow(None, gram, torch.tensor(1.0), fot.Config(width=0.0), 0.95)

    seconds, basis = timed(grow)
    return {"seconds": seconds, "check": captured(basis, sizes)}


def fot_small_sketch(sizes: Sizes) -> Measured:
    """Sketches of width d in their place, which send as much."""
    d = sizes.small_inputs

    def grow() -> Tensor:
        sketch = torch.zeros(d, d)
        for client in range(sizes.clients):
            sketch += fot.residual_sketch(inputs_of(d, sizes.columns // 4, client), None, d, generator(client))[0]
        return fot.expand_basis(None, sketch, 1.0, 0.95)

    seconds, basis = timed(grow)
    return {"seconds": seconds, "check": captured(basis, sizes)}


def fot_small_plain(sizes: Sizes) -> Measured:
    """The decomposition of all inputs together, which needs all of them in one place."""

    def grow() -> Tensor:
        data = torch.cat([inputs_of(sizes.small_inputs, sizes.columns // 4, k) for k in range(sizes.clients)], dim=1)
        left, singular, _ = torch.linalg.svd(data, full_matrices=False)
        share = (singular.double().square() / singular.double().square().sum()).cumsum(0)
        return left[:, : int((share <= 0.95).sum()) + 1].clone()

    seconds, basis = timed(grow)
    return {"seconds": seconds, "check": captured(basis, sizes)}


def captured(basis: Tensor, sizes: Sizes) -> float:
    """Return the share of the first client's energy that a basis captures."""
    data = inputs_of(sizes.small_inputs, sizes.columns // 4, 0)
    return float((basis.T @ data).square().sum() / data.square().sum())


# CreamFL ------------------------------------------------------------------------------------------------------


class SkipProducts(TorchDispatchMode):
    """Lets matrix products and what is made of them run for the first calls; later ones give zeros in no time."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self._first, self._calls = first, Counter[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run or skip an operation."""
        self._calls[func] += 1
        if self._calls[func] > self._first:
            if func is torch.ops.aten.mm.default:
                return torch.zeros(1).expand(args[0].shape[0], args[1].shape[1])
            if func is torch.ops.aten.div.Tensor:  # by the temperature
                return args[0]
            if func is torch.ops.aten.logsumexp.default:
                return torch.zeros(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def representations(clients: int, public: int, width: int) -> tuple[Tensor, Tensor]:
    """Return unit representations [K, P, D] and the other modality's [P, D]."""
    other = torch.nn.functional.normalize(normal(public, width, seed=99), dim=1)
    own = torch.empty(clients, public, width)
    for client in range(clients):
        own[client] = torch.nn.functional.normalize(other + normal(public, width, seed=client), dim=1)
    return own, other


def creamfl_time(sizes: Sizes) -> Measured:
    """One client in `parties`, its time multiplied."""
    own, other = representations(1, sizes.public, sizes.width)
    seconds, _ = timed(lambda: creamfl.aggregate(own, other))
    return {"seconds": seconds * sizes.parties, "check": 0.0, "scaled": sizes.parties}


def creamfl_memory(sizes: Sizes) -> Measured:
    """All clients, nearly without arithmetic."""
    own, other = representations(sizes.parties, sizes.public, sizes.width)
    with SkipProducts(8):
        _, weights = creamfl.aggregate(own, other)
    return {"seconds": 0.0, "check": float(weights.sum()) / weights.shape[1]}


def creamfl_small(sizes: Sizes) -> Measured:
    """Chunked, whole."""
    own, other = representations(sizes.parties, sizes.small_public, sizes.width)
    seconds, (aggregated, _) = timed(lambda: creamfl.aggregate(own, other, chunk=max(1, sizes.small_public // 10)))
    return {"seconds": seconds, "check": float(aggregated.double().square().sum())}


def creamfl_small_plain(sizes: Sizes) -> Measured:
    """The K x P x P array at once."""
    own, other = representations(sizes.parties, sizes.small_public, sizes.width)

    def dense() -> Tensor:
        logits = torch.einsum("kpd,qd->kpq", own, other)
        scores = torch.log_softmax(logits, dim=2).diagonal(dim1=1, dim2=2)  # [K, P]
        return torch.einsum("kp,kpd->pd", torch.softmax(scores, dim=0), own)

    seconds, aggregated = timed(dense)
    return {"seconds": seconds, "check": float(aggregated.double().square().sum())}


CASES = {
    case.__name__: case
    for case in (
        *(ggeur_pool, ggeur_geometry, ggeur_draws, ggeur_draws_plain),
        *(fot_sketch, fot_expand, fot_small, fot_small_sketch, fot_small_plain),
        *(creamfl_time, creamfl_memory, creamfl_small, creamfl_small_plain),
    )
}

"""Multinomial logistic regression on embeddings, and how probe.py draws examples for it.

Shapes: N examples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.core.rng import generator
from umbel.data.split import stratified, stratified_concepts
from umbel.data.types import DataSet, Examples

PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
FLOOR, HELD_OUT, ITERATIONS, PATIENCE = 0.1, 0.2, 60, 2


def standardiser(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and scale of each feature, [D] and [D].

    The scale is the deviation, but at least a tenth of the root mean square of all deviations: a pixel that is almost
    constant in training would otherwise be blown up in testing. It is 1 where all features are constant.
    """
    deviations = features.std(0, correction=0)
    floor = FLOOR * deviations.square().mean().sqrt()
    return features.mean(0), deviations.clamp_min(float(floor) or 1.0)


def path(
    features: Tensor, labels: Tensor, num_classes: int, penalties: Sequence[float], iterations: int = ITERATIONS
) -> Iterator[Tensor]:
    """Fit one model a penalty, each from the one before.

    The loss is the mean cross-entropy plus penalty / 2 times the squared weights; the bias is not penalised.

    Args:
        features: [N, D] floating point.
        labels: [N] int64.
        num_classes: C.
        penalties: Strengths, from strong to weak.
        iterations: Steps of L-BFGS for each, at most.

    Yields:
        Weights and bias, [C, D + 1].
    """
    padded = F.pad(features, (0, 1), value=1.0)
    weights = padded.new_zeros(num_classes, padded.shape[1], requires_grad=True)
    for penalty in penalties:
        optimizer = torch.optim.LBFGS([weights], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

        def loss(penalty: float = penalty, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(padded @ weights.T, labels) + penalty / 2 * weights[:, :-1].square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        yield weights.detach().clone()


def predict(weights: Tensor, features: Tensor) -> Tensor:
    """Return the likeliest class of each example, [N]."""
    return (features @ weights[:, :-1].T + weights[:, -1]).argmax(1)


def fit(
    train: Examples,
    validation: Examples,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = ITERATIONS,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Fit on `train`, choose the penalty on `validation`.

    Returns:
        Weights [C, D + 1], mean [D], scale [D] and the penalty. Of equal penalties the strongest is taken.
    """
    mean, scale = standardiser(train.images)
    features, held_out = (train.images - mean) / scale, (validation.images - mean) / scale
    # The L2 penalty keeps the weights in the span of the examples; with fewer examples than features that is smaller.
    basis = torch.linalg.qr(features.T)[0] if features.shape[0] < features.shape[1] else None
    if basis is not None:
        features, held_out = features @ basis, held_out @ basis
    best, chosen, worse = -1.0, (torch.empty(0), 0.0), 0
    models = path(features, train.labels, num_classes, penalties, iterations)
    for penalty, weights in zip(penalties, models, strict=True):
        accuracy = float((predict(weights, held_out) == validation.labels).double().mean())
        if accuracy > best:
            best, chosen, worse = accuracy, (weights, penalty), 0
        elif accuracy < best and (worse := worse + 1) == PATIENCE:
            break  # a tie says nothing: the strongest penalties may all give the commonest class
    weights, penalty = chosen
    if basis is not None:
        weights = torch.cat([weights[:, :-1] @ basis.T, weights[:, -1:]], dim=1)
    return weights, mean, scale, penalty


def draw(examples: Examples, most: int, seed: int, purpose: str, domains: int) -> Tensor:
    """Return example numbers, ascending: at most `most` of each domain (0 for all), drawn by the seed."""
    order = torch.randperm(len(examples), generator=generator(seed, purpose=purpose))
    if most > 0:
        kind = torch.zeros_like(order) if examples.domains is None else examples.domains[order]
        order = torch.cat([order[kind == domain][:most] for domain in range(domains)])
    return order.sort().values


def hold_out(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Return examples in two parts that share no concept: to fit on, and to choose the penalty on."""
    groups = examples.labels
    if examples.concepts is None:
        kept, held = stratified(groups, HELD_OUT, seed, "probe validation")
    else:
        kept, held = stratified_concepts(examples.concepts, groups, HELD_OUT, seed, "probe validation")
    return examples.take(kept), examples.take(held)


def of_domain(examples: Examples, domain: int) -> Examples:
    """Return the examples of one domain; all of them for -1."""
    if domain < 0 or examples.domains is None:
        return examples
    return examples.take(examples.domains == domain)


def probe(encoded: DataSet, draws: Sequence[Tensor], first_seed: int = 0) -> dict[str, Any]:
    """Probe a set of embeddings with one training subset a seed.

    Returns:
        `rows`, the domains trained on ("all of them" last where there are several); `columns`, those tested on; for
        each pair a list with one `accuracy` and one `balanced` accuracy (the mean over the classes) a seed; for each
        column the rate of the commonest class, `majority`, and `test`; for each row `train` and the `penalties`.
    """
    columns = list(encoded.domain_names) or ["all"]
    train_on = list(range(len(columns))) + ([-1] if len(columns) > 1 else [])
    measured: dict[str, Any] = {
        "features": encoded.in_channels,
        "rows": columns + (["all of them"] if len(columns) > 1 else []),
        "columns": columns,
        "majority": [],
        "test": [],
        "train": [0] * len(train_on),
        "penalties": [[] for _ in train_on],
        "accuracy": [[[] for _ in columns] for _ in train_on],
        "balanced": [[[] for _ in columns] for _ in train_on],
    }
    tests = [of_domain(encoded.test, column) for column in range(len(columns))]
    for test in tests:
        measured["test"].append(len(test))
        measured["majority"].append(float(torch.bincount(test.labels).max()) / len(test))
    for seed, index in enumerate(draws, start=first_seed):
        subset = encoded.train.take(index)
        for row, domain in enumerate(train_on):
            train, validation = hold_out(of_domain(subset, domain), seed)
            weights, mean, scale, penalty = fit(train, validation, encoded.num_classes)
            measured["train"][row] = len(train)
            measured["penalties"][row].append(penalty)
            for column, test in enumerate(tests):
                right = (predict(weights, (test.images - mean) / scale) == test.labels).double()
                sizes = torch.bincount(test.labels, minlength=encoded.num_classes)
                hits = torch.bincount(test.labels, right, minlength=encoded.num_classes)
                measured["accuracy"][row][column].append(float(right.mean()))
                measured["balanced"][row][column].append(float((hits / sizes)[sizes > 0].mean()))
    return measured


def resplit(encoded: DataSet, seed: int) -> DataSet:
    """Return a set whose test examples are drawn anew, by concept, as many of them as it has."""
    both = (encoded.train, encoded.test)
    if encoded.train.concepts is None or encoded.test.concepts is None:
        raise SystemExit(f"{encoded.name} has no concepts: leave --resplit out")
    whole = Examples(
        images=torch.cat([part.images for part in both]),
        labels=torch.cat([part.labels for part in both]),
        domains=None if both[0].domains is None else torch.cat([part.domains for part in both]),  # type: ignore[misc]
        concepts=torch.cat([encoded.train.concepts, encoded.test.concepts]),
    )
    assert whole.concepts is not None
    share = len(torch.unique(encoded.test.concepts)) / len(torch.unique(whole.concepts))
    kept, held = stratified_concepts(whole.concepts, whole.labels, share, seed, "probe split")
    return replace(encoded, train=whole.take(kept), test=whole.take(held), natural_ids=None)


def probe_resplit(encoded: DataSet, seeds: int) -> dict[str, Any]:
    """Probe as `probe` does, on another split for each seed; counts and rates are those of the last."""
    earlier: dict[str, Any] = {}
    for seed in range(seeds):
        drawn = resplit(encoded, seed)
        one = probe(drawn, [torch.arange(len(drawn.train))], first_seed=seed)
        for key in ("accuracy", "balanced"):
            for row, cells in enumerate(one[key]):
                for column, values in enumerate(cells):
                    values[:0] = earlier[key][row][column] if earlier else []
        for row, penalties in enumerate(one["penalties"]):
            penalties[:0] = earlier["penalties"][row] if earlier else []
        earlier = one
    return earlier

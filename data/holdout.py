"""What is held out of training: how much may be, what the server takes, and which of a client's examples.

Shapes: N examples of the pool, K clients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from umbel.core.rng import generator
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.split import stratified, stratified_concepts
from umbel.data.types import Examples

TRAIN, VALIDATION, TEST = 0, 1, 2


def check_fractions(config: DataConfig) -> None:
    """Raise `DataError` for fractions to hold out that leave nothing to train on."""
    both = config.client_validation + config.client_test
    if both >= 1:
        raise DataError(
            f"data.client_validation + data.client_test must be less than 1, found {both:g}; "
            f"a client must keep examples to train on.",
            key="data.client_test",
        )


def split_server(pool: Examples, num_classes: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Take the server's validation out of the pool, by class and domain, or whole concepts where there are such.

    Args:
        pool: The training examples.
        num_classes: Number of classes.
        fraction: `data.server_validation`.
        seed: The seed of the data.

    Returns:
        The example numbers that are left and those of the server, both ascending.
    """
    if pool.concepts is not None:
        return stratified_concepts(pool.concepts, pool.labels, fraction, seed, "server validation")
    groups = pool.labels
    if pool.domains is not None:
        groups = groups + num_classes * pool.domains
    return stratified(groups, fraction, seed, "server validation")


def held_out(sizes: Tensor, validation: float, test: float) -> tuple[Tensor, Tensor]:
    """Return how many examples clients of `sizes` hold out for validation and test, rounded, [K] each.

    One example always stays for training; where that binds, the test goes before the validation.
    """
    spare = (sizes - 1).clamp_min(0)
    num_test = torch.minimum((sizes * test + 0.5).long(), spare)
    num_validation = torch.minimum((sizes * validation + 0.5).long(), spare - num_test)
    return num_validation, num_test


def roles_of(concepts: Tensor, validation: float, test: float, seed: int) -> Tensor:
    """Return what each example of the pool is for if a client has it, [N] int8, decided by its concept.

    Args:
        concepts: [N] int64.
        validation: Fraction of the concepts that are for validation.
        test: Fraction of the concepts that are for the test.
        seed: The seed of the data.

    Returns:
        `TRAIN`, `VALIDATION` or `TEST` for each.
    """
    random = generator(seed, purpose="client split of concepts")
    distinct, member = torch.unique(concepts, return_inverse=True)
    score = torch.rand(len(distinct), generator=random)[member]
    roles = torch.full((len(member),), TRAIN, dtype=torch.int8)
    roles[score < test + validation] = VALIDATION
    roles[score < test] = TEST
    return roles

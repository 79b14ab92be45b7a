"""The same seed gives the same clients on every machine: hashes of one small partition of every scheme.

A change of numpy or torch that deals otherwise shows here. If it is meant, say so in CHANGELOG.md, for
results of before and after no longer compare, and write the new hash down.
"""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from umbel.data.config import DataConfig
from umbel.data.federation import Federation
from umbel.data.partition import build, names
from umbel.data.types import DataSet, Examples

torch.set_num_threads(1)

N, C = 600, 6
# No draw of torch or numpy: what is cut must not be what changes.
LABELS = (torch.arange(N) * torch.arange(N) // 7) % C
DOMAINS = torch.arange(N) // 5 % 3
PEOPLE = torch.arange(N) * 37 % N // 12  # 50 people with 12 examples each

PINS = {
    "iid": "0b2e86bcc4beb4d1",
    "dirichlet": "b7997f065ec66d48",
    "shards": "3e053565d1727429",
    "pathological": "01a974dbce8fad77",
    "quantity_skew": "47697396aa374367",
    "natural_id": "a430d1aab7a7d08b",
    "domain": "bef84633d3d918a4",
    "long_tail": "9463a00ace99551b",
    "split_tasks": "2124352792051f61",
    "permuted_tasks": "e69a8591f4d5ba74",
    "domain_label": "125089416a67fe16",
}
SPLITS = "1e495658ea028ae7"
CONCEPTS = "7d579580436c829f"


def sha256(*tensors: Tensor) -> str:
    """Hash int64 tensors, shape and little-endian values, to 16 digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        assert tensor.dtype == torch.int64
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("name", names())
def test_every_scheme_deals_as_it_always_did(name: str) -> None:
    config = DataConfig(partition=name, num_clients=9, alpha=0.7, imbalance=4, num_tasks=3)
    partition = build(config, LABELS, DOMAINS, PEOPLE, seed=2024)
    assert sha256(partition.indices, partition.offsets) == PINS[name]


def federation(concepts: Tensor | None) -> Federation:
    images = torch.zeros(N, 1, 1, 1, dtype=torch.uint8)
    train = Examples(images, LABELS, concepts=concepts)
    test = Examples(images[:1], LABELS[:1], concepts=None if concepts is None else concepts[:1] + N)
    data_set = DataSet("pinned", train, test, tuple("abcdef"), (), (0.0,), (1.0,), "")
    config = DataConfig(name="pinned", num_clients=9, client_validation=0.1, max_train=500)
    return Federation.cut(data_set, config, seed=2024)


@pytest.mark.parametrize(("concepts", "pin"), [(None, SPLITS), (PEOPLE, CONCEPTS)], ids=["examples", "concepts"])
def test_what_is_held_out_is_what_it_always_was(concepts: Tensor | None, pin: str) -> None:
    federated = federation(concepts)
    parts = [part for client in range(9) for part in federated.client_indices(client)]
    assert sha256(federated.validation_index, *parts) == pin


def test_the_hash_sees_order_and_bounds() -> None:
    """The hash above would notice another order, and the same examples cut elsewhere."""
    a, b = torch.tensor([1, 2]), torch.tensor([2, 1])
    assert len({sha256(a), sha256(b), sha256(a, b), sha256(b, a), sha256(torch.cat([a, b]))}) == 5
    assert sha256(torch.tensor([1, 2])) == sha256(a)

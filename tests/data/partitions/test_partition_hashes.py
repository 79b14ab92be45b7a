"""The same seed gives the same clients on every machine: hashes of one small partition of every scheme.

A change of numpy, torch or flwr-datasets that deals otherwise shows here. If it is meant, say so in CHANGELOG.md, for
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
    "iid": "b1e452b28a3ff229",
    "dirichlet": "13af652da5ada901",
    "shards": "df8652aeefc1ea2b",
    "pathological": "ef845b49a9a89be2",
    "quantity_skew": "cd200fe72056d2e3",
    "natural_id": "53c89ae3de94b2e0",
    "domain": "e79fef6b8440db24",
    "long_tail": "455b13b4a982b2b6",
    "split_tasks": "29806c5c55014658",
    "permuted_tasks": "a26be3497d448ca8",
    "domain_label": "ce63eb38145ef182",
}
SPLITS = "a61f4097d0c762ff"
CONCEPTS = "4af19a954c658a3f"


def sha256(*tensors: Tensor) -> str:
    """Hash int64 tensors, shape and little-endian values, to 16 digits."""
    found = hashlib.sha256()
    for tensor in tensors:
        assert tensor.dtype == torch.int64
        found.update(str(tuple(tensor.shape)).encode())
        found.update(tensor.numpy().astype("<i8").tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", names())
def test_every_scheme_deals_as_it_always_did(name: str) -> None:
    config = DataConfig(partition=name, num_clients=9, alpha=0.7, imbalance=4, num_tasks=3)
    found = build(config, LABELS, DOMAINS, PEOPLE, seed=2024)
    assert sha256(found.indices, found.offsets) == PINS[name]


def federation(concepts: Tensor | None) -> Federation:
    images = torch.zeros(N, 1, 1, 1, dtype=torch.uint8)
    train = Examples(images, LABELS, concepts=concepts)
    test = Examples(images[:1], LABELS[:1], concepts=None if concepts is None else concepts[:1] + N)
    data_set = DataSet("pinned", train, test, tuple("abcdef"), (), (0.0,), (1.0,), "")
    config = DataConfig(name="pinned", num_clients=9, client_validation=0.1, max_train=500)
    return Federation.cut(data_set, config, seed=2024)


@pytest.mark.parametrize(("concepts", "pin"), [(None, SPLITS), (PEOPLE, CONCEPTS)], ids=["examples", "concepts"])
def test_what_is_held_out_is_what_it_always_was(concepts: Tensor | None, pin: str) -> None:
    found = federation(concepts)
    parts = [part for client in range(9) for part in found.client_indices(client)]
    assert sha256(found.validation_index, *parts) == pin


def test_the_hash_sees_order_and_bounds() -> None:
    """The hash above would notice another order, and the same examples cut elsewhere."""
    a, b = torch.tensor([1, 2]), torch.tensor([2, 1])
    assert len({sha256(a), sha256(b), sha256(a, b), sha256(b, a), sha256(torch.cat([a, b]))}) == 5
    assert sha256(torch.tensor([1, 2])) == sha256(a)

"""What a client is lent: everybody gets the same, whatever those before made of theirs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from umbel.client import lending
from umbel.client.lending import LentData, LentPayload
from umbel.core.records import Payload

TREE = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
    "count": torch.tensor([[7, 8]]),
    "flag": torch.tensor([True, False, True]),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
}


@pytest.fixture(autouse=True, params=["copied", "mapped"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small payloads are copied, large ones mapped."""
    if request.param == "mapped":
        monkeypatch.setattr(lending, "_LARGE", 1)
        monkeypatch.setattr(lending, "_PIECE", 64)


def lent() -> LentPayload:
    return LentPayload.of(Payload({"model": TREE, "more": {"w": torch.ones(5)}, "none": {}}, {"rate": 0.5}))


def is_as_sent(payload: Payload) -> bool:
    assert payload.numbers == {"rate": 0.5} and list(payload.trees) == ["model", "more", "none"]
    assert payload.trees["none"] == {} and torch.equal(payload.trees["more"]["w"], torch.ones(5))
    tree = payload.trees["model"]
    assert list(tree) == list(TREE)
    for name, tensor in TREE.items():
        assert torch.equal(tree[name], tensor) and tree[name].dtype == tensor.dtype, name
        assert tree[name].is_contiguous() and tree[name].data_ptr() % 64 == 0 and not tree[name].requires_grad
    return True


def test_everybody_gets_the_same() -> None:
    payload = lent()
    assert is_as_sent(payload.lend()) and payload.take_back()
    assert is_as_sent(payload.lend()) and is_as_sent(payload.payload) and payload.take_back()
    assert LentPayload.of(Payload()).take_back()


def test_a_mapped_payload_is_in_memory_once_and_only_while_a_client_has_it(way: None) -> None:
    if lending._LARGE > 1 or not Path("/proc/self/smaps").is_file():
        return
    gc.collect()
    before = _mapped()
    payload = LentPayload.of(Payload({"model": {"w": torch.ones(1 << 18)}}))
    seen = payload.lend().trees["model"]["w"]
    assert seen.sum() == 1 << 18 and [size - 1024 for size in _mapped()[len(before) :]] == [0]
    seen[:1000] = 3
    assert not payload.take_back()
    assert _mapped()[len(before) :] == [0] and seen.sum() == 1 << 18  # once, and it comes again when it is looked at


def _mapped() -> list[int]:
    """Return how much of each mapped payload is in this process's memory, in KiB, in the order of their files."""
    found, inode = [], 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if "memfd:umbel" in line:
            inode = int(words[4])
        elif words[0] == "Rss:" and inode:
            found.append((inode, int(words[1])))
            inode = 0
    return [size for _, size in sorted(found)]


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda t: t.add_(1),
    "behind torch": lambda t: t.data.mul_(2),
    "by numpy": lambda t: t.numpy().fill(9.0),
    "by a view": lambda t: t.view(-1)[:1].fill_(7.0),
    "by its storage": lambda t: t.untyped_storage().fill_(1),
    "by an operation": lambda t: torch.add(t, 1, out=t),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_noticed_and_put_back(name: str) -> None:
    payload = lent()
    CHANGES[name](payload.lend().trees["model"]["weight"])
    assert not payload.take_back()
    assert is_as_sent(payload.lend()) and is_as_sent(payload.payload) and payload.take_back()


HARMLESS: dict[str, Callable[[Tensor], object]] = {
    "another shape": lambda t: t.resize_(1),
    "other memory": lambda t: t.set_(torch.zeros(1)),
    "other data": lambda t: setattr(t, "data", torch.zeros(2, 3)),
    "gradients": lambda t: t.requires_grad_(True),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_client_does_to_its_views_is_its_own(name: str) -> None:
    payload = lent()
    mine = payload.lend()
    HARMLESS[name](mine.trees["model"]["weight"])
    mine.trees["model"].clear()  # type: ignore[attr-defined]
    assert payload.take_back() and is_as_sent(payload.lend()) and is_as_sent(payload.payload)


def test_data_that_are_changed_in_place_are_named_once() -> None:
    data, tensors = LentData(), [torch.zeros(3), torch.zeros(2), torch.zeros(1)]
    data.lend("its memory", tensors[:2])
    data.lend("its examples", tensors[2:])
    assert data.take_back() == []
    tensors[0].detach().add_(1)
    tensors[1].view(1, 2).zero_()
    assert data.take_back() == ["its memory"]

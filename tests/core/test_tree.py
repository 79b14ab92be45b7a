"""Trees of named tensors."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch

from tests.helpers import tree as T
from umbel.core import tree
from umbel.core.tree import TreeMismatchError


def test_arithmetic_leaves_its_arguments_alone():
    left, right = T(a=[1.0, 2.0], b=3.0), T(b=10.0, a=[20.0, 30.0])
    assert {k: v.tolist() for k, v in tree.add(left, right).items()} == {"a": [21.0, 32.0], "b": 13.0}
    assert {k: v.tolist() for k, v in tree.subtract(left, right).items()} == {"a": [-19.0, -28.0], "b": -7.0}
    assert {k: v.tolist() for k, v in tree.scale(left, -2.0).items()} == {"a": [-2.0, -4.0], "b": -6.0}
    assert left["a"].tolist() == [1.0, 2.0] and right["b"].item() == 10.0
    assert list(tree.add(left, right)) == ["a", "b"]  # the order of the first


def test_clone_and_zeros_own_their_memory_and_keep_dtypes():
    given = {"h": torch.ones(2, dtype=torch.float16, requires_grad=True), "i": torch.ones(1, dtype=torch.int32)}
    for made in (tree.clone(given), tree.zeros_like(given)):
        assert [t.dtype for t in made.values()] == [torch.float16, torch.int32]
        made["i"].add_(5)
    assert given["i"].item() == 1 and not tree.clone(given)["h"].requires_grad


def test_subtraction_in_place_gives_the_same_and_takes_no_memory():
    left, right = T(a=[1.0, 2.0], b=3.0), T(b=10.0, a=[20.0, 30.0])
    expected, place = tree.subtract(left, right), left["a"].data_ptr()
    made = tree.subtract_from(left, right)
    assert {k: v.tolist() for k, v in made.items()} == {k: v.tolist() for k, v in expected.items()}
    assert made["a"].data_ptr() == place and right["a"].tolist() == [20.0, 30.0] and list(made) == ["a", "b"]
    wide = tree.subtract_from(T(a=[1.0]), {"a": torch.tensor([0.1], dtype=torch.float64)})
    assert wide["a"].dtype == torch.float64 and wide["a"].item() == 1.0 - 0.1  # as `subtract`
    with pytest.raises(TreeMismatchError):
        tree.subtract_from(T(a=1.0), T(a=[1.0]))


def test_mismatch_names_what_is_wrong():
    with pytest.raises(TreeMismatchError, match=r"delta: .*missing \['a'\], unexpected \['c'\]"):
        tree.check_same(T(c=1.0), T(a=1.0), "delta")
    with pytest.raises(TreeMismatchError, match=r"delta: 'a' should have shape \(2,\), found \(1, 2\)"):
        tree.check_same(T(a=[[1.0, 2.0]]), T(a=[1.0, 2.0]), "delta")
    with pytest.raises(TreeMismatchError):
        tree.add(T(a=1.0), T(a=[1.0]))  # would broadcast


def test_cast_like():
    cast = tree.cast_like(T(a=[1 / 3]), {"a": torch.zeros(1)})
    assert cast["a"].dtype == torch.float32 and torch.equal(cast["a"], torch.tensor([1 / 3]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_first_non_finite(bad):
    assert tree.first_non_finite(T(a=[1.0, 2.0], b=[0.0, bad], c=[bad])) == "b"
    assert tree.first_non_finite(T(a=[1e308])) is None
    assert tree.first_non_finite({"i": torch.tensor([2**62])}) is None


def test_num_bytes():
    assert tree.num_bytes({"a": torch.zeros(3, 2), "b": torch.zeros((), dtype=torch.bfloat16)}) == 24 + 2


def test_sha256_is_over_name_dtype_shape_and_little_endian_bytes_in_sorted_order():
    expected = hashlib.sha256()
    expected.update(b"a\x00int64\x00()\x00" + struct.pack("<q", 7))
    expected.update(b"b\x00float32\x00(2, 1)\x00" + struct.pack("<ff", 1.5, -2.0))
    digest = tree.sha256({"b": torch.tensor([[1.5], [-2.0]]), "a": torch.tensor(7)})
    assert digest == expected.hexdigest()


def test_sha256_sees_every_part_and_no_layout():
    base = torch.arange(6.0).view(2, 3)
    hashes = [
        tree.sha256({"a": base}),
        tree.sha256({"b": base}),
        tree.sha256({"a": base.view(3, 2)}),
        tree.sha256({"a": base.view(torch.int32)}),
        tree.sha256({"a": base.to(torch.bfloat16)}),
        tree.sha256({"a": -base}),
        tree.sha256({"a": base, "b": torch.zeros(0)}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert tree.sha256({"a": base.t().contiguous().t()}) == hashes[0]
    assert tree.sha256({"a": torch.tensor([0.0])}) != tree.sha256({"a": torch.tensor([-0.0])})

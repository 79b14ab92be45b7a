"""Trees in one piece of memory: what is read is what was written, whoever maps it."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import torch

from umbel.core.flat import ALIGNED, Outline, flattened, mapped, written

TREES = {
    "model": {
        "weight": torch.arange(6.0).reshape(2, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False, True]),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
    },
    "none": {},
    "more": {"weight": torch.arange(40)},
}


def same(trees):
    assert {name: list(tree) for name, tree in trees.items()} == {name: list(tree) for name, tree in TREES.items()}
    for name, tree in TREES.items():
        for key, tensor in tree.items():
            assert torch.equal(trees[name][key], tensor) and trees[name][key].dtype == tensor.dtype, key
    return True


def test_what_is_read_is_what_was_written():
    outline, memory = flattened(TREES)
    assert len(memory) == outline.num_bytes and outline.num_bytes % ALIGNED == 0
    assert same(outline.read(mapped(memory)))
    assert all(place.start % ALIGNED == 0 for places in outline.trees.values() for place in places.values())
    assert outline == Outline.of(TREES) and np.array_equal(memory, flattened(TREES)[1])


def test_memory_is_shared_also_where_nobody_may_write():
    outline, memory = flattened(TREES)
    memory.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trees = outline.read(mapped(memory))
    assert trees["model"]["weight"].data_ptr() == memory.ctypes.data and same(trees)


def test_tensors_travel_out_of_band():
    buffers = []
    content = pickle.dumps(flattened(TREES), protocol=5, buffer_callback=buffers.append)
    assert len(buffers) == 1 and b"weight" in content
    outline, memory = pickle.loads(content, buffers=buffers)
    assert same(outline.read(mapped(memory)))


def test_no_tensors():
    outline, memory = flattened({"none": {}})
    assert len(memory) == 0 and outline.read(mapped(memory)) == {"none": {}}


def test_values_are_written_one_after_the_other_however_they_lie():
    """A file takes bytes, and a strided vector has none of its own."""
    strided = {"m": {"each second": torch.arange(10.0)[::2], "one": torch.ones(()).expand(7)}}
    values = [piece for _, piece in written(strided, Outline.of(strided))]
    assert all(piece.is_contiguous() for piece in values)
    assert [piece.view(torch.uint8).numel() for piece in values] == [20, 28]
    assert values[0].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]

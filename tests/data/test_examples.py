"""Examples, statistics of channels, and splits."""

from __future__ import annotations

import pytest
import torch

from umbel import data
from umbel.core.rng import generator
from umbel.data.split import hashed, stratified, subset
from umbel.data.types import channel_statistics

torch.set_num_threads(1)


# --- types ----------------------------------------------------------------------------------------


def test_examples_take_and_to() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    examples = data.Examples(images, torch.tensor([5, 6, 7]), tasks=torch.tensor([0, 1, 2]))
    taken = examples.take(torch.tensor([2, 0]))
    assert len(taken) == 2 and taken.labels.tolist() == [7, 5] and taken.domains is None
    assert taken.tasks is not None and taken.tasks.tolist() == [2, 0]
    assert taken.images[:, 0, 0, 0].tolist() == [8, 0]
    assert examples.take(torch.tensor([False, True, False])).labels.tolist() == [6]
    floating = examples.to("cpu", torch.float32)
    assert torch.equal(floating.images, images.float() / 255)
    assert floating.to("cpu", torch.float64).images.max() == pytest.approx(11 / 255)
    assert images.dtype == torch.uint8 and images[0, 0, 0, 1] == 1  # what was given is as it was


def test_examples_of_wrong_shape() -> None:
    with pytest.raises(data.DataError, match=r"or embeddings \[N, D\], found \(3, 2, 2\)"):
        data.Examples(torch.zeros(3, 2, 2), torch.zeros(3).long())
    with pytest.raises(data.DataError, match=r"Expected labels of shape \[3\] and dtype int64, found \(2,\)"):
        data.Examples(torch.zeros(3, 1, 2, 2), torch.zeros(2).long())


def test_channel_statistics_are_torchs() -> None:
    images = torch.randint(0, 256, (70, 3, 5, 5), generator=generator(0), dtype=torch.uint8)
    images[:, 2] = 9
    mean, std = channel_statistics(images, chunk=32)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std[:2] == pytest.approx(pixels[:, :2].std((0, 2, 3), correction=0).tolist())
    assert std[2] == 1.0  # a constant channel is not divided by zero


# --- splits ---------------------------------------------------------------------------------------


def test_stratified_takes_its_share_of_each_group() -> None:
    groups = torch.tensor([0] * 40 + [3] * 10 + [1] * 1)
    rest, taken = stratified(groups, 0.25, seed=3, purpose="test")
    assert torch.bincount(groups[taken], minlength=4).tolist() == [10, 0, 0, 3]
    assert torch.equal(torch.cat([rest, taken]).sort().values, torch.arange(51))
    assert torch.equal(stratified(groups, 0.25, 3, "test")[1], taken)
    assert not torch.equal(stratified(groups, 0.25, 4, "test")[1], taken)
    assert not torch.equal(stratified(groups, 0.25, 3, "other")[1], taken)
    # The last example of a group is never taken.
    assert torch.bincount(groups[stratified(groups, 0.99, 3, "test")[0]]).min() == 0
    assert torch.bincount(groups[stratified(groups, 0.99, 3, "test")[0]]).tolist() == [1, 1, 0, 1]


def test_subset_and_hash() -> None:
    assert subset(5, 0, 0, "x").tolist() == [0, 1, 2, 3, 4] == subset(5, 9, 0, "x").tolist()
    some = subset(1000, 10, 0, "x")
    assert len(some.unique()) == 10 and torch.equal(some, some.sort().values)
    assert sum(hashed(str(key), 0.2) for key in range(2000)) == pytest.approx(400, abs=60)

"""FedLoGe's mathematics: closed forms and invariants."""

from __future__ import annotations

import math
import time

import pytest
import torch

from umbel.core.rng import generator
from umbel.strategies.fedloge.frames import simplex_etf, sparse_etf
from umbel.strategies.fedloge.heads import personal_logits, realign_global, realign_personal


def cosines(frame_DC: torch.Tensor) -> torch.Tensor:
    unit = frame_DC.double() / torch.linalg.norm(frame_DC.double(), dim=0)
    return (unit.T @ unit)[~torch.eye(frame_DC.shape[1], dtype=torch.bool)]


@pytest.mark.parametrize(("num_features", "num_classes"), [(64, 10), (10, 10), (512, 100), (5, 2)])
def test_a_simplex_is_equiangular(num_features, num_classes):
    frame = simplex_etf(num_features, num_classes, generator(0))
    c = num_classes
    gram = c / (c - 1) * (torch.eye(c) - 1 / c)
    assert (frame.T @ frame - gram).abs().max() <= 2e-6  # 512 products in float32
    assert frame.sum(1).abs().max() < 1e-6
    assert torch.equal(frame, simplex_etf(num_features, num_classes, generator(0)))
    assert not torch.equal(frame, simplex_etf(num_features, num_classes, generator(1)))


def test_a_simplex_needs_room():
    for sizes in ((9, 10), (4, 1)):
        with pytest.raises(ValueError, match="as many features as classes"):
            simplex_etf(*sizes, generator(0))


def with_adam(etf: torch.Tensor, keep: torch.Tensor, norm: float, steps: int = 10_000) -> torch.Tensor:
    """The paper's way: lengths toward gamma and the largest cosine of each class down, masked gradients."""
    frame = (etf * keep).clone().requires_grad_(True)
    optimizer = torch.optim.Adam([frame], lr=1e-4)
    own = torch.eye(etf.shape[1], dtype=torch.bool)
    for _ in range(steps):
        optimizer.zero_grad()
        lengths = torch.linalg.norm(frame, dim=0)
        near = (frame.T @ frame / (lengths[:, None] * lengths[None, :])).masked_fill(own, -1.0)
        angle = torch.arccos(near.amax(1).clamp(-0.99999, 0.99999)).mean()
        ((lengths - norm).square().sum() - angle).backward()
        frame.grad.mul_(keep)
        optimizer.step()
    return frame.detach()


@pytest.mark.parametrize("norm", [0.1, 1.3])
def test_a_sparse_frame_keeps_its_support_lengths_and_angles(norm):
    etf = simplex_etf(64, 10, generator(0))
    keep = torch.rand(64, 10, generator=generator(1)) >= 0.6
    frame = sparse_etf(etf, keep, norm)
    assert frame.dtype == etf.dtype and not frame[~keep].any() and frame[keep].count_nonzero() == keep.sum()
    assert (torch.linalg.norm(frame, dim=0) - norm).abs().max() < 1e-6
    assert (cosines(frame) + 1 / 9).abs().max() < 3e-5  # the paper's Adam: 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_features", "num_classes", "dropped"),
    [(12, 10, 0.6), *(pytest.param(*each, marks=pytest.mark.exhaustive) for each in ((64, 10, 0.6), (32, 16, 0.8)))],
)
def test_at_least_as_tight_as_ten_thousand_steps_of_adam_and_faster(num_features, num_classes, dropped):
    etf = simplex_etf(num_features, num_classes, generator(0))
    keep = torch.rand(num_features, num_classes, generator=generator(1)) >= dropped
    began = time.process_time()
    ours = cosines(sparse_etf(etf, keep))
    middle = time.process_time()
    theirs = cosines(with_adam(etf, keep, 0.1))
    ideal = -1 / (num_classes - 1)
    assert (ours - ideal).square().mean() <= (theirs - ideal).square().mean()
    if num_features == 64:
        assert (ours - ideal).abs().max() <= (theirs - ideal).abs().max()
    assert middle - began < time.process_time() - middle


def test_a_mask_that_leaves_a_class_nothing():
    etf = simplex_etf(8, 4, generator(0))
    keep = torch.ones(8, 4, dtype=torch.bool)
    keep[:, 2] = False
    with pytest.raises(ValueError, match=r"classes \[2\]"):
        sparse_etf(etf, keep)
    with pytest.raises(ValueError, match="bool mask"):
        sparse_etf(etf, torch.ones(8, 4))
    keep[3, 2] = True
    assert torch.linalg.norm(sparse_etf(etf, keep), dim=0)[2] == pytest.approx(0.1)


def test_realignment_by_hand():
    psi = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    phi = torch.tensor([[6.0, 8.0], [1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(realign_global(psi, 1.7), torch.tensor([[1.02, 1.36], [0.0, 1.7], [0.0, 0.0]]))
    again = realign_global(realign_global(psi))
    torch.testing.assert_close(again, realign_global(psi))
    torch.testing.assert_close(realign_personal(psi, phi), torch.tensor([[30.0, 40.0], [0.0, 2.0], [0.0, 0.0]]))
    lengths = torch.linalg.norm(realign_personal(psi, phi), dim=1)
    torch.testing.assert_close(lengths, torch.linalg.norm(psi, dim=1) * torch.linalg.norm(phi, dim=1))


def test_personal_logits_add_and_mask_absent_classes():
    features = torch.tensor([[-5.0, -5.0]])  # negative, where a weight of -1e10 as a mask would win
    phi, aligned = (
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]),
        torch.tensor([[0.0, 1.0], [0.0, 1.0], [9.0, 9.0]]),
    )
    present = torch.tensor([True, True, False])
    plain = personal_logits(features, phi, aligned, present)
    assert plain.tolist() == [[-10.0, -10.0, -math.inf]]
    biased = personal_logits(features, phi, aligned, present, torch.tensor([1.0, 0, 0]), torch.tensor([0, 3.0, 0]))
    assert biased.tolist() == [[-9.0, -7.0, -math.inf]] and biased.argmax() == 1
    order = torch.tensor([2, 0, 1])
    permuted = personal_logits(features, phi[order], aligned[order], present[order])
    assert torch.equal(permuted, plain[:, order])

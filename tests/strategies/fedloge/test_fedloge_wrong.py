"""Variants of FedLoGe that are wrong, each the slip of somebody who has written it before: the invariants catch them.

Each check holds for the code and fails for the variant, so that a check that sees nothing would be seen.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from umbel import models
from umbel.core.rng import generator
from umbel.strategies.fedloge import method as fedloge
from umbel.strategies.fedloge.frames import make_frame
from umbel.strategies.fedloge.heads import Heads, personal_logits, realign_global, realign_personal
from umbel.strategies.fedloge.method import Config

NUM_CLASSES, WIDTH = 5, 6
IMAGES = torch.randn(7, 1, 8, 8, generator=generator(1))
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])


def made(kind: type[Heads]) -> Heads:
    torch.manual_seed(0)
    model = models.build("cnn", NUM_CLASSES, 8, 1, width=2, hidden=WIDTH)
    frame = make_frame(Config(norm=1.0, sparsity=0.3), WIDTH, NUM_CLASSES, generator(0))["weight"]
    return kind(model, frame, torch.nn.Linear(WIDTH, NUM_CLASSES))


def trunk_gradients(heads: Heads) -> list[Tensor]:
    heads.zero_grad()
    fedloge.sum_of_losses(heads(IMAGES), LABELS).backward()
    return [p.grad.clone() for name, p in heads.model.named_parameters() if not name.startswith("head")]


class WithoutStop(Heads):
    """psi and phi see features with their gradient."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.model.features(x)
        return torch.stack([F.linear(f, self.frame), self.model.head(f), self.personal(f)])


class FrameWithBias(Heads):
    """The frame as an nn.Linear keeps its random bias."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.model.features(x)
        bias = torch.linspace(-0.3, 0.3, NUM_CLASSES)
        return torch.stack([F.linear(f, self.frame, bias), self.model.head(f.detach()), self.personal(f.detach())])


def trunk_sees_only_the_frame(kind: type[Heads]) -> None:
    heads = made(kind)
    before = trunk_gradients(heads)
    with torch.no_grad():
        heads.model.head.weight.add_(1.5 * torch.randn(NUM_CLASSES, WIDTH, generator=generator(4)))
        heads.personal.weight.mul_(-3)
    assert all(torch.equal(a, b) for a, b in zip(before, trunk_gradients(heads), strict=True))


def no_features_no_preference(kind: type[Heads]) -> None:
    heads = made(kind)
    heads.model.features = lambda x: torch.zeros(len(x), WIDTH)  # type: ignore[method-assign]
    assert not heads(IMAGES)[0].any()


@pytest.mark.parametrize(
    ("check", "wrong"), [(trunk_sees_only_the_frame, WithoutStop), (no_features_no_preference, FrameWithBias)]
)
def test_heads(check, wrong):
    check(Heads)
    with pytest.raises(AssertionError):
        check(wrong)


def masked_in_the_weights(features, phi, aligned, present, own_bias=None, bias=None):
    """The authors' mask: rows of absent classes are -1e10, which needs features whose sum is positive."""
    weight = (phi + aligned).masked_fill(~present[:, None], -1e10)
    return features @ weight.T


def absent_classes_are_never_chosen(logits) -> None:
    phi = torch.randn(4, 6, generator=generator(5))
    present = torch.tensor([True, False, True, False])
    for sign in (1.0, -1.0):  # after a ReLU, and after a layer norm or GELU
        features = sign * torch.rand(20, 6, generator=generator(6))
        chosen = logits(features, phi, phi.flip(0), present).argmax(1)
        assert set(chosen.tolist()) <= {0, 2}


def test_the_mask():
    absent_classes_are_never_chosen(personal_logits)
    with pytest.raises(AssertionError):
        absent_classes_are_never_chosen(masked_in_the_weights)


def test_psi_is_not_normalised_before_la_fr():
    psi, phi = (torch.randn(NUM_CLASSES, WIDTH, generator=generator(s)) * (1 + 3 * s) for s in (7, 8))

    def lengths_multiply(realign) -> None:
        lengths = torch.linalg.norm(realign(psi, phi), dim=1)
        torch.testing.assert_close(lengths, torch.linalg.norm(psi, dim=1) * torch.linalg.norm(phi, dim=1))

    lengths_multiply(realign_personal)
    with pytest.raises(AssertionError):
        lengths_multiply(lambda psi, phi: realign_personal(realign_global(psi), phi))


def test_realignment_and_personal_logits_follow_the_classes():
    """A permutation of the classes permutes the outputs: nothing depends on where a class stands."""
    order = torch.tensor([3, 0, 4, 2, 1])
    psi, phi = (torch.randn(NUM_CLASSES, WIDTH, generator=generator(s)) for s in (7, 8))
    features = torch.randn(9, WIDTH, generator=generator(9))
    present = torch.tensor([True, True, False, True, True])
    bias = torch.linspace(-1, 1, NUM_CLASSES)
    assert torch.equal(realign_global(psi)[order], realign_global(psi[order]))
    assert torch.equal(realign_personal(psi, phi)[order], realign_personal(psi[order], phi[order]))
    plain = personal_logits(features, phi, realign_personal(psi, phi), present, bias, 2 * bias)
    moved = personal_logits(
        features, phi[order], realign_personal(psi[order], phi[order]), present[order], bias[order], 2 * bias[order]
    )
    torch.testing.assert_close(moved, plain[:, order])
    assert moved[:, 4 - 2].isneginf().sum() == 0 and plain[:, 2].isneginf().all()
    # A bias that is added as if it were in another order is seen.
    with pytest.raises(AssertionError):
        torch.testing.assert_close(moved - bias[order] + bias, plain[:, order])


def test_scale_matters_beside_a_bias_only():
    psi = torch.randn(NUM_CLASSES, WIDTH, generator=generator(7))
    features, bias = torch.randn(200, WIDTH, generator=generator(9)), torch.linspace(-2, 2, NUM_CLASSES)
    one, longer = (features @ realign_global(psi, scale).T for scale in (1.0, 1.7))
    assert torch.equal(one.argmax(1), longer.argmax(1))
    assert not torch.equal((one + bias).argmax(1), (longer + bias).argmax(1))


def test_the_readmes_form_by_hand():
    psi, phi = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    f, present = torch.tensor([[1.0, 1.0]]), torch.tensor([True, True])
    aligned = realign_personal(psi, phi)  # [[3, 4], [0, 4]]
    assert personal_logits(f, phi, aligned, present).tolist() == [[8.0, 6.0]]  # phi + phi'
    assert personal_logits(f, psi, aligned, present).tolist() == [[14.0, 6.0]]  # psi + phi'
    assert personal_logits(f, psi, aligned, torch.tensor([False, True])).tolist() == [[-math.inf, 6.0]]

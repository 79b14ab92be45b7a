"""Eigen-CAM on maps whose first direction is known, against the public implementation, and what two maps agree on."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from umbel.core.rng import generator
from umbel.simulations.explain.eigen_cam import agreement, eigen_cam

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def scaled(maps: Tensor) -> Tensor:
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low)


@pytest.fixture(scope="module")
def public() -> ModuleType:
    """The one file of `grad-cam` that computes; the package as a whole wants torchvision."""
    try:
        files = metadata.files("grad-cam") or []
    except metadata.PackageNotFoundError:
        pytest.skip("grad-cam is not installed: pip install --no-deps grad-cam==1.5.7")
    (file,) = [f for f in files if f.name == "svd_on_activations.py"]
    spec = importlib.util.spec_from_file_location("svd_on_activations", file.locate())
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("channels", "height", "width"), [(7, 5, 4), (40, 3, 3), (1, 4, 6)])
def test_as_the_public_implementation_up_to_sign_and_scale(public, channels, height, width):
    maps = normal(3, channels, height, width).relu() + 0.1 * normal(1, channels, 1, 1, seed=1)
    theirs = torch.from_numpy(public.get_2d_projection(maps.numpy())).double()
    ours = eigen_cam(maps)
    for own, other in zip(ours, theirs, strict=True):
        assert abs(np.corrcoef(own.flatten(), other.flatten())[0, 1]) > 1 - 1e-9
    # The same rule for the sign, in their function for another method.
    turned = public.get_2d_projection_with_sign_correction(maps.numpy())
    torch.testing.assert_close(ours, scaled(torch.from_numpy(turned).double()), atol=1e-6, rtol=0)


def test_the_uncentred_form_is_another_than_the_public_one(public):
    maps = normal(2, 6, 4, 4) + 3.0
    theirs = torch.from_numpy(public.get_2d_projection_with_sign_correction(maps.numpy())).double()
    uncentred = eigen_cam(maps, centred=False)
    assert (uncentred - scaled(theirs)).abs().max() > 0.1
    # By hand: the first eigenvector of the Gram matrix of channels.
    for image, cam in zip(maps, uncentred, strict=True):
        matrix = image.flatten(1).T
        _, vectors = np.linalg.eigh((matrix.T @ matrix).numpy())
        projection = matrix @ torch.from_numpy(vectors[:, -1].copy())
        projection = projection if projection.max() > -projection.min() else -projection
        torch.testing.assert_close(cam, scaled(projection.view(1, 4, 4))[0])


def test_one_pattern_in_all_channels_is_the_map():
    pattern = torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 6.0]], dtype=F64)
    channels = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    maps = channels[:, None, None] * pattern
    torch.testing.assert_close(eigen_cam(maps[None])[0], pattern / 6)
    torch.testing.assert_close(eigen_cam(maps[None], centred=False)[0], pattern / 6)
    offsets = torch.tensor([5.0, 7.0, -3.0], dtype=F64)[:, None, None]
    torch.testing.assert_close(eigen_cam((maps + offsets)[None])[0], pattern / 6)  # centring takes offsets away
    assert (eigen_cam((maps + offsets)[None], centred=False)[0] - pattern / 6).abs().max() > 0.05


@pytest.mark.parametrize("centred", [True, False])
def test_the_extreme_of_largest_magnitude_is_bright(centred):
    pattern = torch.full((1, 1, 4, 4), -1.0, dtype=F64) * torch.tensor([1.0, -2.0], dtype=F64)[:, None, None]
    pattern[..., 1, 2] *= 9
    bright = eigen_cam(pattern, centred=centred)
    torch.testing.assert_close(bright, F.one_hot(torch.tensor([6]), 16).double().view(1, 4, 4))
    torch.testing.assert_close(eigen_cam(-pattern, centred=centred), bright)


def test_where_both_extremes_are_as_large_the_first_place_decides():
    halves = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=F64) * torch.rand(5, generator=generator(3))[:, None, None]
    for maps in (halves, -halves, *(halves + 1e-12 * normal(5, 2, 2, seed=seed) for seed in range(10))):
        torch.testing.assert_close(eigen_cam(maps[None])[0], torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=F64))


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e8])
@pytest.mark.parametrize("centred", [True, False])
def test_a_constant_map_is_zero(value, centred):
    vector = torch.linspace(1, 1.7, 11, dtype=F64) * value
    assert not eigen_cam(vector[None, :, None, None].expand(2, 11, 3, 5), centred=centred).any()
    mixed = torch.stack([vector[:, None, None].expand(11, 4, 4), normal(11, 4, 4)])
    assert eigen_cam(mixed, centred=centred).amax(dim=(1, 2)).tolist() == [0.0, 1.0]


def test_each_image_by_itself_and_the_same_bits_again():
    maps = normal(4, 9, 6, 6)
    together = eigen_cam(maps)
    assert torch.equal(together, eigen_cam(maps.clone()))
    for i in range(4):
        torch.testing.assert_close(eigen_cam(maps[i : i + 1])[0], together[i])
    order = torch.tensor([4, 0, 8, 2, 1, 3, 7, 6, 5])
    torch.testing.assert_close(eigen_cam(maps[:, order]), together)  # channels have no order
    torch.testing.assert_close(eigen_cam(3e-9 * maps), together)  # nor a unit


def test_enlarged_before_it_is_scaled():
    maps = normal(2, 5, 4, 4)
    large = eigen_cam(maps, size=(9, 11))
    raw = F.interpolate(eigen_cam(maps)[:, None], size=(9, 11), mode="bilinear")[:, 0]
    assert large.shape == (2, 9, 11)
    torch.testing.assert_close(large, scaled(raw))
    assert large.amin(dim=(1, 2)).tolist() == [0, 0] and large.amax(dim=(1, 2)).tolist() == [1, 1]
    assert eigen_cam(maps, size=7).shape == (2, 7, 7)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (F64, F64)]
)
def test_types_and_an_empty_batch(dtype, expected):
    maps = normal(2, 3, 4, 4).to(dtype)
    assert eigen_cam(maps).dtype == expected
    torch.testing.assert_close(eigen_cam(maps), eigen_cam(maps.double()).to(expected))
    assert eigen_cam(maps[:0]).shape == (0, 4, 4) and eigen_cam(maps[:0], size=8).shape == (0, 8, 8)
    assert not eigen_cam(maps.requires_grad_()).requires_grad


def test_what_is_no_activation_is_refused():
    with pytest.raises(ValueError, match=r"\[batch, channels, height, width\], found \[3, 4, 4\]"):
        eigen_cam(normal(3, 4, 4))
    with pytest.raises(ValueError, match="found"):
        eigen_cam(torch.zeros(2, 0, 4, 4))
    for bad in (float("nan"), float("inf")):
        maps = normal(2, 3, 4, 4)
        maps[1, 2, 3, 0] = bad
        with pytest.raises(ValueError, match="finite activations"):
            eigen_cam(maps)


# Agreement ------------------------------------------------------------------------------------------------


def test_correlation_as_numpy_has_it():
    one, other = normal(3, 5, 4, seed=1), normal(3, 5, 4, seed=2) + normal(3, 5, 4, seed=1)
    correlations = agreement(one, other).correlation
    expected = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(one, other, strict=True)]
    torch.testing.assert_close(correlations, torch.tensor(expected, dtype=F64))
    torch.testing.assert_close(agreement(one, 1e-200 * one - 4e-201).correlation, torch.ones(3, dtype=F64))
    torch.testing.assert_close(agreement(one, -one).correlation, -torch.ones(3, dtype=F64))


def test_iou_counted_by_hand():
    one = torch.arange(10.0).view(1, 2, 5)
    other = torch.tensor([[[9.0, 0, 0, 0, 0], [0, 0, 0, 7, 8]]])
    # Of 3 places of 10: {7, 8, 9} and {0, 8, 9}.
    assert agreement(one, other, top=0.3).iou.item() == 2 / 4
    assert agreement(one, one, top=0.3).iou.item() == 1
    assert agreement(one, -one, top=0.3).iou.item() == 0
    assert agreement(one, -one, top=1.0).iou.item() == 1
    # A tie with the last place is in the region: {0, 8, 9} and, with zeros, all.
    assert agreement(other, one, top=0.4).iou.item() == 4 / 10


def test_a_constant_map_agrees_with_nothing():
    one, flat = normal(2, 3, 3), normal(2, 3, 3)
    flat[1] = 0.1
    for similarity in (agreement(one, flat), agreement(flat, one)):
        assert similarity.correlation.isnan().tolist() == similarity.iou.isnan().tolist() == [False, True]


def test_maps_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"found \[2, 3, 3\] and \[2, 3, 4\]"):
        agreement(normal(2, 3, 3), normal(2, 3, 4))
    with pytest.raises(ValueError, match="above 0"):
        agreement(normal(2, 3, 3), normal(2, 3, 3), top=0.0)
    with pytest.raises(ValueError, match="NaN"):
        agreement(normal(2, 3, 3), torch.full((2, 3, 3), float("nan")))

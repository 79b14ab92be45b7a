"""SpaRTAN: the count, and both mixers against direct loops."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import count, num_parameters, on_meta, seeded_with
from umbel.models import build
from umbel.models.norm import replace_batch_norm
from umbel.models.spartan import SpartanBlock, SpatialMixer, WaveMixer

seeded = seeded_with(7)


# Counts -----------------------------------------------------------------------------------------------------


def test_published_count():
    with torch.device("meta"):
        model = build("spartan", 1000)
        assert f"{num_parameters(model) / 1e6:.2f}" == "3.82"
        assert count(model, nn.BatchNorm2d) == 2 + 3 + 3 * 20 == 65
        assert count(model, nn.GroupNorm) == 40
        expected = num_parameters(model)
        assert num_parameters(replace_batch_norm(model)) == expected


def test_groups_of_the_convolutions():
    model = on_meta("spartan", 1000)
    blocks = [module for module in model.modules() if isinstance(module, SpartanBlock)]
    groups = [(block.spatial.near[0].groups, block.wave.mix[0].groups) for block in blocks]
    # Dense and depthwise in stages 1 and 2; depthwise and one group a channel of the stage in stages 3 and 4.
    assert groups == [(1, 128)] * 3 + [(1, 256)] * 3 + [(64, 128)] * 12 + [(128, 256)] * 2


def test_tiny_count():
    assert num_parameters(build("spartan_tiny32", 10)) == 262_942
    assert not any(value.is_complex() for value in build("spartan_tiny32", 10).state_dict().values())


# Forward ----------------------------------------------------------------------------------------------------


def test_the_published_model_at_another_size_and_without_batch_norm():
    model = replace_batch_norm(build("spartan", 10, 64, 1))
    assert torch.isfinite(model(torch.randn(1, 1, 64, 64))).all()


# Mixers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [2, 4])
def test_waves_by_loops(ratio):
    mixer = WaveMixer(8, ratio, groups=8).double()
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    phase, amplitude = F.gelu(mixer.phase(x)), mixer.amplitude(x)
    turn = [complex(real, imag) for real, imag in mixer.turn.tolist()]
    expected = torch.empty(2, 8 * ratio, 3, 2, dtype=torch.float64)
    for image in range(2):
        for i in range(3):
            for j in range(2):
                values = x[image, :, i, j].tolist()
                best = values.index(max(values))
                p, a = phase[image, :, i, j].tolist(), amplitude[image, :, i, j].tolist()
                wave = [a[c] * p[c] + a[best] * p[best] for c in range(8 * ratio)]
                for pair in range(4 * ratio):
                    turned = complex(wave[2 * pair], wave[2 * pair + 1]) * turn[pair]
                    expected[image, 2 * pair, i, j], expected[image, 2 * pair + 1, i, j] = turned.real, turned.imag
    torch.testing.assert_close(mixer.waves(x), expected)


def test_what_is_chosen_has_a_derivative():
    mixer = WaveMixer(8, 2, groups=8).double()
    x = torch.randn(1, 8, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer.waves, (x,))


def excited(layer, x):
    """Return the map weighted by squeeze and excitation, from its equation."""
    mean = x.mean(dim=(2, 3))
    hidden = (mean @ layer.reduce.weight[:, :, 0, 0].T + layer.reduce.bias).clamp(min=0)
    gate = torch.sigmoid(hidden @ layer.expand.weight[:, :, 0, 0].T + layer.expand.bias)
    return x * gate[:, :, None, None]


def direct_conv(x, weight, dilation):
    """Return a zero-padded depthwise 3 x 3 convolution by loops."""
    out = torch.zeros_like(x)
    height, width = x.shape[2:]
    for i in range(height):
        for j in range(width):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    row, column = i + dilation * di, j + dilation * dj
                    if 0 <= row < height and 0 <= column < width:
                        out[:, :, i, j] += weight[:, 0, di + 1, dj + 1] * x[:, :, row, column]
    return out


def test_the_spatial_mixer_by_loops():
    mixer = SpatialMixer(16, dense=False).double().eval()
    with torch.no_grad():
        mixer.contrast.weight.copy_(torch.randn(8, 1, 1))
        for branch in (mixer.near, mixer.far):
            branch[-3].running_mean.normal_()
            branch[-3].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 16, 5, 6, dtype=torch.float64)
    half = mixer.reduce(x)
    half = half + mixer.contrast.weight * (half - half.mean(dim=(2, 3), keepdim=True))
    near = direct_conv(half, mixer.near[0].weight, 1)
    far = direct_conv(direct_conv(half, mixer.far[0].weight, 2), mixer.far[1].weight, 2)
    parts = []
    for convolved, branch in ((near, mixer.near), (far, mixer.far)):
        norm = branch[-3]
        mean, deviation = norm.running_mean[:, None, None], (norm.running_var[:, None, None] + 1e-6).sqrt()
        parts.append(excited(branch[-1], F.gelu((convolved - mean) / deviation)))
    torch.testing.assert_close(mixer(x), mixer.join(torch.cat(parts, dim=1)))


def test_a_block_is_two_scaled_branches():
    block = SpartanBlock(16, 2, dense=True, layer_scale=0.5, drop_rate=0.0).double().eval()
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)

    def normed(x):
        spread = x.var((1, 2, 3), unbiased=False, keepdim=True)
        return (x - x.mean((1, 2, 3), keepdim=True)) / (spread + 1e-6).sqrt()

    between = x + 0.5 * block.spatial(normed(x))
    torch.testing.assert_close(block(x), between + 0.5 * block.wave(normed(between)))


def test_the_contrast_starts_at_a_hundred_thousandth():
    mixer = SpatialMixer(16, dense=True)
    assert torch.equal(mixer.contrast.weight, torch.full((8, 1, 1), 1e-5))


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"dims": (8, 8)}, "model.sizes.dims"),
        ({"dims": (8, 12, 16)}, "model.sizes.dims should be multiples of 8"),
        ({"depths": (1, 0, 1)}, "model.sizes.depths"),
        ({"ratios": (2, 2)}, "model.sizes.ratios"),
        ({"layer_scale": 0}, "model.sizes.layer_scale"),
        ({"drop_path": 1}, "model.sizes.drop_path"),
        ({"image_size": 3}, "model.image_size.*Use 4"),
    ],
)
def test_errors_name_the_key(sizes, match):
    with pytest.raises(ValueError, match=match):
        build("spartan_tiny32", 10, **sizes)


def test_the_published_model_needs_multiples_of_32_px():
    with pytest.raises(ValueError, match=r"model.image_size.*Use 224"):
        build("spartan", 10, 220)

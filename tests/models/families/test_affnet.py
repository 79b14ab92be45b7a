"""AFFNet: counts, and the filter against a direct circular convolution and a perceptron in complex numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import count, num_parameters, seeded_with
from umbel.models import build
from umbel.models.affnet import FilterBlock, FilterStage, FrequencyFilter, InvertedResidual
from umbel.models.norm import replace_batch_norm

seeded = seeded_with(7)


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "printed"), [("affnet_et", "1.44"), ("affnet_t", "2.65"), ("affnet_s", "5.57")])
def test_published_counts(name, printed):
    with torch.device("meta"):
        model = build(name, 1000)
        assert f"{num_parameters(model) / 1e6:.2f}" == printed
        # Batch norm: the stem, 3 x (4 + 3 + 9) in inverted residuals, 2 a stage, the last convolution.
        assert count(model, nn.BatchNorm2d) == 1 + 48 + 6 + 1 == 56
        assert count(model, nn.GroupNorm) == 2 * 9 + 3
        assert model.image_size == 256
        expected = num_parameters(model)
        assert num_parameters(replace_batch_norm(model)) == expected


def test_tiny_count():
    assert num_parameters(build("affnet_tiny32", 10)) == 188_986
    assert not any(value.is_complex() for value in build("affnet_tiny32", 10).state_dict().values())


# Forward ----------------------------------------------------------------------------------------------------


def test_every_filter_weight_learns():
    model = build("affnet_tiny32", 10, 28, 1)
    F.cross_entropy(model(torch.randn(4, 1, 28, 28)), torch.arange(4)).backward()
    for module in model.modules():
        if isinstance(module, FrequencyFilter):
            assert all(p.grad.abs().max() > 0 for p in module.parameters())


def test_a_published_model_at_another_size_and_without_batch_norm():
    model = replace_batch_norm(build("affnet_et", 10, 48, 1))
    assert torch.isfinite(model(torch.randn(1, 1, 48, 48))).all()


# The filter -------------------------------------------------------------------------------------------------


def direct_mask(layer, spectrum):
    """Return the filter by a loop over groups, in complex numbers."""
    width = layer.weight1.shape[-1]
    mask = torch.empty_like(spectrum)
    for group in range(8):
        weight1, bias1, weight2, bias2 = (
            torch.complex(*(part[group] for part in parameter))
            for parameter in (layer.weight1, layer.bias1, layer.weight2, layer.bias2)
        )
        own = slice(group * width, (group + 1) * width)
        hidden = torch.einsum("bihw,io->bohw", spectrum[:, own], weight1) + bias1[:, None, None]
        hidden = torch.complex(F.silu(hidden.real), F.silu(hidden.imag))
        out = torch.einsum("bihw,io->bohw", hidden, weight2) + bias2[:, None, None]
        mask[:, own] = torch.complex(*(part.sign() * (part.abs() - 0.01).clamp(min=0) for part in (out.real, out.imag)))
    return mask


@pytest.mark.parametrize("shape", [(2, 24, 4, 6), (1, 16, 5, 3), (1, 8, 1, 1), (1, 8, 2, 2)])
def test_the_mask_is_a_complex_perceptron_a_group(shape):
    layer = FrequencyFilter(shape[1], std=0.3).double()
    spectrum = torch.fft.rfft2(torch.randn(shape, dtype=torch.float64), norm="ortho")
    torch.testing.assert_close(layer.mask(spectrum), direct_mask(layer, spectrum))


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (2, 2)])
def test_filtering_is_a_circular_convolution(height, width):
    layer = FrequencyFilter(8, std=0.3).double()
    x = torch.randn(2, 8, height, width, dtype=torch.float64)
    kernel = torch.fft.irfft2(direct_mask(layer, torch.fft.rfft2(x, norm="ortho")), s=(height, width))
    expected = x.clone()
    for i in range(height):
        for j in range(width):
            for di in range(height):
                for dj in range(width):
                    source = x[:, :, (i - di) % height, (j - dj) % width]
                    expected[:, :, i, j] += kernel[:, :, di, dj] * source
    torch.testing.assert_close(layer(x), expected)


def test_small_masks_shrink_to_nothing():
    layer = FrequencyFilter(8, std=1e-4)
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, torch.float32), (torch.float64, torch.float64)])
def test_the_filter_keeps_its_precision_under_autocast(dtype, expected):
    layer = FrequencyFilter(8, std=0.3).to(dtype)
    x = torch.randn(1, 8, 4, 4, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(x)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert inside.dtype == expected
    assert torch.equal(inside, layer(x))


# Blocks -----------------------------------------------------------------------------------------------------


def test_a_filter_block_mixes_channels_first_and_has_one_shortcut():
    block = FilterBlock(8, 16, std=0.3, drop_rate=0.0).eval()
    x = torch.randn(2, 8, 4, 4)
    normed = (x - x.mean((1, 2, 3), keepdim=True)) / (x.var((1, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    channels = block.channels(normed)
    spread = channels.var((1, 2, 3), unbiased=False, keepdim=True)
    again = (channels - channels.mean((1, 2, 3), keepdim=True)) / (spread + 1e-5).sqrt()
    torch.testing.assert_close(block(x), x + block.filter(again), atol=1e-4, rtol=1e-4)


def test_an_inverted_residual_keeps_a_shortcut_only_where_shapes_agree():
    x = torch.randn(2, 8, 4, 4)
    for outputs, stride in ((8, 1), (8, 2), (12, 1)):
        block = InvertedResidual(8, outputs, 16, stride).eval()
        nn.init.zeros_(block.reduce.conv.weight)
        expected = x if (outputs, stride) == (8, 1) else torch.zeros(2, outputs, 4 // stride, 4 // stride)
        assert torch.equal(block(x), expected)


def test_a_stage_fuses_its_input_before_its_output():
    stage = FilterStage(8, 16, 0.3, [0.0]).eval()
    with torch.no_grad():
        stage.fuse.conv.weight.zero_()
        stage.fuse.conv.weight[:, :8, 0, 0] = torch.eye(8)
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(stage(x), F.silu(x / (1 + 1e-5) ** 0.5))


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"dims": (8, 8)}, "model.sizes.dims"),
        ({"dims": (8, 12, 16)}, "model.sizes.dims should be multiples of 8"),
        ({"depths": (1, 0, 1)}, "model.sizes.depths"),
        ({"stem": 0}, "model.sizes.stem"),
        ({"expand": 0}, "model.sizes.expand"),
        ({"ffn_ratio": 0}, "model.sizes.ffn_ratio"),
        ({"head_ratio": 0}, "model.sizes.head_ratio"),
        ({"filter_std": 0}, "model.sizes.filter_std"),
        ({"drop_path": 1}, "model.sizes.drop_path"),
        ({"image_size": 3}, "model.image_size.*Use 4"),
    ],
)
def test_errors_name_the_key(sizes, match):
    with pytest.raises(ValueError, match=match):
        build("affnet_tiny32", 10, **sizes)


def test_a_published_model_needs_32_px():
    with pytest.raises(ValueError, match=r"model.image_size.*Use 32"):
        build("affnet_et", 10, 28)

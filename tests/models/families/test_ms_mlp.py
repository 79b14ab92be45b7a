"""MS-MLP: published counts, the order of shifts and groups against a direct loop, sizes and errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import num_parameters, on_meta, seeded_with
from umbel.models import build
from umbel.models.ms_mlp import MixShift, MSBlock, group_sizes
from umbel.models.norm import batch_norm_names, replace_batch_norm

PUBLISHED = [("ms_mlp_t", "28.7"), ("ms_mlp_s", "50.3")]


seeded = seeded_with(7)


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "printed"), PUBLISHED)
def test_published_counts(name, printed):
    model = on_meta(name, 1000)
    assert f"{num_parameters(model) / 1e6:.1f}" == printed
    assert not batch_norm_names(model)
    assert list(model.state_dict())[-2:] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("dim", [96, 192, 384, 768, 40, 80, 160, 9])
def test_groups_are_those_of_chunk(dim):
    assert group_sizes(dim, 5) == [len(part) for part in torch.empty(dim).chunk(5)]


def test_groups_of_96_and_the_count_of_a_mix():
    assert group_sizes(96, 5) == [20, 20, 20, 20, 16]
    # Two axes, and a bias beside each kernel.
    expected = 2 * sum(
        size * (kernel**2 + 1) for size, kernel in zip((20, 20, 20, 20, 16), (1, 1, 3, 5, 7), strict=True)
    )
    assert num_parameters(MixShift(96, (1, 1, 3, 5, 7))) == expected


# Layers -----------------------------------------------------------------------------------------------------


def direct_mix(layer, kernels, x):
    """Shift and mix place by place: group g reads the map at W (then at H) minus g - 2, around the edge."""
    batch, dim, height, width = x.shape
    sizes = group_sizes(dim, len(kernels))
    # Weights of each group and axis: neighbours with one kernel share a convolution, W before H.
    weights, start = {}, 0
    run_of = []
    for g, kernel in enumerate(kernels):
        if g == 0 or kernel != kernels[g - 1]:
            run_of.append([])
        run_of[-1].append(g)
    for conv, run in zip(layer.convs, run_of, strict=True):
        total = sum(sizes[g] for g in run)
        for axis in range(2):
            start = axis * total
            for g in run:
                weights[g, axis] = conv.weight[start : start + sizes[g], 0], conv.bias[start : start + sizes[g]]
                start += sizes[g]
    mixed = torch.zeros_like(x)
    for g, kernel in enumerate(kernels):
        shift, half = g - len(kernels) // 2, kernel // 2
        for c in range(sizes[g]):
            channel = sum(sizes[:g]) + c
            for axis in range(2):
                weight, bias = weights[g, axis]
                for i in range(height):
                    for j in range(width):
                        total = bias[c].expand(batch)
                        for a in range(-half, half + 1):
                            for b in range(-half, half + 1):
                                row, column = i + a, j + b
                                if not (0 <= row < height and 0 <= column < width):
                                    continue  # zeros pad what has been shifted
                                if axis == 0:
                                    column = (column - shift) % width
                                else:
                                    row = (row - shift) % height
                                total = total + weight[c, a + half, b + half] * x[:, channel, row, column]
                        mixed[:, channel, i, j] += total
    return mixed


@pytest.mark.parametrize(
    ("dim", "kernels"), [(9, (1, 1, 3, 5, 5)), (5, (1, 3, 3, 5, 7)), (6, (3, 1, 3)), (5, (1, 7, 7, 7, 7))]
)
def test_mix_shift_against_a_loop(dim, kernels):
    layer = MixShift(dim, kernels).double()
    x = torch.randn(2, dim, 4, 5).double()
    with torch.no_grad():
        assert torch.allclose(layer(x), direct_mix(layer, kernels, x))


def test_a_lone_pixel_moves_by_the_shift_of_its_group():
    layer = MixShift(5, (1, 1, 1, 1, 1))
    nn.init.ones_(layer.convs[0].weight)
    nn.init.zeros_(layer.convs[0].bias)
    x = torch.zeros(1, 5, 4, 4)
    x[:, :, 1, 0] = 1
    mixed = layer(x)
    assert mixed[0, 0].nonzero().tolist() == [[1, 2], [3, 0]]  # by -2, around the edge
    assert mixed[0, 1].nonzero().tolist() == [[0, 0], [1, 3]]
    assert mixed[0, 2, 1, 0] == 2
    assert mixed[0, 3].nonzero().tolist() == [[1, 1], [2, 0]]
    assert mixed[0, 4].nonzero().tolist() == [[1, 2], [3, 0]]


def test_block_has_one_residual_branch():
    block = MSBlock(10, (1, 1, 3, 3, 3), 2, 0.5, 0.0).double()
    x = torch.randn(2, 10, 4, 6).double()
    mixed = block.mix(x).permute(0, 2, 3, 1)
    normed = (mixed - mixed.mean(3, keepdim=True)) / (mixed.var(3, keepdim=True, correction=0) + 1e-5).sqrt()
    branch = 0.5 * block.fc2(F.gelu(block.fc1(normed)))
    assert torch.allclose(block(x), x + branch.permute(0, 3, 1, 2))


def test_published_layer_scale_and_kernels():
    model = build("ms_mlp_t", 10, 32)
    blocks = [[layer for layer in stage if isinstance(layer, MSBlock)] for stage in model.stages]
    assert [len(stage) for stage in blocks] == [3, 3, 9, 3]
    assert torch.equal(blocks[2][0].scale.weight, torch.full((384,), 1e-6))
    sides = [[conv.kernel_size[0] for conv in stage[0].mix.convs] for stage in blocks]
    assert sides == [[1, 3, 5, 7], [1, 3, 5, 7], [1, 5, 7], [1, 7]]


def test_features_are_the_mean_of_the_normed_tokens():
    model = build("ms_mlp_tiny32", 5, 28, 1).eval()
    nn.init.normal_(model.norm.weight)
    seen = []
    model.stages[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    features = model.features(torch.randn(2, 1, 28, 28))
    assert seen[0].shape == (2, 160, 4, 4)
    assert torch.allclose(features, model.norm(seen[0].flatten(2).transpose(1, 2)).mean(1), atol=1e-6)


# Sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sides"), [(8, [4, 2, 1]), (14, [7, 4, 2]), (28, [14, 7, 4]), (32, [16, 8, 4])])
def test_tiny_maps(size, sides):
    model = build("ms_mlp_tiny32", 10, size, 1)
    heights = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, output: heights.append(output.shape[2]))
    model(torch.randn(1, 1, size, size))
    assert heights == sides


def test_tiny_count():
    assert num_parameters(on_meta("ms_mlp_tiny32", 10, 28, 1)) == 311_842


def test_tiny_trains_every_parameter():
    model = build("ms_mlp_tiny32", 10, 28, 1, layer_scale=0.1)
    F.cross_entropy(model(torch.randn(4, 1, 28, 28)), torch.arange(4)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())


def test_no_batch_norm_to_replace():
    model = build("ms_mlp_tiny32", 10)
    before = num_parameters(model)
    assert num_parameters(replace_batch_norm(model)) == before


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("ms_mlp_t", {"image_size": 223}, "model.image_size.*Use 224"),
        ("ms_mlp_s", {"image_size": 28}, "model.image_size.*Use 32"),
        ("ms_mlp_t", {"drop_path": 1.0}, "model.sizes.drop_path"),
        ("ms_mlp_tiny32", {"image_size": 4}, "model.image_size.*Use 8"),
        ("ms_mlp_tiny32", {"image_size": 30, "patch": 4}, "model.image_size.*Use"),
        ("ms_mlp_tiny32", {"dims": (40, 80)}, "model.sizes.dims"),
        ("ms_mlp_tiny32", {"dims": (6, 80, 160)}, "model.sizes.dims.*Use 10"),
        ("ms_mlp_tiny32", {"depths": (1, 1, 0)}, "model.sizes.depths"),
        ("ms_mlp_tiny32", {"kernels": 3}, "model.sizes.kernels"),
        ("ms_mlp_tiny32", {"kernels": (3, 3, 3)}, "model.sizes.kernels"),
        ("ms_mlp_tiny32", {"kernels": ((1,), (2,), (3,))}, "model.sizes.kernels.*odd"),
        ("ms_mlp_tiny32", {"patch": 0}, "model.sizes.patch"),
        ("ms_mlp_tiny32", {"mlp_ratio": 1.5}, "model.sizes.mlp_ratio"),
        ("ms_mlp_tiny32", {"layer_scale": 0}, "model.sizes.layer_scale"),
        ("ms_mlp_tiny32", {"drop_path": -0.1}, "model.sizes.drop_path"),
    ],
)
def test_errors_name_the_key(name, arguments, key):
    with pytest.raises(ValueError, match=key):
        build(name, 10, **arguments)

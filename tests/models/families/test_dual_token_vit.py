"""DualToken-ViT: downsampling in steps, global tokens, broadcasting, gates and merging by loops; counts and sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.models_helpers import check_forward, num_parameters, on_meta, perturbed, seeded_with
from umbel.models import build, describe
from umbel.models.dual_token_blocks import (
    BiDimAttention,
    ConvEncoder,
    DualTokenBlock,
    MergePatches,
    StageSizes,
    StepwiseDownsampling,
)

SIZES = StageSizes(dim=6, depth=1, heads=3, mlp_ratio=2, steps=1)

seeded = seeded_with(29)


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T if layer.bias is None else x @ layer.weight.T + layer.bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def normed(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def mixed(mlp: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return linear(mlp.fc2, gelu(linear(mlp.fc1, x)))


def depthwise(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A depthwise convolution of a map [B, C, H, W], by loops."""
    reach = conv.weight.shape[2] // 2
    convolved = torch.zeros_like(x) + conv.bias[:, None, None]
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= row + dy < x.shape[2] and 0 <= column + dx < x.shape[3]:
                        weight = conv.weight[:, 0, dy + reach, dx + reach]
                        convolved[:, :, row, column] += weight * x[:, :, row + dy, column + dx]
    return convolved


def attended(heads: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of one example, queries [N, C] to keys and values [M, C], by loops."""
    width, weighted = queries.shape[1] // heads, torch.zeros_like(queries)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(queries)):
            scores = torch.stack([queries[i, part] @ keys[j, part] / math.sqrt(width) for j in range(len(keys))])
            weights = scores.exp() / scores.exp().sum()
            for j in range(len(keys)):
                weighted[i, part] += weights[j] * values[j, part]
    return weighted


def flat(image_map: torch.Tensor) -> torch.Tensor:
    return image_map.flatten(2).transpose(1, 2)


def halved(x: torch.Tensor) -> torch.Tensor:
    """The means of 2 x 2 places; a last odd row or column is alone."""
    height, width = x.shape[2:]
    rows = [slice(row, min(row + 2, height)) for row in range(0, height, 2)]
    columns = [slice(column, min(column + 2, width)) for column in range(0, width, 2)]
    return torch.stack([torch.stack([x[:, :, r, c].mean(dim=(2, 3)) for c in columns], dim=2) for r in rows], dim=2)


# Parts ------------------------------------------------------------------------------------------------------


def test_conv_encoder_by_loops():
    encoder = perturbed(ConvEncoder(4, 3, 2))
    x = torch.randn(2, 4, 5, 3).double()
    expected = mixed(encoder.mlp, normed(encoder.norm, flat(depthwise(encoder.depthwise, x))))
    torch.testing.assert_close(encoder(x), expected)


@pytest.mark.parametrize(
    ("side", "grid", "steps", "sides"),
    [(8, 2, 2, [4, 2]), (7, 4, 1, [4]), (7, 2, 2, [4, 2]), (4, 4, 1, [4]), (6, 2, 1, [3]), (9, 4, 2, [5, 5]),
     (1, 2, 1, [1])],
)  # fmt: skip
def test_downsampling_in_steps_by_loops(side, grid, steps, sides):
    layer = perturbed(StepwiseDownsampling(3, side, grid, steps))
    x = torch.randn(2, 3, side, side).double()
    tokens = layer(x)
    for step, after in zip(layer.steps, sides, strict=True):
        weight, bias = step[1].weight.flatten(1), step[1].bias
        x = torch.einsum("oc,bchw->bohw", weight, depthwise(step[0], x)) + bias[:, None, None]
        x = x if x.shape[2] == after else halved(x)
        assert x.shape[2:] == (after, after)
    # What is left to the grid are means over areas that cover the map.
    expected = torch.zeros(2, 3, grid, grid).double()
    for row in range(grid):
        for column in range(grid):
            rows = slice(row * after // grid, -(-(row + 1) * after // grid))
            columns = slice(column * after // grid, -(-(column + 1) * after // grid))
            expected[:, :, row, column] = x[:, :, rows, columns].mean(dim=(2, 3))
    assert (layer.pooling is None) == (after == grid)
    torch.testing.assert_close(tokens, flat(expected))


def test_the_published_maps_halve_down_to_the_grid():
    model = on_meta("dual_token_vit_s", 10)
    downsamplings = [m for m in model.modules() if isinstance(m, StepwiseDownsampling)]
    assert [m.halves for m in downsamplings] == [[True, True]] * 2 + [[True]] * 6 + [[]] * 6
    assert all(m.pooling is None for m in downsamplings)
    assert model.global_tokens.shape == (49, 64)


def test_gates_by_loops():
    layer = perturbed(BiDimAttention(8))
    tokens = torch.randn(2, 5, 8).double()
    gated = layer(tokens)
    for example in range(2):
        each = normed(layer.norm, tokens[example])
        whole = gelu(linear(layer.reduce_all, sum(each) / 5))
        channel = torch.sigmoid(linear(layer.channel, whole))
        for place in range(5):
            both = torch.cat((gelu(linear(layer.reduce, each[place])), whole))
            gate = torch.sigmoid(both @ layer.place.weight[0] + layer.place.bias[0])
            torch.testing.assert_close(gated[example, place], tokens[example, place] * channel * gate)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (3, 4), (1, 1)])
def test_merging_by_loops(height, width):
    layer = perturbed(MergePatches(3, 5))
    x, global_tokens = torch.randn(2, 3, height, width).double(), torch.randn(2, 4, 3).double()
    merged, projected = layer(x, global_tokens)
    assert merged.shape == (2, 5, -(-height // 2), -(-width // 2))
    torch.testing.assert_close(projected, linear(layer.project, normed(layer.global_norm, global_tokens)))
    zero = torch.zeros(2, 3).double()
    for row in range(merged.shape[2]):
        for column in range(merged.shape[3]):
            at = [(2 * row + dy, 2 * column + dx) for dy in (0, 1) for dx in (0, 1)]
            corners = [x[:, :, i, j] if i < height and j < width else zero for i, j in at]
            largest = torch.stack(corners).max(dim=0).values
            expected = linear(layer.reduce, normed(layer.norm, torch.cat(corners, dim=1)))
            torch.testing.assert_close(merged[:, :, row, column], expected + linear(layer.shortcut, largest))


# The block --------------------------------------------------------------------------------------------------


def test_alpha_of_zero_leaves_the_mlp_of_the_global_tokens_alone():
    block = perturbed(DualTokenBlock(SIZES, 4, 2, 3, 2, alpha=0.0, drop_rate=0.0))
    global_tokens = torch.randn(2, 4, 6).double()
    kept = mixed(block.enrich, normed(block.norm_global, global_tokens))
    for _ in range(2):
        torch.testing.assert_close(block(torch.randn(2, 6, 4, 4).double(), global_tokens)[1], kept)


def test_alpha_is_the_share_of_the_image():
    block = perturbed(DualTokenBlock(SIZES, 4, 2, 3, 2, alpha=0.3, drop_rate=0.0))
    x, global_tokens = torch.randn(2, 6, 4, 4).double(), torch.randn(2, 4, 6).double()
    seen = block.norm_image(block.downsample(x))
    updated = block.update(x, global_tokens)
    for example in range(2):
        queries, keys, values = linear(block.aggregate.qkv, seen[example]).chunk(3, dim=1)
        aggregated = linear(block.aggregate.out, attended(3, queries, keys, values))
        kept = mixed(block.enrich, normed(block.norm_global, global_tokens[example]))
        torch.testing.assert_close(updated[example], 0.3 * aggregated + 0.7 * kept)


def test_block_with_its_broadcast_by_loops():
    block = perturbed(DualTokenBlock(SIZES, 4, 2, 3, 2, alpha=0.3, drop_rate=0.0))
    x, global_tokens = torch.randn(2, 6, 4, 4).double(), torch.randn(2, 4, 6).double()
    image, updated = block(x, global_tokens)
    local = flat(x) + block.encoder(x)
    expected = block.update(local.transpose(1, 2).view(2, 6, 4, 4), global_tokens)
    torch.testing.assert_close(updated, expected)
    for example in range(2):
        queries = linear(block.broadcast.q, normed(block.norm_local, local[example]))
        keys, values = linear(block.broadcast.kv, normed(block.norm_context, updated[example])).chunk(2, dim=1)
        tokens = local[example] + linear(block.broadcast.out, attended(3, queries, keys, values))
        mlp, gates = block.mlp
        tokens = tokens + gates(mixed(mlp, normed(block.norm, tokens))[None])[0]
        torch.testing.assert_close(flat(image)[example], tokens)


def test_features_by_hand():
    model = perturbed(build("dual_token_vit_tiny32", 5, 16, 1, dims=(8, 12, 16), depths=(1, 2, 1), heads=(1, 2, 4)))
    x = torch.randn(2, 1, 16, 16).double()
    image_map = model.stem(x)
    assert image_map.shape == (2, 8, 4, 4)
    image_map = normed(model.stem_norm, flat(image_map)).transpose(1, 2).view(2, 8, 4, 4)
    global_tokens = torch.stack([model.global_tokens] * 2)
    for number, stage in enumerate(model.stages):
        assert (stage.merge is None) == (number == 0)
        if stage.merge is not None:
            image_map, global_tokens = stage.merge(image_map, global_tokens)
        for block in stage.blocks:
            image_map, global_tokens = block(image_map, global_tokens)
    assert [len(stage.blocks) for stage in model.stages] == [1, 2, 1]
    assert (image_map.shape, global_tokens.shape) == ((2, 16, 1, 1), (2, 16, 16))
    torch.testing.assert_close(model.features(x), normed(model.norm, flat(image_map)).mean(dim=1))


# Sizes ------------------------------------------------------------------------------------------------------


def test_published_count():
    """The paper's rounded 11.9 M cannot be confirmed, and is not met; see the model's description."""
    assert num_parameters(on_meta("dual_token_vit_s", 1000)) == 14_297_398
    assert describe("dual_token_vit_s").endswith("14.3 M parameters at 1000 classes.")
    assert f"{num_parameters(on_meta('dual_token_vit_s', 1000, expansion=2)) / 1e6:.1f}" == "12.3"
    blocks = [m for m in on_meta("dual_token_vit_s", 1000).modules() if isinstance(m, DualTokenBlock)]
    # What the paper's ablations say of its parts: 0.1 M for steps, and 1.1 M less than with attention for the MLP.
    assert round(sum(num_parameters(block.downsample) for block in blocks) / 1e6, 1) == 0.1
    saved = sum(num_parameters(block.aggregate) - num_parameters(block.enrich) for block in blocks)
    assert 0.95e6 < saved < 1.15e6


def test_published_at_other_sizes():
    shapes = []
    for size in (32, 256):
        model = on_meta("dual_token_vit_s", 9, size)
        assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 9)
        shapes.append({key: value.shape for key, value in model.state_dict().items()})
    assert shapes[0] == shapes[1]


def test_tiny_count():
    assert num_parameters(on_meta("dual_token_vit_tiny32", 10)) == 312_973


@pytest.mark.parametrize(
    "sizes", [{"grid": 7}, {"dims": (16,), "depths": (1,), "heads": (4,), "kernel": 1}, {"alpha": 0}]
)
def test_other_sizes(sizes):
    for training in (True, False):
        check_forward(build("dual_token_vit_tiny32", 5, 28, 1, **sizes).train(training), 1, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("dual_token_vit_s", {"image_size": 100}, "model.image_size.*Use 96"),
        ("dual_token_vit_s", {"expansion": 0}, "model.sizes.expansion"),
        ("dual_token_vit_s", {"alpha": 1.0}, "model.sizes.alpha"),
        ("dual_token_vit_s", {"drop_path": 1.0}, "model.sizes.drop_path"),
        ("dual_token_vit_tiny32", {"image_size": 3}, "model.image_size.*Use 4"),
        ("dual_token_vit_tiny32", {"dims": ()}, "model.sizes.dims"),
        ("dual_token_vit_tiny32", {"depths": (1,)}, "model.sizes.depths"),
        ("dual_token_vit_tiny32", {"heads": (2, 3)}, "model.sizes.heads.*model.sizes.dims"),
        ("dual_token_vit_tiny32", {"mlp_ratio": 0}, "model.sizes.mlp_ratio"),
        ("dual_token_vit_tiny32", {"grid": 0}, "model.sizes.grid"),
        ("dual_token_vit_tiny32", {"kernel": 4}, "model.sizes.kernel should be odd.*Use 5"),
        ("dual_token_vit_tiny32", {"expansion": 1.5}, "model.sizes.expansion"),
        ("dual_token_vit_tiny32", {"alpha": -0.1}, "model.sizes.alpha"),
        ("dual_token_vit_tiny32", {"drop_path": -0.1}, "model.sizes.drop_path"),
    ],
)
def test_errors_name_the_key(name, arguments, key):
    with pytest.raises(ValueError, match=key):
        build(name, 10, **arguments)

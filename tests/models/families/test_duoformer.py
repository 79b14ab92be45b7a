"""DuoFormer: the tokens of a patch by an index loop, both attentions by their equations, the trunk's counts, sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, count, num_parameters, on_meta, perturbed, seeded_with
from umbel.models import build, describe
from umbel.models.duoformer import PatchBlock, gather_patches
from umbel.models.fit import GroupBlock
from umbel.models.resnet import BasicBlock
from umbel.models.resnet_trunk import Bottleneck, Trunk, basic_block

seeded = seeded_with(23)


def attended(block: GroupBlock | PatchBlock, norm: nn.LayerNorm, tokens: torch.Tensor) -> torch.Tensor:
    """Self-attention of one sequence [N, C] behind a layer norm, a head after the other."""
    attention, dim = block.attention, tokens.shape[1]
    normed = F.layer_norm(tokens, (dim,), norm.weight, norm.bias, 1e-6)
    queries, keys, values = (normed @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=1)
    width, heads = dim // attention.heads, []
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        weights = torch.softmax(queries[:, part] @ keys[:, part].T / math.sqrt(width), dim=1)
        heads.append(weights @ values[:, part])
    return torch.cat(heads, dim=1) @ attention.out.weight.T + attention.out.bias


# Tokens of a patch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patches", [1, 2, 3])
def test_gathering_against_an_index_loop(patches):
    maps = [torch.randn(2, 5, patches * 2**scale, patches * 2**scale) for scale in range(4)]
    tokens = gather_patches(maps, patches)
    assert tokens.shape == (2, patches**2, 1 + 4 + 16 + 64, 5)
    for patch in range(patches**2):
        row, column = divmod(patch, patches)
        place = 0
        for scale, image_map in enumerate(maps):
            side = patches * 2**scale
            flat = image_map.flatten(2)
            for dy in range(2**scale):
                for dx in range(2**scale):
                    index = (row * 2**scale + dy) * side + column * 2**scale + dx
                    assert torch.equal(tokens[:, patch, place], flat[:, :, index])
                    place += 1
        assert place == tokens.shape[2]


def test_every_place_of_every_map_is_a_token_once():
    maps = [torch.arange(16.0).view(1, 1, 4, 4), 100 + torch.arange(64.0).view(1, 1, 8, 8)]
    expected = torch.cat([each.flatten() for each in maps])
    assert torch.equal(gather_patches(maps, 4).flatten().sort().values, expected)


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_tokens_are_of_the_coarsest_map_first(scales):
    model = perturbed(build("duoformer_tiny32", 5, 16, 1, scales=scales, learned_scale=True))
    x = torch.randn(2, 1, 16, 16).double()
    maps = model.trunk(x)
    assert [each.shape[2] for each in maps] == [8, 4, 2]
    tokens = model.tokens(x)
    assert tokens.shape == (2, 4, 1 + sum(4**scale for scale in range(scales)), 64)
    assert (tokens[:, :, 0] == model.scale_token.token).all()
    place = 1
    for scale, (image_map, project) in enumerate(zip(maps[: -1 - scales : -1], model.projections[::-1], strict=True)):
        for dy in range(2**scale):
            for dx in range(2**scale):
                at = image_map[:, :, dy :: 2**scale, dx :: 2**scale]  # the place (dy, dx) of each patch
                expected = torch.einsum("dc,bchw->bhwd", project.weight.flatten(1), at).flatten(1, 2) + project.bias
                torch.testing.assert_close(tokens[:, :, place], expected)
                place += 1
    assert place == tokens.shape[2]


def test_scale_tokens_are_made_from_the_means_over_a_patch():
    model = perturbed(build("duoformer_tiny32", 5, 24, 1, scales=2))
    x = torch.randn(2, 1, 24, 24).double()
    _, fine, coarse = model.trunk(x)
    scale_tokens = model.tokens(x)[:, :, 0]
    for row in range(3):
        for column in range(3):
            mean = fine[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(2, 3))
            both = torch.cat((mean, coarse[:, :, row, column]), dim=1)
            expected = both @ model.scale_token.weight.T + model.scale_token.bias
            torch.testing.assert_close(scale_tokens[:, 3 * row + column], expected)


# Attention --------------------------------------------------------------------------------------------------


def test_scale_attention_stays_within_a_patch():
    model = perturbed(build("duoformer_tiny32", 5))
    tokens = torch.randn(2, 16, 22, 64).double()
    other = tokens.clone()
    other[1, 3, 21, 0] += 1  # one channel: a norm does not see what moves all of them alike
    moved = (model.scale_blocks(tokens) - model.scale_blocks(other)).abs().amax(dim=3)
    assert (moved[1, 3] > 1e-9).all()
    moved[1, 3] = 0
    assert (moved < 1e-12).all()


def test_patch_attention_by_hand():
    block = perturbed(PatchBlock(6, 2, drop_rate=0.0))
    tokens = torch.randn(3, 5, 6).double()
    for example, updated in enumerate(block(tokens)):
        torch.testing.assert_close(updated, tokens[example] + attended(block, block.norm, tokens[example]))


@pytest.mark.parametrize("learned_scale", [True, False])
def test_features_by_hand(learned_scale):
    model = perturbed(build("duoformer_tiny32", 5, 16, 1, scales=2, depth=1, learned_scale=learned_scale))
    x = torch.randn(2, 1, 16, 16).double()
    tokens = model.tokens(x) + model.scale_position
    block, last = model.scale_blocks[0], model.patch_blocks[0]
    grid = F.avg_pool2d(model.position, 2)  # 2 x 2 patches have the means of 4 x 4 positions
    for example in range(2):
        summary = [model.cls[0, 0]]
        for patch in range(4):
            each = tokens[example, patch]
            each = each + attended(block, block.norm1, each)
            each = each + block.mlp(block.norm2(each))
            summary.append(each[0] + grid[:, patch // 2, patch % 2])
        sequence = torch.stack(summary)
        sequence = sequence + attended(last, last.norm, sequence)
        expected = F.layer_norm(sequence[0], (64,), model.norm.weight, model.norm.bias, 1e-6)
        torch.testing.assert_close(model.features(x)[example], expected)


def test_positions_are_those_of_the_grid_at_32_px():
    assert torch.equal(build("duoformer_tiny32", 5, 32).pooling, torch.eye(4))
    assert torch.equal(build("duoformer_tiny32", 5, 28).pooling, torch.eye(4))


# Trunk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("inputs", [8, 6])
def test_bottleneck_by_hand(inputs, stride):
    block = perturbed(Bottleneck(inputs, 8, stride))
    x = torch.randn(2, inputs, 5, 5).double()

    def normed(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    def point(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oc,bchw->bohw", conv.weight.flatten(1), x)

    hidden = normed(block.norm1, point(block.conv1, x)).clamp(min=0)
    around = F.pad(hidden, (1, 1, 1, 1))
    convolved = torch.zeros(2, 2, 5, 5, dtype=torch.float64)
    for dy in range(3):
        for dx in range(3):
            weight = block.conv2.weight[:, :, dy, dx]
            convolved += torch.einsum("oc,bchw->bohw", weight, around[:, :, dy : dy + 5, dx : dx + 5])
    hidden = normed(block.norm2, convolved[:, :, ::stride, ::stride]).clamp(min=0)
    shortcut = x
    if stride == 2 or inputs != 8:
        shortcut = normed(block.shortcut[1], point(block.shortcut[0], x[:, :, ::stride, ::stride]))
    torch.testing.assert_close(block(x), (normed(block.norm3, point(block.conv3, hidden)) + shortcut).clamp(min=0))


def test_trunks_have_the_counts_of_residual_networks():
    """ResNet-18 and -50 have 11,689,512 and 25,557,032 parameters with a head of 1000 classes."""
    small, large = on_meta("duoformer_r18", 10).trunk, on_meta("duoformer_r50", 10).trunk
    assert num_parameters(small) == 11_689_512 - 513 * 1000
    assert num_parameters(large) == 25_557_032 - 2049 * 1000
    assert (count(small, BasicBlock), count(large, Bottleneck)) == (8, 16)
    shapes = [tuple(each.shape) for each in large(torch.empty(2, 3, 224, 224, device="meta"))]
    assert shapes == [(2, 256, 56, 56), (2, 512, 28, 28), (2, 1024, 14, 14), (2, 2048, 7, 7)]


@pytest.mark.parametrize("pooled", [True, False])
def test_stem(pooled):
    trunk = perturbed(Trunk(3, 4, (4,), (1,), basic_block, pooled))
    x = torch.randn(2, 3, 16, 16).double()
    stem = F.relu(trunk.norm(trunk.stem(x)))
    assert stem.shape == (2, 4, 8, 8)
    stem = F.max_pool2d(stem, 3, 2, 1) if pooled else stem
    torch.testing.assert_close(trunk(x), [trunk.stages[0](stem)])


# Sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "printed"), [("duoformer_r18", "126.6"), ("duoformer_r50", "142.5")])
def test_published_counts(name, printed):
    model = on_meta(name, 1000)
    assert f"{num_parameters(model) / 1e6:.1f}" == printed
    assert describe(name).endswith(f"{printed} M parameters at 1000 classes.")
    for scales in (1, 3, 4):
        other = on_meta(name, 1000, scales=scales)
        assert other.scale_position.shape == (1 + sum(4**scale for scale in range(scales)), 768)
        assert other(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)
    shapes = [{key: value.shape for key, value in on_meta(name, 9, size).state_dict().items()} for size in (64, 224)]
    assert shapes[0] == shapes[1]


def test_tiny_count():
    assert num_parameters(on_meta("duoformer_tiny32", 10)) == 195_738
    assert num_parameters(on_meta("duoformer_tiny32", 10, learned_scale=True)) == 195_738 - (16 + 32 + 64) * 64


def test_images_are_padded_evenly():
    small, large = build("duoformer_tiny32", 10, 28).eval(), build("duoformer_tiny32", 10, 32).eval()
    large.load_state_dict(small.state_dict())
    x, padded = torch.randn(2, 3, 28, 28), torch.zeros(2, 3, 32, 32)
    padded[:, :, 2:30, 2:30] = x
    assert torch.equal(small(x), large(padded))


@pytest.mark.parametrize(
    "sizes", [{"scales": 1}, {"dims": (8, 12), "depths": (2, 1), "scales": 2, "learned_scale": True}]
)
def test_other_sizes(sizes):
    for training in (True, False):
        check_forward(build("duoformer_tiny32", 5, 20, 1, **sizes).train(training), 1, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("duoformer_r18", {"image_size": 100}, "model.image_size.*Use 96"),
        ("duoformer_r50", {"image_size": 32}, "model.image_size.*Use 64"),
        ("duoformer_r50", {"scales": 5}, "model.sizes.scales.*Use 4"),
        ("duoformer_r18", {"learned_scale": "yes"}, "model.sizes.learned_scale"),
        ("duoformer_r18", {"drop_path": 1.0}, "model.sizes.drop_path"),
        ("duoformer_tiny32", {"image_size": 3}, "model.image_size.*Use 4"),
        ("duoformer_tiny32", {"dims": ()}, "model.sizes.dims"),
        ("duoformer_tiny32", {"depths": (1,)}, "model.sizes.depths"),
        ("duoformer_tiny32", {"scales": 4}, "model.sizes.scales.*Use 3"),
        ("duoformer_tiny32", {"dim": 0}, "model.sizes.dim"),
        ("duoformer_tiny32", {"heads": 5}, "model.sizes.heads.*model.sizes.dim"),
        ("duoformer_tiny32", {"depth": True}, "model.sizes.depth"),
        ("duoformer_tiny32", {"mlp_ratio": 0}, "model.sizes.mlp_ratio"),
        ("duoformer_tiny32", {"learned_scale": 1}, "model.sizes.learned_scale"),
        ("duoformer_tiny32", {"drop_path": -0.1}, "model.sizes.drop_path"),
    ],
)
def test_errors_name_the_key(name, arguments, key):
    with pytest.raises(ValueError, match=key):
        build(name, 10, **arguments)

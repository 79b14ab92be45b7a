"""GLNet: published counts, clustering and dispatching against loops, the blocks' equations, sizes and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, num_parameters, on_meta, perturbed, seeded_with
from umbel.models import build, describe
from umbel.models.glnet import ConvMlp, GLBlock, GLMix, MapAttention
from umbel.models.layers import SelfAttention, pooling_matrix
from umbel.models.norm import integer_buffer_names, replace_batch_norm

COUNTS = {"glnet_4g": "27.0", "glnet_stl": "30.3", "glnet_9g": "60.0"}


seeded = seeded_with(7)


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T + layer.bias


def depthwise(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A depthwise convolution of a map [B, H, W, C], by loops."""
    kernel, convolved = conv.weight.shape[2], conv.bias + torch.zeros_like(x)
    for row in range(x.shape[1]):
        for column in range(x.shape[2]):
            for dy in range(kernel):
                for dx in range(kernel):
                    y, z = row + dy - kernel // 2, column + dx - kernel // 2
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        convolved[:, row, column] += conv.weight[:, 0, dy, dx] * x[:, y, z]
    return convolved


def layer_normed(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


# Counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "printed"), COUNTS.items())
def test_published_counts(name, printed):
    model = on_meta(name, 1000)
    count = num_parameters(model)
    assert f"{count / 1e6:.1f}" == printed
    assert describe(name).endswith(f"{printed} M parameters at 1000 classes.")
    assert num_parameters(replace_batch_norm(model)) == count


def test_slots_as_parameters_would_have_the_count_that_is_published_too():
    """The paper's variant of GLNet-STL with learned slots, 30.5 M, has 64 slots for each of its GLMix blocks."""
    model = on_meta("glnet_stl", 1000)
    slots = sum(64 * m.enter.in_features for m in model.modules() if isinstance(m, GLMix))
    assert f"{(num_parameters(model) + slots) / 1e6:.1f}" == "30.5"


@pytest.mark.parametrize("name", ["glnet_4g", "glnet_9g"])
def test_mixers_of_the_hybrid(name):
    model = on_meta(name, 10)
    mixers = [[isinstance(b.mixer, GLMix) for b in stage if isinstance(b, GLBlock)] for stage in model.stages]
    assert mixers == [[True] * 4, [True] * 4, [True, False] * 9, [False] * 4]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 6
    blocks = [m for m in model.modules() if isinstance(m, GLBlock)]
    assert all(b.positions is not None and b.mlp.local is not None for b in blocks)
    assert {m.qkv.in_features // m.heads for m in model.modules() if isinstance(m, SelfAttention)} == {32}


def test_stl_has_patches_and_plain_blocks():
    model = on_meta("glnet_stl", 10)
    blocks = [[b for b in stage if isinstance(b, GLBlock)] for stage in model.stages]
    mixers = [[isinstance(b.mixer, GLMix) for b in stage] for stage in blocks]
    assert mixers == [[True] * 2, [True] * 2, [True] * 6, [False] * 2]
    assert all(b.positions is None and b.mlp.local is None for stage in blocks for b in stage)
    assert [m.kernel_size[0] for m in (model.stem[0], *(stage[1] for stage in model.stages[1:]))] == [4, 2, 2, 2]
    assert blocks[0][0].mlp.fc1.out_features == 4 * 96


def test_tiny_count():
    assert num_parameters(on_meta("glnet_tiny32", 10)) == 520_781
    mixers = [m for m in on_meta("glnet_tiny32", 10).modules() if isinstance(m, GLMix)]
    assert len(mixers) == 3 and all(m.pooling.shape[0] == 4 for m in mixers)


def test_the_state_has_no_scalars_and_no_tables():
    model = build("glnet_tiny32", 10)
    assert not any(name.endswith("pooling") for name in model.state_dict())
    assert all(tensor.dim() for name, tensor in model.named_parameters())
    assert all(name.endswith("num_batches_tracked") for name in integer_buffer_names(model))


def test_the_sharpness_begins_at_the_root_of_the_width():
    assert build("glnet_tiny32", 10).stages[0][0].mixer.sharpness.tolist() == pytest.approx([32**-0.5])


# The equations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "bins"), [(16, 8), (14, 8), (8, 8), (7, 4), (3, 4), (1, 2)])
def test_pooling_is_adaptive(side, bins):
    x, matrix = torch.randn(2, 3, side, side), pooling_matrix(side, bins)
    torch.testing.assert_close(matrix @ x @ matrix.T, F.adaptive_avg_pool2d(x, bins))


def slow_attention(attention: SelfAttention, tokens: torch.Tensor) -> torch.Tensor:
    """Attention among tokens [N, C], one query of one head at a time."""
    dim = tokens.shape[1]
    wide = dim // attention.heads
    q, k, v = linear(attention.qkv, tokens).split(dim, dim=1)
    weighted = torch.zeros_like(tokens)
    for a in range(attention.heads):
        own = slice(wide * a, wide * (a + 1))
        for n in range(len(tokens)):
            scores = torch.stack([q[n, own] @ key[own] / wide**0.5 for key in k])
            shares = scores.exp() / scores.exp().sum()
            weighted[n, own] = sum(share * value[own] for share, value in zip(shares, v, strict=True))
    return linear(attention.out, weighted)


def slow_glmix(mixer: GLMix, normed: torch.Tensor, before: torch.Tensor, grid: int) -> torch.Tensor:
    """GLMix of two maps [B, H, W, C] whose sides `grid` divides, slot by slot and place by place."""
    batch, height, width, _ = normed.shape
    tall, wide = height // grid, width // grid
    far = torch.zeros_like(normed)
    places = [(row, column) for row in range(height) for column in range(width)]
    for b in range(batch):
        starts = [
            sum(before[b, i * tall + y, j * wide + z] for y in range(tall) for z in range(wide)) / (tall * wide)
            for i in range(grid)
            for j in range(grid)
        ]
        fits = {}
        for m, start in enumerate(starts):
            for place in places:
                z = normed[b][place]
                fits[m, place] = mixer.sharpness[0] * (start @ z) / (start.norm() * z.norm())
        slots = []
        for m in range(len(starts)):  # clustering: the shares of a slot's places sum to one
            total = sum(fits[m, place].exp() for place in places)
            slots.append(sum(fits[m, place].exp() / total * normed[b][place] for place in places))
        talked = slow_attention(mixer.attention, torch.stack(slots))
        for place in places:  # dispatching: the shares of a place's slots sum to one
            total = sum(fits[m, place].exp() for m in range(len(starts)))
            far[b][place] = sum(fits[m, place].exp() / total * talked[m] for m in range(len(starts)))
    return far + linear(mixer.leave, depthwise(mixer.local, linear(mixer.enter, normed)))


def sharp_glmix(dim: int, heads: int, side: int, grid: int) -> GLMix:
    """Return a perturbed mixer with clusters that matter."""
    mixer = perturbed(GLMix(dim, heads, side, grid))
    nn.init.constant_(mixer.sharpness, 3.0)
    return mixer


def test_glmix_against_loops():
    mixer = sharp_glmix(8, heads=2, side=4, grid=2)
    normed, before = torch.randn(2, 2, 8, 4, 4).double()
    expected = slow_glmix(mixer, normed.permute(0, 2, 3, 1), before.permute(0, 2, 3, 1), grid=2)
    torch.testing.assert_close(mixer(normed, before), expected.permute(0, 3, 1, 2))


def test_clustering_and_dispatching_share_their_fits():
    mixer = sharp_glmix(8, heads=2, side=7, grid=3)
    normed, before = torch.randn(2, 2, 8, 7, 7).double()
    fits = mixer.assign(normed, before)
    assert fits.shape == (2, 9, 49)
    assert fits.abs().max() <= 3.0  # a cosine times the sharpness
    torch.testing.assert_close(mixer.assign(5 * normed, 0.1 * before), fits)


def test_map_attention_against_loops():
    mixer, x = perturbed(MapAttention(6, heads=3)), torch.randn(2, 6, 2, 3).double()
    expected = torch.stack([slow_attention(mixer.attention, image.flatten(1).T) for image in x])
    torch.testing.assert_close(mixer(x, torch.full_like(x, torch.nan)).flatten(2).transpose(1, 2), expected)


@pytest.mark.parametrize("local", [True, False])
def test_the_mlp_against_loops(local):
    mlp, x = perturbed(ConvMlp(3, 5, local)), torch.randn(2, 3, 3, 4).double()
    hidden = linear(mlp.fc1, x.permute(0, 2, 3, 1))
    if local:
        hidden = hidden + depthwise(mlp.local, hidden)
    torch.testing.assert_close(mlp(x), linear(mlp.fc2, F.gelu(hidden)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("positions", [True, False])
def test_the_block_starts_slots_from_what_came_in(positions):
    """The slots begin from the block's input, before positions and norm; the places are those after both."""
    block = perturbed(GLBlock(8, GLMix(8, 2, 4, 2), mlp_ratio=2, positions=positions, local_mlp=True, drop_rate=0.5))
    x = torch.randn(2, 8, 4, 4).double()
    rows = x.permute(0, 2, 3, 1)
    places = rows + depthwise(block.positions, rows) if positions else rows
    places = places + slow_glmix(block.mixer, layer_normed(block.norm1, places), rows, grid=2)
    places = places + block.mlp(layer_normed(block.norm2, places).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), places.permute(0, 3, 1, 2))


# Forward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["glnet_4g", "glnet_stl"])
@pytest.mark.parametrize("training", [True, False])
def test_published_models_at_64(name, training):
    check_forward(build(name, 10, 64).train(training), 1, 2)


def test_logits_are_the_head_of_the_normed_mean():
    model = build("glnet_tiny32", 4).eval()
    norm, x = model.norm, torch.randn(2, 3, 32, 32)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    pooled = model.stages(model.stem(x)).mean(dim=(2, 3))
    expected = (pooled - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(x), model.head(model.features(x)))


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("glnet_4g", {"image_size": 100}, r"model\.image_size.*Use 96"),
        ("glnet_stl", {"drop_path": -0.1}, r"model\.sizes\.drop_path"),
        ("glnet_tiny32", {"image_size": 3}, r"model\.image_size.*Use 4"),
        ("glnet_tiny32", {"dims": [32, 48, 96]}, r"model\.sizes\.dims"),
        ("glnet_tiny32", {"depths": 3}, r"model\.sizes\.depths"),
        ("glnet_tiny32", {"head_dim": 32}, r"model\.sizes\.head_dim: 32 does not divide 48"),
        ("glnet_tiny32", {"mlp_ratio": 0}, r"model\.sizes\.mlp_ratio"),
        ("glnet_tiny32", {"grid": 0}, r"model\.sizes\.grid"),
        ("glnet_tiny32", {"drop_path": "some"}, r"model\.sizes\.drop_path"),
    ],
)
def test_errors_name_the_key(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta(name, 10, **sizes)

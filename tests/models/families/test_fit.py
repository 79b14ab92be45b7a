"""FIT: groups and their inverse, attention within a group, cross-attention and super-blocks by loops, sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, num_parameters, on_meta, perturbed, seeded_with
from umbel.models import build, describe
from umbel.models.fit import CrossBlock, GroupBlock, SuperBlock, to_groups
from umbel.models.layers import CrossAttention, from_windows
from umbel.models.maps import blocks_of, map_layers

seeded = seeded_with(19)


def linear(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return x @ layer.weight.T + layer.bias


def attended(heads: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of one set of queries [N, C] to keys and values [M, C], by loops over heads, queries and keys."""
    dim = queries.shape[1]
    width, weighted = dim // heads, torch.zeros_like(queries)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(queries)):
            scores = torch.stack([queries[i, part] @ keys[j, part] / math.sqrt(width) for j in range(len(keys))])
            weights = scores.exp() / scores.exp().sum()
            for j in range(len(keys)):
                weighted[i, part] += weights[j] * values[j, part]
    return weighted


def normed(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def crossed(layer: CrossAttention, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Cross-attention of one example."""
    dim = layer.q.out_features
    keys, values = linear(layer.kv, context).split(dim, dim=1)
    return linear(layer.out, attended(layer.heads, linear(layer.q, tokens), keys, values))


def transformed(block: GroupBlock, tokens: torch.Tensor) -> torch.Tensor:
    """A pre-norm transformer block on one sequence [N, C]."""
    queries, keys, values = linear(block.attention.qkv, normed(block.norm1, tokens)).chunk(3, dim=1)
    tokens = tokens + linear(block.attention.out, attended(block.attention.heads, queries, keys, values))
    hidden = linear(block.mlp.fc1, normed(block.norm2, tokens))
    return tokens + linear(block.mlp.fc2, hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2)


# Groups -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "side"), [(6, 4, 2), (3, 9, 3), (4, 4, 4), (2, 3, 1)])
def test_groups_against_loops(height, width, side):
    image_map = torch.randn(2, 5, height, width)
    groups = to_groups(image_map, side)
    assert groups.shape == (2, height * width // side**2, side**2, 5)
    for row in range(height):
        for column in range(width):
            group = row // side * (width // side) + column // side
            place = row % side * side + column % side
            assert torch.equal(groups[:, group, place], image_map[:, :, row, column])


def test_grouping_is_a_permutation_with_an_inverse():
    places = torch.arange(2 * 6 * 4).view(2, 1, 6, 4)
    groups = to_groups(places, 2)
    assert torch.equal(groups.flatten().sort().values, places.flatten())
    assert not torch.equal(groups.flatten(), places.flatten())
    assert torch.equal(from_windows(groups.view(-1, 2, 2, 1), 6, 4).permute(0, 3, 1, 2), places)


def test_groups_do_not_depend_on_the_memory_order():
    image_map = torch.randn(2, 3, 4, 4)
    assert torch.equal(to_groups(image_map.contiguous(memory_format=torch.channels_last), 2), to_groups(image_map, 2))


# Layers -----------------------------------------------------------------------------------------------------


def test_local_attention_against_loops():
    block = perturbed(GroupBlock(6, 3, 2, drop_rate=0.0))
    groups = torch.randn(2, 3, 4, 6).double()
    updated = block(groups)
    for example in range(2):
        for group in range(3):
            torch.testing.assert_close(updated[example, group], transformed(block, groups[example, group]))


def test_local_layers_do_not_cross_groups():
    model = perturbed(build("fit_tiny32", 5, layers=[(2, 1), (1, 1)]))
    local = model.super_blocks[0].local_blocks
    groups = torch.randn(2, 4, 16, 48).double()
    other = groups.clone()
    other[1, 2, 5, 0] += 1
    moved = (local(groups) - local(other)).abs().amax(dim=3)
    assert (moved[1, 2] > 1e-9).all()  # every patch of the group hears of it
    moved[1, 2] = 0
    assert (moved < 1e-12).all()


def test_global_layers_do_cross_groups():
    block = perturbed(SuperBlock(6, 8, 2, 2, 2, [0.0], [0.0], writes=True))
    patches, latents = torch.randn(1, 3, 4, 6).double(), torch.randn(1, 3, 2, 8).double()
    other = patches.clone()
    other[0, 2, 1, 0] += 1  # one channel: the norms do not see what moves all of them alike
    updated = [block(each, latents) for each in (patches, other)]
    for one, two in zip(*updated, strict=True):  # each place moves by more than rounding
        assert ((one - two).abs().amax(dim=3) > 1e-12).all()


@pytest.mark.parametrize("context_dim", [None, 10])
def test_cross_attention_against_loops(context_dim):
    layer = perturbed(CrossAttention(6, 2, context_dim))
    tokens, context = torch.randn(3, 4, 6).double(), torch.randn(3, 5, context_dim or 6).double()
    for example, updated in enumerate(layer(tokens, context)):
        torch.testing.assert_close(updated, crossed(layer, tokens[example], context[example]))


def test_cross_attention_does_not_see_the_order_of_the_context():
    layer = perturbed(CrossAttention(6, 3, 4))
    tokens, context = torch.randn(2, 3, 6).double(), torch.randn(2, 5, 4).double()
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(layer(tokens, context), layer(tokens, context[:, order]))
    torch.testing.assert_close(layer(tokens[:, [2, 0, 1]], context), layer(tokens, context)[:, [2, 0, 1]])


@pytest.mark.parametrize("writes", [True, False])
def test_super_block_against_loops(writes):
    block = perturbed(SuperBlock(6, 8, 2, 4, 2, [0.0], [0.0, 0.0], writes))
    patches, latents = torch.randn(2, 3, 4, 6).double(), torch.randn(2, 3, 2, 8).double()
    updated = block(patches, latents)

    def cross(layer: CrossBlock, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return tokens + crossed(layer.attention, normed(layer.norm, tokens), normed(layer.context_norm, context))

    for example in range(2):
        groups = [transformed(block.local_blocks[0], group) for group in patches[example]]
        slots = torch.cat([cross(block.read, latents[example, g], groups[g]) for g in range(3)])
        for layer in block.global_blocks:
            slots = transformed(layer, slots)
        torch.testing.assert_close(updated[1][example].flatten(0, 1), slots)
        for g in range(3):
            expected = cross(block.write, groups[g], slots[2 * g : 2 * g + 2]) if writes else groups[g]
            torch.testing.assert_close(updated[0][example, g], expected)


# The whole --------------------------------------------------------------------------------------------------


def test_features_by_hand():
    model = perturbed(build("fit_tiny32", 5, 12, 1, patch=2, group=3, latents=2, layers=[(1, 1), (1, 1)]))
    x = torch.randn(2, 1, 12, 12).double()
    patches = F.layer_norm(to_groups(model.embed(x), 3), (48,), model.embed_norm.weight, model.embed_norm.bias, 1e-6)
    patches = patches + model.position
    latents = torch.stack([model.first_latents()] * 2)
    for block in model.super_blocks:
        patches, latents = block(patches, latents)
    assert latents.shape == (2, 4, 2, 64)
    torch.testing.assert_close(model.features(x), normed(model.norm, latents).flatten(1, 2).mean(dim=1))
    assert [block.write is None for block in model.super_blocks] == [False, True]


def test_patches_are_the_maps():
    model = build("fit_tiny32", 5, 64)
    blocks = blocks_of(model, map_layers(model))
    assert {block.layout for block in blocks} == {"groups"}
    assert [block.name for block in blocks] == [
        f"super_blocks.{name}" for name in ("0.local_blocks.0", "0.write", "1.local_blocks.0")
    ]
    assert {block.side for block in blocks} == {16}


def test_first_latents_are_those_of_the_grid():
    model = build("fit_tiny32", 5, 32)
    grid = model.latents.view(2, 2, 4, 64)
    assert torch.equal(model.first_latents(), grid.flatten(0, 1))
    larger = build("fit_tiny32", 5, 48)
    larger.load_state_dict(model.state_dict())
    between = larger.first_latents().view(3, 3, 4, 64)
    assert torch.equal(between[::2, ::2], grid)
    torch.testing.assert_close(between[1, 1], grid.mean(dim=(0, 1)))
    torch.testing.assert_close(between[0, 1], grid[0].mean(dim=0))
    smaller = build("fit_tiny32", 5, 16)
    smaller.load_state_dict(model.state_dict())
    torch.testing.assert_close(smaller.first_latents(), grid.mean(dim=(0, 1))[None])


def test_images_are_padded_evenly():
    small, large = build("fit_tiny32", 10, 28).eval(), build("fit_tiny32", 10, 32).eval()
    large.load_state_dict(small.state_dict())
    x, padded = torch.randn(2, 3, 28, 28), torch.zeros(2, 3, 32, 32)
    padded[:, :, 2:30, 2:30] = x
    assert torch.equal(small(x), large(padded))


def test_counts():
    assert num_parameters(on_meta("fit_tiny32", 10)) == 217_626
    assert num_parameters(on_meta("fit_s", 1000)) == 24_891_304
    assert "24.9 M parameters at 1000 classes" in describe("fit_s")
    for size in (56, 224, 280):
        model = on_meta("fit_s", 1000, size)
        assert model.padding == 0
        assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("sizes", [{}, {"patch": 2, "latents": 1}, {"group": 2, "heads": 2, "layers": [(2, 1)]}])
def test_other_sizes(sizes):
    for training in (True, False):
        check_forward(build("fit_tiny32", 5, 20, 1, **sizes).train(training), 1, 3)


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("fit_s", {"image_size": 100}, "model.image_size.*Use 112"),
        ("fit_s", {"drop_path": 1.0}, "model.sizes.drop_path"),
        ("fit_tiny32", {"image_size": 3}, "model.image_size.*Use 4"),
        ("fit_tiny32", {"patch": 0}, "model.sizes.patch"),
        ("fit_tiny32", {"group": 1.5}, "model.sizes.group"),
        ("fit_tiny32", {"latents": True}, "model.sizes.latents"),
        ("fit_tiny32", {"dim": 0}, "model.sizes.dim"),
        ("fit_tiny32", {"dim": 50}, "model.sizes.heads.*model.sizes.dim"),
        ("fit_tiny32", {"latent_dim": 66}, "model.sizes.heads.*model.sizes.latent_dim"),
        ("fit_tiny32", {"layers": []}, "model.sizes.layers"),
        ("fit_tiny32", {"layers": [(1, 2, 3)]}, "model.sizes.layers should have two numbers"),
        ("fit_tiny32", {"layers": [(1, 0)]}, "model.sizes.layers"),
        ("fit_tiny32", {"mlp_ratio": 0}, "model.sizes.mlp_ratio"),
        ("fit_tiny32", {"drop_path": -0.1}, "model.sizes.drop_path"),
    ],
)
def test_errors_name_the_key(name, arguments, key):
    with pytest.raises(ValueError, match=key):
        build(name, 10, **arguments)

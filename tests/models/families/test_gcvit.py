"""GC ViT: published counts, its layers against direct loops, queries shared by a stage, sizes and errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import num_parameters, on_meta, randomise, seeded_with
from umbel.models import build
from umbel.models.gcvit import FusedMBConv, GCViTBlock, GlobalQuery, Reduce, StageSizes, WindowAttention
from umbel.models.layers import max_pool
from umbel.models.norm import batch_norm_names, replace_batch_norm

PUBLISHED = [("gcvit_xxtiny", "12.0"), ("gcvit_xtiny", "20.0"), ("gcvit_tiny", "28.2"), ("gcvit_small", "51.1")]


seeded = seeded_with(7)


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "printed"), PUBLISHED)
def test_published_counts(name, printed):
    model = on_meta(name, 1000)
    assert f"{num_parameters(model) / 1e6:.1f}" == printed
    assert not batch_norm_names(model)
    assert list(model.state_dict())[-2:] == ["head.weight", "head.bias"]


def test_published_windows_and_poolings():
    stages = on_meta("gcvit_xxtiny", 1000).stages
    assert [stage.blocks[0].window for stage in stages] == [7, 7, 14, 7]
    assert [len(stage.query.extract) for stage in stages] == [3, 2, 1, 1]
    assert [stage.query.pools for stage in stages] == [3, 2, 0, 0]
    assert [block.attention.with_global for block in stages[2].blocks] == [False, True] * 3


def test_index_tables_stay_out_of_the_state():
    assert all(value.is_floating_point() for value in on_meta("gcvit_tiny32", 10).state_dict().values())


# Layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [4, 7, 8])
def test_max_pool_is_that_of_torch(side):
    x = torch.randn(2, 3, side, side).double().requires_grad_()
    weights = torch.randn_like(F.max_pool2d(x, 3, 2, 1))
    (expected,) = torch.autograd.grad((F.max_pool2d(x, 3, 2, 1) * weights).sum(), x)
    (gradient,) = torch.autograd.grad((max_pool(x) * weights).sum(), x)
    assert torch.equal(max_pool(x), F.max_pool2d(x, 3, 2, 1))
    assert torch.allclose(gradient, expected)


def direct_fused(layer, x):
    """Equation 1 by sums over channels."""
    hidden = F.gelu(F.conv2d(x, layer.depthwise.weight, padding=1, groups=x.shape[1]))
    mean = hidden.mean(dim=(2, 3))
    reduce, expand = layer.excite.reduce.weight.flatten(1), layer.excite.expand.weight.flatten(1)
    gate = torch.sigmoid(F.gelu(mean @ reduce.T) @ expand.T)
    return x + torch.einsum("oc,bchw->bohw", layer.pointwise.weight.flatten(1), hidden * gate[:, :, None, None])


def test_fused_convolution():
    layer = randomise(FusedMBConv(8)).double()
    x = torch.randn(2, 8, 4, 6).double()
    assert torch.allclose(layer(x), direct_fused(layer, x))
    assert num_parameters(layer) == 9 * 8 + 2 * (8 * 2) + 8 * 8


def test_reduction():
    layer = randomise(Reduce(8, 12)).double()
    x = torch.randn(2, 8, 6, 6).double()

    def layer_norm(x, norm):
        deviation = (x.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
        normed = (x - x.mean(dim=1, keepdim=True)) / deviation
        return normed * norm.weight[:, None, None] + norm.bias[:, None, None]

    reduced = F.conv2d(direct_fused(layer.fused, layer_norm(x, layer.norm1)), layer.conv.weight, stride=2, padding=1)
    assert torch.allclose(layer(x), layer_norm(reduced, layer.norm2))
    assert layer(x).shape == (2, 12, 3, 3)


@pytest.mark.parametrize(("pools", "side"), [(0, 3), (1, 6), (2, 12)])
def test_global_query_is_the_shrunken_map_by_heads(pools, side):
    layer = randomise(GlobalQuery(8, 2, pools)).double()
    x = torch.randn(2, 8, side, side).double()
    queries = layer(x)
    assert queries.shape == (2, 2, 9, 4)
    for fused in layer.extract:
        x = direct_fused(fused, x)
        x = F.max_pool2d(x, 3, 2, 1) if pools else x
    for head in range(2):
        for place in range(9):
            assert torch.allclose(queries[:, head, place], x[:, 4 * head : 4 * head + 4, place // 3, place % 3])


@pytest.mark.parametrize("with_global", [False, True])
def test_window_attention_against_a_loop(with_global):
    side, dim, heads, per_image = 2, 6, 2, 3
    layer = randomise(WindowAttention(dim, heads, side, with_global)).double()
    windows = torch.randn(2 * per_image, side * side, dim).double()
    queries = torch.randn(2, heads, side * side, dim // heads).double()
    attended = layer(windows, queries)
    width = dim // heads
    for window in range(2 * per_image):
        parts = layer.project(windows[window])
        mixed = torch.zeros(side * side, dim).double()
        for head in range(heads):
            own = slice(width * head, width * head + width)
            first = 0 if with_global else dim
            k, v = parts[:, first : first + dim][:, own], parts[:, first + dim :][:, own]
            q = queries[window // per_image, head] if with_global else parts[:, :dim][:, own]
            for i in range(side * side):
                scores = torch.empty(side * side).double()
                for j in range(side * side):
                    dy, dx = i // side - j // side, i % side - j % side
                    entry = (dy + side - 1) * (2 * side - 1) + dx + side - 1
                    scores[j] = q[i] @ k[j] / width**0.5 + layer.bias[entry, head]
                mixed[i, own] = scores.softmax(0) @ v
        assert torch.allclose(attended[window], layer.out(mixed))


@pytest.mark.parametrize("scale", [None, 0.3])
def test_block_attends_within_its_windows_alone(scale):
    block = randomise(GCViTBlock(StageSizes(8, 2, 2, 2, 1), 2, True, scale, 0.0)).double()
    x, queries = torch.randn(1, 4, 4, 8).double(), torch.randn(1, 2, 4, 4).double()
    updated = block(x, queries)
    for top in (0, 2):
        for left in (0, 2):
            window = x[:, top : top + 2, left : left + 2].flatten(1, 2)
            branch = block.attention(block.norm1(window), queries)
            window = window + (branch if scale is None else branch * block.scale1.weight)
            branch = block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(window))))
            window = window + (branch if scale is None else branch * block.scale2.weight)
            assert torch.allclose(updated[0, top : top + 2, left : left + 2].flatten(0, 1), window[0])


def test_queries_are_made_once_a_stage_from_its_input_and_shared():
    model = build("gcvit_tiny32", 10, depths=(4, 2)).eval()
    made, used, inputs = [], [], []

    def keep(_, arguments, output):
        inputs.append(arguments[0])
        made.append(output)

    for stage in model.stages:
        stage.query.register_forward_hook(keep)
        for block in stage.blocks:
            block.register_forward_pre_hook(lambda _, arguments: used.append(arguments))
    model(torch.randn(2, 3, 32, 32))
    assert len(made) == 2
    assert [queries is made[0] for _, queries in used[:4]] == [True] * 4
    assert [queries is made[1] for _, queries in used[4:]] == [True] * 2
    # From what the first block reads: after the reduction, before any block.
    for start, entry in ((0, inputs[0]), (4, inputs[1])):
        assert torch.equal(used[start][0], entry.permute(0, 2, 3, 1))


def test_a_local_block_ignores_the_queries():
    sizes = StageSizes(8, 2, 2, 2, 1)
    x, queries = torch.randn(1, 4, 4, 8), torch.randn(1, 2, 4, 4)
    for with_global in (False, True):
        block = GCViTBlock(sizes, 2, with_global, None, 0.0)
        assert torch.equal(block(x, queries), block(x, 2 * queries)) is not with_global


def test_features_are_the_mean_of_the_normed_map():
    model = build("gcvit_tiny32", 5, 32).eval()
    randomise(model.norm)
    seen = []
    model.stages[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    features = model.features(torch.randn(2, 3, 32, 32))
    assert torch.allclose(features, model.norm(seen[0]).flatten(2).mean(dim=2), atol=1e-6)
    assert seen[0].shape == (2, 96, 4, 4)


# Sizes ------------------------------------------------------------------------------------------------------


def test_xxtiny_at_64_trains_every_parameter():
    model = build("gcvit_xxtiny", 10, 64, drop_path=0.0)
    F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([1, 2])).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())


def test_tiny_count():
    assert num_parameters(on_meta("gcvit_tiny32", 10, 28, 1)) == 267_094
    assert on_meta("gcvit_tiny32", 10).stages[0].blocks[0].window == 4


def test_no_batch_norm_to_replace():
    model = build("gcvit_tiny32", 10)
    before = num_parameters(model)
    assert num_parameters(replace_batch_norm(model)) == before
    assert not any(isinstance(module, nn.GroupNorm) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("gcvit_xxtiny", {"image_size": 100}, "model.image_size.*Use 96"),
        ("gcvit_xxtiny", {"image_size": 32}, "model.image_size.*Use 64"),
        ("gcvit_tiny", {"drop_path": 1.0}, "model.sizes.drop_path"),
        ("gcvit_tiny32", {"image_size": 7}, "model.image_size.*Use 8"),
        ("gcvit_tiny32", {"dims": (48,)}, "model.sizes.depths"),
        ("gcvit_tiny32", {"dims": ()}, "model.sizes.dims"),
        ("gcvit_tiny32", {"depths": (1, 2)}, "model.sizes.depths"),
        ("gcvit_tiny32", {"heads": (5, 4)}, "model.sizes.heads"),
        ("gcvit_tiny32", {"mlp_ratio": 0}, "model.sizes.mlp_ratio"),
        ("gcvit_tiny32", {"drop_path": -0.1}, "model.sizes.drop_path"),
    ],
)
def test_errors_name_the_key(name, arguments, key):
    with pytest.raises(ValueError, match=key):
        build(name, 10, **arguments)

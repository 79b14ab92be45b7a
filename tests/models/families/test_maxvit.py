"""MaxViT: published counts, partitions that invert, MBConv and attention against direct forms, sizes and errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import count, num_parameters, on_meta, randomise, seeded_with
from umbel.models import build
from umbel.models.layers import from_windows, to_windows
from umbel.models.maxvit import AxisAttention, MBConv, RelativeAttention, from_grid, to_grid
from umbel.models.norm import replace_batch_norm

PUBLISHED = [("maxvit_tiny", "30.9"), ("maxvit_small", "68.9")]


seeded = seeded_with(7)


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "printed"), PUBLISHED)
def test_published_counts(name, printed):
    model = on_meta(name, 1000)
    assert f"{num_parameters(model) / 1e6:.1f}" == printed
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3 * (2 + 2 + 5 + 2) + 1 == 34
    assert all(norm.eps == 1e-3 for norm in norms)
    assert list(model.state_dict())[-2:] == ["head.weight", "head.bias"]


def test_replaced_batch_norm_keeps_the_count():
    model = build("maxvit_tiny32", 10)
    before = num_parameters(model)
    assert num_parameters(replace_batch_norm(model)) == before
    assert count(model, nn.BatchNorm2d) == 0
    assert torch.isfinite(model.train()(torch.randn(1, 3, 32, 32))).all()


def test_integers_of_the_state_are_counters_alone():
    state = on_meta("maxvit_tiny32", 10).state_dict()
    assert all(value.is_floating_point() or key.endswith("num_batches_tracked") for key, value in state.items())


# Partitions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "side"), [(4, 4, 2), (6, 9, 3), (8, 4, 4), (4, 4, 4), (6, 6, 2)])
def test_partitions_invert(height, width, side):
    x = torch.randn(3, height, width, 5)
    for cut, join in ((to_windows, from_windows), (to_grid, from_grid)):
        groups = cut(x, side)
        assert groups.shape == (3 * height * width // side**2, side, side, 5)
        assert torch.equal(join(groups, height, width), x)


def test_windows_hold_neighbours_and_grids_far_places():
    height, width, side = 4, 6, 2
    x = torch.randn(2, height, width, 3)
    windows, grids = to_windows(x, side), to_grid(x, side)
    rows, columns = height // side, width // side
    for image in range(2):
        for row in range(rows):
            for column in range(columns):
                group = (image * rows + row) * columns + column
                for i in range(side):
                    for j in range(side):
                        assert torch.equal(windows[group, i, j], x[image, side * row + i, side * column + j])
                        assert torch.equal(grids[group, i, j], x[image, rows * i + row, columns * j + column])


def test_one_window_is_one_grid():
    x = torch.randn(2, 4, 4, 3)
    assert torch.equal(to_windows(x, 4), to_grid(x, 4))


# Layers -----------------------------------------------------------------------------------------------------


def test_attention_against_a_loop():
    side, dim, heads = 2, 6, 2
    layer = randomise(RelativeAttention(dim, heads, side)).double()
    tokens = torch.randn(3, side * side, dim).double()
    attended = layer(tokens)
    width = dim // heads
    for group in range(3):
        q, k, v = layer.qkv(tokens[group]).split(dim, dim=1)
        mixed = torch.zeros(side * side, dim).double()
        for head in range(heads):
            own = slice(width * head, width * head + width)
            for i in range(side * side):
                scores = torch.empty(side * side).double()
                for j in range(side * side):
                    dy, dx = i // side - j // side, i % side - j % side
                    entry = (dy + side - 1) * (2 * side - 1) + dx + side - 1
                    scores[j] = q[i, own] @ k[j, own] / width**0.5 + layer.bias[entry, head]
                mixed[i, own] = scores.softmax(0) @ v[:, own]
        assert torch.allclose(attended[group], layer.out(mixed))


@pytest.mark.parametrize("grid", [False, True])
def test_a_place_is_seen_by_its_group_alone(grid):
    layer = randomise(AxisAttention(4, 2, 2, grid=grid, mlp_ratio=2, drop_rate=0.0)).double()
    x = torch.randn(1, 6, 6, 4).double()
    changed = x.clone()
    changed[0, 3, 4] += torch.randn(4).double()
    differs = (layer(x) != layer(changed)).any(dim=3)[0].nonzero().tolist()
    # (3, 4) lies in the window of rows 2, 3 and columns 4, 5, and on the grid of rows 0, 3 and columns 1, 4.
    assert differs == ([[0, 1], [0, 4], [3, 1], [3, 4]] if grid else [[2, 4], [2, 5], [3, 4], [3, 5]])


def test_axis_attention_is_pre_norm():
    layer = randomise(AxisAttention(4, 2, 2, grid=False, mlp_ratio=2, drop_rate=0.0)).double()
    x = torch.randn(3, 2, 2, 4).double()
    tokens = x.flatten(1, 2)
    tokens = tokens + layer.attention(layer.norm1(tokens))
    hidden = layer.fc1(layer.norm2(tokens))
    gelu = hidden / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    assert torch.allclose(layer(x).flatten(1, 2), tokens + layer.fc2(gelu))


@pytest.mark.parametrize(("inputs", "stride"), [(4, 1), (6, 2), (4, 2)])
def test_mbconv_against_its_equation(inputs, stride):
    layer = randomise(MBConv(inputs, 4, stride, 3, 0.0)).double().eval()
    x = torch.randn(2, inputs, 6, 6).double()

    def norm(x, layer):
        scale = layer.weight / (layer.running_var + 1e-3).sqrt()
        return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]

    def gelu(x):
        return x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def point(x, conv):
        mixed = torch.einsum("oc,bchw->bohw", conv.weight.flatten(1), x)
        return mixed if conv.bias is None else mixed + conv.bias[:, None, None]

    hidden = gelu(norm(point(norm(x, layer.norm), layer.expand), layer.norm1))
    hidden = gelu(norm(F.conv2d(hidden, layer.depthwise.weight, None, stride, 1, groups=12), layer.norm2))
    mean = hidden.mean(dim=(2, 3), keepdim=True)
    hidden = hidden * torch.sigmoid(point(F.silu(point(mean, layer.excite.reduce)), layer.excite.expand))
    shortcut = x
    if stride == 2:
        shortcut = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    if inputs != 4:
        shortcut = point(shortcut, layer.shortcut)
    assert torch.allclose(layer(x), shortcut + point(hidden, layer.project))
    # The hidden widths follow the outputs: 3 x 4, and a quarter of 4 in the squeeze.
    assert layer.depthwise.weight.shape == (12, 1, 3, 3)
    assert layer.excite.reduce.weight.shape == (1, 12, 1, 1)


def test_block_order_and_features():
    model = build("maxvit_tiny32", 5, 32).eval()
    block = model.stages[0][0]
    x = torch.randn(2, 16, 16, 16)
    by_hand = block.grid(block.window(block.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    assert torch.equal(block(x), by_hand)
    assert block.grid.grid
    assert not block.window.grid
    seen = []
    model.stages[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    features = model.features(torch.randn(2, 3, 32, 32))
    assert seen[0].shape == (2, 64, 4, 4)
    assert torch.allclose(features, model.hidden(model.norm(seen[0].flatten(2).mean(2))).tanh(), atol=1e-6)


# Sizes ------------------------------------------------------------------------------------------------------


def test_published_sides_follow_the_image():
    for size, side in ((64, 2), (224, 7), (384, 12)):
        model = on_meta("maxvit_tiny", 10, size)
        blocks = [block for stage in model.stages for block in stage]
        assert all(block.window.side == block.grid.side == side for block in blocks)
        assert blocks[0].window.attention.bias.shape == ((2 * side - 1) ** 2, 2)


def test_tiny_trains_every_parameter():
    model = build("maxvit_tiny32", 10, 28, 1, depths=(2, 1))
    F.cross_entropy(model(torch.randn(4, 1, 28, 28)), torch.arange(4)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())


def test_tiny_count():
    assert num_parameters(on_meta("maxvit_tiny32", 10, 28, 1)) == 159_454


@pytest.mark.parametrize(
    ("name", "arguments", "key"),
    [
        ("maxvit_tiny", {"image_size": 100}, "model.image_size.*Use 96"),
        ("maxvit_small", {"image_size": 32}, "model.image_size.*Use 64"),
        ("maxvit_tiny", {"drop_path": 1.0}, "model.sizes.drop_path"),
        ("maxvit_tiny32", {"image_size": 7}, "model.image_size.*Use 8"),
        ("maxvit_tiny32", {"dims": ()}, "model.sizes.dims"),
        ("maxvit_tiny32", {"depths": (1,)}, "model.sizes.depths"),
        ("maxvit_tiny32", {"stem": 0}, "model.sizes.stem"),
        ("maxvit_tiny32", {"head_dim": 12}, "model.sizes.head_dim"),
        ("maxvit_tiny32", {"expansion": True}, "model.sizes.expansion"),
        ("maxvit_tiny32", {"mlp_ratio": 0.5}, "model.sizes.mlp_ratio"),
        ("maxvit_tiny32", {"drop_path": -0.1}, "model.sizes.drop_path"),
    ],
)
def test_errors_name_the_key(name, arguments, key):
    with pytest.raises(ValueError, match=key):
        build(name, 10, **arguments)

"""RaftMLP: published counts, the index order of the rafts against loops, and the multi-scale embedding."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, num_parameters, on_meta, seeded_with
from umbel.models import build
from umbel.models.norm import batch_norm_names, replace_batch_norm
from umbel.models.raftmlp import MultiScaleEmbed, RaftBlock, RaftMix

seeded = seeded_with(7)


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "published", "dims"),
    [
        ("raftmlp_s", "9.87", [64, 128, 256, 512]),
        ("raftmlp_m", "21.4", [96, 192, 384, 768]),
        ("raftmlp_l", "36.2", [128, 192, 512, 1024]),
    ],
)
def test_published_counts(name, published, dims):
    model = on_meta(name, 1000)
    digits = len(published.partition(".")[2])
    assert f"{num_parameters(model) / 1e6:.{digits}f}" == published
    assert [level[0].norm1.normalized_shape[0] for level in model.levels] == dims
    assert [len(level) for level in model.levels] == [2, 2, 6, 2]
    assert batch_norm_names(model) == frozenset()


@pytest.mark.parametrize(("size", "published"), [(32, "2.09"), (224, "6.03")])
def test_published_count_for_cifar10(size, published):
    sizes = {"dims": (128, 256), "depths": (2, 2), "patches": (2, 2), "kernels": ((4, 8), (2, 4)), "rafts": 4}
    model = on_meta("raftmlp_tiny32", 10, size, **sizes)
    assert f"{num_parameters(model) / 1e6:.2f}" == published


def test_tiny32_count_and_state():
    model = build("raftmlp_tiny32", 10)
    assert num_parameters(model) == 346_186
    assert num_parameters(replace_batch_norm(model)) == 346_186
    assert all(tensor.is_floating_point() for tensor in model.state_dict().values())
    assert [*model.state_dict()][-2:] == ["head.weight", "head.bias"]


# Forward ----------------------------------------------------------------------------------------------------


def test_raftmlp_s_at_a_small_size():
    assert build("raftmlp_s", 10, 32, 1)(torch.randn(1, 1, 32, 32)).shape == (1, 10)


def test_tiny_trains_every_parameter():
    model = build("raftmlp_tiny32", 10, 28, 1)
    check_forward(model, 1)
    assert all(parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(("size", "sides"), [(8, [2, 1]), (28, [7, 4]), (32, [8, 4])])
def test_tiny_maps(size, sides):
    model, shapes = build("raftmlp_tiny32", 10, size), []
    for level in model.levels:
        level.register_forward_hook(lambda _, __, output: shapes.append([*output.shape[1:3]]))
    model(torch.randn(1, 3, size, size))
    assert shapes == [[side, side] for side in sides]


# Parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vertical", [True, False])
def test_index_order_of_the_rafts(vertical):
    """The MLP of a line sees its places raft by raft; a raft is a run of neighbouring channels."""
    rafts, channels, side, other = 2, 3, 4, 5
    mix = RaftMix(side, rafts, expansion=2, vertical=vertical)
    x = torch.randn(2, *((side, other) if vertical else (other, side)), rafts * channels)
    expected = torch.zeros_like(x)
    with torch.no_grad():
        for b in range(2):
            for line in range(other):
                for channel in range(channels):
                    places = [
                        (b, *((place, line) if vertical else (line, place)), raft * channels + channel)
                        for raft in range(rafts)
                        for place in range(side)
                    ]
                    vector = torch.stack([x[place] for place in places])
                    hidden = F.gelu(mix.mlp.fc1.weight @ vector + mix.mlp.fc1.bias)
                    assert len(hidden) == 2 * len(vector)
                    for place, value in zip(places, mix.mlp.fc2.weight @ hidden + mix.mlp.fc2.bias, strict=True):
                        expected[place] = value
        torch.testing.assert_close(mix(x), expected, rtol=1e-5, atol=1e-6)


def test_block_is_columns_then_rows_then_channels():
    block = RaftBlock(4, side=3, rafts=2, token_expansion=2, channel_expansion=3, drop_rate=0.0)
    for norm in (block.norm1, block.norm2, block.norm3):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 3, 3, 4)
    with torch.no_grad():
        updated = block(x)
        for norm, branch in ((block.norm1, block.columns), (block.norm2, block.rows), (block.norm3, block.mlp)):
            x = x + branch(F.layer_norm(x, (4,), norm.weight, norm.bias))
    torch.testing.assert_close(updated, x)
    # What a column holds reaches no other column by way of `columns`; the same for rows.
    for branch, axis in ((block.columns, 2), (block.rows, 1)):
        changed = x.clone()
        changed.select(axis, 1).add_(1.0)
        with torch.no_grad():
            moved = (branch(changed) - branch(x)).abs().amax((0, 3 - axis, 3))
        assert moved[1] > 0
        assert moved[0] == moved[2] == 0


@pytest.mark.parametrize("side", [8, 7])
def test_embedding_is_one_linear_layer_on_unfolded_patches(side):
    """Kernels 2 and 4 at stride 2: all patches of a place are laid end to end; an odd side gains zeros at its end."""
    embed = MultiScaleEmbed(3, 5, patch=2, kernels=(2, 4))
    small, large = embed.convs
    assert large.bias is None
    weight = torch.cat((small.weight.flatten(1), large.weight.flatten(1)), dim=1)
    x = torch.randn(2, 3, side, side)
    padded = torch.zeros(2, 3, 10, 10)  # one zero on each side of 8 x 8
    padded[:, :, 1 : side + 1, 1 : side + 1] = x
    with torch.no_grad():
        embedded = embed(x)
        assert embedded.shape == (2, 4, 4, 5)
        for row in range(4):
            for column in range(4):
                top, left = 2 * row, 2 * column
                inner = padded[:, :, top + 1 : top + 3, left + 1 : left + 3].flatten(1)
                outer = padded[:, :, top : top + 4, left : left + 4].flatten(1)
                expected = torch.cat((inner, outer), dim=1) @ weight.T + small.bias
                torch.testing.assert_close(embedded[:, row, column], expected, rtol=1e-5, atol=1e-6)


def test_embedding_starts_as_one_linear_layer():
    embed = MultiScaleEmbed(16, 64, patch=4, kernels=(4, 8))
    bound = (16 * (4 * 4 + 8 * 8)) ** -0.5
    for parameter in embed.parameters():
        assert 0.9 * bound < parameter.abs().max() <= bound


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "sizes", "message"),
    [
        ("raftmlp_s", 230, {}, r"model\.image_size.*multiple of 32.*Use 224"),
        ("raftmlp_m", 224, {"drop_path": -0.1}, r"model\.sizes\.drop_path.*found -0\.1"),
        ("raftmlp_tiny32", 30, {}, r"model\.image_size.*multiple of 4.*found 30"),
        ("raftmlp_tiny32", 32, {"dims": ()}, r"model\.sizes\.dims.*not empty"),
        ("raftmlp_tiny32", 32, {"dims": 64}, r"model\.sizes\.dims.*found 64"),
        ("raftmlp_tiny32", 32, {"depths": (2,)}, r"model\.sizes\.depths.*2 whole numbers"),
        ("raftmlp_tiny32", 32, {"patches": (4, 0)}, r"model\.sizes\.patches.*found 0"),
        ("raftmlp_tiny32", 32, {"kernels": ((4, 8),)}, r"model\.sizes\.kernels.*2 lists"),
        ("raftmlp_tiny32", 32, {"kernels": ((4, 8), ())}, r"model\.sizes\.kernels.*not empty"),
        ("raftmlp_tiny32", 32, {"kernels": ((4, 7), (2,))}, r"model\.sizes\.kernels.*\(4, 7\)\. Use 4 or 6"),
        ("raftmlp_tiny32", 32, {"kernels": ((2,), (2,))}, r"model\.sizes\.kernels.*\(2,\)\. Use 4 or 6"),
        ("raftmlp_tiny32", 32, {"rafts": 3}, r"model\.sizes\.rafts: 3 does not divide 64"),
        ("raftmlp_tiny32", 32, {"token_expansion": 0}, r"model\.sizes\.token_expansion.*found 0"),
        ("raftmlp_tiny32", 32, {"channel_expansion": 0}, r"model\.sizes\.channel_expansion.*found 0"),
    ],
)
def test_errors(name, size, sizes, message):
    with pytest.raises(ValueError, match=message):
        build(name, 10, size, **sizes)

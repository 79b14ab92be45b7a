"""UniFormer for clips: published figures, and its blocks against loops."""

import math

import pytest
import torch
from torch import nn

from tests.models_helpers import count, num_parameters, on_meta, perturbed, seeded_with
from umbel.models import build
from umbel.models.facts import facts, macs
from umbel.models.norm import batch_norm_names, replace_batch_norm
from umbel.models.uniformer3d import LayerNorm3d, _embed
from umbel.models.uniformer_blocks import GlobalBlock, LocalBlock

seeded = seeded_with(13)


def clip(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "parameters", "gflops", "batch_norms", "layer_norms"),
    [("uniformer3d_s", "21.4", "41.8", 15, 26), ("uniformer3d_b", "49.8", "96.7", 27, 58)],
)
def test_published_figures(name, parameters, gflops, batch_norms, layer_norms):
    """At 16 frames of 224 px and 400 classes; the authors' counter takes a norm for 2 or 5 operations a number."""
    model = on_meta(name, 400)
    assert f"{num_parameters(model) / 1e6:.1f}" == parameters
    assert (count(model, nn.BatchNorm3d), count(model, nn.LayerNorm)) == (batch_norms, layer_norms)
    assert {m.heads for m in model.modules() if hasattr(m, "heads")} == {5, 8}  # of 64 channels
    in_norms = 0

    def note(module, inputs, output):
        nonlocal in_norms
        in_norms += output.numel() * (5 if isinstance(module, nn.LayerNorm) else 2)

    alone = macs(model)
    assert 0.995 < alone / (float(gflops) * 1e9) < 1
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm3d):
            module.register_forward_hook(note)
    assert macs(model) == alone
    assert f"{(alone + in_norms) / 1e9:.1f}" == gflops


@pytest.mark.parametrize(
    ("name", "frames", "of_four_views"),
    [("uniformer3d_s", 8, 70), ("uniformer3d_s", 32, 438), ("uniformer3d_b", 8, 161), ("uniformer3d_b", 32, 1036)],
)
def test_published_operations_of_other_clips(name, frames, of_four_views):
    assert 4 * macs(on_meta(name, 400, num_frames=frames)) / 1e9 == pytest.approx(of_four_views, rel=0.005)


def test_clips_and_images_share_their_names():
    """The same blocks: kernels over time are all that is new."""
    for name in ("s", "b", "tiny32"):
        flat = on_meta(f"uniformer_{name}", 10).state_dict()
        deep = on_meta(f"uniformer3d_{name}", 10).state_dict()
        assert list(deep) == list(flat)
        for key, tensor in deep.items():
            shape = tuple(tensor.shape)
            assert (*shape[:2], *shape[3:]) == flat[key].shape if tensor.dim() == 5 else shape == flat[key].shape
            if tensor.dim() == 5:
                first, wide = key == "stages.0.0.0.weight", max(shape[3:])
                assert shape[2] == (3 if first else wide if shape[1] == 1 else 1), key


def test_tiny_count_and_norms():
    known = facts("uniformer3d_tiny32", 10)
    assert known.parameters == 494_954
    assert known.norms == {"batch": 5, "layer": 10, "group": 0}
    model = build("uniformer3d_tiny32", 10)
    assert len(batch_norm_names(model)) == 5 * 5
    assert count(replace_batch_norm(model), nn.GroupNorm) == 5
    assert count(model, nn.BatchNorm3d) == 0
    assert num_parameters(model) == 494_954


@pytest.mark.parametrize(
    ("size", "frames", "sides", "kept"),
    [(8, 1, [4, 2, 2, 2], 1), (28, 5, [14, 7, 4, 2], 3), (32, 8, [16, 8, 4, 2], 4)],
)
def test_tiny_maps(size, frames, sides, kept):
    model, seen = build("uniformer3d_tiny32", 10, size, num_frames=frames), []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, output: seen.append(tuple(output.shape[2:])))
    model(torch.randn(1, 3, frames, size, size)).sum().backward()
    assert seen == [(kept, side, side) for side in sides]


def slow_convolution(conv, x):
    """A convolution with zeros beyond the border, of each channel alone or of all together, output by output."""
    batch, _, *sizes = x.shape
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    after = [(s + 2 * p - k) // d + 1 for s, k, d, p in zip(sizes, kernel, stride, padding, strict=True)]
    out = x.new_zeros(batch, conv.out_channels, *after)
    alone = conv.groups > 1
    for place in torch.cartesian_prod(*(torch.arange(n) for n in after)).tolist():
        total = conv.bias.expand(batch, -1)
        for step in torch.cartesian_prod(*(torch.arange(k) for k in kernel)).tolist():
            at = [i * d + j - p for i, d, j, p in zip(place, stride, step, padding, strict=True)]
            if all(0 <= i < s for i, s in zip(at, sizes, strict=True)):
                weight, value = conv.weight[(..., *step)], x[(..., *at)]
                total = total + (value * weight[:, 0] if alone else value @ weight.T)
        out[(..., *place)] = total
    return out


def slow_batch_norm(norm, x):
    mean, var, weight, bias = (
        t[None, :, None, None, None] for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def slow_layer_norm(norm, token):
    centred = token - token.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def slow_gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def test_the_first_embedding_overlaps_in_time_and_the_others_take_frames_alone():
    for first, kernel in ((True, 2), (False, 2), (True, 3)):
        embed, x = perturbed(_embed(2, 3, kernel, 2, first)), clip(2, 2, 5, 4, 6)
        conv, norm = embed
        with torch.no_grad():
            output, expected = embed(x), slow_convolution(conv, x)
            assert output.shape == (2, 3, 3 if first else 5, 2, 3)
            for b in range(2):
                for place in torch.cartesian_prod(*(torch.arange(n) for n in output.shape[2:])).tolist():
                    token = slow_layer_norm(norm, expected[(b, ..., *place)])
                    torch.testing.assert_close(output[(b, ..., *place)], token)


def test_published_embeddings():
    for i, stage in enumerate(on_meta("uniformer3d_s", 10).stages):
        conv, norm = stage[0]
        assert (conv.kernel_size, conv.stride) == (((1, 2, 2), (1, 2, 2)) if i else ((3, 4, 4), (2, 4, 4)))
        assert conv.padding == ((0, 0, 0) if i else (1, 0, 0))
        assert isinstance(norm, LayerNorm3d)


def test_local_block():
    block, x = perturbed(LocalBlock(3, 2, 0.0, dimensions=3)), clip(2, 3, 4, 3, 5)
    norm, enter, local, leave = block.relate
    assert (block.position.kernel_size, local.kernel_size) == ((3, 3, 3), (5, 5, 5))
    with torch.no_grad():
        output = block(x)
        x = x + slow_convolution(block.position, x)
        branch = slow_convolution(local, slow_convolution(enter, slow_batch_norm(norm, x)))
        x = x + slow_convolution(leave, branch)
        hidden = slow_gelu(slow_convolution(block.fc1, slow_batch_norm(block.norm, x)))
        x = x + slow_convolution(block.fc2, hidden)
    torch.testing.assert_close(output, x)


def test_global_block():
    """Each token of each frame looks at all tokens of all frames."""
    block, x = perturbed(GlobalBlock(6, 2, 2, 0.0, dimensions=3)), clip(2, 6, 2, 3, 2)
    attention = block.attention
    with torch.no_grad():
        output = block(x)
        x = x + slow_convolution(block.position, x)
        places = [(t, h, w) for t in range(2) for h in range(3) for w in range(2)]
        for b in range(2):
            tokens = [x[(b, slice(None), *place)] for place in places]
            parts = [attention.qkv(slow_layer_norm(block.norm1, token)).view(3, 2, 3) for token in tokens]
            for i, place in enumerate(places):
                heads = []
                for head in range(2):
                    scores = [(parts[i][0, head] @ other[1, head] / math.sqrt(3)).exp() for other in parts]
                    mixed = sum(s * other[2, head] for s, other in zip(scores, parts, strict=True))
                    heads.append(mixed / sum(scores))
                token = tokens[i] + attention.out(torch.cat(heads))
                hidden = slow_gelu(block.mlp.fc1(slow_layer_norm(block.norm2, token)))
                torch.testing.assert_close(output[(b, slice(None), *place)], token + block.mlp.fc2(hidden))


def test_features_are_the_mean_of_the_normalised_map():
    model, seen = perturbed(build("uniformer3d_tiny32", 5, 12, 2, num_frames=6)), []
    model.stages[-1].register_forward_hook(lambda _, __, output: seen.append(output))
    features = model.features(clip(3, 2, 6, 12, 12))
    assert seen[0].shape == (3, 128, 3, 2, 2)
    torch.testing.assert_close(features, slow_batch_norm(model.norm, seen[0]).flatten(2).sum(2) / 12)


def test_channels_last_has_five_axes():
    """Torch knows `channels_last` for four; all else that `to` takes goes through."""
    model = build("uniformer3d_tiny32", 5, 12, 2, num_frames=4).eval()
    x = torch.randn(3, 2, 12, 12)
    logits = model(x)
    last = model.to(memory_format=torch.channels_last)
    assert last is model
    weights = [p for p in model.parameters() if p.dim() == 5 and min(p.shape[1], p[0, 0].numel()) > 1]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last_3d) and not w.is_contiguous() for w in weights)
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), logits, rtol=1e-4, atol=1e-5)
    model.to("cpu", torch.float64)
    assert model(x.double()).dtype == torch.float64
    assert all(p.is_meta for p in model.to(device="meta").parameters())


def test_drop_path_rises_over_all_blocks():
    model = on_meta("uniformer3d_s", 10, drop_path=0.17)
    rates = [block.drop_rate for block in model.modules() if isinstance(block, LocalBlock | GlobalBlock)]
    assert rates == pytest.approx([0.01 * i for i in range(18)])


@pytest.mark.parametrize(
    "shape", [(2, 8, 8), (2, 1, 3, 8, 8), (2, 1, 5, 8, 8), (2, 4, 1, 8, 8), (2, 3, 8, 8), (2, 1, 4, 8, 7), (1, 8, 9)]
)
def test_other_inputs(shape):
    model = on_meta("uniformer3d_tiny32", 2, 8, 1, num_frames=4)
    expected = (
        r"images \[batch, 1, 8, 8\] and clips \[batch, 1, 4, 8, 8\], found \[.*"
        r"keys model\.image_size, model\.sizes\.num_frames"
    )
    with pytest.raises(ValueError, match=expected):
        model(torch.empty(shape, device="meta"))


@pytest.mark.parametrize(
    ("name", "size", "sizes", "message"),
    [
        ("uniformer3d_s", 225, {}, r"model\.image_size.*multiple of 32.*Use 224"),
        ("uniformer3d_b", 32, {}, r"model\.image_size.*64 px or more.*Use 64"),
        ("uniformer3d_b", 224, {"drop_path": 1}, r"model\.sizes\.drop_path.*found 1"),
        ("uniformer3d_s", 224, {"num_frames": 0}, r"model\.sizes\.num_frames.*found 0"),
        ("uniformer3d_tiny32", 32, {"num_frames": 2.0}, r"model\.sizes\.num_frames.*found 2\.0"),
        ("uniformer3d_tiny32", 3, {}, r"model\.image_size.*4 px or more.*found 3"),
        ("uniformer3d_tiny32", 32, {"dims": (8, 8)}, r"model\.sizes\.dims.*4 whole numbers"),
        ("uniformer3d_tiny32", 32, {"depths": (1, 1, 0, 1)}, r"model\.sizes\.depths.*found 0"),
        ("uniformer3d_tiny32", 32, {"head_dim": 36}, r"model\.sizes\.head_dim: 36 does not divide 96"),
        ("uniformer3d_tiny32", 32, {"mlp_ratio": 0}, r"model\.sizes\.mlp_ratio.*found 0"),
    ],
)
def test_errors(name, size, sizes, message):
    with pytest.raises(ValueError, match=message):
        build(name, 10, size, **sizes)

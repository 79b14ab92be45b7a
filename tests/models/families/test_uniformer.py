"""UniFormer: published counts, its blocks against direct equations, and the slow and the fast tokens of XXS."""

import copy
import math
import threading
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.models_helpers import count, num_parameters, on_meta, seeded_with
from umbel.models import build, uniformer
from umbel.models.norm import replace_batch_norm
from umbel.models.slow_fast import SlowFastBlock
from umbel.models.uniformer import GlobalBlock, LocalBlock

seeded = seeded_with(7)


def scramble(module):
    """Give batch norms statistics and all norms weights that a wrong order would show."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 2.0)
        if isinstance(child, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.normal_(child.weight)
            nn.init.normal_(child.bias)
    return module.eval()


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "printed", "batch_norms", "layer_norms"),
    [("uniformer_s", "21.5", 15, 26), ("uniformer_b", "49.8", 27, 58)],
)
def test_published_counts(name, printed, batch_norms, layer_norms):
    model = on_meta(name, 1000)
    assert f"{num_parameters(model) / 1e6:.1f}" == printed
    assert (count(model, nn.BatchNorm2d), count(model, nn.LayerNorm)) == (batch_norms, layer_norms)
    assert {m.heads for m in model.modules() if hasattr(m, "heads")} == {5, 8}  # of 64 channels


def test_published_count_of_xxs_has_the_head_for_training():
    with torch.device("meta"):
        model, single = build("uniformer_xxs", 1000), build("uniformer_xxs", 1000, class_head=False)
    assert num_parameters(model) == 10_215_280
    assert num_parameters(single) == 9_765_384
    assert num_parameters(model) - num_parameters(single) == (448 * 1000 + 1000) + 2 * 448
    assert model.image_size == 128


def test_the_stem_of_xxs_overlaps_and_the_other_embeddings_take_patches():
    stem, *later = on_meta("uniformer_xxs", 10).embeds
    convolutions = [part for part in stem if isinstance(part, nn.Conv2d)]
    assert [(conv.kernel_size, conv.stride, conv.padding) for conv in convolutions] == 2 * [((3, 3), (2, 2), (1, 1))]
    assert [conv.out_channels for conv in convolutions] == [28, 56]
    assert [type(part) for part in stem if part not in convolutions] == [nn.BatchNorm2d, nn.GELU, nn.BatchNorm2d]
    first, second = (27 * 28 + 28) + 2 * 28, (9 * 28 * 56 + 56) + 2 * 56
    assert num_parameters(stem) == first + second == 15_120
    assert [(embed[0].kernel_size, embed[0].stride) for embed in later] == 3 * [((2, 2), (2, 2))]


def test_the_stem_of_xxs_is_its_two_convolutions():
    stem = scramble(build("uniformer_xxs", 10, 64, 1).embeds[0])
    conv1, norm1, _, conv2, norm2 = stem
    x = torch.randn(2, 1, 12, 8)
    with torch.no_grad():
        hidden = slow_gelu(slow_batch_norm(norm1, slow_strided(conv1, x)))
        assert hidden.shape[2:] == (6, 4)
        torch.testing.assert_close(stem(x), slow_batch_norm(norm2, slow_strided(conv2, hidden)), rtol=1e-5, atol=1e-5)


def test_tiny_count():
    assert num_parameters(build("uniformer_tiny32", 10)) == 478_026


# Forward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "sides"), [(8, [4, 2, 2, 2]), (28, [14, 7, 4, 2]), (32, [16, 8, 4, 2])])
def test_tiny_maps(size, sides):
    model, seen = build("uniformer_tiny32", 10, size), []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, output: seen.append(output.shape[2]))
    model(torch.randn(2, 3, size, size))
    assert seen == sides  # never one place, of which batch norm would have one value


def test_group_norm():
    model = build("uniformer_tiny32", 10, 28, 1)
    before = num_parameters(model)
    replace_batch_norm(model)
    assert num_parameters(model) == before
    assert count(model, nn.BatchNorm2d) == 0
    assert torch.isfinite(model(torch.randn(1, 1, 28, 28))).all()


# Blocks against their equations -----------------------------------------------------------------------------


def slow_depthwise(conv, image_map):
    """A depthwise convolution with zeros beyond the border, by loops."""
    reach = conv.kernel_size[0] // 2
    out = conv.bias[None, :, None, None].expand_as(image_map).clone()
    height, width = image_map.shape[2:]
    for y in range(height):
        for x in range(width):
            for dy in range(-reach, reach + 1):
                for dx in range(-reach, reach + 1):
                    if 0 <= y + dy < height and 0 <= x + dx < width:
                        out[:, :, y, x] += conv.weight[:, 0, dy + reach, dx + reach] * image_map[:, :, y + dy, x + dx]
    return out


def slow_strided(conv, image_map):
    """A 3 x 3 convolution of stride 2 with one place of zeros beyond the border, by loops over its taps."""
    height, width = ((side + 1) // 2 for side in image_map.shape[2:])
    padded = nn.functional.pad(image_map, (1, 1, 1, 1))
    out = conv.bias[None, :, None, None].repeat(len(image_map), 1, height, width)
    for y in range(height):
        for x in range(width):
            for dy in range(3):
                for dx in range(3):
                    out[:, :, y, x] += padded[:, :, 2 * y + dy, 2 * x + dx] @ conv.weight[:, :, dy, dx].T
    return out


def slow_pointwise(conv, image_map):
    return torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], image_map) + conv.bias[None, :, None, None]


def slow_batch_norm(norm, image_map):
    def wide(vector):
        return vector[None, :, None, None]

    scaled = (image_map - wide(norm.running_mean)) / (wide(norm.running_var) + 1e-5).sqrt()
    return scaled * wide(norm.weight) + wide(norm.bias)


def slow_gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def slow_layer_norm(norm, tokens):
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def slow_attention(attention, tokens):
    """Attended tokens, and the attention itself [B, A, N, N], head by head."""
    dim, heads = tokens.shape[2], attention.heads
    width = dim // heads
    q, k, v = ((tokens @ attention.qkv.weight.T) + attention.qkv.bias).split(dim, dim=2)
    mixed, shares = torch.zeros_like(q), []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = torch.einsum("bnd,bmd->bnm", q[..., own], k[..., own]) / math.sqrt(width)
        share = scores.exp() / scores.exp().sum(-1, keepdim=True)
        mixed[..., own] = torch.einsum("bnm,bmd->bnd", share, v[..., own])
        shares.append(share)
    return mixed @ attention.out.weight.T + attention.out.bias, torch.stack(shares, 1)


def slow_update(block, tokens):
    """x += Attention(LN x); x += MLP(LN x); and the attention."""
    attended, shares = slow_attention(block.attention, slow_layer_norm(block.norm1, tokens))
    tokens = tokens + attended
    hidden = slow_gelu(slow_layer_norm(block.norm2, tokens) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    return tokens + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias, shares


def test_local_block():
    block = scramble(LocalBlock(4, 2, drop_rate=0.0))
    x = torch.randn(2, 4, 3, 4)
    with torch.no_grad():
        output = block(x)
        x = x + slow_depthwise(block.position, x)
        norm, enter, local, leave = block.relate
        assert (block.position.kernel_size, local.kernel_size) == ((3, 3), (5, 5))
        branch = slow_pointwise(enter, slow_batch_norm(norm, x))
        x = x + slow_pointwise(leave, slow_depthwise(local, branch))
        x = x + slow_pointwise(block.fc2, slow_gelu(slow_pointwise(block.fc1, slow_batch_norm(block.norm, x))))
    torch.testing.assert_close(output, x, rtol=1e-5, atol=1e-5)


def test_global_block():
    block = scramble(GlobalBlock(6, heads=2, mlp_ratio=2, drop_rate=0.0))
    x = torch.randn(2, 6, 3, 4)
    with torch.no_grad():
        output = block(x)
        x = x + slow_depthwise(block.position, x)
        tokens, _ = slow_update(block, torch.stack([x[:, :, i // 4, i % 4] for i in range(12)], dim=1))
        for i in range(12):
            torch.testing.assert_close(output[:, :, i // 4, i % 4], tokens[:, i], rtol=1e-5, atol=1e-5)


# Slow and fast tokens ---------------------------------------------------------------------------------------


def test_slow_fast_block_example_by_example():
    block = scramble(SlowFastBlock(6, heads=2, mlp_ratio=2, keep=0.3, drop_rate=0.0))
    x, cls, scores = torch.randn(3, 6, 3, 4), torch.randn(3, 1, 6), torch.rand(3, 12)
    with torch.no_grad():
        found_map, found_cls, found_scores = block(x, cls, scores)
        x = x + slow_depthwise(block.position, x)
        for b in range(3):
            tokens = [x[b, :, i // 4, i % 4] for i in range(12)]
            ranked = sorted(range(12), key=lambda i: -scores[b, i].item())
            slow, fast = ranked[:3], ranked[3:]  # 0.3 of 12, rounded down
            total = sum(scores[b, i] for i in fast)
            representative = sum(scores[b, i] / total * tokens[i] for i in fast)
            before = torch.stack([cls[b, 0], *(tokens[i] for i in slow), representative])
            after, shares = slow_update(block, before[None])
            after, shares = after[0], shares[0]
            torch.testing.assert_close(found_cls[b, 0], after[0], rtol=1e-5, atol=1e-5)
            for i in range(12):
                if i in slow:
                    place = 1 + slow.index(i)
                    token, score = after[place], (scores[b, i] + shares[:, 0, place].mean()) / 2
                else:
                    token, score = tokens[i] + after[-1] - before[-1], scores[b, i]
                torch.testing.assert_close(found_map[b, :, i // 4, i % 4], token, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(found_scores[b, i], score, rtol=1e-5, atol=1e-6)


def test_a_block_that_keeps_all_tokens_starts_the_scores():
    block = scramble(SlowFastBlock(6, heads=2, mlp_ratio=2, keep=1.0, drop_rate=0.0))
    x, cls = torch.randn(2, 6, 2, 3), torch.randn(2, 1, 6)
    with torch.no_grad():
        found_map, found_cls, found_scores = block(x, cls, torch.full((2, 6), math.nan))
        x = x + slow_depthwise(block.position, x)
        tokens, shares = slow_update(block, torch.cat((cls, x.flatten(2).transpose(1, 2)), dim=1))
    torch.testing.assert_close(found_map.flatten(2).transpose(1, 2), tokens[:, 1:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_cls, tokens[:, :1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_scores, shares[:, :, 0, 1:].mean(1), rtol=1e-5, atol=1e-6)


def test_xxs_hands_scores_on():
    """The first global block takes all tokens; into the last stage go means over 2 x 2 places."""
    model = build("uniformer_xxs", 10, 64).eval()
    blocks, seen = [*model.third, *model.fourth], []
    assert [block.keep for block in blocks] == [1.0] + 9 * [0.5]
    for block in blocks:
        block.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[2], outputs[2])))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    third, fourth = seen[:8], seen[8:]
    for stage in (third, fourth):
        for before, after in pairwise(stage):
            assert torch.equal(before[1], after[0])
    (scores, pooled) = (third[-1][1].view(2, 4, 4), fourth[0][0].view(2, 2, 2))
    for row in range(2):
        for column in range(2):
            mean = scores[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
            torch.testing.assert_close(pooled[:, row, column], mean)


def test_xxs_has_no_state_outside_the_model():
    """Two copies give the same logits alone, in turns and in two threads: the scores pass from block to block."""
    tensors = [name for name, value in vars(uniformer).items() if isinstance(value, torch.Tensor | list | dict)]
    assert not [name for name in tensors if not name.startswith("__")]
    model = build("uniformer_xxs", 10, 64).eval()
    other = copy.deepcopy(model)
    first, second = torch.randn(2, 3, 64, 64), torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        alone = model(first), other(second)
    logits_of = [[], []]

    def work(place, net, x):
        with torch.no_grad():
            logits_of[place] = [net(x) for _ in range(3)]

    jobs = ((0, model, first), (1, other, second))
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for logits, expected in zip(logits_of, alone, strict=True):
        assert len(logits) == 3
        assert all(torch.equal(one, expected) for one in logits)


def test_xxs_heads():
    """In training the mean of the two heads' logits, in evaluation the first alone; all parameters get gradients."""
    model = build("uniformer_xxs", 5, 64)
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features, cls = twin._trunk(x)
        expected = (twin.head(features) + twin.class_head(cls)) / 2
    logits = model(x)
    torch.testing.assert_close(logits, expected)
    nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert all(p.grad is not None and p.grad.any() for name, p in model.named_parameters())
    model.eval()
    assert torch.equal(model(x), model.head(model.features(x)))
    assert [*model.state_dict()][-2:] == ["head.weight", "head.bias"]


def test_drop_path_rises_over_all_blocks():
    model = on_meta("uniformer_s", 10, drop_path=0.17)
    rates = [block.drop_rate for block in model.modules() if isinstance(block, LocalBlock | GlobalBlock)]
    assert rates == pytest.approx([0.01 * i for i in range(18)])


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "sizes", "message"),
    [
        ("uniformer_s", 225, {}, r"model\.image_size.*multiple of 32.*Use 224"),
        ("uniformer_xxs", 32, {}, r"model\.image_size.*64 px or more.*Use 64"),
        ("uniformer_xxs", 128, {"keep": 0}, r"model\.sizes\.keep.*found 0"),
        ("uniformer_xxs", 128, {"keep": 1.5}, r"model\.sizes\.keep.*found 1\.5"),
        ("uniformer_xxs", 128, {"class_head": 1}, r"model\.sizes\.class_head.*found 1"),
        ("uniformer_b", 224, {"drop_path": 1}, r"model\.sizes\.drop_path.*found 1"),
        ("uniformer_tiny32", 3, {}, r"model\.image_size.*4 px or more.*found 3"),
        ("uniformer_tiny32", 32, {"dims": (8, 8)}, r"model\.sizes\.dims.*4 whole numbers"),
        ("uniformer_tiny32", 32, {"depths": (1, 1, 0, 1)}, r"model\.sizes\.depths.*found 0"),
        ("uniformer_tiny32", 32, {"head_dim": 36}, r"model\.sizes\.head_dim: 36 does not divide 96"),
        ("uniformer_tiny32", 32, {"mlp_ratio": 0}, r"model\.sizes\.mlp_ratio.*found 0"),
    ],
)
def test_errors(name, size, sizes, message):
    with pytest.raises(ValueError, match=message):
        build(name, 10, size, **sizes)

"""What attention and gates look at, however they are written: by hand and by loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models_helpers import normal, seeded_with
from umbel import models
from umbel.models.attention import attention_maps, attention_weights, watch_attention

seeded = seeded_with(6)


MASKS = {
    "none": {},
    "scale": {"scale": 0.3},
    "causal": {"is_causal": True},
    "additive": {"attn_mask": normal(3, 5, 5, seed=7)},
    "boolean": {"attn_mask": torch.eye(5, dtype=torch.bool) | (normal(5, 5, seed=8) > 0)},
}


@pytest.mark.parametrize("key", MASKS)
def test_weights_are_those_that_torch_multiplies_the_values_with(key):
    q, k, v = (normal(2, 3, 5, 4, seed=seed) for seed in range(3))
    made = attention_weights(q, k, v, **MASKS[key]) @ v
    torch.testing.assert_close(made, F.scaled_dot_product_attention(q, k, v, **MASKS[key]))


def test_heads_that_share_keys():
    q, k, v = normal(2, 6, 5, 4), normal(2, 3, 7, 4, seed=1), normal(2, 3, 7, 4, seed=2)
    weights = attention_weights(q, k, v, enable_gqa=True)
    made = weights @ v.repeat_interleave(2, dim=1)
    torch.testing.assert_close(made, F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


class Plain(nn.Module):
    """Patches of 2 px, optionally a class token, and one attention, written in different ways."""

    def __init__(self, how: str, with_cls: bool = False) -> None:
        super().__init__()
        self.how, self.with_cls = how, with_cls
        self.embed = nn.Conv2d(3, 8, 2, 2)
        self.layer = nn.Module()
        self.layer.forward = self.attend
        self.dropout = nn.Dropout(0.5)
        self.torchs = nn.MultiheadAttention(8, 2, batch_first=True)

    def attend(self, tokens: Tensor) -> Tensor:
        q, k, v = tokens[:, :, :4], tokens[:, :, 2:6].transpose(1, 2), tokens[:, :, 4:]
        scores = q @ k / 2
        if self.how == "sdpa":
            return F.scaled_dot_product_attention(q[:, None], k.mT[:, None], v[:, None])
        if self.how == "method":
            return scores.softmax(-1) @ v
        if self.how == "function":
            return torch.softmax(scores, dim=2).matmul(v)
        if self.how == "functional and dropout":
            return self.dropout(F.softmax(scores, dim=-1)) @ v
        if self.how == "module and bmm":
            return torch.bmm(nn.Softmax(dim=-1)(scores), v)
        return self.torchs(tokens, tokens, tokens, need_weights=False)[0]

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.with_cls:
            tokens = torch.cat((tokens.mean(dim=1, keepdim=True), tokens), dim=1)
        return self.layer(tokens)


@pytest.mark.parametrize("with_cls", [False, True])
@pytest.mark.parametrize("how", ["sdpa", "method", "function", "functional and dropout", "module and bmm", "torchs"])
def test_however_attention_is_written(how, with_cls):
    model, images = Plain(how, with_cls).double().train(), normal(2, 3, 8, 8)
    (map_,) = attention_maps(model, images)
    tokens = model.embed(images).flatten(2).transpose(1, 2)
    if with_cls:
        tokens = torch.cat((tokens.mean(dim=1, keepdim=True), tokens), dim=1)
    if how == "torchs":
        weights = model.torchs.eval()(tokens, tokens, tokens, average_attn_weights=True)[1]
    else:
        weights = torch.stack([torch.softmax(t[:, :4] @ t[:, 2:6].T / 2, dim=1) for t in tokens])
    for image, matrix in enumerate(weights):
        for place in range(16):
            expected = matrix[0, 1 + place] if with_cls else sum(matrix[q, place] for q in range(16)) / 16
            torch.testing.assert_close(map_.map[image, place // 4, place % 4], expected.detach())
    assert map_.kind == ("class_token" if with_cls else "attention") and map_.side == 4
    assert map_.name == ("torchs" if how == "torchs" else "layer")


class NoMap(nn.Module):
    """Softmaxes and sigmoids of four images that are nothing to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.shape = nn.Parameter(normal(4, 9, 9))

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2).transpose(1, 2)  # [4, 16, 3]
        scores = tokens @ tokens.transpose(1, 2)
        over_queries = scores.softmax(dim=1) @ tokens
        sliced = scores.softmax(dim=2)[:, :, :9] @ tokens[:, :9]
        classes = tokens.mean(1).softmax(dim=1) @ normal(3, 3)
        seven = scores[:, :, :7].softmax(dim=2) @ tokens[:, :7]
        # 9 keys are a square that a map of 4 x 4 does not shrink to.
        nine = scores[:, :, :9].softmax(dim=2) @ tokens[:, :9]
        channels = torch.sigmoid(images.mean(dim=(2, 3), keepdim=True)) * images
        every = torch.sigmoid(images) * images
        kept = [over_queries.sum(), sliced.sum(), classes.sum(), seven.sum(), nine.sum(), channels.sum(), every.sum()]
        return torch.stack(kept)


def test_what_is_no_map_is_none():
    maps, left_out = watch_attention(NoMap(), normal(4, 3, 4, 4))
    assert not maps
    assert [each.why for each in left_out] == [
        "attention to 7 keys, which are not the places of a square map",
        "attention to 9 keys, which are not the places of a square map",
        "a softmax [4, 16, 16] that is not multiplied with values as it is",
    ]


class Gates(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        first = images[:, :1].sigmoid()
        last = torch.sigmoid(images.permute(0, 2, 3, 1)[..., 1:])
        return F.sigmoid(images[:, 2:]) + first + last.permute(0, 3, 1, 2)


def test_gates_with_a_number_or_two_a_place():
    images = normal(2, 3, 5, 5)
    gates = attention_maps(Gates(), images)
    expected = [images[:, 0].sigmoid(), images[:, 1:].sigmoid().mean(1), images[:, 2].sigmoid()]
    assert [gate.kind for gate in gates] == ["gate"] * 3
    for gate, map_ in zip(gates, expected, strict=True):
        torch.testing.assert_close(gate.map, map_)


def test_low_precision():
    model, images = models.build("maxvit_tiny32", 5, 16, 1).eval(), torch.randn(2, 1, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = attention_maps(model, images)
    for one, two in zip(low, attention_maps(model, images), strict=True):
        assert one.map.dtype == torch.float32
        torch.testing.assert_close(one.map, two.map, atol=5e-3, rtol=0.1)


def test_without_images_or_with_an_error_nothing_is_left_behind():
    model = models.build("cvt_tiny32", 3, 8, 1).train()
    with pytest.raises(ValueError, match="one image or more"):
        attention_maps(model, torch.zeros(0, 1, 8, 8))
    with pytest.raises(ValueError, match="built for images"):
        attention_maps(model, torch.zeros(2, 1, 9, 9))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

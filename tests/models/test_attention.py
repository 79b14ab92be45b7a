"""What attention and gates look at: by hand, by loops and by indices pushed through; which model gives what."""

from __future__ import annotations

from math import isqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.models_helpers import perturbed, seeded_with
from umbel import models
from umbel.core.rng import generator
from umbel.models.attention import attention_maps, attention_weights, gpsa_locality, watch_attention
from umbel.models.fit import to_groups
from umbel.models.layers import to_windows
from umbel.models.maxvit import to_grid

F64 = torch.float64
seeded = seeded_with(6)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def by_name(model: nn.Module, images: Tensor) -> dict[tuple[str, str], Tensor]:
    found = {(found.name, found.kind): found.map for found in attention_maps(model, images)}
    assert all(each.min() >= 0 for each in found.values())
    return found


class Spy(TorchFunctionMode):
    """Keeps the arguments of torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, dict]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.seen.append((args[0], args[1], kwargs or {}))
        return func(*args, **(kwargs or {}))


def spied(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the attention of each call, [G, A, Q, K]."""
    with torch.no_grad(), Spy() as spy:
        model.eval()(images)
    found = []
    for q, k, options in spy.seen:
        scores = torch.einsum("gaqe,gake->gaqk", q, k) * options.get("scale", q.shape[-1] ** -0.5)
        mask = options.get("attn_mask")
        found.append(torch.softmax(scores if mask is None else scores + mask, dim=3))
    return found


# One call -------------------------------------------------------------------------------------------------

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
    (found,) = attention_maps(model, images)
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
            torch.testing.assert_close(found.map[image, place // 4, place % 4], expected.detach())
    assert found.kind == ("class_token" if with_cls else "attention") and found.side == 4
    assert found.name == ("torchs" if how == "torchs" else "layer")


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


# The zoo --------------------------------------------------------------------------------------------------


def indexed(side: int) -> Tensor:
    """Return a map of the numbers of its places, [1, S, S, 1]."""
    return torch.arange(side * side).view(1, side, side, 1)


@pytest.mark.parametrize(
    ("name", "image_size", "sizes"),
    [
        ("gcvit_tiny32", 28, {}),
        ("gcvit_tiny32", 16, {"dims": [8, 16], "heads": [2, 4], "depths": [2, 2]}),
        ("maxvit_tiny32", 28, {}),
        ("maxvit_tiny32", 16, {"dims": [16, 32, 32], "depths": [1, 1, 1]}),
        ("fit_tiny32", 32, {}),
    ],
)
def test_windows_are_put_together_as_they_were_cut(name, image_size, sizes):
    """Each key's place is found by cutting a map of numbers."""
    model = perturbed(models.build(name, 4, image_size, 2, **sizes))
    images = normal(3, 2, image_size, image_size)
    found, left_out = watch_attention(model, images)
    weights = spied(model, images)
    if name == "fit_tiny32":
        latent = {each.name for each in left_out}
        assert all(".global_blocks." in each or ".write" in each for each in latent)
        calls = [n for n, m in model.named_modules() if n.endswith("attention")]
        weights = [w for n, w in zip(calls, weights, strict=True) if n not in latent]
    else:
        assert not left_out
    assert {each.kind for each in found} == ({"windows", "grid"} if name == "maxvit_tiny32" else {"windows"})
    for map_, weight in zip(found, weights, strict=True):
        groups, heads, queries, keys = weight.shape
        window, per_image = isqrt(keys), groups // 3
        side = window * isqrt(per_image)
        cut = to_grid if map_.kind == "grid" else to_windows
        places = (
            to_groups(indexed(side).permute(0, 3, 1, 2), window)[0]
            if name == "fit_tiny32"
            else cut(indexed(side), window)
        ).reshape(per_image, keys)
        expected = torch.zeros(3, side * side, dtype=F64)
        for group in range(groups):
            received = weight[group].sum(dim=(0, 1)) / (heads * queries * per_image)
            expected[group // per_image].index_add_(0, places[group % per_image], received)
        torch.testing.assert_close(map_.map, expected.view(3, side, side))
        torch.testing.assert_close(map_.map.sum(dim=(1, 2)), torch.ones(3, dtype=F64))
        assert map_.map.std() > 1e-3  # of 0.0625 or less: a wrong order shows
    assert any(each.side > isqrt(weight.shape[3]) for each, weight in zip(found, weights, strict=True))


def test_convit_by_content_by_place_and_from_the_class_token():
    """Four images and four heads: the batch of the positional attention, which has none, is that of heads."""
    model = perturbed(models.build("convit_tiny32", 3, 12, 1, patch=3, dim=8, depth=3, local_depth=2))
    images = normal(4, 1, 12, 12)
    found = by_name(model, images)
    weights = spied(model, images)
    for layer in range(2):
        name = f"local_blocks.{layer}.attention"
        torch.testing.assert_close(found[name, "attention"].flatten(1), weights[layer].mean(dim=(1, 2)))
        by_place = model.local_blocks[layer].attention.positional(model.places).mean(dim=(0, 1)).detach()
        torch.testing.assert_close(found[name, "positional"].flatten(1), by_place.expand(4, -1))
    last = found["blocks.0.attention", "class_token"]
    torch.testing.assert_close(last.flatten(1), weights[2][:, :, 0, 1:].mean(dim=1))
    assert len(found) == 5


def test_cvt_keys_on_a_shrunk_map():
    model = perturbed(models.build("cvt_tiny32", 3, 22, 1, dims=[4, 6, 8], heads=[1, 2, 2]))
    images = normal(2, 1, 22, 22)
    found = attention_maps(model, images)
    weights = spied(model, images)
    # Maps of 22, 11 and 6 places a side, with keys at stride 2.
    assert [(each.side, each.kind) for each in found] == [(11, "attention"), (6, "attention"), (3, "class_token")]
    for map_, weight in zip(found[:2], weights[:2], strict=True):
        torch.testing.assert_close(map_.map.flatten(1), weight.mean(dim=(1, 2)))
    torch.testing.assert_close(found[2].map.flatten(1), weights[2][:, :, 0, 1:].mean(dim=1))


def test_glnet_what_gathers_places_into_slots():
    model = perturbed(models.build("glnet_tiny32", 3, 32, 1, dims=[8, 8, 16, 16], head_dim=4))
    images, seen = normal(2, 1, 32, 32), {}
    mixers = {n: m for n, m in model.named_modules() if type(m).__name__ == "GLMix"}
    for name, mixer in mixers.items():
        mixer.register_forward_pre_hook(lambda m, args, n=name: seen.update({n: m.assign(*args)}))
    maps, left_out = watch_attention(model, images)
    found = {each.name: each.map for each in maps}
    assert [each.name for each in left_out] == [f"{name}.attention" for name in mixers]
    assert all(each.why == "attention among slots, which are no places" for each in left_out)
    assert len(mixers) == 3
    for name in mixers:
        torch.testing.assert_close(found[name].flatten(1), seen[name].softmax(dim=2).mean(dim=1).detach())


def test_cas_vit_gates():
    model, seen = perturbed(models.build("cas_vit_tiny32", 3, 20, 1)), {}
    for name, module in model.named_modules():
        if name.endswith("mixer.spatial"):
            module.register_forward_hook(lambda m, a, y, n=name: seen.update({n[:-8]: y}))
    found = by_name(model, normal(2, 1, 20, 20))
    assert {(name, "gate") for name in seen} == set(found) and len(seen) == 5
    for name, scores in seen.items():
        torch.testing.assert_close(found[name, "gate"], torch.sigmoid(scores).mean(dim=1))


def test_frames_of_a_clip_are_summed():
    """Eight images are clips of four frames of a map: four times 2 x 2 keys are no map of 4 x 4."""
    model = perturbed(models.build("uniformer3d_tiny32", 3, 8, 1, num_frames=8))
    images = normal(2, 1, 8, 8)
    found, weights = attention_maps(model, images), spied(model, images)
    assert [each.side for each in found] == [2] * len(weights)
    for map_, weight in zip(found, weights, strict=True):
        torch.testing.assert_close(map_.map.flatten(1), weight.mean(dim=(1, 2)).view(2, 4, 4).sum(dim=1))


@pytest.mark.parametrize("image_size", [64, 224])
def test_chosen_tokens_are_no_map(image_size):
    """At 224 px 98 tokens, the class token and the representative are 10 x 10, on a map of 14 x 14."""
    model = models.build("uniformer_xxs", 3, image_size, 1).eval()
    maps, left_out = watch_attention(model, torch.randn(1, 1, image_size, image_size))
    assert [(each.name, each.kind, each.side) for each in maps] == [("third.0", "class_token", image_size // 16)]
    assert sum(each.why == "attention to chosen tokens, which are no map" for each in left_out) == 9


# Kinds and sides of the maps at 32 px in the order of the calls, calls that are left out.
ZOO: dict[str, tuple[list[str], int]] = {
    "affnet_tiny32": ([], 0),
    "alexnet_small": ([], 0),
    "cas_vit_tiny32": (["gate 16", "gate 8", "gate 4", "gate 4", "gate 2"], 0),
    "cnn": ([], 0),
    "convit_tiny32": (["attention 8", "positional 8"] * 3 + ["class_token 8"], 0),
    "convnext_dcls_tiny32": ([], 0),
    "cvt_tiny32": (["attention 8", "attention 4", "class_token 2"], 0),
    "fit_tiny32": (["windows 8"] * 4, 5),
    "gcvit_tiny32": (["windows 8"] * 2 + ["windows 4"] * 2, 0),
    "glnet_tiny32": (["attention 16", "attention 8", "attention 4", "attention 4", "attention 2"], 3),
    "inception_next_tiny32": ([], 0),
    "linear": ([], 0),
    "lsnet_tiny32": (["attention 2"], 0),
    "maxvit_tiny32": (["windows 8", "grid 8", "windows 4", "grid 4"], 0),
    "ms_mlp_tiny32": ([], 0),
    "raftmlp_tiny32": ([], 0),
    "resnet18": ([], 0),
    "spartan_tiny32": ([], 0),
    "transnext_tiny32": (["attention 4", "attention 4", "attention 2"], 2),
    "uniformer3d_tiny32": (["attention 4", "attention 4", "attention 2"], 0),
    "uniformer_tiny32": (["attention 4", "attention 4", "attention 2"], 0),
    "unireplknet_tiny32": ([], 0),
}


@pytest.mark.parametrize("name", ZOO)
def test_what_each_model_gives_and_that_it_is_left_as_it_was(name):
    model = models.build(name, 5, 32, 3).train()
    next(iter(model.children())).eval()
    modes = [module.training for module in model.modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = torch.randn(3, 3, 32, 32)
    random, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    maps, left_out = watch_attention(model, images)
    assert ([f"{each.kind} {each.side}" for each in maps], len(left_out)) == ZOO[name]
    assert torch.equal(torch.get_rng_state(), random) and torch.backends.mha.get_fastpath_enabled() == fast
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    names = {key for key, _ in model.named_modules()}
    for each in maps:
        assert each.name in names and each.map.shape == (3, each.side, each.side)
        assert each.map.dtype == torch.float32 and not each.map.requires_grad
        if each.kind in ("attention", "positional", "windows", "grid"):
            torch.testing.assert_close(each.map.sum(dim=(1, 2)), torch.ones(3))
        elif each.kind == "class_token":
            assert (each.map.sum(dim=(1, 2)) < 1).all()
    again = attention_maps(model, images)
    assert all(torch.equal(one.map, two.map) for one, two in zip(maps, again, strict=True))
    alone = attention_maps(model, images[1:2])
    for one, two in zip(maps, alone, strict=True):
        assert (one.name, one.kind) == (two.name, two.kind)
        torch.testing.assert_close(one.map[1:2], two.map)


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


# Gates of ConViT ------------------------------------------------------------------------------------------


def test_locality_of_gated_layers():
    model = models.build("convit_tiny32", 3, 8, 1, dim=8, depth=3, local_depth=2)
    start = torch.sigmoid(torch.ones(())).item()
    names = ["local_blocks.0.attention", "local_blocks.1.attention"]
    assert gpsa_locality(model) == pytest.approx(dict.fromkeys(names, start))
    with torch.no_grad():
        model.local_blocks[1].attention.gate.copy_(torch.tensor([0.0, 1e9, -1e9, 0.0]))
    assert gpsa_locality(model) == pytest.approx(dict(zip(names, [start, 0.5], strict=True)))
    assert list(gpsa_locality(model).values()) == pytest.approx(model.locality().tolist())
    assert gpsa_locality(models.build("cvt_tiny32", 3, 8, 1)) == {}

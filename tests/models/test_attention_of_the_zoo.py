"""What the zoo's attention and gates look at, by indices pushed through; which model gives what."""

from __future__ import annotations

from math import isqrt

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.models_helpers import normal, perturbed, seeded_with
from umbel import models
from umbel.models.attention import attention_maps, gpsa_locality, watch_attention
from umbel.models.fit import to_groups
from umbel.models.layers import to_windows
from umbel.models.maxvit import to_grid

F64 = torch.float64
seeded = seeded_with(6)


def by_name(model: nn.Module, images: Tensor) -> dict[tuple[str, str], Tensor]:
    maps = {(each.name, each.kind): each.map for each in attention_maps(model, images)}
    assert all(each.min() >= 0 for each in maps.values())
    return maps


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
    weights = []
    for q, k, options in spy.seen:
        scores = torch.einsum("gaqe,gake->gaqk", q, k) * options.get("scale", q.shape[-1] ** -0.5)
        mask = options.get("attn_mask")
        weights.append(torch.softmax(scores if mask is None else scores + mask, dim=3))
    return weights


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
    maps, left_out = watch_attention(model, images)
    weights = spied(model, images)
    if name == "fit_tiny32":
        latent = {each.name for each in left_out}
        assert all(".global_blocks." in each or ".write" in each for each in latent)
        calls = [n for n, m in model.named_modules() if n.endswith("attention")]
        weights = [w for n, w in zip(calls, weights, strict=True) if n not in latent]
    else:
        assert not left_out
    assert {each.kind for each in maps} == ({"windows", "grid"} if name == "maxvit_tiny32" else {"windows"})
    for map_, weight in zip(maps, weights, strict=True):
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
    assert any(each.side > isqrt(weight.shape[3]) for each, weight in zip(maps, weights, strict=True))


def test_convit_by_content_by_place_and_from_the_class_token():
    """Four images and four heads: the batch of the positional attention, which has none, is that of heads."""
    model = perturbed(models.build("convit_tiny32", 3, 12, 1, patch=3, dim=8, depth=3, local_depth=2))
    images = normal(4, 1, 12, 12)
    maps = by_name(model, images)
    weights = spied(model, images)
    for layer in range(2):
        name = f"local_blocks.{layer}.attention"
        torch.testing.assert_close(maps[name, "attention"].flatten(1), weights[layer].mean(dim=(1, 2)))
        by_place = model.local_blocks[layer].attention.positional(model.places).mean(dim=(0, 1)).detach()
        torch.testing.assert_close(maps[name, "positional"].flatten(1), by_place.expand(4, -1))
    last = maps["blocks.0.attention", "class_token"]
    torch.testing.assert_close(last.flatten(1), weights[2][:, :, 0, 1:].mean(dim=1))
    assert len(maps) == 5


def test_cvt_keys_on_a_shrunk_map():
    model = perturbed(models.build("cvt_tiny32", 3, 22, 1, dims=[4, 6, 8], heads=[1, 2, 2]))
    images = normal(2, 1, 22, 22)
    maps = attention_maps(model, images)
    weights = spied(model, images)
    # Maps of 22, 11 and 6 places a side, with keys at stride 2.
    assert [(each.side, each.kind) for each in maps] == [(11, "attention"), (6, "attention"), (3, "class_token")]
    for map_, weight in zip(maps[:2], weights[:2], strict=True):
        torch.testing.assert_close(map_.map.flatten(1), weight.mean(dim=(1, 2)))
    torch.testing.assert_close(maps[2].map.flatten(1), weights[2][:, :, 0, 1:].mean(dim=1))


def test_glnet_what_gathers_places_into_slots():
    model = perturbed(models.build("glnet_tiny32", 3, 32, 1, dims=[8, 8, 16, 16], head_dim=4))
    images, seen = normal(2, 1, 32, 32), {}
    mixers = {n: m for n, m in model.named_modules() if type(m).__name__ == "GLMix"}
    for name, mixer in mixers.items():
        mixer.register_forward_pre_hook(lambda m, args, n=name: seen.update({n: m.assign(*args)}))
    maps, left_out = watch_attention(model, images)
    by_layer = {each.name: each.map for each in maps}
    assert [each.name for each in left_out] == [f"{name}.attention" for name in mixers]
    assert all(each.why == "attention among slots, which are no places" for each in left_out)
    assert len(mixers) == 3
    for name in mixers:
        torch.testing.assert_close(by_layer[name].flatten(1), seen[name].softmax(dim=2).mean(dim=1).detach())


def test_cas_vit_gates():
    model, seen = perturbed(models.build("cas_vit_tiny32", 3, 20, 1)), {}
    for name, module in model.named_modules():
        if name.endswith("mixer.spatial"):
            module.register_forward_hook(lambda m, a, y, n=name: seen.update({n[:-8]: y}))
    maps = by_name(model, normal(2, 1, 20, 20))
    assert {(name, "gate") for name in seen} == set(maps) and len(seen) == 5
    for name, scores in seen.items():
        torch.testing.assert_close(maps[name, "gate"], torch.sigmoid(scores).mean(dim=1))


def test_frames_of_a_clip_are_summed():
    """Eight images are clips of four frames of a map: four times 2 x 2 keys are no map of 4 x 4."""
    model = perturbed(models.build("uniformer3d_tiny32", 3, 8, 1, num_frames=8))
    images = normal(2, 1, 8, 8)
    maps, weights = attention_maps(model, images), spied(model, images)
    assert [each.side for each in maps] == [2] * len(weights)
    for map_, weight in zip(maps, weights, strict=True):
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
    "lenet": ([], 0),
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

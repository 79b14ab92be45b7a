"""GLSim: the box holds the top places and no more, the crop is what slicing gives, the head and the aggregator."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import count, num_parameters, perturbed, seeded_with
from umbel.models import build, operators
from umbel.models.maps import MapLayer, last_map
from umbel.models.operators.glsim import AggregatorBlock, GLSim, crop, similarity, top_box

seeded = seeded_with(9)


def made(name: str = "cvt_tiny32", size: int = 28, channels: int = 1, **options) -> GLSim:
    return operators.replace(build(name, 3, size, channels), "head", "glsim", **options)


def test_similarity_is_the_cosine_at_each_place():
    overall, places = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, 4, 4, dtype=torch.float64)
    cosines = similarity(overall, places)
    for image in range(3):
        for row in range(4):
            for column in range(4):
                place, whole = places[image, :, row, column], overall[image]
                assert cosines[image, row, column] == pytest.approx(float(place @ whole / place.norm() / whole.norm()))
    assert torch.equal(similarity(overall, torch.zeros_like(places)), torch.zeros(3, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize(("side", "size"), [(7, 28), (4, 32), (5, 28), (3, 32), (16, 12)])
@pytest.mark.parametrize("num_top", [1, 2, 5, 9])
def test_the_box_holds_every_top_place_and_touches_one_on_each_side(side, size, num_top):
    scores = torch.rand(6, side, side)
    boxes = top_box(scores, num_top, size).tolist()
    for image, box in enumerate(boxes):
        ranked = sorted(((float(scores[image, r, c]), r, c) for r in range(side) for c in range(side)), reverse=True)
        # A place covers the pixels that it has a share of.
        pixels = [
            (r * size // side, c * size // side, -(-(r + 1) * size // side), -(-(c + 1) * size // side))
            for _, r, c in ranked[:num_top]
        ]
        tops, lefts, bottoms, rights = zip(*pixels, strict=True)
        assert box == [min(tops), min(lefts), max(bottoms), max(rights)]
        assert 0 <= box[0] < box[2] <= size and 0 <= box[1] < box[3] <= size


def test_of_equal_scores_the_first_is_taken():
    scores = torch.zeros(1, 4, 4)
    assert top_box(scores, 1, 8).tolist() == [[0, 0, 2, 2]]
    assert top_box(scores, 5, 8).tolist() == [[0, 0, 4, 8]]
    scores[0, 3, 2] = 1
    assert top_box(scores, 2, 8).tolist() == [[0, 0, 8, 6]]
    assert top_box(scores, 16, 8).tolist() == [[0, 0, 8, 8]]
    assert top_box(scores[:0], 3, 8).shape == (0, 4)


def test_a_crop_is_a_slice_that_is_resized():
    images = torch.randn(6, 2, 11, 11, dtype=torch.float64)
    boxes = [(0, 0, 11, 11), (2, 3, 9, 5), (10, 10, 11, 11), (0, 4, 1, 11), (5, 0, 7, 11), (3, 3, 4, 4)]
    crops = crop(images, torch.tensor(boxes))
    for image, (top, left, bottom, right) in enumerate(boxes):
        part = images[image : image + 1, :, top:bottom, left:right]
        expected = F.interpolate(part, size=(11, 11), mode="bilinear", align_corners=True)
        torch.testing.assert_close(crops[image : image + 1], expected, rtol=0, atol=1e-12)
        single = crop(images[image : image + 1].float(), torch.tensor([boxes[image]]))
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(crops[0], images[0])
    assert torch.equal(crop(images.float(), torch.tensor(boxes))[0], images[0].float())
    assert (crop(images.bfloat16(), torch.tensor(boxes)).double() - crops).abs().max() < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crop(images, torch.tensor(boxes)), crops)


@pytest.mark.parametrize("name", ["cvt_tiny32", "resnet18", "gcvit_tiny32"])
def test_the_crop_is_of_the_places_most_like_the_whole(name):
    model = operators.replace(build(name, 3, 32, 3, **({"width": 8} if name == "resnet18" else {})), "head", "glsim")
    model = perturbed(model)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    seen: list[torch.Tensor] = []
    handle = model.trunk.get_submodule(model.layer.name).register_forward_hook(lambda m, i, output: seen.append(output))
    given: list[torch.Tensor] = []
    features, model.trunk.features = model.trunk.features, lambda images: given.append(images) or features(images)
    aggregated = model.features(x)
    handle.remove()
    places = model.layer.read(seen[0])
    whole = seen[0][:, 0] if model.layer.layout == "class_token" else places.mean(dim=(2, 3))
    assert (model.layer.layout == "class_token") == (name == "cvt_tiny32")
    boxes = top_box(F.cosine_similarity(whole[:, :, None, None], places), 8, 32)
    assert len(given) == 2 and torch.equal(given[0], x) and torch.equal(given[1], crop(x, boxes))
    tokens = torch.stack((features(x), features(given[1])), dim=1)
    torch.testing.assert_close(aggregated, model.norm(model.aggregator(tokens))[:, 0], rtol=1e-12, atol=1e-12)
    assert torch.equal(model.look(x)[1], boxes)


def test_the_choice_has_no_gradient():
    model = made("cnn").double()
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64, requires_grad=True)
    whole, boxes = model.look(x)
    assert not boxes.requires_grad and whole.requires_grad
    # What the places say of themselves reaches nothing: only the two passes do.
    nn.init.normal_(model.head.weight)
    plain = model.head(
        model.norm(model.aggregator(torch.stack((whole, model.trunk.features(crop(x, boxes))), 1)))[:, 0]
    )
    parameters = list(model.trunk.parameters())
    for one, other in zip(
        torch.autograd.grad(model(x).square().sum(), parameters, allow_unused=True),
        torch.autograd.grad(plain.square().sum(), parameters, allow_unused=True),
        strict=True,
    ):
        assert (one is None and other is None) or torch.equal(one, other)


def test_all_places_show_the_image_again():
    model = made(num_top=16).eval()
    x = torch.randn(2, 1, 28, 28)
    features, boxes = model.look(x)
    assert boxes.tolist() == [[0, 0, 28, 28]] * 2
    assert torch.equal(crop(x, boxes), x)
    assert torch.equal(model.features(x), model.norm(model.aggregator(torch.stack((features, features), 1)))[:, 0])


def test_the_aggregator_is_a_pre_norm_layer_on_two_tokens():
    block = perturbed(AggregatorBlock(6, 2, 3))
    tokens = torch.randn(2, 2, 6, dtype=torch.float64)
    library = nn.TransformerEncoderLayer(6, 2, 18, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).double()
    library.load_state_dict(
        {
            "self_attn.in_proj_weight": block.attention.qkv.weight,
            "self_attn.in_proj_bias": block.attention.qkv.bias,
            "self_attn.out_proj.weight": block.attention.out.weight,
            "self_attn.out_proj.bias": block.attention.out.bias,
            "linear1.weight": block.mlp.fc1.weight,
            "linear1.bias": block.mlp.fc1.bias,
            "linear2.weight": block.mlp.fc2.weight,
            "linear2.bias": block.mlp.fc2.bias,
            **{
                f"norm{i}.{key}": getattr(block, f"norm{i}").state_dict()[key]
                for i in (1, 2)
                for key in ("weight", "bias")
            },
        }
    )
    torch.testing.assert_close(block(tokens), library.train()(tokens), rtol=1e-12, atol=1e-12)


def test_as_published_the_head_begins_at_zero():
    model = made()
    assert torch.equal(model(torch.randn(2, 1, 28, 28)), torch.zeros(2, 3))
    for layer in (each for each in model.aggregator.modules() if isinstance(each, nn.Linear)):
        weight, total = layer.weight.detach(), layer.in_features + layer.out_features
        assert weight.abs().max() <= (6 / total) ** 0.5
        assert float(weight.std()) == pytest.approx((2 / total) ** 0.5, rel=0.05)  # Glorot's
        assert not layer.bias.any()


def test_parameters():
    plain = build("cvt_tiny32", 3, 28, 1)
    for depth, ratio in ((1, 4), (2, 3)):
        model = made(depth=depth, mlp_ratio=ratio)
        block = (4 + 2 * ratio) * 96**2 + (4 + ratio + 1) * 96 + 4 * 96
        assert num_parameters(model) - num_parameters(plain) == depth * block + 2 * 96
        assert count(model, AggregatorBlock) == depth


def test_options():
    assert made().num_top == 8
    assert made("lsnet_tiny32").layer.side == 4  # the last with more than 8 places
    assert made("lsnet_tiny32", num_top=3).layer.side == 2
    assert made(layer="stages.0.blocks.0").layer == MapLayer("stages.0.blocks.0", "tokens", 24, 14)
    assert made(num_top=1000).num_top == 14**2  # no map has more places than the largest
    assert made(num_top=1000).layer == last_map(build("cvt_tiny32", 3, 28, 1), least=14)
    assert [made(heads=heads).aggregator[0].attention.heads for heads in (None, 1, 3)] == [1, 1, 3]
    wide = operators.replace(build("cnn", 3, 28, 1, hidden=192), "head", "glsim")
    assert wide.aggregator[0].attention.heads == 3
    odd = operators.replace(build("cnn", 3, 28, 1, hidden=131), "head", "glsim")
    assert odd.aggregator[0].attention.heads == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_top": 0}, r"model\.operators\.glsim\.num_top should be a whole number of at least 1, found 0"),
        ({"num_top": 2.5}, r"glsim\.num_top"),
        ({"depth": True}, r"model\.operators\.glsim\.depth"),
        ({"mlp_ratio": 0}, r"model\.operators\.glsim\.mlp_ratio"),
        ({"heads": 5}, r"model\.operators\.glsim\.heads: 5 does not divide 96 channels"),
        ({"layer": "stages.2.blocks"}, r"'stages\.2\.blocks' \(key model\.operators\.glsim\.layer\)"),
        ({"top": 3}, r"Unknown option 'top'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


@pytest.mark.parametrize(("name", "size", "channels"), [("cvt_tiny32", 28, 1), ("cnn", 32, 3)])
def test_it_learns(name, size, channels):
    model = made(name, size, channels, num_top=3).train()
    x, y = torch.randn(12, channels, size, size), torch.arange(12) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-5)
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())

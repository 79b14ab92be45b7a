"""Which layers give maps, and how they are read: every layout against loops, models of one's own, every family."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.models_helpers import on_meta, seeded_with
from umbel.core.names import UnknownNameError
from umbel.models import build, names
from umbel.models.base import Block, Model
from umbel.models.maps import MapLayer, blocks_of, calls, last_map, map_layers, trial, watched

TINY = tuple(name for name in names() if name.endswith("_tiny32"))
OTHERS = ("cnn", "lenet", "alexnet_small", "resnet18")

seeded = seeded_with(5)


class Shaped(nn.Module):
    """Gives whatever a function makes of its input."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


class ShapedBlock(Shaped, Block):
    pass


class Own(Model):
    """A user's model: layers one after the other, of which each gets the first one's map."""

    def __init__(self, *layers: nn.Module, size: int = 6, channels: int = 2) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = 5, channels, size
        self.stem = nn.Conv2d(channels, 5, 3, padding=1)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(5, 3)

    def features(self, x):
        self.check_input(x)
        x = self.stem(x)
        for layer in self.layers:
            layer(x)
        return x.mean(dim=(2, 3))


def map_layer(layer: nn.Module, size: int = 6) -> MapLayer | None:
    """Return how the output of one layer behind a stem is read."""
    layers = {each.name: each for each in map_layers(Own(layer, size=size))}
    return layers.get("layers.0")


def class_first(x):
    tokens = x.flatten(2).mT
    return torch.cat((tokens.mean(1, keepdim=True), tokens), dim=1)


LAYOUTS = {
    "channels_first": lambda x: x,
    "channels_last": lambda x: x.permute(0, 2, 3, 1),
    "tokens": lambda x: x.flatten(2).mT,
    "class_token": class_first,
    "frames": lambda x: torch.stack((x - 1, x, x + 1), dim=2),
}


@pytest.mark.parametrize("nested", [lambda y: y, lambda y: (y, 6, 6), lambda y: [(y, None), 3]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_found_and_read(layout, nested):
    make = LAYOUTS[layout]
    assert map_layer(Shaped(lambda x: nested(make(x)))) == MapLayer("layers.0", layout, channels=5, side=6)
    x = torch.randn(4, 5, 6, 6, dtype=torch.float64)
    layer = MapLayer("any", layout, 5, 6)
    for batch in (x, x[:0]):
        torch.testing.assert_close(layer.read(nested(make(batch))), batch, rtol=0, atol=1e-15)
    torch.testing.assert_close(layer.overall(nested(make(x))), x.mean(dim=(2, 3)), rtol=0, atol=1e-15)


def test_the_class_token_stands_for_the_whole():
    tokens = torch.randn(2, 10, 4)
    assert torch.equal(MapLayer("any", "class_token", 4, 3).overall((tokens, 3, 3)), tokens[:, 0])
    assert torch.equal(MapLayer("any", "class_token", 4, 3).read(tokens)[1, :, 2, 0], tokens[1, 1 + 2 * 3])


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.mean(dim=(2, 3)),  # [B, C]
        lambda x: x.sum(),  # a number
        lambda x: x[:, :, :1, :1],  # one place
        lambda x: x[:, :, :, :5],  # not square
        lambda x: x.flatten(2).mT[:, :7],  # 7 tokens
        lambda x: x.flatten(2).mT[:, :1],  # one token
        lambda x: x.flatten(2).mT[:, :0],
        lambda x: x.flatten(0, 1),  # not an image a row
        lambda x: x.new_empty(3, 36, 36),  # positions of 3 heads
        lambda x: x.new_empty(len(x), 4, 36, 36),  # attention: more places than pixels
        lambda x: {"map": x},
        lambda x: (),
        lambda x: None,
    ],
)
def test_other_outputs_are_no_maps(make):
    assert map_layer(Shaped(make)) is None


def test_what_is_no_tensor_cannot_be_read():
    with pytest.raises(ValueError, match="stem should give a tensor, found dict"):
        MapLayer("stem", "tokens", 5, 6).read({})
    with pytest.raises(ValueError, match="stem should give a tensor, found NoneType"):
        MapLayer("stem", "class_token", 5, 6).overall(None)


class Grouped(nn.Module):
    """Says how its output lies; what is inside of it has the same shape."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.map_layout = layout
        self.inner = nn.Identity()

    def forward(self, x):  # [B, C, 6, 6] -> 9 groups of 2 x 2
        squares = x.unflatten(2, (3, 2)).unflatten(4, (3, 2)).permute(0, 2, 4, 3, 5, 1)
        return self.inner(squares.flatten(1, 2).flatten(2, 3))


def test_groups_that_a_module_says_it_has():
    model = Own(Grouped("groups"), Grouped("none"), nn.Identity())
    assert [(each.name, each.layout, each.side) for each in map_layers(model)] == [
        ("stem", "channels_first", 6),
        ("layers.0", "groups", 6),
        ("layers.2", "channels_first", 6),
    ]
    x = torch.randn(2, 5, 6, 6)
    layer = map_layers(model)[1]
    groups = model.layers[0](x)
    assert groups.shape == (2, 9, 4, 5)
    assert torch.equal(groups[1, 5, 2], x[1, :, 3, 4])  # row 1 and column 2 of the groups, row 1 and column 0 within
    assert torch.equal(layer.read(groups), x)
    assert layer.read(groups[:0]).shape == (0, 5, 6, 6)
    with pytest.raises(UnknownNameError, match=r"map_layout of layers\.0 'group'.*'groups'"):
        map_layers(Own(Grouped("group")))


def test_calls_are_in_order_with_the_first_of_each():
    shared = nn.Conv2d(5, 5, 3, stride=2)
    model = Own(shared, nn.Sequential(nn.Identity(), nn.Flatten()), shared)
    model.layers[2] = shared
    noted = calls(model)
    assert [call.name for call in noted] == ["stem", "layers.0", "layers.1.0", "layers.1.1", "layers.1", "head", ""]
    shapes = {call.name: (call.inputs[1:], call.output[1:]) for call in noted}
    assert shapes["layers.0"] == ((5, 6, 6), (5, 2, 2))
    assert shapes["layers.1.1"] == ((5, 6, 6), (180,))
    assert shapes[""] == ((2, 6, 6), (3,))
    assert {call.batch for call in noted} == {call.inputs[0] for call in noted}


def test_the_last_block_is_taken_and_the_last_module_without_blocks():
    half = lambda x: x[:, :, ::2, ::2]  # noqa: E731
    third = lambda x: x[:, :, ::3, ::3]  # noqa: E731
    plain = Own(Shaped(half), Shaped(third))
    assert last_map(plain) == MapLayer("layers.1", "channels_first", 5, 2)
    assert last_map(plain, least=3).name == "layers.0"
    assert last_map(plain, least=4).name == "stem"
    assert last_map(plain, least=100).name == "stem"  # the last of the largest
    blocks = Own(ShapedBlock(half), ShapedBlock(third), nn.Identity())
    assert last_map(blocks).name == "layers.1"
    assert [last_map(blocks, least=least).name for least in (1, 3, 4, 100)] == ["layers.1", *3 * ["layers.0"]]
    assert last_map(blocks, "stem").name == "stem"
    assert [each.name for each in blocks_of(blocks, map_layers(blocks))] == ["layers.0", "layers.1"]


def test_errors_name_what_to_change():
    with pytest.raises(ValueError, match=r"Linear has no layer that gives a map.*model\.name, model\.image_size"):
        last_map(build("linear", 3, 8))
    with pytest.raises(UnknownNameError, match=r"layer with a map 'stem2' \(key a\.b\)\. Did you mean 'stem'"):
        last_map(Own(), "stem2", key="a.b")
    with pytest.raises(UnknownNameError, match=r"layer with a map 'head'\. "):
        last_map(Own(), "head")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_and_the_generator_stay_as_they_are(dtype):
    model = build("cvt_tiny32", 3, 16, 1, drop_path=0.5).to(dtype)
    model.stages[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    last_map(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and not parameter.is_meta for parameter in model.parameters())
    assert last_map(on_meta("cvt_tiny32", 3, 16, 1)) == last_map(model)


def test_a_trial_has_shapes_alone():
    model = Own().double()
    twin, images = trial(model)
    assert images.is_meta and images.dtype == torch.float64 and images.shape[1:] == (2, 6, 6)
    assert twin is not model and not twin.training and all(p.is_meta for p in twin.parameters())


def test_watched_keeps_the_maps_of_the_last_call():
    class Twice(Own):
        """Looks at an image, and then at a part of it."""

        def features(self, x):
            return super().features(x) + super().features(x.roll(1, 0))

    model = Twice(nn.Identity())
    layers = map_layers(model)
    x = torch.randn(2, 2, 6, 6)
    with watched(model, layers) as kept:
        assert kept == {}
        model(torch.randn(3, 2, 6, 6))
        model(x)
        assert list(kept) == ["stem", "layers.0"]
        seen = dict(kept)
    assert torch.equal(seen["layers.0"], model.stem(x))
    assert not seen["layers.0"].requires_grad
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError), watched(model, layers):
        raise ZeroDivisionError
    assert not model.stem._forward_hooks


def corners_of(model: Model, layers: list[MapLayer]) -> dict[str, list[tuple[int, int]]]:
    """Say of each layer in which quarter its map changes most when a corner of the image does, corner by corner."""
    size, blank = model.image_size, torch.randn(model.in_channels, model.image_size, model.image_size)
    images = [blank.clone() for _ in range(5)]
    for (row, column), image in zip(CORNERS, images[1:], strict=True):
        image[:, row * (size - 6) :, column * (size - 6) :][:, :6, :6] += 3
    with torch.no_grad(), watched(model.eval(), layers) as kept:
        model(torch.stack(images))
    places = {}
    for layer in layers:
        assert kept[layer.name].shape == (5, layer.channels, layer.side, layer.side)
        change = (kept[layer.name][1:] - kept[layer.name][:1]).abs().mean(1).flatten(1).argmax(1).tolist()
        side = layer.side
        places[layer.name] = [(2 * (at // side) // side, 2 * (at % side) // side) for at in change]
    return places


CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("name", (*TINY, *OTHERS))
def test_every_model_has_a_map_that_lies_as_it_is_read(name):
    sizes = {"width": 8} if name == "resnet18" else {}
    assert last_map(on_meta(name, 3, 32, 3, **sizes)).side >= 2
    model = build(name, 3, 28, 1, **sizes)
    layers = map_layers(model)
    blocks = blocks_of(model, layers) or layers
    assert blocks[-1].side >= 2
    if name == "fit_tiny32":  # its patches lie in groups, which it says
        assert {each.layout for each in blocks} == {"groups"}
    # Deep down everything has seen everything.
    early = [each for each in blocks if each.side > 4] or blocks[:1]
    for layer, places in corners_of(model, early).items():
        assert places == CORNERS, layer

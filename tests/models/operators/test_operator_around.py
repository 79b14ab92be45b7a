"""What holds for both operators around a model: any trunk, copies, checkpointing, norms, ways of running it."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import num_parameters, seeded_with
from umbel.models import build, names, operators
from umbel.models.base import Block, Model
from umbel.models.checkpointing import checkpoint_blocks
from umbel.models.maps import MapLayer, last_map
from umbel.models.norm import replace_batch_norm
from umbel.models.operators.around import Tap, Taps, beheaded, freeze_unused
from umbel.models.weights import load_state, shared_state

TINY = tuple(name for name in names() if name.endswith("_tiny32"))
TRUNKS = (*TINY, "cnn", "resnet18", pytest.param("alexnet_small", marks=pytest.mark.slow))
AROUND = ("glsim", "dolg")
SIZES = {"resnet18": {"width": 8}, "alexnet_small": {}, "cnn": {"width": 4, "hidden": 8}}

seeded = seeded_with(7)


def trunk(name: str, size: int = 28, channels: int = 1, **sizes) -> Model:
    return build(name, 3, size, channels, **SIZES.get(name, {}), **sizes)


def made(name: str, operator: str, size: int = 28, channels: int = 1, **options) -> Model:
    return operators.replace(trunk(name, size, channels), "head", operator, **options)


def check_training(model: Model, *batches: int) -> None:
    """Run batches of these sizes forwards and backwards: all that learns has a gradient."""
    for batch in batches:
        model.train().zero_grad()
        F.cross_entropy(model(images(model, batch)), torch.arange(batch) % 3).backward()
        grads = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
        assert not [key for key, grad in grads.items() if grad is None or not torch.isfinite(grad).all()]


def images(model: Model, batch: int) -> torch.Tensor:
    return torch.randn(batch, model.in_channels, model.image_size, model.image_size)


class Stage(Block):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Own(Model):
    """A user's model: two stages, the mean, and a layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = 6, 2, 16
        self.stages = nn.Sequential(Stage(2, 4), Stage(4, 6))
        self.last = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def features(self, x):
        self.check_input(x)
        return self.last(self.stages(x).mean(dim=(2, 3)))


def trunks():
    """Each model under one of the operators; the other in `make test-all`."""
    for i, name in enumerate(TRUNKS):
        given, marks = (name.values[0], name.marks) if hasattr(name, "marks") else (name, ())
        for j, operator in enumerate(AROUND):
            yield pytest.param(operator, given, marks=marks if j == i % len(AROUND) else pytest.mark.exhaustive)


@pytest.mark.parametrize(("operator", "name"), list(trunks()))
def test_every_model_can_be_a_trunk(operator, name):
    size, channels = (28, 1) if operator == "glsim" else (32, 3)
    given = trunk(name, size, channels)
    features = given.num_features
    model = operators.replace(given, "head", operator)
    assert model.trunk is given and isinstance(given.head, nn.Identity)
    assert (model.num_features, model.head.in_features, model.head.out_features) == (features, features, 3)
    assert (model.image_size, model.in_channels) == (size, channels)
    keys = list(model.state_dict())
    assert keys[-2:] == ["head.weight", "head.bias"]
    assert not [key for key in keys if key.startswith(("trunk.head", "taps"))]
    assert all(tensor.dtype.is_floating_point for tensor in shared_state(model).values())
    check_training(model, 1)
    x = images(model, 1)
    assert model.features(x).shape == (1, features)
    with pytest.raises(ValueError, match=rf"{type(model).__name__} was built for images \[batch, "):
        model(x[:, :, 1:])


@pytest.mark.parametrize("operator", AROUND)
def test_a_model_of_ones_own(operator):
    model = operators.replace(Own(), "head", operator)
    check_training(model, 1, 2)
    assert model.eval()(torch.empty(0, 2, 16, 16)).shape == (0, 3)


@pytest.mark.parametrize("operator", AROUND)
def test_a_model_without_maps_is_refused_as_it_is(operator):
    model = build("mlp", 3, 8)
    with pytest.raises(ValueError, match=r"MLP has no layer that gives a map.*model\.name"):
        operators.replace(model, "head", operator)
    with pytest.raises(ValueError, match=rf"'nothing' \(key model\.operators\.{operator}\.layer\)"):
        operators.replace(trunk("cnn"), "head", operator, layer="nothing")
    assert isinstance(model.head, nn.Linear)
    model = trunk("cnn")
    with pytest.raises(ValueError, match="whole model: say layers='head'"):
        operators.replace(model, "conv", operator)
    assert isinstance(model.head, nn.Linear)


@pytest.mark.parametrize("operator", AROUND)
@pytest.mark.parametrize("name", ["cvt_tiny32", "cnn"])
def test_copies_do_not_meet(operator, name):
    model = made(name, operator).eval()
    nn.init.normal_(model.head.weight)
    x, y = torch.randn(2, 2, 1, 28, 28)
    expected = model(x)
    one, two = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in two.parameters():
            parameter.mul_(1.5)
    heard: list[nn.Module] = []
    for each in (model, one, two):
        for tap in each.taps.each:
            assert tap._layer == (each.trunk.get_submodule(tap.name),)
            hooks = list(each.trunk.get_submodule(tap.name)._forward_hooks.values())
            assert [hook.__self__ for hook in hooks] == [tap]
            heard.append(tap)
    assert len({id(tap) for tap in heard}) == len(heard)
    # A pass of one within a pass of another, at the layer that both tap.
    inner = one.trunk.get_submodule(one.taps.each[0].name)
    handle = inner.register_forward_pre_hook(lambda module, given: [two(y), None][1])
    assert torch.equal(one(x), expected)
    handle.remove()
    assert not torch.equal(two(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)


@pytest.mark.parametrize("operator", AROUND)
def test_nothing_is_kept_between_passes(operator):
    model = made("cvt_tiny32", operator)
    outputs: list[weakref.ref] = []
    for tap in model.taps.each:
        layer = model.trunk.get_submodule(tap.name)
        layer.register_forward_hook(lambda module, given, output: outputs.append(weakref.ref(output)))
    x = torch.randn(2, 1, 28, 28)
    model(x).sum().backward()
    assert outputs and all(not tap.open and tap.output is None for tap in model.taps.each)
    gc.collect()
    assert all(output() is None for output in outputs)
    model.trunk.norm.weight = None  # breaks a pass in the middle
    model.trunk.norm.forward = None
    with pytest.raises(TypeError):
        model(x)
    assert all(not tap.open and tap.output is None for tap in model.taps.each)


def step(model: Model, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Take two steps and return the state and the last gradients."""
    torch.manual_seed(4)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    grads = {f"{key}.grad": p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {**model.state_dict(), **grads}


@pytest.mark.parametrize("layer", ["", "stages.1.blocks.0.norm2", "stages.1.embed"])
@pytest.mark.parametrize("operator", AROUND)
def test_checkpointed_blocks_give_the_same_bits(operator, layer):
    model = operators.replace(trunk("cvt_tiny32", drop_path=0.3), "head", operator, layer=layer)
    nn.init.normal_(model.head.weight)
    other = checkpoint_blocks(copy.deepcopy(model))
    x = torch.randn(3, 1, 28, 28)
    plain, again = step(model, x), step(other, x)
    assert plain.keys() == again.keys()
    for key, value in plain.items():
        assert torch.equal(value, again[key]), key
    assert all(tap.output is None for tap in other.taps.each)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("operator", AROUND)
def test_a_rule_for_norms_may_replace_the_layer_that_is_tapped(operator, groups):
    model = operators.replace(build("cnn", 3, 28, 1, width=4, hidden=16, norm="batch"), "head", operator)
    assert isinstance(model.trunk.norm2, nn.BatchNorm2d)
    model = replace_batch_norm(model, groups)
    assert not [each for each in model.modules() if isinstance(each, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert isinstance(model.trunk.norm2, nn.GroupNorm)
    check_training(model, 1, 2)
    assert len(model.trunk.norm2._forward_hooks) == 1
    check_training(copy.deepcopy(model), 2)


@pytest.mark.parametrize("operator", AROUND)
@pytest.mark.parametrize("name", ["cvt_tiny32", "cnn", "gcvit_tiny32"])
def test_precisions_and_memory_order(operator, name):
    model = made(name, operator).train()
    step(model, torch.randn(3, 1, 28, 28))
    model.eval()
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        plain, exact = model(x), copy.deepcopy(model).double()(x.double())
        low, half = copy.deepcopy(model).bfloat16()(x.bfloat16()), None
        with torch.autocast("cpu", torch.bfloat16):
            half = model(x)
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    assert exact.dtype == torch.float64 and low.dtype == torch.bfloat16
    torch.testing.assert_close(plain.double(), exact, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-4)
    # A crop may be another where two places are nearly alike.
    assert torch.isfinite(half).all() and torch.isfinite(low).all()
    if operator == "dolg":
        for logits in (half, low):
            assert (logits.float() - plain).abs().max() < 0.1 * (1 + plain.abs().max())


@pytest.mark.parametrize("operator", AROUND)
def test_shapes_on_meta_and_of_an_empty_batch(operator):
    with torch.device("meta"):
        model = made("cvt_tiny32", operator)
        assert model.train()(torch.empty(2, 1, 28, 28)).shape == (2, 3)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model = made("cvt_tiny32", operator).eval()
    assert model(torch.empty(0, 1, 28, 28)).shape == (0, 3)
    exact = operators.replace(trunk("cnn").double(), "head", operator)
    assert exact(images(exact, 2).double()).dtype == torch.float64
    evaluated = operators.replace(trunk("cvt_tiny32").eval(), "head", operator)
    assert not any(module.training for module in evaluated.modules())


@pytest.mark.parametrize("operator", AROUND)
@pytest.mark.parametrize("name", ["cnn", pytest.param("cvt_tiny32", marks=pytest.mark.slow)])
def test_compiles_without_breaks(operator, name):
    model = made(name, operator).eval()
    x = torch.randn(3, 1, 28, 28)
    torch._dynamo.reset()
    compiled = torch.compile(model.features, fullgraph=True, backend="eager")
    for each in (x, x + 1):
        torch.testing.assert_close(compiled(each), model.features(each), rtol=1e-5, atol=1e-6)
    assert all(not tap.open and tap.output is None for tap in model.taps.each)


@pytest.mark.parametrize("operator", AROUND)
def test_state_travels(operator):
    source, target = made("cvt_tiny32", operator), made("cvt_tiny32", operator)
    x = torch.randn(3, 1, 28, 28)
    step(source, x)
    load_state(target, shared_state(source))
    assert torch.equal(source.eval()(x), target.eval()(x))
    assert torch.equal(source(x), copy.deepcopy(source)(x))


@pytest.mark.parametrize("name", ["cvt_tiny32", "cnn"])
def test_one_goes_around_the_other(name):
    model = operators.apply(trunk(name), {"glsim": {"num_top": 3}, "dolg": {}})
    assert type(model).__name__ == "GLSim" and type(model.trunk).__name__ == "DOLG"
    check_training(model, 2)


def test_a_tap_keeps_the_first_call_of_a_pass():
    class Shared(Own):
        def features(self, x):
            return self.stages[0](x).mean(dim=(2, 3)) + self.stages[0](x + 1).mean(dim=(2, 3))

    model = beheaded(Shared())
    layer = last_map(model, "stages.0")
    taps = Taps(model, [layer])
    x = torch.randn(2, 2, 16, 16)
    _, (output,) = taps.features(model.eval(), x)
    assert torch.equal(output, model.stages[0](x))
    assert torch.equal(model(x), model.features(x))  # what is left is its features
    tap = Tap("stages.0")
    tap.attach(model)
    tap.attach(model)
    assert len(model.stages[0]._forward_hooks) == 2
    model.stages[0](x)
    assert tap.output is None  # not in a pass of its own


def test_layers_that_nothing_depends_on_are_frozen():
    model = beheaded(Own())
    model.stages[0].norm.weight.requires_grad_(False)
    layer = MapLayer("stages.0", "channels_first", 4, 8)
    with torch.no_grad():
        names = freeze_unused(model, [layer])
    assert names == [name for name, _ in model.named_parameters() if name.startswith(("stages.1", "last"))]
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"stages.0.conv.weight", "stages.0.conv.bias", "stages.0.norm.bias"}
    assert num_parameters(model) == num_parameters(beheaded(Own()))
    assert not model.stages[0]._forward_hooks


@pytest.mark.parametrize("operator", AROUND)
def test_layers_that_are_no_names_frozen_trunks_and_weights_of_five_axes(operator):
    key = rf"model\.operators\.{operator}\.layer should be the name of a layer, or '' for none, found 3"
    with pytest.raises(ValueError, match=key):
        operators.replace(trunk("cnn", 12, 2), "head", operator, layer=3)
    frozen = trunk("cnn", 12, 2).requires_grad_(False)
    operators.replace(frozen, "head", operator)(torch.randn(2, 2, 12, 12)).sum().backward()
    clips = operators.replace(trunk("uniformer3d_tiny32", 12, 2, num_frames=2), "head", operator)
    last = clips.to(memory_format=torch.channels_last)  # its weights have four axes and five
    assert last(torch.randn(2, 2, 12, 12)).shape == (2, 3)

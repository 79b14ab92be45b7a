"""The zoo: logits of features, names, sizes, models from outside, and the errors."""

import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.models_helpers import Tied, num_parameters, seeded_with
from umbel.core.refusal import Refusal
from umbel.models import Model, build, describe, names, options
from umbel.models.cvt import CvT
from umbel.models.weights import shared_state

seeded = seeded_with(7)


def test_cnn_counts():
    model = build("cnn", 10, image_size=28, in_channels=1)
    convolutions = (9 * 1 * 16 + 16) + (9 * 16 * 32 + 32)
    assert model.fc.in_features == 1568
    assert num_parameters(model) == convolutions + (1568 * 64 + 64) + (64 * 10 + 10) == 105_866


@pytest.mark.parametrize("name", ["cnn", "cvt_tiny32"])
def test_logits_are_the_head_of_the_features(name):
    model = build(name, 5, 28, 1).eval()
    x = torch.randn(3, 1, 28, 28)
    features = model.features(x)
    assert features.shape == (3, model.num_features) == (3, model.head.in_features)
    assert torch.equal(model(x), model.head(features))


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(["cnn", "cvt_tiny32"]),
    size=st.integers(4, 40),
    channels=st.sampled_from([1, 3]),
    training=st.booleans(),
)
def test_any_image_size_and_a_batch_of_one(name, size, channels, training):
    model = build(name, 3, size, channels).train(training)
    logits = model(torch.randn(1, channels, size, size))
    assert logits.shape == (1, 3)
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_names_describe_options():
    assert names() == tuple(sorted(names()))
    assert {"cnn", "cvt_13", "cvt_21", "cvt_tiny32"} <= set(names())
    for name in names():
        assert describe(name).endswith(".")
        assert "\n" not in describe(name)
    assert options("cnn") == {"image_size": 28, "width": 16, "hidden": 64, "norm": "none"}
    assert options("cvt_13") == {"image_size": 224, "drop_path": 0.1}


def test_published_image_size_is_the_default():
    assert build("cnn", 10).image_size == 28
    assert build("cvt_tiny32", 10).image_size == 32


def test_same_seed_same_weights():
    torch.manual_seed(3)
    first = shared_state(build("cvt_tiny32", 10))
    torch.manual_seed(3)
    second = shared_state(build("cvt_tiny32", 10))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_sizes_reach_the_model():
    model = build("cnn", 10, 8, 1, width=4, hidden=6)
    assert (model.conv2.out_channels, model.num_features) == (8, 6)
    tiny = build("cvt_tiny32", 10, 16, 1, strides=[2, 1, 1], depths=[1, 2, 1], mlp_ratio=3)
    assert isinstance(tiny, CvT)
    assert [len(stage.blocks) for stage in tiny.stages] == [1, 2, 1]
    assert [stage.embed.stride[0] for stage in tiny.stages] == [2, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "sizes", "message"),
    [
        (("cvt_tiny", 10), {}, r"Unknown model 'cvt_tiny' \(key model\.name\)\. Did you mean .*'cvt_tiny32'"),
        (("cnn", 10), {"widht": 3}, r"'widht' \(key model\.sizes\.widht\)\. Did you mean 'width'"),
        (("cnn", 10), {"width": 0}, r"model\.sizes\.width should be a whole number of at least 1, found 0"),
        (("cnn", 10), {"hidden": True}, r"model\.sizes\.hidden .* found True"),
        (("cnn", 0), {}, r"model\.num_classes .* found 0"),
        (("cnn", 10, 3), {}, r"model\.image_size: .* 4 px or more, found 3\. Use 28"),
        (("cnn", 10, -1), {}, r"model\.image_size .* found -1"),
        (("cnn", 10, 28, 0), {}, r"model\.in_channels .* found 0"),
        (("cvt_13", 10, 18), {}, r"model\.image_size: .* 19 px or more, found 18\. Use 224"),
        (("cvt_13", 10), {"drop_path": 1}, r"model\.sizes\.drop_path should be a number from 0 to below 1"),
        (("cvt_tiny32", 10, 3), {}, r"model\.image_size: .* 4 px or more, found 3\. Use 28 or 32"),
        (("cvt_tiny32", 10), {"dims": (8, 8)}, r"model\.sizes\.dims should be a list of 3 whole numbers"),
        (("cvt_tiny32", 10), {"dims": "888"}, r"model\.sizes\.dims should be a list of 3 whole numbers"),
        (("cvt_tiny32", 10), {"heads": (1, 2, 7)}, r"model\.sizes\.heads: 7 does not divide 96 channels"),
        (
            ("no_such_package.module:Net", 10),
            {},
            r"Cannot import.*no module 'no_such_package'.*on every node",
        ),
        (("umbel.models.cnn:Missing", 10), {}, r"Cannot import model 'umbel\.models\.cnn:Missing'"),
    ],
)
def test_build_says_what_is_wrong(arguments, sizes, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments, **sizes)


def test_wrong_input_is_refused():
    model = build("cvt_tiny32", 10, 28, 1)
    with pytest.raises(ValueError, match=r"\[batch, 1, 28, 28\], found \[2, 1, 32, 32\]"):
        model(torch.randn(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"found \[1, 28, 28\]"):
        model(torch.randn(1, 28, 28))


def test_a_model_without_features_says_so():
    with pytest.raises(NotImplementedError, match="Model does not say"):
        Model().features(torch.zeros(1))


@pytest.fixture
def outside(monkeypatch):
    module = types.ModuleType("outside_zoo")
    module.Tied = Tied
    module.plain = lambda num_classes, image_size=8, in_channels=3, **_: nn.Linear(2, num_classes)
    module.unsized = lambda num_classes, image_size, in_channels: Tied(num_classes, image_size, in_channels)
    module.short = lambda num_classes: Tied(num_classes)
    monkeypatch.setitem(sys.modules, "outside_zoo", module)


def test_models_from_outside(outside):
    assert isinstance(build("outside_zoo:Tied", 3, in_channels=1), Tied)
    assert isinstance(build("outside_zoo:unsized", 3, 2, 1), Tied)
    assert options("outside_zoo:Tied") == {"image_size": 2}
    assert describe("outside_zoo:Tied") == "Two linear layers of one weight, and a counter."
    with pytest.raises(ValueError, match=r"model\.image_size .* found None"):
        build("outside_zoo:unsized", 3)
    with pytest.raises(ValueError, match=r"'depth' \(key model\.sizes\.depth\).*has no sizes"):
        build("outside_zoo:Tied", 3, depth=2)
    with pytest.raises(Refusal, match=r"should return an umbel\.models\.Model, found Linear"):
        build("outside_zoo:plain", 3, anything=1)
    with pytest.raises(Refusal, match="missing image_size, in_channels"):
        build("outside_zoo:short", 3)

"""The zoo: published counts, structural identities, state in and out, and the errors."""

import math
import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.models_helpers import count, num_parameters, seeded_with
from umbel.core.names import UnknownNameError
from umbel.core.refusal import Refusal
from umbel.core.tree import TreeMismatchError
from umbel.models import Model, build, describe, names, options
from umbel.models.cvt import Attention, CvT
from umbel.models.layers import drop_path, quick_gelu, to_map, to_tokens
from umbel.models.norm import batch_norm_names, integer_buffer_names, replace_batch_norm
from umbel.models.weights import load_state, parameter_names, shared_state

seeded = seeded_with(7)


class Tied(Model):
    """Two linear layers of one weight, and a counter."""

    def __init__(self, num_classes, image_size=2, in_channels=1):
        super().__init__()
        self.num_features, self.image_size, self.in_channels = 4, image_size, in_channels
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, num_classes)

    def features(self, x):
        self.check_input(x)
        return self.norm(self.second(self.first(x.flatten(1))))


# Counts -----------------------------------------------------------------------------------------------------


def test_cnn_counts():
    model = build("cnn", 10, image_size=28, in_channels=1)
    convolutions = (9 * 1 * 16 + 16) + (9 * 16 * 32 + 32)
    assert model.fc.in_features == 1568
    assert num_parameters(model) == convolutions + (1568 * 64 + 64) + (64 * 10 + 10) == 105_866


@pytest.mark.parametrize(("name", "printed"), [("cvt_13", "20.0"), ("cvt_21", "31.6")])
def test_published_counts(name, printed):
    with torch.device("meta"):
        model = build(name, 1000)
    assert f"{num_parameters(model) / 1e6:.1f}" == printed
    blocks = int(name[-2:])
    assert count(model, nn.BatchNorm2d) == 3 * blocks
    assert count(model, nn.LayerNorm) == 3 + 2 * blocks + 1
    assert all(norm.eps == 1e-5 for norm in model.modules() if isinstance(norm, nn.LayerNorm))


def test_cvt_13_norm_layers_are_39_and_30():
    with torch.device("meta"):
        model = build("cvt_13", 1000)
    assert (count(model, nn.BatchNorm2d), count(model, nn.LayerNorm)) == (39, 30)


def test_tiny_count_does_not_depend_on_the_image_size():
    shapes = [
        {key: value.shape for key, value in build("cvt_tiny32", 10, size, 1).state_dict().items()}
        for size in (8, 28, 32)
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert num_parameters(build("cvt_tiny32", 10, 28, 1)) == 157_978


# Forward ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("size", [19, 32, 35, 48])
def test_cvt_13_at_small_images(size):
    model = build("cvt_13", 10, size)
    batch = 1 if size >= 35 else 2
    assert model(torch.randn(batch, 3, size, size)).shape == (batch, 10)


@pytest.mark.parametrize(("size", "sides"), [(8, (8, 4, 4)), (16, (16, 8, 4)), (28, (14, 7, 4)), (32, (16, 8, 4))])
def test_tiny_maps(size, sides):
    model = build("cvt_tiny32", 10, size, 1)
    found = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, output: found.append(output[1:]))
    model(torch.randn(1, 1, size, size))
    assert found == [(side, side) for side in sides]


def test_tiny_learns():
    model = build("cvt_tiny32", 2, 8, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    x = torch.randn(64, 1, 8, 8)
    y = torch.arange(64) % 2
    x[y == 1, :, :4] += 1  # the upper half is brighter
    for _ in range(20):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1


# Parts of CvT -----------------------------------------------------------------------------------------------


def slow_projection(projection, tokens, side, stride):
    """Depthwise 3 x 3 with padding 1, and batch norm in eval mode, by loops."""
    out_side = math.ceil(side / stride)
    norm, weight = projection.norm, projection.conv.weight
    out = torch.zeros(len(tokens), out_side * out_side, tokens.shape[2])
    for row in range(out_side):
        for column in range(out_side):
            for dy in range(3):
                for dx in range(3):
                    y, x = row * stride + dy - 1, column * stride + dx - 1
                    if 0 <= y < side and 0 <= x < side:
                        out[:, row * out_side + column] += weight[:, 0, dy, dx] * tokens[:, y * side + x]
    return (out - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps) * norm.weight + norm.bias


@pytest.mark.parametrize("with_cls", [False, True])
@pytest.mark.parametrize("side", [4, 5])
def test_attention_against_loops(with_cls, side):
    dim, heads = 6, 2
    attention = Attention(dim, heads, with_cls).eval()
    for module in attention.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    tokens = torch.randn(2, side * side + with_cls, dim)
    with torch.no_grad():
        found = attention(tokens, side, side)
        parts = []
        for projection, linear, stride in (
            (attention.conv_q, attention.q, 1),
            (attention.conv_k, attention.k, 2),
            (attention.conv_v, attention.v, 2),
        ):
            part = slow_projection(projection, tokens[:, with_cls:], side, stride)
            parts.append(linear(torch.cat((tokens[:, :1], part), 1) if with_cls else part))
        q, k, v = parts
        assert k.shape[1] == math.ceil(side / 2) ** 2 + with_cls
        mixed = torch.zeros_like(q)
        for head in range(heads):
            own = slice(head * dim // heads, (head + 1) * dim // heads)
            for b in range(2):
                for n in range(q.shape[1]):
                    # The scale is that of all the channels, not of a head's.
                    scores = torch.stack([q[b, n, own] @ k[b, m, own] for m in range(k.shape[1])]) / dim**0.5
                    shares = scores.exp() / scores.exp().sum()
                    mixed[b, n, own] = sum(share * v[b, m, own] for m, share in enumerate(shares))
        expected = attention.out(mixed)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_map_and_tokens_are_inverse_views():
    tokens = torch.randn(2, 6, 3)
    image_map = to_map(tokens, 2, 3)
    assert image_map[1, 2, 1, 0] == tokens[1, 3, 2]
    assert image_map.data_ptr() == tokens.data_ptr() == to_tokens(image_map).data_ptr()
    assert torch.equal(to_tokens(image_map), tokens)


def test_quick_gelu():
    assert quick_gelu(torch.tensor(0.0)) == 0
    assert quick_gelu(torch.tensor(1.0)).item() == pytest.approx(1 / (1 + math.exp(-1.702)))


def test_drop_path():
    x = torch.ones(1000, 2, 3)
    assert drop_path(x, 0.0, training=True) is x
    assert drop_path(x, 0.5, training=False) is x
    dropped = drop_path(x, 0.75, training=True)
    assert set(dropped.unique().tolist()) == {0.0, 4.0}
    assert (dropped == dropped[:, :1, :1]).all()  # a whole example or nothing
    assert dropped.mean().item() == pytest.approx(1, abs=0.2)


def test_drop_path_rises_within_the_last_stage_only():
    with torch.device("meta"):
        model = build("cvt_13", 10, drop_path=0.18)
    rates = [[block.drop_rate for block in stage.blocks] for stage in model.stages]
    assert rates[:2] == [[0], [0, 0]]
    assert rates[2] == pytest.approx([0.02 * i for i in range(10)])


def test_drop_path_of_a_single_block_takes_effect():
    model = build("cvt_tiny32", 10, drop_path=0.5)
    assert [stage.blocks[0].drop_rate for stage in model.stages] == [0, 0, 0.5]


# State ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cnn", "cvt_tiny32"])
def test_state_round_trip(name):
    x = torch.randn(2, 1, 28, 28)
    source, target = build(name, 4, 28, 1), build(name, 4, 28, 1)
    source(x)  # moves the batch-norm statistics
    state = shared_state(source)
    load_state(target, state)
    assert torch.equal(source.eval()(x), target.eval()(x))
    assert state.keys() == source.state_dict().keys() - integer_buffer_names(source)
    assert parameter_names(source) <= state.keys()
    assert all(not tensor.requires_grad and tensor.is_contiguous() for tensor in state.values())


def test_shared_state_shares_no_storage():
    model = build("cvt_tiny32", 4, 8, 1)
    state = shared_state(model)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    copies = [tensor.untyped_storage().data_ptr() for tensor in state.values()]
    assert own.isdisjoint(copies)
    assert len(set(copies)) == len(copies)


def test_load_state_keeps_the_parameters_themselves():
    model = build("cnn", 4, 8, 1)
    before = list(model.parameters())
    load_state(model, {name: torch.zeros_like(tensor) for name, tensor in shared_state(model).items()})
    assert all(new is old for new, old in zip(model.parameters(), before, strict=True))
    assert all(not parameter.any() and parameter.requires_grad for parameter in before)


def test_keep_local_leaves_batch_norm():
    model = build("cvt_tiny32", 4, 8, 1)
    local = batch_norm_names(model)
    assert len(local) == 5 * count(model, nn.BatchNorm2d) == 45
    assert "stages.0.blocks.0.attention.conv_q.norm.running_var" in local
    assert integer_buffer_names(model) == {name for name in local if name.endswith("num_batches_tracked")}
    state = shared_state(model, local)
    assert state.keys() == model.state_dict().keys() - local
    load_state(model, state, partial=True)
    with pytest.raises(TreeMismatchError, match=r"36 missing names, the first 'stages\.0.*partial=True"):
        load_state(model, state)


def test_keep_local_refuses_an_unknown_name():
    with pytest.raises(UnknownNameError, match=r"'head\.wieght'.*'head\.weight'"):
        shared_state(build("cnn", 4, 8, 1), frozenset({"head.wieght"}))


def test_a_scalar_parameter_stays_a_scalar():
    model = Tied(3)
    model.sharpness = nn.Parameter(torch.tensor(2.5))
    state = shared_state(model)
    assert state["sharpness"].shape == ()
    load_state(model, state | {"sharpness": torch.tensor(4.0)})
    assert model.sharpness.shape == () and model.sharpness == 4


def test_tied_parameters_travel_once():
    model = Tied(3)
    state = shared_state(model)
    assert "first.weight" in state
    assert "second.weight" not in state
    assert "first.weight" not in shared_state(model, frozenset({"second.weight"}))
    state["first.weight"].fill_(2.0)
    load_state(model, state)
    assert (model.second.weight == 2).all()
    assert parameter_names(model) == {"first.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    load_state(model, model.state_dict())  # every alias and the counter are accepted as well


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.bais": torch.zeros(3)}, r"unexpected names, the first 'head\.bais'.*'head\.bias'"),
        ({"head.bias": torch.zeros(1)}, r"'head\.bias' should have shape \(3,\), found \(1,\)"),
        ({"norm.num_batches_tracked": torch.tensor(1.5)}, r"num_batches_tracked' should hold torch\.int64"),
    ],
)
def test_load_state_changes_nothing_when_it_refuses(change, message):
    model = Tied(3)
    before = shared_state(model)
    tree = {name: tensor + 1 for name, tensor in before.items()} | change
    with pytest.raises(TreeMismatchError, match=message):
        load_state(model, tree)
    assert all(torch.equal(tensor, before[name]) for name, tensor in shared_state(model).items())


# Group norm -------------------------------------------------------------------------------------------------


def test_group_norm_keeps_the_counts():
    model = build("cvt_tiny32", 4, 8, 1, dims=(6, 14, 22), heads=(1, 2, 2))
    parameters, batch_norms = num_parameters(model), count(model, nn.BatchNorm2d)
    assert replace_batch_norm(model, groups=4) is model
    assert count(model, nn.BatchNorm2d) == 0
    assert count(model, nn.GroupNorm) == batch_norms
    assert num_parameters(model) == parameters
    groups = [{m.num_groups for m in stage.modules() if isinstance(m, nn.GroupNorm)} for stage in model.stages]
    assert groups == [{3}, {2}, {2}]  # of 6, 14 and 22 channels
    assert batch_norm_names(model) == integer_buffer_names(model) == frozenset()
    assert model(torch.randn(1, 1, 8, 8)).shape == (1, 4)


def test_group_norm_carries_weights_mode_and_1d_layers():
    model = Tied(3).eval()
    nn.init.constant_(model.norm.weight, 3.0)
    nn.init.constant_(model.norm.bias, -1.0)
    model.norm.eps = 1e-3
    replace_batch_norm(model, groups=2)
    assert isinstance(model.norm, nn.GroupNorm)
    assert (model.norm.num_groups, model.norm.eps, model.norm.training) == (2, 1e-3, False)
    assert (model.norm.weight == 3).all()
    assert (model.norm.bias == -1).all()


def test_group_norm_of_a_shared_layer_stays_shared():
    model = Tied(3)
    model.again = model.norm
    assert "again.weight" in batch_norm_names(model)
    replace_batch_norm(model)
    assert model.again is model.norm


def test_group_norm_refuses_no_groups():
    with pytest.raises(ValueError, match="groups should be 1 or more, found 0"):
        replace_batch_norm(Tied(3), groups=0)


# Names and errors -------------------------------------------------------------------------------------------


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
        (("no_such_package.module:Net", 10), {}, r"Cannot import.*installed on the server and on every node"),
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
    with pytest.raises(Refusal, match=r"should return an umbel\.models\.base\.Model, found Linear"):
        build("outside_zoo:plain", 3, anything=1)
    with pytest.raises(Refusal, match="missing image_size, in_channels"):
        build("outside_zoo:short", 3)

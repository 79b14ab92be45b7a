"""Where operators go: kinds, names, order, refusals, layers that are shared, models of one's own, random numbers."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import num_parameters, seeded_with
from umbel.core.names import UnknownNameError
from umbel.core.refusal import Refusal
from umbel.models import build, operators
from umbel.models.base import Model
from umbel.models.operators import registry
from umbel.models.operators.base import Site, UnfitError, refuse, same_bias
from umbel.models.operators.registry import Row

seeded = seeded_with(3)


class Placed(nn.Module):
    """Stands for a convolution, and knows who put it there."""

    def __init__(self, site: Site, mark: object) -> None:
        super().__init__()
        self.conv, self.mark, self.size = site.conv, mark, (site.height, site.width)

    def forward(self, x):
        return self.conv(x)


class Wrapped(Model):
    def __init__(self, trunk: Model, mark: object) -> None:
        super().__init__()
        self.trunk, self.mark, self.head = trunk, mark, trunk.head
        self.num_features, self.in_channels, self.image_size = 64, trunk.in_channels, trunk.image_size

    def features(self, x):
        return self.trunk.features(x)


def fake(site, *, mark=1, least: int = 0):
    """Takes any place.

    Args:
        site: The place.
        mark: What it is remembered by.
        least: Inputs that it asks for.
    """
    if site.conv.in_channels < least:
        raise refuse(site, "fake", f"of {least} inputs", site.conv.in_channels)
    site.memo[site.name] = len(site.memo)
    return Placed(site, mark)


def noisy(site, *, width: float = 1.0):
    """Draws a number a place."""
    if not site.dense:
        raise refuse(site, "noisy", "dense", "groups")
    return Placed(site, float(torch.rand(())) * width)


def around(model, *, mark: int = 2):
    """Goes around."""
    return Wrapped(model, mark)


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fake_operators")
    module.fake, module.noisy, module.around = fake, noisy, around
    monkeypatch.setitem(sys.modules, "fake_operators", module)
    rows = {"noisy": Row("fake_operators"), "fake": Row("fake_operators", watched=False)}
    monkeypatch.setattr(registry, "TABLE", rows | {"around": Row("fake_operators", takes="model")})


def placed(model: nn.Module, kind: type[nn.Module] = Placed) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


class Own(Model):
    """A user's model, with a layer in two places, one that is never called, and kernels of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = 4, 2, 9
        self.first = nn.Conv2d(2, 4, 3, padding="same")
        self.again = self.first_twin = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.inner = nn.Sequential(self.again, nn.ReLU(), nn.Conv2d(4, 4, 5, stride=2, dilation=2, padding=(4, 4)))
        self.alone = nn.Conv2d(4, 4, 3, groups=4, padding="valid")
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, padding=1)
        self.even = nn.Conv2d(4, 4, 2)
        self.point = nn.Conv2d(4, 4, 1)
        self.ring = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.strip = nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.idle = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)

    def features(self, x):
        self.check_input(x)
        x = self.inner(self.first_twin(self.again(self.first(x))))
        x = self.strip(self.ring(self.point(self.grouped(self.alone(x)))))
        return self.even(x).mean(dim=(2, 3))


CONV = ["first", "again", "inner.2", "alone", "grouped"]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("conv", CONV),
        ("dense", ["first", "again", "inner.2"]),
        ("depthwise", ["alone"]),
        (["dense"], ["first", "again", "inner.2"]),
        ("inner.2", ["inner.2"]),
        (["ring", "even", "strip", "point"], ["even", "point", "ring", "strip"]),
        ("[ai]*", ["again", "inner.2", "alone"]),
        ("*", [*CONV, "even", "point", "ring", "strip"]),
        (("inner.*", "fir*"), ["first", "inner.2"]),
    ],
)
def test_layers_are_kinds_or_names(layers, expected):
    model = Own()
    # A layer in several places is named by its first.
    names = dict.fromkeys(name for name in placed(operators.replace(model, layers, "fake")))
    assert list(names) == [name for name, _ in model.named_modules() if name in expected]
    assert model(torch.randn(2, 2, 9, 9)).shape == (2, 3)


def test_a_layer_in_several_places_is_replaced_in_all_of_them_by_one():
    model = operators.replace(Own(), "conv", "fake")
    assert model.again is model.first_twin is model.inner[0]
    assert isinstance(model.again, Placed)
    plain = Own()
    x = torch.randn(2, 2, 9, 9)
    before = plain(x)
    assert torch.equal(operators.replace(plain, "*", "fake")(x), before)


def test_a_site_says_what_is_there():
    model = Own()
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    sites = registry._sites(model)
    assert [site.name for site in sites] == [*CONV, "point", "ring", "strip", "even"]
    assert all(site.conv is convs[site.name] for site in sites)
    assert len({id(site.memo) for site in sites}) == 1 and sites[0].memo == {}
    x = {site.name: torch.empty(1, site.conv.in_channels, site.height, site.width) for site in sites}
    for site in sites:
        if site.name != "ring":
            assert site.output_size == site.conv(x[site.name]).shape[2:], site.name
    by_name = {site.name: site for site in sites}
    assert [by_name[name].padding for name in ("first", "alone", "inner.2")] == [(1, 1), (0, 0), (4, 4)]
    assert [by_name[name].depthwise for name in ("first", "alone", "grouped")] == [False, True, False]
    assert [by_name[name].dense for name in ("first", "alone", "grouped")] == [True, False, False]
    assert by_name["inner.2"].kernel == 5
    assert same_bias(model.again) is None
    bias = same_bias(model.first)
    assert torch.equal(bias, model.first.bias) and bias.data_ptr() != model.first.bias.data_ptr()
    assert not bias.requires_grad


def test_all_places_of_a_call_share_a_memo_and_two_calls_do_not():
    memos = []

    def remember(site):
        memos.append(site.memo)
        return Placed(site, 0)

    sys.modules["fake_operators"].fake = remember
    operators.replace(Own(), "conv", "fake")
    operators.replace(Own(), "conv", "fake")
    assert len(memos) == 10 and len({id(memo) for memo in memos}) == 2


def test_what_an_operator_has_placed_is_no_convolution_for_the_next():
    model = operators.replace(Own(), "dense", "fake")
    assert placed(operators.replace(model, "conv", "noisy", width=0.0)) == placed(model)  # inside of the others

    class Derived(nn.Conv2d):
        pass

    model = Own()
    model.first = Derived(2, 4, 3, padding=1)
    assert "first" not in placed(operators.replace(model, "conv", "fake"))


def test_a_kind_passes_over_what_an_operator_refuses_and_a_name_does_not():
    model = operators.replace(Own(), "conv", "fake", least=3)
    assert placed(model) == ["again", "inner.2", "alone", "grouped"]
    with pytest.raises(
        UnfitError, match=r"model\.operators\.fake: layer 'first' should be of 3 inputs, found 2\. Leave"
    ):
        operators.replace(Own(), ["first"], "fake", least=3)
    with pytest.raises(UnfitError, match="layer 'first'"):
        operators.replace(Own(), "*", "fake", least=3)
    with pytest.raises(ValueError, match=r"fake\.layers: Own has no layer of dense for.*tried: .*'inner\.2' should"):
        operators.replace(Own(), "dense", "fake", least=9)


def test_no_other_random_numbers_are_drawn():
    def drawn(count: int) -> torch.Tensor:
        torch.manual_seed(8)
        for _ in range(count):
            torch.rand(())
        return torch.random.get_rng_state()

    model, other = Own(), Own()
    expected = {count: drawn(count) for count in (0, 3)}
    drawn(0)
    operators.replace(model, "conv", "fake")
    operators.replace(model, "head", "around")
    assert torch.equal(torch.random.get_rng_state(), expected[0])
    operators.replace(other, "conv", "noisy")  # three are dense: those that are refused draw nothing
    assert torch.equal(torch.random.get_rng_state(), expected[3])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_everything_else_stay(training):
    model = Own().train(training)
    before = {id(parameter) for parameter in model.parameters()}
    assert operators.replace(model, "conv", "fake") is model
    assert all(module.training == training for module in model.modules())
    assert {id(parameter) for parameter in model.parameters()} == before
    assert all(not module._forward_hooks for module in model.modules())


def test_several_go_in_in_the_order_of_the_table():
    chosen = {"around": {"mark": 5}, "fake": {"mark": 7, "layers": "*"}, "noisy": None}
    model = operators.apply(Own(), chosen)
    assert isinstance(model, Wrapped) and model.mark == 5
    marks = {name: model.get_submodule(name).mark for name in placed(model)}
    dense = ["trunk.first", "trunk.again", "trunk.inner.2"]
    assert [name for name, mark in marks.items() if mark != 7] == dense  # noisy came first
    assert [name for name, mark in marks.items() if mark == 7] == [
        *(f"{name}.conv" for name in dense),
        *(f"trunk.{name}" for name in ("alone", "grouped", "even", "point", "ring", "strip")),
    ]
    assert chosen["fake"] == {"mark": 7, "layers": "*"}
    plain = Own()
    assert operators.apply(plain, {}) is plain and placed(plain) == []


def test_nothing_is_changed_by_a_mapping_with_a_mistake():
    model = Own()
    with pytest.raises(UnknownNameError, match=r"operator 'faky' \(key model\.operators\.faky\)\. Did you mean 'fake'"):
        operators.apply(model, {"fake": {}, "faky": {}})
    with pytest.raises(UnknownNameError, match=r"option 'wide' \(key model\.operators\.noisy\.wide\).*'width'"):
        operators.apply(model, {"fake": {}, "noisy": {"wide": 1}})
    with pytest.raises(UnknownNameError, match=r"option 'layers' \(key model\.operators\.around\.layers\)"):
        operators.apply(model, {"fake": {}, "around": {"layers": "conv"}})
    assert placed(model) == []


@pytest.mark.parametrize(
    ("layers", "operator", "options", "message"),
    [
        ("conv", "fakes", {}, r"Unknown operator 'fakes'.*'fake'"),
        ("conv", "fake", {"marc": 1}, r"model\.operators\.fake\.marc.*'mark'"),
        ("first", "around", {}, r"around goes around a whole model: say layers='head', found 'first'"),
        ("head", "fake", {}, r"model\.operators\.fake\.layers should be one of conv, dense, depthwise alone, or names"),
        ("firsts", "fake", {}, r"found 'firsts'; these are: first, again, inner\.2, alone, "),
        (["first", "b*"], "fake", {}, r"found 'b\*'"),
        (["first", "dense"], "fake", {}, r"dense, depthwise alone.*found 'dense'"),
        (["first", 3], "fake", {}, "found 3; these are"),
        ("idle", "fake", {}, "found 'idle'"),
        ([], "fake", {}, r"Own has no layer of \[\]"),
        (None, "fake", {}, r"model\.operators\.fake\.layers should be one of conv, .*found None"),
        (3, "fake", {}, "names of layers, found 3"),
    ],
)
def test_errors_say_what_there_is(layers, operator, options, message):
    model = Own()
    with pytest.raises(ValueError, match=message):
        operators.replace(model, layers, operator, **options)
    assert placed(model) == []


def test_a_model_without_convolutions_is_refused():
    with pytest.raises(ValueError, match=r"MLP has no layer of conv for the operator fake\. Choose other layers"):
        operators.replace(build("mlp", 3, 8), "conv", "fake")
    with pytest.raises(ValueError, match="these are: none"):
        operators.replace(build("mlp", 3, 8), "fc*", "fake")


def test_the_list_says_what_can_be_chosen():
    assert operators.names() == ("noisy", "fake", "around")
    assert operators.describe("fake") == "Takes any place."
    assert operators.documentation("fake").splitlines()[-1].strip() == "least: Inputs that it asks for."
    assert operators.options("fake") == {"layers": "conv", "mark": 1, "least": 0}
    assert list(operators.options("fake")) == ["layers", "mark", "least"]
    assert operators.options("around") == {"mark": 2}
    assert [operators.is_watched(name) for name in operators.names()] == [True, False, True]
    for name in ("replaced", "around "):
        with pytest.raises(UnknownNameError, match="operator"):
            operators.check(name, {})


@pytest.mark.parametrize("name", ["cvt_tiny32", "cnn"])
def test_models_of_the_zoo_compute_the_same_with_the_same(name):
    model = build(name, 3, 12, 1).eval()
    x, size = torch.randn(2, 1, 12, 12), num_parameters(model)
    before = model(x)
    replaced = operators.replace(model, "conv", "fake")
    assert torch.equal(replaced(x), before) and num_parameters(replaced) == size
    sizes = {placed_name: replaced.get_submodule(placed_name).size for placed_name in placed(replaced)}
    inputs: dict[str, tuple[int, int]] = {}
    handles = [
        replaced.get_submodule(each).register_forward_pre_hook(
            lambda module, given, each=each: inputs.update({each: tuple(given[0].shape[2:])})
        )
        for each in sizes
    ]
    F.cross_entropy(replaced(x), torch.tensor([0, 1])).backward()
    for handle in handles:
        handle.remove()
    assert sizes and inputs == sizes


def test_a_layer_that_is_refused_leaves_the_model_as_it_was():
    model = Own()
    before = list(model.modules())
    with pytest.raises(UnfitError, match="layer 'grouped'"):
        operators.replace(model, ["first", "grouped"], "noisy")
    assert list(model.modules()) == before


def test_a_model_that_lacks_what_operators_ask_for():
    with pytest.raises(Refusal, match=r"Sequential has no features, num_features, in_channels, image_size, head"):
        operators.replace(nn.Sequential(nn.Conv2d(3, 4, 3)), "conv", "fake")
    model = Own()
    model.head = nn.Sequential(model.head)
    with pytest.raises(Refusal, match="Own has a head that is a Sequential"):
        operators.replace(model, "head", "around")

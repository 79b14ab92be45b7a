"""`models.wrap`: any classifier of plain PyTorch has features before its head; what cannot be is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import umbel
from tests.models_helpers import count, seeded_with
from umbel.core.refusal import Refusal
from umbel.models import build, operators, wrap
from umbel.models.norm import batch_norm_names, replace_batch_norm
from umbel.models.weights import load_state, shared_state
from umbel.models.wrap import Wrapped

seeded = seeded_with(4)


class Classifier(nn.Module):
    """A network as people write it: convolutions with batch norm, dropout, and a linear layer at the end."""

    def __init__(self, num_classes: int, in_channels: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(12, num_classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(F.max_pool2d(self.stem(x), 2))
        logits: Tensor = self.fc(self.drop(maps.mean(dim=(2, 3))))
        return logits


class After(Classifier):
    """With a softmax behind the head."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(dim=1)


class Two(Classifier):
    """Two outputs while it trains, as with auxiliary heads."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits  # type: ignore[return-value]


class Places(Classifier):
    """Logits of each place."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(self.stem(x)).flatten(2).transpose(1, 2))
        return logits


class Twice(Classifier):
    """Its head is called for an image and for its mirror image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x.flip(3))


class Ends(Classifier):
    """Vgg-like: a classifier of several layers."""

    def __init__(self, num_classes: int, in_channels: int = 1) -> None:
        super().__init__(num_classes, in_channels)
        self.fc = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, num_classes))  # type: ignore[assignment]


class Late(Classifier):
    """It makes a buffer when it first sees images."""

    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("seen", torch.ones(()))
        return super().forward(x)


class Shared(Classifier):
    """Its head is tied to another layer."""

    def __init__(self, num_classes: int, in_channels: int = 1) -> None:
        super().__init__(num_classes, in_channels)
        self.prototypes = nn.Linear(12, num_classes)
        self.prototypes.weight = self.fc.weight


def plain(num_classes: int, image_size: int = 8, in_channels: int = 1) -> Wrapped:
    """A network as people write it."""
    return wrap(Classifier(num_classes, in_channels), head="fc")


def thousand(num_classes: int, image_size: int = 8, in_channels: int = 1) -> Wrapped:
    return wrap(Classifier(1000, in_channels), head="fc")


def after(num_classes: int, image_size: int = 8, in_channels: int = 1) -> Wrapped:
    return wrap(After(num_classes, in_channels), head="fc")


def embeddings(num_classes: int, image_size: int = 1, in_channels: int = 16) -> Wrapped:
    return wrap(nn.Sequential(nn.Linear(in_channels, 24), nn.Tanh(), nn.Linear(24, num_classes)), head="2")


def test_it_computes_what_the_module_does() -> None:
    module, x = Classifier(5, 3), torch.randn(4, 3, 8, 8)
    model = wrap(module, "fc")
    assert (model.num_features, model.head.out_features, count(model, nn.Linear)) == (12, 5, 1)
    assert [*model.state_dict()][-2:] == ["head.weight", "head.bias"]
    for training in (True, False):
        module.train(training), model.train(training)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            expected = module(x)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            logits = model(x)
        assert torch.equal(logits, expected)
    assert torch.equal(model(x), model.head(model.features(x)))


def test_the_module_that_was_given_is_left_as_it_is_and_comes_back() -> None:
    module = Classifier(5)
    before, x = copy.deepcopy(module.state_dict()), torch.randn(2, 1, 8, 8)
    model = wrap(module, "fc", image_size=8, in_channels=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert isinstance(module.fc, nn.Linear)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    again = model.eval().unwrapped()
    assert isinstance(again, Classifier) and again.state_dict().keys() == before.keys()
    assert torch.equal(again(x), model(x))
    with torch.no_grad():
        model.head.weight.zero_()
    assert again.fc.weight.any()


def test_the_trial_leaves_state_mode_and_generator_alone() -> None:
    model = wrap(Classifier(5), "fc")
    model.trunk.stem.eval()
    model.image_size, model.in_channels = 8, 1
    modes, state = [part.training for part in model.modules()], copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    model.try_out()
    assert [part.training for part in model.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("module", "head", "reason"),
    [
        (Classifier(5), "classifier", r"has no layer 'classifier'.*Its last linear layers are: 'fc'"),
        (Classifier(5), "", r"has no layer ''.*Did you mean 'fc'\?"),
        (Ends(5), "fc", r"should be a linear layer, found Sequential.*Say head='fc\.2'\."),
        (Classifier(5), "body", r"should be a linear layer, found Sequential.*Put an nn\.Linear there"),
        (Shared(5), "fc", r"shares its weights with 'prototypes\.weight'"),
        (nn.Sequential(nn.Conv2d(1, 5, 8), nn.Flatten()), "2", r"It has no linear layer"),
        (After(5), "fc", r"does not end with its head 'fc'.*Leave out what comes after"),
        (Ends(5), "fc.0", r"without its head 'fc\.0' cannot look at images \[2, 1, 8, 8\]: RuntimeError"),
        (Two(5), "fc", r"returns a tuple in training, not a tensor of logits"),
        (Places(5), "fc", r"features of shape \[2, 64, 12\] for 2 images, expected \[2, 12\].*mean over places"),
        (Twice(5), "fc", r"calls its head 'fc' 2 times in training, not once"),
        (Late(5), "fc", r"makes the buffer 'seen' at its first forward pass"),
        (Shared(5), "prototypes.bias", r"has no layer 'prototypes\.bias'"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_cannot_be_wrapped(module: nn.Module, head: str, reason: str) -> None:
    with pytest.raises(Refusal, match=reason) as caught:
        wrap(module, head, image_size=8, in_channels=1)
    assert caught.value.key == "model.name" and caught.value.remedy.endswith((".", "?"))


def test_by_name_it_is_tried_at_the_sizes_of_the_data() -> None:
    model = build("tests.models.test_wrap:plain", 7, 12, 3)
    assert (model.image_size, model.in_channels) == (12, 3)
    with pytest.raises(ValueError, match=r"\[batch, 3, 12, 12\], found \[2, 1, 12, 12\]"):
        model(torch.zeros(2, 1, 12, 12))
    with pytest.raises(Refusal, match="does not end with its head"):
        build("tests.models.test_wrap:after", 7, 8, 1)
    with pytest.raises(Refusal, match="its head has 1000 logits, expected 7"):
        build("tests.models.test_wrap:thousand", 7, 8, 1)


def test_norms_state_and_operators() -> None:
    model = build("tests.models.test_wrap:plain", 5, 8, 1)
    assert len(batch_norm_names(model)) == 2 * 5
    other = build("tests.models.test_wrap:plain", 5, 8, 1)
    load_state(other, shared_state(model))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(other.eval()(x), model.eval()(x))
    assert count(replace_batch_norm(other), nn.GroupNorm) == 2
    assert operators.replace(model, "trunk.body.0", "separable")(x).shape == (3, 5)


SMALL = ("data.num_clients=4", "data.max_train=160", "run.rounds=2", "client.batch_size=16", "client.epochs=1")
METHODS = {
    "fedavg": ("model.norm=local",),
    "scaffold": (),
    "fedloge": ("data.partition=long_tail",),
    "fot": ("data.partition=split_tasks", "data.num_tasks=2", "data.rounds_per_task=1"),
    "ggeur": ("data.encoder=pixels", "model.name=tests.models.test_wrap:embeddings"),
}


@pytest.mark.parametrize("strategy", METHODS)
def test_it_goes_under_a_strategy(strategy: str, tmp_path: Path) -> None:
    given = ("model.name=tests.models.test_wrap:plain", *METHODS[strategy], f"strategy.name={strategy}")
    result = umbel.run("digits", *SMALL, *given, f"run.results={tmp_path}")
    assert result.summary["num_failures"] == 0
    assert 0 <= result.summary["metrics"]["test/accuracy"] <= 1
    assert result.summary["num_parameters"] > 0

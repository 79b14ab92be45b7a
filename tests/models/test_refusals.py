"""A model that cannot be is refused with the key to change, and with what to do where that is known."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from umbel.core.refusal import Refusal
from umbel.models import build, operators
from umbel.models.base import Model
from umbel.models.checkpointing import checkpoint_blocks
from umbel.models.text import TextShape, build_text


class Headless(Model):
    """A model of one's own without a head."""

    def __init__(self, num_classes: int, image_size: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = num_classes, in_channels, image_size


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("own_models")
    module.__dict__.update(
        Headless=Headless,
        plain=lambda num_classes, image_size=8, in_channels=3: nn.Linear(2, num_classes),
        short=lambda num_classes: nn.Linear(2, num_classes),
        unsized=lambda num_classes, image_size, in_channels: nn.Linear(2, num_classes),
    )
    monkeypatch.setitem(sys.modules, "own_models", module)


def made(name: str, image_size: int | None = None, **sizes: Any) -> Callable[[], object]:
    return partial(build, name, 3, image_size, **sizes)


def placed(name: str, operator: str, **options: object) -> Callable[[], object]:
    """Build a model and put an operator into it, as an experiment does."""
    return lambda: operators.apply(build(name, 3, 8), {operator: options})


REFUSED: list[tuple[Callable[[], object], str, bool]] = [
    # names
    (made("cvt_tiny"), "model.name", True),
    (made("no_such_package.module:Net"), "model.name", True),
    (made("own_models:Missing"), "model.name", True),
    (made("math:pi"), "model.name", True),
    (made("..x:Y"), "model.name", True),
    # values of a kind that nobody foresaw
    (made("mlp", dropout=None), "model.sizes", True),
    (made("resnet18", norm=[1]), "model.sizes", True),
    (made("unireplknet_tiny32", kernel=13.0), "model.sizes", True),
    (made("cnn", widht=3), "model.sizes.widht", True),
    (made("linear", depth=2), "model.sizes.depth", False),
    # models of one's own
    (made("own_models:short"), "model.name", True),
    (made("own_models:plain"), "model.name", True),
    (made("own_models:unsized"), "model.image_size", False),
    (placed("own_models:Headless", "wconv"), "model.name", True),
    # sizes of the image
    (made("cnn", 3), "model.image_size", True),
    (made("cvt_13", 18), "model.image_size", True),
    (made("cvt_tiny32", 3), "model.image_size", True),
    (made("alexnet_small", 18), "model.image_size", True),
    (made("lenet", 15), "model.image_size", True),
    (made("uniformer_s", 225), "model.image_size", True),
    (made("convit_tiny32", 30), "model.image_size", True),
    # numbers out of range
    (partial(build, "cnn", 0), "model.num_classes", False),
    (partial(build, "cnn", 3, 28, 0), "model.in_channels", False),
    (made("cnn", width=0), "model.sizes.width", False),
    (made("cvt_13", drop_path=1), "model.sizes.drop_path", False),
    (made("ms_mlp_tiny32", layer_scale=0), "model.sizes.layer_scale", False),
    (made("uniformer_xxs", 128, keep=0), "model.sizes.keep", False),
    (made("resnet18", bias=1), "model.sizes.bias", False),
    (made("alexnet_small", bias="no"), "model.sizes.bias", False),
    (made("duoformer_tiny32", scales=4), "model.sizes.scales", True),
    (made("tic_tiny32", kernel=4), "model.sizes.kernel", True),
    (made("dual_token_vit_tiny32", kernel=4), "model.sizes.kernel", True),
    (made("inception_next_tiny32", band=4), "model.sizes.band", True),
    (made("inception_next_tiny32", ratio=0.5), "model.sizes.ratio", True),
    (made("convnext_dcls_tiny32", size=4), "model.sizes.size", True),
    (made("unireplknet_tiny32", kernel=8), "model.sizes.kernel", False),
    (made("convit_tiny32", heads=8), "model.sizes.heads", True),
    (made("convit_tiny32", local_depth=4), "model.sizes.local_depth", False),
    # words
    (made("cnn", norm="layer"), "model.sizes.norm", False),
    (made("resnet18", norm="layer"), "model.sizes.norm", False),
    (made("convnext_dcls_tiny32", version="v0"), "model.sizes.version", False),
    # lists
    (made("cvt_tiny32", dims=(8, 8)), "model.sizes.dims", False),
    (made("cvt_tiny32", heads=(1, 2, 7)), "model.sizes.heads", False),
    (made("affnet_tiny32", dims=(8, 12, 16)), "model.sizes.dims", False),
    (made("unireplknet_tiny32", dims=(2, 8, 8, 8)), "model.sizes.dims", False),
    (made("gcvit_tiny32", depths=(1, 2)), "model.sizes.depths", False),
    (made("gcvit_tiny32", dims=(2, 8)), "model.sizes.dims", False),
    (made("fit_tiny32", layers=[(1, 2, 3)]), "model.sizes.layers", False),
    (made("mlp", dropout=[0.5]), "model.sizes.dropout", False),
    (made("alexnet_small", dropout=0.5), "model.sizes.dropout", False),
    (made("ms_mlp_tiny32", kernels=3), "model.sizes.kernels", False),
    (made("ms_mlp_tiny32", kernels=((1,), (2,), (3,))), "model.sizes.kernels", False),
    (made("ms_mlp_tiny32", dims=(6, 80, 160)), "model.sizes.dims", True),
    (made("raftmlp_tiny32", kernels=((4, 7), (2,))), "model.sizes.kernels", True),
    # operators
    (placed("cnn", "wconf"), "model.operators.wconf", True),
    (placed("cnn", "wconv", densty=1), "model.operators.wconv.densty", True),
    (placed("cnn", "wconv", density="1"), "model.operators.wconv.density", False),
    (placed("cnn", "wconv", density={4: 1}), "model.operators.wconv.density", False),
    (placed("cnn", "wconv", density={3: [1, 2]}), "model.operators.wconv.density.3", False),
    (placed("cnn", "wconv", start="he"), "model.operators.wconv.start", False),
    (placed("cnn", "dcls", size=6), "model.operators.dcls.size", True),
    (placed("cnn", "dcls", share="model"), "model.operators.dcls.share", False),
    (placed("cnn", "e2gc", group_size=0), "model.operators.e2gc.group_size", False),
    (placed("cnn", "e2gc", layers="conv1"), "model.operators.e2gc.layers", True),
    (placed("cnn", "wconv", layers=3), "model.operators.wconv.layers", False),
    (placed("cnn", "wconv", layers="conv3"), "model.operators.wconv.layers", False),
    (placed("mlp", "wconv"), "model.operators.wconv.layers", True),
    (placed("mlp", "dolg"), "model.name", True),
    (placed("cnn", "dolg", layer=3), "model.operators.dolg.layer", False),
    (placed("cnn", "dolg", layer="conv3"), "model.operators.dolg.layer", True),
    (placed("cnn", "dolg", pool="max"), "model.operators.dolg.pool", False),
    (lambda: checkpoint_blocks(build("cnn", 3)), "model.checkpoint", True),
    # encoders of texts
    (partial(build_text, "gur", TextShape(50, 8)), "strategy.text", True),
    (partial(build_text, "gru", TextShape(0, 8)), "strategy.text", True),
    (partial(build_text, "gru", TextShape(50, 8), width=5), "strategy.text_sizes.width", False),
    (partial(build_text, "transformer", TextShape(50, 8), heads=3), "strategy.text_sizes.heads", False),
    (partial(build_text, "transformer", TextShape(50, 8), mlp_ratio=0), "strategy.text_sizes.mlp_ratio", False),
]


@pytest.mark.parametrize(("ask", "key", "has_remedy"), REFUSED)
def test_a_refusal_has_its_key_and_says_what_to_do(ask: Callable[[], object], key: str, has_remedy: bool) -> None:
    with pytest.raises(Refusal) as caught, torch.device("meta"):
        ask()
    refusal = caught.value
    assert refusal.key == key
    assert bool(refusal.remedy) == has_remedy
    for sentence in (refusal.reason, refusal.remedy) if has_remedy else (refusal.reason,):
        assert sentence.endswith((".", "?")) and "  " not in sentence
        assert not sentence.endswith("..")
    assert refusal.remedy == refusal.remedy[:1].upper() + refusal.remedy[1:]
    assert key in str(refusal) and f"(key {key}) (key" not in str(refusal)


class Silent(Model):
    """Sets all that a model has, and does not say how its features are computed."""

    def __init__(self, num_classes: int, image_size: int = 8, in_channels: int = 3) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = 4, in_channels, image_size
        self.head = nn.Linear(4, num_classes)


def test_a_model_of_ones_own_that_lacks_something_is_refused_when_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["own_models"]
    monkeypatch.setattr(module, "Silent", Silent, raising=False)
    for name, lacking in (("Headless", "head, features"), ("Silent", "features")):
        with pytest.raises(Refusal, match=f"lacks {lacking}: {name}") as caught:
            build(f"own_models:{name}", 3)
        assert caught.value.key == "model.name" and caught.value.remedy
    with pytest.raises(Refusal, match=r"One of your own is named module:factory\."):
        build("own_models.plain", 3)

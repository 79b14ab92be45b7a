"""What FOT sends, against the formulas of its page; and what it reports of its bases."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import SMALL_FOT as SMALL
from umbel import models, run
from umbel.conf.load import load
from umbel.models.weights import shared_state
from umbel.strategies.fot.method import FOT, Config, State

CLIENTS, ROUNDS = 3, 3  # two boundaries: behind rounds 1 and 2
MODELS = {
    "mlp": ("model.name=mlp", "model.sizes={hidden: 8, depth: 1}"),
    "cvt_tiny32": ("model.name=cvt_tiny32", "model.sizes={dims: [4, 6, 8], heads: [1, 2, 2]}"),
}


def layers_by_hand(model: str) -> tuple[dict[str, tuple[int, int, int]], int]:
    """Return groups, inputs and whether there is a bias of each layer, and the bytes of the shared state."""
    experiment = load("digits", [*SMALL, *MODELS[model]])
    built = models.build(experiment.model.name, 10, 8, 1, **experiment.model.sizes)
    layers = {}
    for name, module in built.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            groups, bias = getattr(module, "groups", 1), int(module.bias is not None)
            layers[f"{name}.weight"] = (groups, module.weight[0].numel() + bias, bias)
    return layers, sum(tensor.numel() * 4 for tensor in shared_state(built).values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "override",
    ["width=1.0", "width=0.5", "width=0", "residual=server", "sketched=local", "bias=free", "project=false"],
)
def test_bytes_are_those_of_the_formulas(model, override, tmp_path):
    """float32 on the wire: P a round; after a task 4 G D M and 24 G up, P and 4 G D R down for each layer."""
    options = (*SMALL, *MODELS[model], f"strategy.{override}")
    result = run("digits", *options, f"run.results={tmp_path}")
    layers, model_bytes = layers_by_hand(model)
    if override == "bias=free":
        layers = {name: (groups, inputs - bias, 0) for name, (groups, inputs, bias) in layers.items()}
    width = float(override.partition("=")[2]) if override.startswith("width") else 1.0
    sketches = sum(4 * g * d * (math.ceil(width * d) or d) + 24 * g for g, d, _ in layers.values())
    # The bases of the first task travel at the second boundary: each group filled up to the longest.
    columns = measured(result, "columns", 1)
    bases = sum(4 * g * d * int(columns.get(f"columns/{name}", 0)) for name, (g, d, _) in layers.items())
    boundaries, extra_model = (0, 0) if override == "project=false" else (2, model_bytes)
    if override == "sketched=local":
        extra_model = 0  # sketches go with the update: nothing but the bases goes down for them
    if override in ("residual=server", "project=false"):
        bases = 0
    assert result.summary["bytes_up"]["tensors"] == CLIENTS * (ROUNDS * model_bytes + boundaries * sketches)
    down = CLIENTS * (ROUNDS * model_bytes + boundaries * extra_model + bases)
    assert result.summary["bytes_down"]["tensors"] == down


def measured(result, metric: str, round_: int) -> dict[str, float]:
    table = result.metrics
    rows = table[(table["side"] == "server") & (table["round"] == round_)]
    rows = rows[rows["metric"].str.startswith(f"{metric}/")]
    return dict(zip(rows["metric"], rows["value"], strict=True))


def test_ranks_are_kept_with_the_metrics(tmp_path):
    options = (*SMALL, "data.max_train=300", f"run.results={tmp_path}")
    result = run("digits", *options)
    ranks = [list(measured(result, "rank", round_).values()) for round_ in (1, 2, 3)]
    assert all(0 < a <= b for a, b in zip(ranks[0], ranks[1], strict=True)) and not ranks[2]
    table = result.metrics
    shares = table[table["metric"] == "protected"]["value"].tolist()
    assert len(shares) == 2 and 0 < shares[0] < shares[1] < 1


def test_the_share_that_is_protected_by_hand():
    grouped = torch.zeros(2, 2, 2)  # of 2 groups, one with both directions, one with one
    grouped[0], grouped[1, :, :1] = torch.eye(2), torch.eye(2)[:, :1]
    model = {"a": torch.zeros(4, 2, 1, 1), "b": torch.zeros(2, 5)}
    state = State(model, {"a": (2, 2), "b": (1, 5)}, {"a": grouped}, 1, False, {})
    assert FOT(Config()).phase("train").measured(state) == {}
    held = FOT(Config()).phase("sketch").measured(state)
    assert held["rank/a"] == 3 and held["rank/b"] == 0 and held["columns/a"] == 2
    assert held["protected"] == (3 * 2) / (4 * 2 + 2 * 5)  # each direction of a group holds its 2 outputs

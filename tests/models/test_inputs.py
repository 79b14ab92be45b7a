"""Layer inputs on the models of the zoo, the wrong ways of taking them, and how much of them exists at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from umbel import models
from umbel.core.rng import generator
from umbel.models.inputs import layer_inputs, stream_inputs
from umbel.strategies.fot.subspace import Sketches

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def said_by(layer: nn.Module, columns: Tensor) -> Tensor:
    """Return what a layer makes of its columns, [out, N]."""
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.reshape(groups, layer.weight.shape[0] // groups, -1)
    made = (weight @ columns.reshape(groups, -1, columns.shape[-1])).reshape(layer.weight.shape[0], -1)
    return made if layer.bias is None else made + layer.bias[:, None]


# The zoo --------------------------------------------------------------------------------------------------

ZOO = {
    "mlp": ({"hidden": 6, "depth": 2, "dropout": [0.2, 0.5]}, 8),
    "cnn": ({"width": 2, "hidden": 6}, 8),
    "alexnet_small": ({"width": 2, "hidden": 8}, 19),
    "lenet": ({}, 16),
    "resnet18": ({"width": 2, "bias": True}, 9),
    "cvt_tiny32": ({"dims": [4, 6, 8], "heads": [1, 2, 2]}, 8),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_layer_makes_its_output_of_its_columns(name):
    sizes, side = ZOO[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = models.build(name, 3, side, 1, **sizes).double().train()
    batch = normal(4, 1, side, side)
    inputs = layer_inputs(model, batch)
    assert all(module.training for module in model.modules())
    outputs: dict[str, list[Tensor]] = {}
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for layer_name, module in layers.items():
        module.register_forward_hook(lambda _, __, y, n=layer_name: outputs.setdefault(n, []).append(y))
    model.eval()(batch)
    assert inputs.keys() == {f"{n}.weight" for n in outputs} == {f"{n}.weight" for n in layers}
    for layer_name, module in layers.items():
        (output,) = outputs[layer_name]
        expected = output.transpose(0, 1) if isinstance(module, nn.Conv2d) else output.movedim(-1, 0)
        made = said_by(module, inputs[f"{layer_name}.weight"])
        torch.testing.assert_close(made, expected.reshape(len(made), -1))


def test_convolutional_projections_of_a_hybrid_model_have_a_group_a_channel():
    model = models.build("cvt_tiny32", 3, 8, 1, dims=[4, 6, 8], heads=[1, 2, 2]).double()
    inputs = layer_inputs(model, normal(2, 1, 8, 8))
    block = "stages.1.blocks.0.attention"
    side = 4  # of the second stage's map; keys and values at stride 2
    assert inputs[f"{block}.conv_q.conv.weight"].shape == (6, 9, 2 * side**2)
    assert inputs[f"{block}.conv_k.conv.weight"].shape == (6, 9, 2 * (side // 2) ** 2)
    assert inputs[f"{block}.q.weight"].shape == (6, 2 * side**2)
    assert inputs[f"{block}.k.weight"].shape == (6, 2 * (side // 2) ** 2)


def test_a_transformer_layer_off_its_fast_path():
    """In evaluation mode torch would run a fused kernel, in which no layer can be seen."""
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.3, batch_first=True).double().eval()
    tokens = normal(2, 5, 8)
    inputs = layer_inputs(layer, tokens)
    names = {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    assert set(inputs) == names
    assert torch.equal(inputs["self_attn.in_proj_weight"], tokens.reshape(-1, 8).T)
    hidden = torch.relu(said_by(layer.linear1, inputs["linear1.weight"]))
    torch.testing.assert_close(inputs["linear2.weight"], hidden)
    made = layer.norm2(inputs["linear1.weight"].T + said_by(layer.linear2, hidden).T)
    torch.testing.assert_close(made.reshape(2, 5, 8), layer(tokens))


# Wrong ways -----------------------------------------------------------------------------------------------

LAYERS = {
    "stride": nn.Conv2d(4, 6, 3, stride=2, bias=False),
    "padding": nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "dilation": nn.Conv2d(4, 6, 3, dilation=2, bias=False),
    "groups": nn.Conv2d(4, 6, 3, groups=2, bias=False),
    "all of them": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=False),
}


def unfolded(layer: nn.Conv2d, batch: Tensor, without: str = "", order: str = "ckn") -> Tensor:
    """Return patches by torch's own unfold [G, D, N], with one thing wrong."""
    options = {key: getattr(layer, key) for key in ("stride", "padding", "dilation") if key != without}
    patches = F.unfold(batch, layer.kernel_size, **options)  # [B, C K, L]
    channels, positions = batch.shape[1], patches.shape[-1]
    patches = patches.reshape(len(batch), channels, -1, positions)
    if order == "kc":  # kernel first
        patches = patches.transpose(1, 2)
    patches = patches.reshape(len(batch), -1, positions)
    columns = patches.permute(1, 2, 0) if order == "positions first" else patches.permute(1, 0, 2)
    groups = 1 if without == "groups" else layer.groups
    return columns.reshape(groups, columns.shape[0] // groups, -1)


def is_the_convolution(layer: nn.Conv2d, batch: Tensor, columns: Tensor) -> bool:
    """The check: the weight times the columns is the convolution, column by column."""
    groups = layer.groups
    weight = layer.weight.reshape(groups, layer.out_channels // groups, -1)
    expected = layer(batch).transpose(0, 1).reshape(layer.out_channels, -1)
    if columns.numel() != groups * weight.shape[2] * expected.shape[1] or columns.shape[0] != groups:
        return False
    return torch.allclose((weight @ columns).reshape(expected.shape), expected, atol=1e-12)


@pytest.mark.parametrize("key", LAYERS)
def test_a_layer_without_its_own_stride_padding_dilation_or_groups_is_caught(key):
    layer, batch = LAYERS[key].double(), normal(3, 4, 9, 8, seed=2)
    own = layer_inputs(nn.Sequential(layer), batch)["0.weight"]
    own = own if own.ndim == 3 else own[None]
    assert is_the_convolution(layer, batch, own) and torch.equal(own, unfolded(layer, batch))
    for without in ("stride", "padding", "dilation", "groups") if key == "all of them" else (key,):
        assert not is_the_convolution(layer, batch, unfolded(layer, batch, without))


@pytest.mark.parametrize("order", ["kc", "positions first"])
def test_rows_and_columns_in_another_order_are_caught(order):
    layer, batch = LAYERS["padding"].double(), normal(3, 4, 9, 8, seed=2)
    assert not is_the_convolution(layer, batch, unfolded(layer, batch, order=order))


def test_dropout_that_is_active_is_caught():
    model = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 2)).double().train()
    batch = normal(6, 3)
    seen: list[Tensor] = []
    hook = model[2].register_forward_pre_hook(lambda _, x: seen.append(x[0].T))
    model(batch)  # in training mode: what the authors' code records of MNIST
    hook.remove()
    own = layer_inputs(model, batch)["2.weight"]
    assert torch.equal(own, model[0](batch).T) and not torch.allclose(seen[0], own)


# Memory ---------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Notes the largest storage that an operation made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


def largest(work: Callable[[], object]) -> int:
    with torch.no_grad(), Largest() as seen:
        work()
    return seen.bytes


def test_patches_of_a_large_layer_never_exist_at_once(monkeypatch):
    """Sketching 64 images takes no storage that grows with them, beside the images and what the layers say."""
    layer = nn.Sequential(nn.Conv2d(16, 4, 5, padding=2))
    batch = torch.randn(64, 16, 20, 20, generator=generator(1))
    sample_bytes = 16 * 25 * 400 * 4  # of one sample's patches, 640 kB
    whole = largest(lambda: layer_inputs(layer, batch))
    assert whole >= 64 * sample_bytes
    monkeypatch.setattr("umbel.strategies.fot.subspace._PIECE_BYTES", 2 * sample_bytes)

    def sketch() -> None:
        sketches = Sketches({}, {"0.weight": (1, 401)}, 1.0, lambda purpose: generator(0, purpose=purpose))
        stream_inputs(layer, batch, sketches.take, chunk_bytes=2 * sample_bytes)
        assert sketches.sketch["0.weight"].shape == (401, 401)

    at_most = largest(sketch)
    assert at_most <= max(batch.nbytes, 3 * sample_bytes) and at_most < whole / 10


def test_pieces_sum_to_the_whole(monkeypatch):
    columns = normal(7, 50)

    def energies(piece_bytes: int) -> tuple[Tensor, Tensor]:
        monkeypatch.setattr("umbel.strategies.fot.subspace._PIECE_BYTES", piece_bytes)
        sketches = Sketches({}, {"w": (1, 8)}, 0.0, lambda purpose: generator(0, purpose=purpose))
        sketches.take("w", columns)
        return sketches.sketch["w"], sketches.energy["w"]

    (whole, energy), (parts, same) = energies(1 << 30), energies(8 * 8 * 3)
    ones = torch.cat([columns, torch.ones(1, 50, dtype=F64)])
    torch.testing.assert_close(parts, (ones @ ones.T).float())
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(same, energy)

"""InceptionNeXt: published counts, the split's order against loops, the block's equation, sizes and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import check_forward, num_parameters, on_meta, randomise, seeded_with
from umbel.models import build, describe
from umbel.models.inception_next import InceptionConv, InceptionNeXtBlock
from umbel.models.norm import replace_batch_norm

PUBLISHED = ("inception_next_atto", "inception_next_tiny", "inception_next_small")


seeded = seeded_with(7)


# Counts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "digits", "printed"), [*zip(PUBLISHED, (2, 1, 1), ("4.16", "28.1", "49.4"), strict=True)]
)
def test_published_counts(name, digits, printed):
    model = on_meta(name, 1000)
    count = num_parameters(model)
    assert f"{count / 1e6:.{digits}f}" == printed
    assert describe(name).endswith(f"{printed} M parameters at 1000 classes.")
    assert model.num_features == 3 * model.stages[3][1].out_channels == model.head.in_features
    assert num_parameters(replace_batch_norm(model)) == count


def test_batch_norms_of_atto():
    # One a block, one after the stem and one before each later stage's convolution.
    assert sum(isinstance(m, nn.BatchNorm2d) for m in on_meta("inception_next_atto", 10).modules()) == 12 + 1 + 3


def test_tiny_count():
    assert 100_000 < num_parameters(on_meta("inception_next_tiny32", 10)) == 289_194 < 600_000


# The equations --------------------------------------------------------------------------------------------


def test_the_split_order_against_loops():
    """Channels 0-1 as they are, 2-3 by 3 x 3, 4-5 along the row, 6-7 along the column."""
    mixer, x = InceptionConv(8, band=5, ratio=0.25).double(), torch.randn(2, 8, 4, 6).double()
    kernels = {2: (mixer.square, 3, 3), 4: (mixer.horizontal, 1, 5), 6: (mixer.vertical, 5, 1)}
    expected = x.clone()
    for first, (conv, tall, wide) in kernels.items():
        assert conv.weight.shape == (2, 1, tall, wide)
        for i in range(2):
            for row in range(4):
                for column in range(6):
                    total = conv.bias[i].expand(2)
                    for dy in range(tall):
                        for dx in range(wide):
                            y, z = row + dy - tall // 2, column + dx - wide // 2
                            if 0 <= y < 4 and 0 <= z < 6:
                                total = total + conv.weight[i, 0, dy, dx] * x[:, first + i, y, z]
                    expected[:, first + i, row, column] = total
    torch.testing.assert_close(mixer(x), expected)


def test_the_identity_has_the_rest():
    mixer = InceptionConv(21, band=3, ratio=0.125)  # int(2.6) = 2 channels each
    x = torch.randn(1, 21, 3, 3)
    assert torch.equal(mixer(x)[:, :15], x[:, :15])
    assert ((mixer(x)[:, 15:] - x[:, 15:]).abs().amax(dim=(2, 3)) > 0.01).all()


def test_the_block_is_its_equation():
    block = InceptionNeXtBlock(8, 3, 0.25, mlp_ratio=3, layer_scale=0.5, drop_rate=0.4).double().eval()
    randomise(block, std=1)
    x = torch.randn(2, 8, 3, 3).double()
    norm = block.norm
    mixed = block.mixer(x)
    for b in range(2):
        for row in range(3):
            for column in range(3):
                normed = (mixed[b, :, row, column] - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
                hidden = F.gelu(block.fc1.weight[:, :, 0, 0] @ (normed * norm.weight + norm.bias) + block.fc1.bias)
                branch = block.fc2.weight[:, :, 0, 0] @ hidden + block.fc2.bias
                expected = x[b, :, row, column] + block.scale.weight[:, 0, 0] * branch
                torch.testing.assert_close(block(x)[b, :, row, column], expected)


def test_the_features_are_the_heads_hidden_layer():
    model = build("inception_next_tiny32", 5, 28, 1, head_ratio=3).eval()
    x = torch.randn(2, 1, 28, 28)
    hidden = F.gelu(model.stages(x).mean(dim=(2, 3)) @ model.fc.weight.T + model.fc.bias)
    expected = (hidden - hidden.mean(1, keepdim=True)) / hidden.std(1, correction=0, keepdim=True)
    assert model.num_features == 384
    torch.testing.assert_close(model.features(x), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(model(x), model.head(model.features(x)))


# Forward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_atto_at_64(training):
    check_forward(build("inception_next_atto", 10, 64).train(training), 1, 2)


def test_layer_scale_and_drop_path():
    atto = build("inception_next_atto", 10, 32)
    scales = torch.cat([v.flatten() for k, v in atto.state_dict().items() if k.endswith("scale.weight")])
    assert scales.unique().tolist() == pytest.approx([1e-6])
    assert build("inception_next_atto", 10, 32, layer_scale=0.5).stages[0][2].scale.weight.unique().item() == 0.5
    rates = [m.drop_rate for m in on_meta("inception_next_small", 10).modules() if isinstance(m, InceptionNeXtBlock)]
    assert rates == pytest.approx([0.3 * i / 35 for i in range(36)])


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("inception_next_atto", {"image_size": 100}, r"model\.image_size.*Use 96"),
        ("inception_next_atto", {"layer_scale": 0}, r"model\.sizes\.layer_scale"),
        ("inception_next_small", {"drop_path": 1.0}, r"model\.sizes\.drop_path"),
        ("inception_next_tiny32", {"image_size": 3}, r"model\.image_size.*Use 4"),
        ("inception_next_tiny32", {"dims": [32, 64]}, r"model\.sizes\.dims"),
        ("inception_next_tiny32", {"depths": [1, 0, 1]}, r"model\.sizes\.depths"),
        ("inception_next_tiny32", {"band": 4}, r"model\.sizes\.band.*Use 5"),
        ("inception_next_tiny32", {"ratio": 0.01}, r"model\.sizes\.ratio.*Use 0\.25"),
        ("inception_next_tiny32", {"ratio": 0.5}, r"model\.sizes\.ratio.*Use 0\.25"),
        ("inception_next_tiny32", {"ratio": -1}, r"model\.sizes\.ratio"),
        ("inception_next_tiny32", {"mlp_ratio": 1.5}, r"model\.sizes\.mlp_ratio"),
        ("inception_next_tiny32", {"head_ratio": 0}, r"model\.sizes\.head_ratio"),
        ("inception_next_tiny32", {"layer_scale": "big"}, r"model\.sizes\.layer_scale"),
    ],
)
def test_errors_name_the_key(name, sizes, message):
    with pytest.raises(ValueError, match=message):
        on_meta(name, 10, **sizes)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"model\.image_size"):
        build("inception_next_tiny32", 10, 28, 1)(torch.randn(1, 1, 32, 32))

"""UniRepLKNet: counts of both forms, folding against direct sums, and what folding does not commute with."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.models_helpers import count, num_parameters, on_meta, seeded_with
from umbel.models import build
from umbel.models.norm import replace_batch_norm
from umbel.models.unireplknet import DILATED, DilatedConv, ResponseNorm, UniRepLKBlock, fold, merged_kernel

seeded = seeded_with(7)


def stir(model, seed=0):
    """Give every parameter and statistic a value that leaves nothing the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype), alpha=0.1)
    return model


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "digits", "trained", "deployed"),
    [
        ("unireplknet_a", 2, "4.65", "4.44"),
        ("unireplknet_f", 2, "6.49", "6.24"),
        ("unireplknet_p", 1, "11.1", "10.7"),
        ("unireplknet_n", 1, "18.8", "18.3"),
        ("unireplknet_t", 1, "31.7", "31.0"),
    ],
)
def test_published_counts_are_those_of_the_deploy_form(name, digits, trained, deployed):
    with torch.device("meta"):
        model = build(name, 1000)
        folded = fold(model)
    assert f"{num_parameters(model) / 1e6:.{digits}f}" == trained
    assert f"{num_parameters(folded) / 1e6:.{digits}f}" == deployed
    assert count(folded, nn.BatchNorm2d) == 0


def test_unireplknet_a_has_84_batch_norms():
    with torch.device("meta"):
        model = build("unireplknet_a", 1000)
        # 4 blocks of 2, and 8 of 2 + 6 with a norm for each of the kernels.
        assert count(model, nn.BatchNorm2d) == 2 * 2 + 10 * 8 == 84
        assert num_parameters(replace_batch_norm(model)) == 4_649_060


def test_kernels_of_t_alternate_in_the_third_stage():
    model = on_meta("unireplknet_t", 1000)
    kernels = [
        [13 if isinstance(block.mixer, DilatedConv) else 3 for block in stage if isinstance(block, UniRepLKBlock)]
        for stage in model.stages
    ]
    assert kernels == [[3] * 3, [13] * 3, [13, 3] * 9, [13] * 3]


def test_tiny_count():
    assert num_parameters(build("unireplknet_tiny32", 10)) == 509_716


# Forward ----------------------------------------------------------------------------------------------------


def test_a_published_model_at_another_size_and_without_batch_norm():
    model = replace_batch_norm(build("unireplknet_a", 10, 48, 1))
    assert torch.isfinite(model(torch.randn(1, 1, 48, 48))).all()


# Parts ------------------------------------------------------------------------------------------------------


def test_response_norm_by_loops():
    layer = stir(ResponseNorm(3).double())
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    expected = torch.empty_like(x)
    for image in range(2):
        norms = [sum(x[image, i, j, c] ** 2 for i in range(4) for j in range(5)) ** 0.5 for c in range(3)]
        for c in range(3):
            ratio = norms[c] / (sum(norms) / 3 + 1e-6)
            expected[image, :, :, c] = x[image, :, :, c] * (layer.weight[c] * ratio + 1) + layer.bias[c]
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel", sorted(DILATED))
def test_merged_kernel_by_loops(kernel):
    layer = stir(DilatedConv(2, kernel).double()).eval()
    expected = torch.zeros(2, kernel, kernel, dtype=torch.float64)
    centre = kernel // 2
    for (side, dilation), conv, norm in zip([(kernel, 1), *DILATED[kernel]], layer.convs, layer.norms, strict=True):
        for c in range(2):
            factor = norm.weight[c] / (norm.running_var[c] + norm.eps) ** 0.5
            for i in range(side):
                for j in range(side):
                    row, column = (centre + dilation * (place - side // 2) for place in (i, j))
                    expected[c, row, column] += factor * conv.weight[c, 0, i, j]
    merged, bias = merged_kernel(layer)
    torch.testing.assert_close(merged[:, 0], expected)
    # Away from the edges nothing but the kernel counts; at the edges the zero padding has to agree as well.
    x = torch.randn(2, 2, kernel + 2, kernel + 2, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(x, merged, bias, padding=centre, groups=2), layer(x))


# Folding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("unireplknet_tiny32", 28), ("unireplknet_a", 32)])
def test_folded_is_unfolded_in_evaluation(name, size):
    model = stir(build(name, 10, size)).eval()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    x = torch.randn(3, 3, size, size)
    logits = model(x)
    assert (folded(x) - logits).abs().max() < 1e-4 * max(1, logits.abs().max())
    assert (folded.double()(x.double()) - copy.deepcopy(model).double()(x.double())).abs().max() < 1e-4
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    # The order of layer scale, batch norm and response bias matters here: each is away from the identity.
    assert any(block.response.bias.abs().max() > 0.1 for block in model.modules() if isinstance(block, UniRepLKBlock))


def test_folding_in_float64_is_exact():
    model = stir(build("unireplknet_tiny32", 10, kernel=9, layer_scale=1.0).double()).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(fold(model)(x), model(x))


def test_folding_a_training_model_leaves_it_training():
    model = build("unireplknet_tiny32", 10)
    assert not fold(model).training
    assert model.training


def mean_of(first, second):
    """Return `first` with the mean of both states."""
    average = copy.deepcopy(first)
    other = second.state_dict()
    average.load_state_dict(
        {k: (v + other[k]) / 2 if v.is_floating_point() else v for k, v in first.state_dict().items()}
    )
    return average


def test_folding_and_averaging_do_not_commute():
    first, second = (stir(build("unireplknet_tiny32", 10), seed).eval() for seed in (1, 2))
    x = torch.randn(4, 3, 32, 32)
    average_then_fold = fold(mean_of(first, second))
    fold_then_average = mean_of(fold(first), fold(second))
    torch.testing.assert_close(average_then_fold(x), mean_of(first, second)(x), atol=1e-4, rtol=1e-4)
    assert (average_then_fold(x) - fold_then_average(x)).abs().max() > 0.01
    # Of a model with itself they do.
    torch.testing.assert_close(mean_of(fold(first), fold(first))(x), fold(first)(x))


def test_a_folded_state_fits_another_folded_model():
    folded = fold(stir(build("unireplknet_tiny32", 10)))
    other = fold(build("unireplknet_tiny32", 10))
    other.load_state_dict(folded.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(x), folded(x))


# Errors -----------------------------------------------------------------------------------------------------


def test_fold_refuses_what_it_cannot_fold():
    with pytest.raises(TypeError, match="needs a UniRepLKNet, found"):
        fold(build("cnn", 10, 28, 1))
    with pytest.raises(ValueError, match="folded before"):
        fold(fold(build("unireplknet_tiny32", 10)))
    with pytest.raises(ValueError, match="GroupNorm"):
        fold(replace_batch_norm(build("unireplknet_tiny32", 10)))


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"dims": (8, 8)}, "model.sizes.dims"),
        ({"dims": (2, 8, 8, 8)}, "model.sizes.dims"),
        ({"depths": (1, 1, 0, 1)}, "model.sizes.depths"),
        ({"kernel": 8}, "model.sizes.kernel"),
        ({"mlp_ratio": 0}, "model.sizes.mlp_ratio"),
        ({"layer_scale": 0}, "model.sizes.layer_scale"),
        ({"drop_path": 1}, "model.sizes.drop_path"),
        ({"image_size": 3}, "model.image_size.*Use 4"),
    ],
)
def test_errors_name_the_key(sizes, match):
    with pytest.raises(ValueError, match=match):
        build("unireplknet_tiny32", 10, **sizes)


def test_a_published_model_needs_32_px():
    with pytest.raises(ValueError, match=r"model.image_size.*Use 32"):
        build("unireplknet_a", 10, 28)

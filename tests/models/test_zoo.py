"""What holds for every model of the zoo: state that averages safely, ways of running it, inputs that are checked."""

from __future__ import annotations

import copy
import gc
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.core.wire.test_messages import WORK
from tests.models_helpers import check_forward, on_meta, seeded_with
from umbel.core.records import Payload
from umbel.core.wire.messages import decode_work, encode_payload, encode_work
from umbel.models import build, names, options
from umbel.models.base import Block, Model
from umbel.models.checkpointing import checkpoint_blocks
from umbel.models.layers import halving_strides
from umbel.models.norm import integer_buffer_names, replace_batch_norm
from umbel.models.registry import TABLE
from umbel.models.weights import load_state, shared_state
from umbel.simulations.commands.catalogue import entries

EXHAUSTIVE = pytest.mark.exhaustive
TINY = tuple(name for name in names() if name.endswith("_tiny32"))
HYBRID = tuple(
    name for name in names() if any(other.endswith("_tiny32") and TABLE[other][0] == TABLE[name][0] for other in TABLE)
)
PUBLISHED = tuple(name for name in HYBRID if name not in TINY)
# Of each family the first, the others only for `make test-all`: they differ in widths and depths.
SMALLEST = tuple(
    pytest.param(name, marks=() if TABLE[name][0] not in {TABLE[other][0] for other in PUBLISHED[:i]} else EXHAUSTIVE)
    for i, name in enumerate(PUBLISHED)
)
# A batch norm behind the mean over the map has one value a channel and image: one image cannot train.
NEEDS_TWO = ("lsnet_b", "lsnet_s", "lsnet_t")
# Weights over places, or a position a place.
POSITIONED = ("convit_tiny32", "raftmlp_tiny32")
# Sides of images; the others take any from 4 on.
SIZES = {
    **dict.fromkeys(POSITIONED, (8, 12, 28, 32, 36)),
    **dict.fromkeys(("gcvit_tiny32", "maxvit_tiny32"), (8, 13, 28, 32, 40)),
    "ms_mlp_tiny32": (8, 14, 28, 32, 40),
}
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# A whole clip takes minutes.
FEWER = {name: {"num_frames": 4} for name in ("uniformer3d_s", "uniformer3d_b")}


seeded = seeded_with(11)


def has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, BATCH_NORM) for module in model.modules())


def trained(model: Model, x: torch.Tensor, steps: int = 2) -> Model:
    """Take a few steps, so that statistics, scales and norms are not where they began."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
        optimizer.step()
    return model


def in_bfloat16(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Run under autocast; not where PyTorch was told to leave out vectors that its attention in bfloat16 counts on."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        return model(x)
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


def test_every_family_of_the_issue_is_there():
    assert len(TINY) == 22
    assert len(PUBLISHED) == 53


def test_the_list_fits_a_terminal():
    for entry in entries("models"):
        if entry.name in HYBRID:
            assert len(f"{entry.name}  {entry.line}") <= 100, entry
            assert re.search(r"\d M parameters at (10|1000) classes", entry.line)


@pytest.mark.parametrize("name", HYBRID)
def test_built_on_meta_ends_in_its_head_and_has_blocks(name):
    with torch.device("meta"):
        model = build(name, 7)
    assert model.image_size == options(name)["image_size"]
    assert isinstance(model.head, nn.Linear)
    assert (model.head.in_features, model.head.out_features) == (model.num_features, 7)
    assert list(model.state_dict())[-2:] == ["head.weight", "head.bias"]
    assert any(isinstance(module, Block) for module in model.modules())
    assert integer_buffer_names(model) == {key for key in model.state_dict() if key.endswith("num_batches_tracked")}, (
        "tables of integers have no mean: register them as persistent=False"
    )
    assert all(tensor.dtype.is_floating_point for tensor in shared_state(model).values())


@pytest.mark.parametrize("name", SMALLEST)
def test_a_size_that_does_not_work_names_one_that_does(name):
    works = smallest(name)
    with torch.device("meta"):
        assert build(name, 7, works)(torch.empty(2, 3, works, works)).shape == (2, 7)


@pytest.mark.parametrize("name", TINY)
def test_tiny_sizes(name):
    with pytest.raises(ValueError, match=r"model\.image_size.*Use \d+"):
        build(name, 10, 3)
    with torch.device("meta"):
        model = build(name, 10)
    assert 100_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 600_000


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3)])
@pytest.mark.parametrize("name", TINY)
def test_tiny_trains_in_every_parameter(name, size, channels):
    model = build(name, 3, size, channels)
    x = torch.randn(4, channels, size, size)
    trained(model, x)  # scales that begin at zero hide what stands behind them
    model.zero_grad()
    F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"was built for images \[batch, "):
        model(x[:, :, 1:])


@pytest.mark.parametrize("name", TINY)
def test_a_batch_of_one(name):
    model = replace_batch_norm(build(name, 3, 28, 1))
    assert not has_batch_norm(model)
    x = torch.randn(1, 1, 28, 28)
    F.cross_entropy(model(x), torch.tensor([1])).backward()
    assert torch.isfinite(model(x)).all()
    assert build(name, 3, 28, 1).eval()(x).shape == (1, 3)


@pytest.mark.parametrize("name", TINY)
def test_sizes_of_images_and_batches(name):
    for i, size in enumerate(SIZES.get(name, (4, 7, 8, 28, 32, 36))):
        check_forward(build(name, 3, size, 1 + 2 * (i % 2), drop_path=0.2), 1, 2)


@pytest.mark.parametrize("name", sorted({*TINY} - {*POSITIONED}))
def test_shapes_do_not_depend_on_the_size_of_the_image(name):
    # Windows follow the image, but 28 and 32 px are padded to the same.
    sizes = (28, 32) if name in ("gcvit_tiny32", "maxvit_tiny32") else (8, 28, 32)
    shapes = [{key: value.shape for key, value in on_meta(name, 10, size).state_dict().items()} for size in sizes]
    assert all(other == shapes[0] for other in shapes)


@pytest.mark.parametrize("name", ["gcvit_tiny32", "maxvit_tiny32"])
def test_images_are_padded_evenly(name):
    small, large = build(name, 10, 28).eval(), build(name, 10, 32).eval()
    large.load_state_dict(small.state_dict())
    x, padded = torch.randn(2, 3, 28, 28), torch.zeros(2, 3, 32, 32)
    padded[:, :, 2:30, 2:30] = x
    assert torch.equal(small(x), large(padded))


@pytest.mark.parametrize("number", [1, 3, 4])
def test_halving_leaves_2_x_2(number):
    for side in range(2, 70):
        strides, after = halving_strides(side, number), side
        for stride in strides:
            assert stride == (2 if after > 2 else 1)
            after = (after + stride - 1) // stride
        assert after == max(2, -(-side // 2**number))


@pytest.mark.parametrize("name", TINY)
def test_an_empty_batch_has_features(name):
    model = build(name, 3, 28, 1).eval()
    x = torch.empty(0, 1, 28, 28)
    assert model.features(x).shape == (0, model.num_features)
    assert model(x).shape == (0, 3)


def smallest(name: str) -> int:
    """The side that a refusal of 7 px names."""
    with pytest.raises(ValueError, match=r"model\.image_size.*Use \d+") as refused, torch.device("meta"):
        build(name, 7, 7)
    return int(re.search(r"Use (\d+)", str(refused.value)).group(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_published_at_a_small_size(name):
    """Forwards and backwards in the layers' own widths; `test_published_at_their_size` has all of it."""
    model = build(name, 7, smallest(name), **FEWER.get(name, {})).train()
    check_forward(model, 2)
    del model
    gc.collect()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_at_their_size(name, training):
    model = build(name, 1000, **FEWER.get(name, {})).train(training)
    alone = not (training and name in NEEDS_TWO)
    check_forward(model, *((1, 2) if alone else (2,)))
    if not alone:
        with pytest.raises(ValueError, match="more than 1 value"):
            model(torch.randn(1, 3, model.image_size, model.image_size))
    del model
    gc.collect()  # the largest takes gigabytes with its gradients


@pytest.mark.parametrize("name", TINY)
def test_state_to_message_to_state(name):
    x = torch.randn(3, 1, 28, 28)
    source, target = trained(build(name, 3, 28, 1), x), build(name, 3, 28, 1)
    target(x)  # nothing may be set at the first forward pass
    payload = Payload({"model": shared_state(source)})
    _, received = decode_work(encode_work(WORK, payload, encode_payload(payload)))
    load_state(target, dict(received.trees["model"]))
    assert torch.equal(source.eval()(x), target.eval()(x))
    assert torch.equal(source(x), copy.deepcopy(source)(x))


@pytest.mark.parametrize("name", TINY)
def test_models_of_one_process_do_not_meet(name):
    """A simulation runs many clients in a process: nothing may live in a module's globals."""
    x = torch.randn(2, 1, 28, 28)
    one, other = build(name, 3, 28, 1).eval(), build(name, 3, 32, 3).eval()
    alone = one(x)
    other(torch.randn(3, 3, 32, 32))
    assert torch.equal(one(x), alone)


@pytest.mark.parametrize("name", TINY)
def test_an_average_of_two_models_works(name):
    x = torch.randn(3, 1, 28, 28)
    start = build(name, 3, 28, 1)
    one, other = (trained(copy.deepcopy(start), torch.randn(3, 1, 28, 28)) for _ in range(2))
    both = (shared_state(one), shared_state(other))
    load_state(start, {key: (both[0][key] + both[1][key]) / 2 for key in both[0]})
    assert torch.isfinite(start.eval()(x)).all()


@pytest.mark.parametrize("name", TINY)
def test_checkpointed_blocks_give_the_same_bits(name):
    model = build(name, 3, 28, 1, **({"drop_path": 0.3} if "drop_path" in options(name) else {}))
    other = checkpoint_blocks(copy.deepcopy(model))
    x = torch.randn(3, 1, 28, 28)
    for each in (model, other):
        torch.manual_seed(2)
        trained(each, x)
    for (key, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


@pytest.mark.parametrize("name", TINY)
def test_precisions_and_memory_order(name):
    model = trained(build(name, 3, 28, 1), torch.randn(3, 1, 28, 28)).eval()
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        plain, exact = model(x), copy.deepcopy(model).double()(x.double())
        last = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        low = in_bfloat16(model, x)
    assert exact.dtype == torch.float64
    torch.testing.assert_close(plain.double(), exact, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-4)
    assert (low.float() - plain).abs().max() < 0.1 * (1 + plain.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "cvt_tiny32" else EXHAUSTIVE) for n in TINY])
def test_compiles_without_breaks(name):
    model = build(name, 3, 28, 1).eval()
    x = torch.randn(3, 1, 28, 28)
    torch._dynamo.reset()
    compiled = torch.compile(model.features, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model.features(x), rtol=1e-4, atol=1e-5)

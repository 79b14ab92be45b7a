"""Text encoders: counts, padding that changes nothing, references, state in and out, and the errors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.names import UnknownNameError
from umbel.core.rng import build_seeded
from umbel.models.text import TABLE, TextEncoder, TextShape, build_text, num_tokens, text_names, text_options
from umbel.models.weights import load_state, parameter_names, shared_state

TOKENS, EMBEDDINGS = TextShape(50, 32), TextShape(0, 12)
SMALL: dict[str, dict[str, int]] = {
    "embedding_mlp": {"width": 6, "hidden": 10},
    "gru": {"width": 6},
    "transformer": {"width": 8, "heads": 2},
}
SHAPES = {name: TOKENS if reads_tokens else EMBEDDINGS for name, (_, reads_tokens) in TABLE.items()}
READS_TOKENS = [name for name, (_, reads_tokens) in sorted(TABLE.items()) if reads_tokens]


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        yield


def small(name: str, **sizes: Any) -> Any:
    return build_text(name, SHAPES[name], **(SMALL[name] | sizes))


def some(name: str, batch: int = 4) -> Tensor:
    """Return texts of 1 to 9 tokens, the longest first and the padding wider than that, or embeddings."""
    if SHAPES[name] == EMBEDDINGS:
        return torch.randn(batch, 12)
    tokens = torch.randint(1, 50, (batch, 16))
    for row, length in enumerate([9, 1, 5, 3][:batch]):
        tokens[row, length:] = 0
    return tokens


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
def test_gru_counts(layers: int) -> None:
    model = build_text("gru", TextShape(1000, 32), layers=layers)
    one_way = 3 * (64 * 32 + 32 * 32 + 32 + 32)
    assert num_parameters(model) == 1000 * 64 + layers * 2 * one_way
    assert num_parameters(model) == {1: 82_816, 3: 120_448}[layers]


@pytest.mark.parametrize("depth", [1, 2])
def test_transformer_counts(depth: int) -> None:
    model = build_text("transformer", TextShape(1000, 32), depth=depth)
    attention = 128 * 384 + 384 + 128 * 128 + 128
    perceptron = 128 * 256 + 256 + 256 * 128 + 128
    block = 2 * 2 * 128 + attention + perceptron
    assert num_parameters(model) == (1000 + 32) * 128 + depth * block + 2 * 128
    assert num_parameters(model) == {1: 264_832, 2: 397_312}[depth]


def test_embedding_mlp_counts() -> None:
    model = build_text("embedding_mlp", TextShape(0, 384))
    assert num_parameters(model) == (384 * 256 + 256) + (256 * 128 + 128) == 131_456


# Padding ----------------------------------------------------------------------------------------------------


def test_num_tokens() -> None:
    tokens = torch.tensor([[5, 6, 7], [5, 0, 0], [0, 0, 0], [5, 0, 7]])
    assert num_tokens(tokens).tolist() == [3, 1, 1, 3]


@pytest.mark.parametrize("name", READS_TOKENS)
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(name: str, training: bool) -> None:
    model = small(name, **({"layers": 2} if name == "gru" else {"depth": 2})).train(training)
    tokens = some(name)
    features = model(tokens)
    torch.testing.assert_close(model(F.pad(tokens, (0, 16))), features, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(tokens[:, :9]), features, rtol=0, atol=1e-6)
    for row, length in enumerate([9, 1, 5, 3]):  # without padding and alone
        torch.testing.assert_close(model(tokens[row : row + 1, :length])[0], features[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", READS_TOKENS)
def test_padding_has_no_gradient(name: str) -> None:
    model, tokens = small(name), some(name)
    gradients = []
    for padded in (tokens, F.pad(tokens, (0, 16))):
        model.zero_grad()
        model(padded).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
    assert not model.embedding.weight.grad[0].any()
    assert not model.embedding.weight[0].any()


@pytest.mark.parametrize("name", READS_TOKENS)
def test_a_row_of_padding_is_finite_and_disturbs_nobody(name: str) -> None:
    model, tokens = small(name), some(name)
    features = model(torch.cat([tokens, torch.zeros_like(tokens[:1])]))
    assert torch.isfinite(features).all()
    torch.testing.assert_close(features[:4], model(tokens), rtol=0, atol=1e-6)
    features[4].sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert torch.isfinite(model(torch.zeros(2, 3, dtype=torch.int64))).all()


@pytest.mark.parametrize("name", text_names())
def test_rows_are_permuted_with_their_texts(name: str) -> None:
    model, x = small(name), some(name)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(x[order]), model(x)[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", READS_TOKENS)
def test_order_of_words_matters(name: str) -> None:
    features = small(name)(torch.tensor([[3, 4, 5], [5, 4, 3], [3, 4, 6]]))
    assert (features[0] - features[1]).abs().max() > 1e-4
    assert (features[0] - features[2]).abs().max() > 1e-4


# References -------------------------------------------------------------------------------------------------


def slow_gru(layer: nn.GRU, x: Tensor, suffix: str) -> Tensor:
    """One direction of one layer of torch's GRU, by its equations; x is [L, W]."""
    weights = {key: getattr(layer, f"{key}_l0{suffix}") for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    state, states = torch.zeros(layer.hidden_size), []
    for token in x:
        ir, iz, i_new = (weights["weight_ih"] @ token + weights["bias_ih"]).chunk(3)
        hr, hz, h_new = (weights["weight_hh"] @ state + weights["bias_hh"]).chunk(3)
        new = torch.tanh(i_new + torch.sigmoid(ir + hr) * h_new)
        update = torch.sigmoid(iz + hz)
        state = (1 - update) * new + update * state
        states.append(state)
    return torch.stack(states)


def test_gru_against_loops() -> None:
    model, tokens = small("gru", layers=2), some("gru")
    for row, length in enumerate([9, 1, 5, 3]):
        states = model.embedding(tokens[row, :length])
        for layer in model.layers:
            back = slow_gru(layer, states.flip(0), "_reverse").flip(0)
            states = torch.cat([slow_gru(layer, states, ""), back], 1)
        torch.testing.assert_close(model(tokens)[row], states.mean(0), rtol=1e-5, atol=1e-6)


def test_transformer_against_torch() -> None:
    model, tokens = small("transformer", depth=1), some("transformer")
    block = model.blocks[0]
    reference = nn.TransformerEncoderLayer(8, 2, 16, 0.0, F.gelu, batch_first=True, norm_first=True)
    ours = {
        "self_attn.in_proj_weight": block.qkv.weight,
        "self_attn.in_proj_bias": block.qkv.bias,
        **{f"{theirs}.{part}": getattr(module, part) for theirs, module in (
            ("self_attn.out_proj", block.out), ("linear1", block.fc1), ("linear2", block.fc2),
            ("norm1", block.norm1), ("norm2", block.norm2),
        ) for part in ("weight", "bias")},
    }  # fmt: skip
    reference.load_state_dict(ours)
    for row, length in enumerate([9, 1, 5, 3]):
        states = model.embedding(tokens[row, :length]) + model.positions[:length]
        expected = model.norm(reference(states[None])).mean(1)[0]
        torch.testing.assert_close(model(tokens)[row], expected, rtol=1e-5, atol=1e-5)


def test_embedding_mlp_by_hand() -> None:
    model: Any = build_text("embedding_mlp", TextShape(0, 2), width=1, hidden=2)
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        model.layers[0].bias.zero_()
        model.layers[3].weight.copy_(torch.tensor([[2.0, 10.0]]))
        model.layers[3].bias.fill_(-1.0)
    assert model(torch.tensor([[1.0, 3.0], [2.0, 1.0], [-4.0, 0.0]])).flatten().tolist() == [7, 15, -1]


# Training and state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", text_names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_and_gradients(name: str, dtype: torch.dtype) -> None:
    model = small(name).to(dtype)
    for batch in (4, 1):
        x = some(name, batch)
        features = model.features(x.to(dtype) if x.is_floating_point() else x)
        assert features.shape == (batch, model.num_features)
        assert features.dtype == dtype
        model.zero_grad()
        (features * torch.randn_like(features)).sum().backward()
        assert all(parameter.grad.any() for parameter in model.parameters())
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", text_names())
def test_learns(name: str) -> None:
    """Tell texts that have word 7 from those that have word 8 in its place."""
    model = small(name)
    head = nn.Linear(model.num_features, 2)
    y = torch.arange(32) % 2
    x = torch.randint(10, 50, (32, 6))
    x[torch.arange(32), torch.randint(0, 6, (32,))] = 7 + y
    if name not in READS_TOKENS:
        x = torch.randn(32, 12)
        x[:, 0] += 4 * y
    optimiser = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        loss = F.cross_entropy(head(model(x)), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("name", text_names())
def test_state_round_trip(name: str) -> None:
    x, source, target = some(name), small(name), small(name)
    assert not torch.equal(source(x), target(x))
    state = shared_state(source)
    load_state(target, state)
    assert torch.equal(source(x), target(x))
    assert state.keys() == source.state_dict().keys() == parameter_names(source)


@pytest.mark.parametrize("name", text_names())
def test_same_seed_same_weights_and_same_dropout(name: str) -> None:
    first, second = (build_seeded(lambda: small(name, dropout=0.5), 3) for _ in range(2))
    x = some(name)
    outputs = []
    for model in (first, second):
        torch.manual_seed(5)
        outputs.append(model(x))
    assert torch.equal(*outputs)
    assert not torch.equal(first(x), outputs[0])
    assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_of_the_gru_is_before_every_layer(layers: int) -> None:
    model = small("gru", layers=layers, dropout=0.99)
    tokens = torch.full((1, 4), 3)
    nn.init.constant_(model.embedding.weight, 1.0)
    kept = model.eval()(tokens)
    assert not torch.equal(model.train()(tokens), kept)
    assert all(layer.dropout == 0 for layer in model.layers)  # cuDNN's own is never on


# Names and errors -------------------------------------------------------------------------------------------


def test_names_and_options() -> None:
    assert text_names() == ("embedding_mlp", "gru", "transformer")
    assert text_options("gru") == {"width": 64, "layers": 1, "dropout": 0.0}
    assert text_options("transformer") == {"width": 128, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "dropout": 0.0}
    assert text_options("embedding_mlp") == {"width": 128, "hidden": 256, "dropout": 0.0}
    for factory, _ in TABLE.values():
        assert (inspect.getdoc(factory) or "").partition("\n")[0].endswith(".")


def test_sizes_reach_the_encoder() -> None:
    assert len(small("gru", layers=3).layers) == 3
    model = small("transformer", width=12, heads=3, mlp_ratio=1.5, depth=4)
    assert (len(model.blocks), model.blocks[0].heads, model.blocks[0].fc1.out_features) == (4, 3, 18)
    assert small("transformer", mlp_ratio=0.01).blocks[0].fc1.out_features == 1
    assert [build_text(name, SHAPES[name]).num_features for name in text_names()] == [128, 64, 128]


@pytest.mark.parametrize(
    ("name", "shape", "sizes", "message"),
    [
        ("gur", TOKENS, {}, r"Unknown text encoder 'gur' \(key strategy\.text\)\. Did you mean 'gru'"),
        ("gru", TOKENS, {"widht": 2}, r"size 'widht' \(key strategy\.text_sizes\.widht\)\. Did you mean 'width'"),
        ("gru", TOKENS, {"width": 5}, r"strategy\.text_sizes\.width should be even, half of it each way, found 5"),
        ("gru", TOKENS, {"width": 0}, r"strategy\.text_sizes\.width should be a whole number of at least 1, found 0"),
        ("gru", TOKENS, {"layers": True}, r"strategy\.text_sizes\.layers .* found True"),
        ("gru", TOKENS, {"dropout": 1}, r"strategy\.text_sizes\.dropout should be a number from 0 to below 1"),
        ("transformer", TOKENS, {"heads": 3}, r"strategy\.text_sizes\.heads: 3 heads do not divide a width of 128"),
        ("transformer", TOKENS, {"heads": 0}, r"strategy\.text_sizes\.heads .* found 0"),
        ("transformer", TOKENS, {"depth": 0}, r"strategy\.text_sizes\.depth .* found 0"),
        ("transformer", TOKENS, {"mlp_ratio": 0}, r"strategy\.text_sizes\.mlp_ratio should be a number above 0"),
        ("transformer", TOKENS, {"mlp_ratio": float("nan")}, r"strategy\.text_sizes\.mlp_ratio .* found nan"),
        ("embedding_mlp", EMBEDDINGS, {"hidden": 0}, r"strategy\.text_sizes\.hidden .* found 0"),
        ("embedding_mlp", TOKENS, {}, r"strategy\.text=embedding_mlp reads embeddings.*to gru or transformer"),
        ("gru", EMBEDDINGS, {}, r"strategy\.text=gru reads tokens, found embeddings.*to embedding_mlp"),
        ("gru", TextShape(-1, 8), {}, r"strategy\.text_vocabulary .* found -1"),
        ("gru", TextShape(50, 0), {}, r"strategy\.text_length .* found 0"),
    ],
)
def test_build_says_what_is_wrong(name: str, shape: TextShape, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_text(name, shape, **sizes)


def test_the_key_is_the_callers() -> None:
    with pytest.raises(ValueError, match=r"^strategy\.server_text_sizes\.width should"):
        build_text("gru", TOKENS, key="strategy.server_text", width=0)
    with pytest.raises(UnknownNameError, match=r"key strategy\.server_text\)"):
        text_options("gur", key="strategy.server_text")


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("gru", torch.ones(2, 33, dtype=torch.int64), r"GRU .* int64 tokens \[batch, 1\.\.32\], found .* \[2, 33\]"),
        ("gru", torch.ones(2, 0, dtype=torch.int64), r"found torch\.int64 \[2, 0\]"),
        ("transformer", torch.ones(2, 4), r"Transformer .* found torch\.float32 \[2, 4\]"),
        ("transformer", torch.ones(4, dtype=torch.int64), r"found torch\.int64 \[4\]"),
        (
            "embedding_mlp",
            torch.ones(2, 11),
            r"floating-point embeddings \[batch, 12\], found torch\.float32 \[2, 11\]",
        ),
        ("embedding_mlp", torch.ones(2, 12, dtype=torch.int64), r"found torch\.int64 \[2, 12\]"),
    ],
)
def test_wrong_input_is_refused(name: str, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(name)(x)


def test_an_encoder_without_features_says_so() -> None:
    with pytest.raises(NotImplementedError, match="TextEncoder does not say"):
        TextEncoder().features(torch.zeros(1))

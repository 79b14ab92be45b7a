"""Text encoders: tokens, or embeddings of a frozen encoder, to features; found by name.

Tokens are rows of `data.tokens`: [PAD] = 0 at the end and nowhere else. Padding changes nothing: a text has the same
features at any length that it is padded to, and beside any other text.

To add one, write a class and a factory and add a row to `TABLE`. A factory has the signature

    factory(shape, key, *, <size>=<default>, ...) -> TextEncoder

where `key` is what the keys of its sizes begin with (`strategy.text_sizes`), for its messages.

Shapes: B batch, L tokens of a text, T tokens of a batch without padding, W width, H heads, E embedding, D features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.models.base import check_count, check_fraction, check_positive

PAD = 0


@dataclass(frozen=True)
class TextShape:
    """What a text is to an encoder: a row of tokens, or one embedding.

    Attributes:
        vocabulary: Number of tokens, [PAD] = 0 among them; 0 for embeddings.
        length: Most tokens that a row holds; E for embeddings.
    """

    vocabulary: int
    length: int


class TextEncoder(nn.Module):
    """Texts to features. A subclass sets the attributes and writes `features`.

    Attributes:
        num_features: D, the width of what `features` returns.
        shape: What the texts are.
    """

    num_features: int
    shape: TextShape

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of tokens [B, L] int64, or of embeddings [B, E] of the parameters' dtype."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it computes its features")

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, D]; a text encoder has no head."""
        return self.features(x)

    def check_input(self, x: Tensor) -> None:
        """Raise `ValueError` unless `x` is [B, L] int64, L at most the length, or [B, E] floating point."""
        length, is_tokens = self.shape.length, self.shape.vocabulary > 0
        if is_tokens and (x.dim() != 2 or x.dtype != torch.int64 or not 1 <= x.shape[1] <= length):
            expected = f"int64 tokens [batch, 1..{length}]"
        elif not is_tokens and (x.dim() != 2 or not x.is_floating_point() or x.shape[1] != length):
            expected = f"floating-point embeddings [batch, {length}]"
        else:
            return
        raise ValueError(f"{type(self).__name__} was built for {expected}, found {x.dtype} {list(x.shape)}")


def num_tokens(tokens_BL: Tensor) -> Tensor:
    """Return the tokens of each text up to its padding, [B] int64; at least 1, so that a mean over them exists."""
    position = torch.arange(1, tokens_BL.shape[1] + 1, device=tokens_BL.device)
    return ((tokens_BL != PAD) * position).amax(1).clamp_min(1)


class GRU(TextEncoder):
    """Embedding, bidirectional gated recurrent units of W / 2 each way, mean over the tokens.

    Source: Cho et al. 2014 (arXiv 1406.1078), in both directions as CreamFL's text clients have it.
    """

    def __init__(self, shape: TextShape, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.shape, self.num_features = shape, width
        self.embedding = nn.Embedding(shape.vocabulary, width, padding_idx=PAD)
        # Layers apart, with a dropout of ours: cuDNN's keeps a generator of its own, which no seed of ours reaches.
        self.layers = nn.ModuleList(
            nn.GRU(width, width // 2, batch_first=True, bidirectional=True) for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of tokens [B, L]."""
        self.check_input(x)
        lengths = num_tokens(x)
        # Packed, so that the backward direction begins at the last token and not in the padding.
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed = _with_data(packed, self.embedding(packed.data))
        for layer in self.layers:
            packed, _ = layer(_with_data(packed, self.dropout(packed.data)))
        states, _ = pad_packed_sequence(packed, batch_first=True)
        return states.sum(1) / lengths[:, None]


def _with_data(packed: PackedSequence, data_TW: Tensor) -> PackedSequence:
    return PackedSequence(data_TW, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


class Block(nn.Module):
    """Attention and a multilayer perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLW: Tensor, is_token_BL: Tensor) -> Tensor:
        """Return [B, L, W]; what stands at padding is of no use and reaches no token."""
        x_BLW = x_BLW + self.dropout(self.out(self._attend(self.norm1(x_BLW), is_token_BL)))
        added_BLW: Tensor = self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x_BLW)))))
        return x_BLW + added_BLW

    def _attend(self, x_BLW: Tensor, is_token_BL: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BLW).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, L, W / H]
        # Written out: under a mask and on a GPU torch's fused attention warns that its backward pass may not give the
        # same bits twice.
        scores_BHLL = q @ k.mT * k.shape[3] ** -0.5
        shares_BHLL = scores_BHLL.masked_fill(~is_token_BL[:, None, None], -torch.inf).softmax(3)
        mixed_BLW: Tensor = (shares_BHLL @ v).transpose(1, 2).flatten(2)
        return mixed_BLW


class Transformer(TextEncoder):
    """Embedding and learnt positions, blocks that norm first, a last norm, mean over the tokens.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), with the norms where Xiong et al. 2020 (arXiv 2002.04745) put them.
    """

    def __init__(self, shape: TextShape, width: int, depth: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.shape, self.num_features = shape, width
        self.embedding = nn.Embedding(shape.vocabulary, width, padding_idx=PAD)
        self.positions = nn.Parameter(torch.empty(shape.length, width))
        hidden = max(1, int(width * mlp_ratio))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        # Of one scale: beside torch's embedding of deviation 1 a position would be lost.
        nn.init.normal_(self.positions, std=0.02)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[PAD] = 0

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of tokens [B, L]."""
        self.check_input(x)
        lengths = num_tokens(x)
        x = x[:, : int(lengths.max())]  # captions are short beside the length that the longest is cut at
        is_token = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        states = self.dropout(self.embedding(x) + self.positions[: x.shape[1]])
        for block in self.blocks:
            states = block(states, is_token)
        kept: Tensor = self.norm(states) * is_token[:, :, None]
        return kept.sum(1) / lengths[:, None]


class EmbeddingMLP(TextEncoder):
    """Two linear layers with ReLU between them, on the embeddings of a frozen encoder."""

    def __init__(self, shape: TextShape, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.shape, self.num_features = shape, width
        self.layers = nn.Sequential(
            nn.Linear(shape.length, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of embeddings [B, E]."""
        self.check_input(x)
        features: Tensor = self.layers(x)
        return features


def gru(shape: TextShape, key: str, *, width: int = 64, layers: int = 1, dropout: float = 0.0) -> GRU:
    """Bidirectional GRU over tokens; 18 k parameters and 64 for each token of the vocabulary.

    Args:
        shape: What the texts are.
        key: What the keys of the sizes begin with.
        width: D, even; also the width of a token.
        layers: Recurrent layers, at least one.
        dropout: Share of each layer's inputs that is dropped in training.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    if check_count(f"{key}.width", width) % 2:
        raise Refusal(f"{key}.width should be even, half of it each way, found {width}.", key=f"{key}.width")
    check_count(f"{key}.layers", layers)
    return GRU(shape, width, layers, check_fraction(f"{key}.dropout", dropout))


def transformer(
    shape: TextShape,
    key: str,
    *,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
    mlp_ratio: float = 2.0,
    dropout: float = 0.0,
) -> Transformer:
    """Transformer over tokens; 265 k parameters and 128 for each token of the vocabulary and each position.

    Args:
        shape: What the texts are.
        key: What the keys of the sizes begin with.
        width: D; also the width of a token.
        depth: Blocks, at least one.
        heads: Heads of attention; they divide the width.
        mlp_ratio: Width of a block's hidden layer as a multiple of the width.
        dropout: Share of the tokens' features, and of what each branch adds to them, that is dropped in training.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_count(f"{key}.depth", depth)
    if check_count(f"{key}.width", width) % check_count(f"{key}.heads", heads):
        raise Refusal(f"{key}.heads: {heads} heads do not divide a width of {width}.", key=f"{key}.heads")
    check_positive(f"{key}.mlp_ratio", mlp_ratio)
    return Transformer(shape, width, depth, heads, mlp_ratio, check_fraction(f"{key}.dropout", dropout))


def embedding_mlp(
    shape: TextShape, key: str, *, width: int = 128, hidden: int = 256, dropout: float = 0.0
) -> EmbeddingMLP:
    """Two linear layers on sentence embeddings; 131 k parameters for embeddings of 384.

    Args:
        shape: What the texts are: vocabulary 0, length E.
        key: What the keys of the sizes begin with.
        width: D.
        hidden: Units of the hidden layer.
        dropout: Share of the hidden units that is dropped in training.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_count(f"{key}.width", width)
    check_count(f"{key}.hidden", hidden)
    return EmbeddingMLP(shape, width, hidden, check_fraction(f"{key}.dropout", dropout))


Factory = Callable[..., TextEncoder]

# name -> (factory, whether it reads tokens)
TABLE: dict[str, tuple[Factory, bool]] = {
    "embedding_mlp": (embedding_mlp, False),
    "gru": (gru, True),
    "transformer": (transformer, True),
}


def build_text(name: str, shape: TextShape, *, key: str = "strategy.text", **sizes: Any) -> TextEncoder:
    """Build a text encoder with fresh weights from torch's global generator, which the caller seeds.

    Args:
        name: A name of `text_names()`.
        shape: What the texts are.
        key: Key of the name, and what the others begin with: `<key>_vocabulary`, `<key>_length`, `<key>_sizes.<size>`.
        **sizes: Keywords of `text_options(name)`.

    Raises:
        umbel.core.names.UnknownNameError: An unknown encoder or size; the message says the nearest known.
        Refusal: A value is out of range, or the encoder does not read such texts; the message names the key.
    """
    known = text_options(name, key=key)
    for size in sorted(sizes.keys() - known.keys()):
        raise unknown("size", size, known, key=f"{key}_sizes.{size}")
    factory, reads_tokens = TABLE[name]
    check_count(f"{key}_length", shape.length)
    if reads_tokens != (shape.vocabulary != 0):
        fitting = sorted(other for other, (_, tokens) in TABLE.items() if tokens != reads_tokens)
        wanted, given = ("tokens", "embeddings") if reads_tokens else ("embeddings", "tokens")
        raise Refusal(
            f"{key}={name} reads {wanted}, found {given}.", key=key, remedy=f"Set {key} to {' or '.join(fitting)}."
        )
    if reads_tokens:
        check_count(f"{key}_vocabulary", shape.vocabulary)
    return factory(shape, f"{key}_sizes", **sizes)


def text_names() -> tuple[str, ...]:
    """Return the names of the text encoders, sorted."""
    return tuple(sorted(TABLE))


def text_options(name: str, *, key: str = "strategy.text") -> dict[str, Any]:
    """Return the size keywords of a text encoder with their defaults.

    Raises:
        umbel.core.names.UnknownNameError: An unknown encoder; the message names `key`.
    """
    if name not in TABLE:
        raise unknown("text encoder", name, TABLE, key=key)
    parameters = inspect.signature(TABLE[name][0]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

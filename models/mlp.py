"""A multilayer perceptron: linear layers with ReLU and dropout between them.

With three hidden layers of 400 it is the usual network of permuted MNIST.

Shapes: B batch, I input channels, S image side, D features (`hidden`), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from umbel.core.refusal import Refusal
from umbel.models.base import Model, check_count, check_fraction


class MLP(Model):
    """Hidden layers of one width, then the head."""

    def __init__(
        self, num_classes: int, image_size: int, in_channels: int, hidden: int, dropout: Sequence[float]
    ) -> None:
        super().__init__()
        self.num_features = hidden
        self.in_channels = in_channels
        self.image_size = image_size
        layers: list[nn.Module] = []
        width = in_channels * image_size**2
        for share in dropout:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(share)]
            width = hidden
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(hidden, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, S, S] or of embeddings [B, I]."""
        if x.dim() != 2:
            self.check_input(x)
        features: Tensor = self.layers(x.flatten(1))
        return features


def mlp(
    num_classes: int,
    image_size: int = 28,
    in_channels: int = 3,
    *,
    hidden: int = 400,
    depth: int = 3,
    dropout: float | Sequence[float] = 0.0,
) -> MLP:
    """Linear layers with ReLU; 640 k parameters with three hidden layers of 400 at 28 x 28 x 1.

    Args:
        num_classes: C, the number of logits.
        image_size: S, the side of an image in pixels; 1 for embeddings.
        in_channels: I, 1 for grey and 3 for colour; the number of features for embeddings.
        hidden: D, units of each hidden layer.
        depth: Hidden layers, at least one.
        dropout: Share of the hidden units that are dropped in training; or a list, one a hidden layer.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_count("model.sizes.hidden", hidden)
    check_count("model.sizes.depth", depth)
    shares = [dropout] * depth if isinstance(dropout, int | float) else list(dropout)
    if len(shares) != depth:
        raise Refusal(
            f"model.sizes.dropout should be a number, or a list of {depth} (model.sizes.depth), found {dropout!r}.",
            key="model.sizes.dropout",
        )
    shares = [check_fraction("model.sizes.dropout", share) for share in shares]
    return MLP(num_classes, image_size, in_channels, hidden, shares)

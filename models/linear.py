"""A linear classifier: on embeddings of a frozen encoder, or on pixels.

Shapes: B batch, I input channels, S image side, D features, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from umbel.models.base import Model


class Linear(Model):
    """One linear layer; the features are the input itself."""

    def __init__(self, num_classes: int, image_size: int, in_channels: int) -> None:
        super().__init__()
        self.num_features = in_channels * image_size**2
        self.in_channels = in_channels
        self.image_size = image_size
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return [B, D] of embeddings [B, D] or of images [B, I, S, S]."""
        if x.dim() != 2:
            self.check_input(x)
        return x.flatten(1)


def linear(num_classes: int, image_size: int = 28, in_channels: int = 3) -> Linear:
    """One linear layer, for embeddings of a frozen encoder (data.encoder) or for pixels.

    Args:
        num_classes: C, the number of logits.
        image_size: S, the side of an image in pixels; 1 for embeddings.
        in_channels: I, 1 for grey and 3 for colour; D for embeddings.
    """
    return Linear(num_classes, image_size, in_channels)

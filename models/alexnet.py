"""A small AlexNet for images of 32 px, the usual network of split CIFAR-100 in continual learning.

Three convolutions without padding (4 x 4, 3 x 3, 2 x 2 kernels), each with ReLU, dropout and 2 x 2 max pooling, and two
linear layers of 2048. The plan is that of Serra et al. 2018 (arXiv 1801.01423) and of Saha et al. 2021, "Gradient
Projection Memory for Continual Learning" (arXiv 2103.09762), which FOT takes over.

Shapes: B batch, I input channels, S image side, D features (`hidden`), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Model, check_count, check_flag, check_fraction

KERNELS = (4, 3, 2)


def side_after(side: int) -> int:
    """Return the side of the last map: each convolution takes kernel - 1 off, and pooling halves, rounding down."""
    for kernel in KERNELS:
        side = (side - kernel + 1) // 2
    return side


class AlexNetSmall(Model):
    """Three convolutions, two linear layers, and the head."""

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        width: int,
        hidden: int,
        dropout: tuple[float, float],
        bias: bool,
    ) -> None:
        super().__init__()
        self.num_features = hidden
        self.in_channels = in_channels
        self.image_size = image_size
        channels = (in_channels, width, 2 * width, 4 * width)
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(channels[i], channels[i + 1], kernel_size=kernel, bias=bias) for i, kernel in enumerate(KERNELS)
        )
        self.fc1 = nn.Linear(channels[3] * side_after(image_size) ** 2, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, hidden, bias=bias)
        self.light, self.heavy = nn.Dropout(dropout[0]), nn.Dropout(dropout[1])
        self.head = nn.Linear(hidden, num_classes, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, S, S]."""
        self.check_input(x)
        x = F.max_pool2d(self.light(F.relu(self.conv1(x))), 2)
        x = F.max_pool2d(self.light(F.relu(self.conv2(x))), 2)
        x = F.max_pool2d(self.heavy(F.relu(self.conv3(x))), 2)
        x = self.heavy(F.relu(self.fc1(x.flatten(1))))
        features: Tensor = self.heavy(F.relu(self.fc2(x)))
        return features


def alexnet_small(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    width: int = 64,
    hidden: int = 2048,
    dropout: Sequence[float] = (0.2, 0.5),
    bias: bool = False,
) -> AlexNetSmall:
    """A small AlexNet without biases for images of 32 px: 6.7 M parameters at 100 classes.

    Args:
        num_classes: C, the number of logits.
        image_size: S, the side of an image in pixels, 19 or more.
        in_channels: I, 1 for grey and 3 for colour.
        width: Channels of the first convolution; the others have twice and four times as many.
        hidden: D, units of the two linear layers.
        dropout: Share that is dropped behind the first two convolutions, and behind what follows.
        bias: Whether layers, the head among them, have biases.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    if side_after(image_size) < 1:
        raise Refusal(
            f"model.image_size: alexnet_small halves an image three times without padding and needs 19 px or more, "
            f"found {image_size}.",
            key="model.image_size",
            remedy="Use 28 or 32.",
        )
    check_count("model.sizes.width", width)
    check_count("model.sizes.hidden", hidden)
    if not isinstance(dropout, Sequence) or len(dropout) != 2:
        raise Refusal(
            f"model.sizes.dropout should be a list of 2 numbers, found {dropout!r}.", key="model.sizes.dropout"
        )
    light, heavy = (check_fraction("model.sizes.dropout", share) for share in dropout)
    check_flag("model.sizes.bias", bias)
    return AlexNetSmall(num_classes, image_size, in_channels, width, hidden, (light, heavy), bias)

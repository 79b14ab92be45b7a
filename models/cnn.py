"""A small convolutional network: two convolutions, two linear layers; the usual baseline at 28 x 28.

The plan is that of the network in McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks
from Decentralized Data" (arXiv 1602.05629, section 3), and of LeCun et al. 1998 before it, at a width that
a CPU trains in milliseconds: 3 x 3 kernels, 16 and 32 channels, 64 hidden units.

With `norm=batch` each of the first three layers is followed by batch norm, as in the networks of long-tail papers;
`model.norm` then says what happens to its statistics.

Shapes: B batch, I input channels, S image side, D features (`hidden`), C classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Model, check_count


class CNN(Model):
    """Two 3 x 3 convolutions, each with ReLU and 2 x 2 max pooling, then two linear layers."""

    def __init__(
        self, num_classes: int, image_size: int, in_channels: int, width: int, hidden: int, norm: str = "none"
    ) -> None:
        super().__init__()
        if image_size < 4:
            raise Refusal(
                f"model.image_size: the cnn halves an image twice and needs 4 px or more, found {image_size}.",
                key="model.image_size",
                remedy="Use 28.",
            )
        self.num_features = hidden
        self.in_channels = in_channels
        self.image_size = image_size
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, kernel_size=3, padding=1)
        # Pooling rounds down twice, which is the same as rounding down once by four.
        self.fc = nn.Linear(2 * width * (image_size // 4) ** 2, hidden)
        batch = norm == "batch"
        self.norm1 = nn.BatchNorm2d(width) if batch else nn.Identity()
        self.norm2 = nn.BatchNorm2d(2 * width) if batch else nn.Identity()
        self.norm3 = nn.BatchNorm1d(hidden) if batch else nn.Identity()
        self.head = nn.Linear(hidden, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, S, S]."""
        self.check_input(x)
        # Pooling before ReLU gives the same numbers (both are monotone) at a quarter of the work.
        x = F.relu(F.max_pool2d(self.norm1(self.conv1(x)), 2))
        x = F.relu(F.max_pool2d(self.norm2(self.conv2(x)), 2))
        return F.relu(self.norm3(self.fc(x.flatten(1))))


def cnn(
    num_classes: int,
    image_size: int = 28,
    in_channels: int = 3,
    *,
    width: int = 16,
    hidden: int = 64,
    norm: str = "none",
) -> CNN:
    """Two convolutions and two linear layers; 106 k parameters at 28 x 28 x 1.

    Args:
        num_classes: C, the number of logits.
        image_size: S, the side of an image in pixels, 4 or more.
        in_channels: I, 1 for grey and 3 for colour.
        width: Channels of the first convolution; the second has twice as many.
        hidden: D, the units before the head.
        norm: `none`, or `batch` for batch norm after each convolution and the first linear layer.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    check_count("model.sizes.width", width)
    check_count("model.sizes.hidden", hidden)
    if norm not in ("none", "batch"):
        raise Refusal(f"model.sizes.norm should be none or batch, found {norm!r}.", key="model.sizes.norm")
    return CNN(num_classes, image_size, in_channels, width, hidden, norm)

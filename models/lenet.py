"""LeNet: the network of NIID-Bench and of many federated papers at 28 to 32 px, after LeCun et al. 1998 (LeNet-5).

Two 5 x 5 convolutions without padding, of 6 and 16 channels, each with ReLU and 2 x 2 max pooling; linear layers of 120
and 84, and the head. So Li, Diao, Chen, He (ICDE 2022, arXiv 2102.02079, section 5) describe it: 44,426 parameters for
ten classes at 28 x 28 x 1, 62,006 at 32 x 32 x 3. LeNet-5 itself has other pooling, activations and output units.

Shapes: B batch, I input channels, S image side, D features (84), C classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Model

_KERNEL, _SMALLEST = 5, 16


def side_after(side: int) -> int:
    """Return the side of the last map: each convolution takes 4 off, and pooling halves, rounding down."""
    for _ in range(2):
        side = (side - _KERNEL + 1) // 2
    return side


class LeNet(Model):
    """Two 5 x 5 convolutions and three linear layers, the last of which is the head."""

    def __init__(self, num_classes: int, image_size: int, in_channels: int) -> None:
        super().__init__()
        if image_size < _SMALLEST:
            raise Refusal(
                f"model.image_size: the lenet needs {_SMALLEST} px or more, found {image_size}.",
                key="model.image_size",
                remedy="Use 28, or model.name=cnn.",
            )
        self.num_features, self.in_channels, self.image_size = 84, in_channels, image_size
        self.conv1 = nn.Conv2d(in_channels, 6, _KERNEL)
        self.conv2 = nn.Conv2d(6, 16, _KERNEL)
        self.fc1 = nn.Linear(16 * side_after(image_size) ** 2, 120)
        self.fc2 = nn.Linear(120, self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, S, S]."""
        self.check_input(x)
        # Pooling before ReLU gives the same numbers (both are monotone) at a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))


def lenet(num_classes: int, image_size: int = 28, in_channels: int = 3) -> LeNet:
    """Two 5 x 5 convolutions of 6 and 16 channels, linear layers of 120 and 84; 44 k parameters at 28 x 28 x 1.

    Args:
        num_classes: C, the number of logits.
        image_size: S, the side of an image in pixels, 16 or more.
        in_channels: I, 1 for grey and 3 for colour.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return LeNet(num_classes, image_size, in_channels)

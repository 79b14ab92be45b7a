"""Residual networks for small images: ResNet-18 and ResNet-34 with a 3 x 3 stem and no pooling before the stages.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385): equations 1 and 2 for the
block and its projection shortcut, table 1 for the stages, section 4.2 for the stem at 32 px. Written from the
equations.

Shapes: B batch, I input channels, S image side, H and W sides of a map, D features (8 `width`), C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model, check_count, check_flag

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    # Statistics are the batch's own in evaluation too, so that there are none to average or to drift.
    "batch_stateless": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    "none": lambda channels: nn.Identity(),
}


class BasicBlock(Block):
    """y = relu(F(x) + s(x)): F two 3 x 3 convolutions, s the identity, or a 1 x 1 convolution where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module], bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=bias)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=bias)
        self.norm2 = norm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=bias)
            self.shortcut = nn.Sequential(conv, norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, outputs, H / stride, W / stride] of a map [B, inputs, H, W]."""
        change = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(change + self.shortcut(x))


class ResNet(Model):
    """Four stages of basic blocks, the channels doubled and the map halved between them; the mean over the map."""

    def __init__(
        self,
        num_classes: int,
        image_size: int,
        in_channels: int,
        depths: Sequence[int],
        width: int,
        norm: str,
        bias: bool,
    ) -> None:
        super().__init__()
        self.num_features = width * 2 ** (len(depths) - 1)
        self.in_channels = in_channels
        self.image_size = image_size
        make = NORMS[norm]
        self.stem = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=bias)
        self.norm = make(width)
        stages: list[nn.Module] = []
        inputs = width
        for number, depth in enumerate(depths):
            outputs, stride = width * 2**number, 1 if number == 0 else 2
            first = BasicBlock(inputs, outputs, stride, make, bias)
            stages.append(
                nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, make, bias) for _ in range(depth - 1)))
            )
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """Return features [B, D] of images [B, I, S, S]."""
        self.check_input(x)
        features: Tensor = self.stages(F.relu(self.norm(self.stem(x)))).mean(dim=(2, 3))
        return features


def _build(
    num_classes: int, image_size: int, in_channels: int, depths: Sequence[int], width: int, norm: str, bias: bool
) -> ResNet:
    """Check the sizes and build."""
    check_count("model.sizes.width", width)
    if norm not in NORMS:
        raise Refusal(f"model.sizes.norm should be one of {', '.join(NORMS)}, found {norm!r}.", key="model.sizes.norm")
    check_flag("model.sizes.bias", bias)
    return ResNet(num_classes, image_size, in_channels, depths, width, norm, bias)


def resnet18(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    width: int = 64,
    norm: str = "batch",
    bias: bool = False,
) -> ResNet:
    """ResNet-18 for images of 32 px: 11.2 M parameters at 10 classes.

    FOT's papers take `width=20, norm=none` and `width=32, norm=batch_stateless`. With batch norm and images of 8 px
    or less the last map is one pixel: a batch of one then has no variance and cannot be trained on.

    Args:
        num_classes: C, the number of logits.
        image_size: S, the side of an image in pixels.
        in_channels: I, 1 for grey and 3 for colour.
        width: Channels of the first stage; the last has eight times as many, D.
        norm: `batch`; `batch_stateless`, whose statistics are always those of the batch; or `none`.
        bias: Whether convolutions have biases; the head has one always.

    Raises:
        Refusal: A size is out of range; the message names its key.
    """
    return _build(num_classes, image_size, in_channels, (2, 2, 2, 2), width, norm, bias)


def resnet34(
    num_classes: int,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    width: int = 64,
    norm: str = "batch",
    bias: bool = False,
) -> ResNet:
    """ResNet-34 for images of 32 px: 21.3 M parameters at 10 classes.

    Arguments, errors and the note on images of 8 px or less are those of `resnet18`.
    """
    return _build(num_classes, image_size, in_channels, (3, 4, 6, 3), width, norm, bias)

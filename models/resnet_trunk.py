"""Residual networks as the trunk of another: the maps behind each stage, of ResNet-18 and ResNet-50 or of small ones.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385): equations 1 and 2, table 1.
Written from the equations. A bottleneck strides its 3 x 3 convolution where the paper's strides the first 1 x 1, as is
usual now.

Shapes: B batch, I input channels, H and W sides of a map, C channels of a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from umbel.models.base import Block
from umbel.models.layers import max_pool
from umbel.models.resnet import BasicBlock

# A block of input channels, output channels and stride.
MakeBlock = Callable[[int, int, int], Block]


class Bottleneck(Block):
    """y = relu(F(x) + s(x)): F convolutions 1 x 1, 3 x 3 and 1 x 1, the last to `outputs`, s as in `BasicBlock`."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = outputs // 4
        self.conv1 = nn.Conv2d(inputs, hidden, kernel_size=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, kernel_size=1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return a map [B, outputs, H / stride, W / stride] of a map [B, inputs, H, W]."""
        change = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return F.relu(self.norm3(self.conv3(change)) + self.shortcut(x))


def basic_block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    """Return the block of ResNet-18, with batch norm and without biases."""
    return BasicBlock(inputs, outputs, stride, nn.BatchNorm2d, bias=False)


class Trunk(nn.Module):
    """A residual network without its head: a stem, and stages that each halve the map but for the first.

    Args:
        in_channels: I.
        width: Channels of the stem.
        dims: C of each stage.
        depths: Blocks of each stage.
        make: Block of input channels, output channels and stride.
        pooled: The stem is the published 7 x 7 convolution and pooling, both at stride 2; else 3 x 3 at stride 2.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        dims: Sequence[int],
        depths: Sequence[int],
        make: MakeBlock,
        pooled: bool,
    ) -> None:
        super().__init__()
        self.pooled = pooled
        kernel = 7 if pooled else 3
        self.stem = nn.Conv2d(in_channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        inputs = width
        for number, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            first = make(inputs, dim, 1 if number == 0 else 2)
            self.stages.append(nn.Sequential(first, *(make(dim, dim, 1) for _ in range(depth - 1))))
            inputs = dim
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps [B, C, H, W] behind the stages, the finest first, of images [B, I, ...]."""
        x = F.relu(self.norm(self.stem(x)))
        x = max_pool(x) if self.pooled else x
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

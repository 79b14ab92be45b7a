"""EfficientNet-Lite as a list of convolutions, and that list run by torch or by onnxruntime.

Batch normalisation is folded into the convolutions (in float64), the three equal channels of a grey image into one
channel of the first; so both backends do the same arithmetic, and less of it than the network as it was trained.

Shapes: B batch, C channels (1 or 3), H height, W width, S side the images are resized to, I and O channels of a
convolution, K its kernel, D = 1280 features.

Source: EfficientNet-Lite (Google, 2020), after Tan and Le, EfficientNet, 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from umbel.data.encoders.base import imported, threads
from umbel.data.encoders.resize import matrix, resize

NUM_FEATURES = 1280
_OPSET, _IR_VERSION = 17, 8  # old enough for every onnxruntime since 1.14
_SHIFT, _SCALE = 127.0, 128.0


@dataclass(frozen=True)
class Layer:
    """A convolution with its bias, the clamp to 0..6 after it, or the sum with what went into its block.

    Attributes:
        weight: [O, I / groups, K, K].
        bias: [O].
        stride: Of both axes.
        padding: Left, right, top, bottom; zeros.
        groups: 1, or O where each channel is convolved alone.
        clamp: Clamp to 0..6 afterwards.
        begins: The input of this layer begins a block, and is kept for `adds`.
        adds: Add the input of the block to the result.
    """

    weight: Tensor
    bias: Tensor
    stride: int
    padding: tuple[int, int, int, int]
    groups: int
    clamp: bool
    begins: bool = False
    adds: bool = False


def layers_of(network: Any, channels: int) -> list[Layer]:
    """Return the layers of an `efficientnet_lite_pytorch.EfficientNet` in evaluation mode.

    Args:
        network: The network, made for the image size at which it will be used (its padding depends on it).
        channels: C of the images; 1 sums the first kernel over its three channels.
    """
    stem = _folded(network._conv_stem, network._bn0, clamp=True)
    if channels == 1:
        stem = _with(stem, weight=stem.weight.sum(1, keepdim=True))
    all_layers = [stem]
    for block in network._blocks:
        arguments = block._block_args
        parts = [(block._depthwise_conv, block._bn1, True), (block._project_conv, block._bn2, False)]
        if arguments.expand_ratio != 1:
            parts.insert(0, (block._expand_conv, block._bn0, True))
        stride = arguments.stride if isinstance(arguments.stride, int) else max(arguments.stride)
        keeps = bool(arguments.id_skip) and stride == 1 and arguments.input_filters == arguments.output_filters
        layers = [_folded(convolution, norm, clamp) for convolution, norm, clamp in parts]
        layers[0] = _with(layers[0], begins=True)
        layers[-1] = _with(layers[-1], adds=keeps)
        all_layers.extend(layers)
    all_layers.append(_folded(network._conv_head, network._bn1, clamp=True))
    return all_layers


def _with(layer: Layer, **changes: Any) -> Layer:
    return Layer(**{**layer.__dict__, **changes})


def _folded(convolution: Any, norm: Any, clamp: bool) -> Layer:
    """Return conv then batch norm as one convolution: w' = w g / s, b' = beta - mu g / s, s = sqrt(var + eps)."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    padding = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
    return Layer(
        weight=(convolution.weight.double() * scale.view(-1, 1, 1, 1)).float().detach(),
        bias=(norm.bias.double() - norm.running_mean.double() * scale).float().detach(),
        stride=int(convolution.stride[0]),
        padding=tuple(padding),
        groups=convolution.groups,
        clamp=clamp,
    )


def in_torch(layers: list[Layer], size: int, num_threads: int) -> Callable[[Tensor], Tensor]:
    """Return the encoder run by torch: uint8 [B, C, H, W] to [B, D]."""
    kept = [_with(layer, weight=layer.weight.contiguous(memory_format=torch.channels_last)) for layer in layers]

    def encode(images: Tensor) -> Tensor:
        with torch.inference_mode(), threads(num_threads):
            x = ((resize(images.float(), size, size) - _SHIFT) / _SCALE).contiguous(memory_format=torch.channels_last)
            before = x
            for layer in kept:
                before = x if layer.begins else before
                x = functional.pad(x, layer.padding) if any(layer.padding) else x
                x = functional.conv2d(x, layer.weight, layer.bias, layer.stride, 0, 1, layer.groups)
                x = x.clamp_(0, 6) if layer.clamp else x
                x = x.add_(before) if layer.adds else x
            return x.mean((2, 3))

    return encode


def to_onnx(layers: list[Layer], height: int, width: int, size: int) -> bytes:
    """Return the encoder as an ONNX file: `images`, uint8 [B, C, H, W], to `features`, float32 [B, D]."""
    onnx = imported("onnx")
    helper, checker, types = imported("onnx.helper"), imported("onnx.checker"), onnx.TensorProto
    from_array = imported("onnx.numpy_helper").from_array
    nodes: list[Any] = []
    constants: list[Any] = []
    channels = layers[0].weight.shape[1]

    def constant(name: str, value: Tensor) -> str:
        constants.append(from_array(value.contiguous().numpy(), name))
        return name

    def add(operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"x{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    low, high = constant("low", torch.tensor(0.0)), constant("high", torch.tensor(6.0))
    x = add("Cast", "images", to=types.FLOAT)
    if width != size:
        x = add("MatMul", x, constant("resize_width", matrix(width, size).T))
    if height != size:
        x = add("MatMul", constant("resize_height", matrix(height, size)), x)
    x = add("Sub", x, constant("shift", torch.tensor(_SHIFT)))
    x = add("Mul", x, constant("scale", torch.tensor(1 / _SCALE)))  # a power of two: the same bits as dividing
    before = x
    for number, layer in enumerate(layers):
        before = x if layer.begins else before
        left, right, top, bottom = layer.padding
        x = add(
            "Conv",
            x,
            constant(f"weight{number}", layer.weight),
            constant(f"bias{number}", layer.bias),
            kernel_shape=list(layer.weight.shape[2:]),
            strides=[layer.stride] * 2,
            pads=[top, left, bottom, right],
            group=layer.groups,
        )
        x = add("Clip", x, low, high) if layer.clamp else x
        x = add("Add", x, before) if layer.adds else x
    x = add("GlobalAveragePool", x)
    add("Flatten", x, output="features", axis=1)
    graph = helper.make_graph(
        nodes,
        "efficientnet-lite",
        [helper.make_tensor_value_info("images", types.UINT8, ["B", channels, height, width])],
        [helper.make_tensor_value_info("features", types.FLOAT, ["B", layers[-1].weight.shape[0]])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    checker.check_model(model)
    return bytes(model.SerializeToString())

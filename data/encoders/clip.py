"""`clip:<name or folder>`: a CLIP model, of a local folder or of the Hugging Face hub; images and texts.

What comes out are the projected features of the image tower or of the text tower, as they are, not of length 1:
normalise them where a cosine is wanted. The model decides the size of its images (`data.encoder_size` stays 0).
A set of the hub that is in the local cache is not looked up again, so that a run can be repeated without a network.

Shapes: B batch, C channels (1 or 3), S side of the model's images, L tokens, D projected features.

Source: Radford et al., Learning transferable visual models from natural language supervision, 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from umbel.core.files import read_json
from umbel.data.encoders.base import (
    Plan,
    as_bytes,
    as_colour,
    file_hash,
    imported,
    need,
    quiet_transformers,
    threads,
    versions,
)
from umbel.data.encoders.clip_pixels import Preprocess
from umbel.data.encoders.tokens import by_length
from umbel.data.errors import DamagedDataError, DataError, MissingDataError

_IMAGE_BATCH, _TEXT_CHUNK, _TEXT_BATCH = 16, 1024, 32
_KINDS = {"clip": "CLIPModel", "clip_vision_model": "CLIPVisionModelWithProjection"}
_KINDS |= {"clip_text_model": "CLIPTextModelWithProjection"}
_SMALL_FILES = ["*.json", "*.txt"]


@dataclass(frozen=True)
class Clip:
    """Any CLIP model that transformers reads."""

    description: str = "a CLIP model of a local folder or the Hugging Face hub: images or texts to projected features"
    takes: frozenset[str] = frozenset({"images", "texts"})

    def check(self, argument: str, size: int) -> None:
        """Raise for no name, no folder, a size, or without transformers; the network is not asked."""
        if not argument or argument.startswith("<"):
            raise DataError(
                f"data.encoder=clip:{argument}: expected clip:<name on the hub> or clip:<folder>.", key="data.encoder"
            )
        if size:
            raise DataError(
                f"data.encoder_size={size}: a CLIP model has a size of its own.",
                key="data.encoder_size",
                remedy="Leave it at 0.",
            )
        need("clip", ("transformers",), "pip install transformers")
        if argument.startswith((".", "/", "~")) and not (Path(argument).expanduser() / "config.json").is_file():
            raise MissingDataError(
                f"data.encoder=clip:{argument}: expected a folder with config.json, weights and "
                "preprocessor_config.json, as transformers saves them, and there is none.",
                key="data.encoder",
                remedy="Set data.encoder=clip:FOLDER.",
            )

    def images(self, argument: str, size: int, images: Tensor, fit: Tensor) -> Plan:
        """Plan for images of 1 or 3 channels; nothing is fitted."""
        folder = _folder(argument)
        as_colour(images[:0], "clip")
        settings = _settings(folder)
        preprocess = Preprocess.of(settings, side=int(_part(_config(folder), "vision_config", folder)["image_size"]))

        def opened() -> Callable[[Tensor], Tensor]:
            model = _model(folder)
            if not hasattr(model, "visual_projection"):
                raise DataError(
                    f"data.encoder=clip:{argument} has no image tower.", key="data.encoder", remedy="Give it texts."
                )

            def encode(batch: Tensor) -> Tensor:
                with torch.inference_mode(), threads(1):
                    pixels = preprocess(as_colour(as_bytes(batch), "clip"))
                    pooled = model.vision_model(pixel_values=pixels).pooler_output
                    return model.visual_projection(pooled).float()  # type: ignore[no-any-return]

            return encode

        return Plan(_num_features(folder), _identity(folder, "images"), opened, _IMAGE_BATCH)

    def texts(self, argument: str) -> Plan:
        """Plan for texts."""
        folder = _folder(argument)

        def opened() -> Callable[[Sequence[str]], Tensor]:
            model = _model(folder)
            if not hasattr(model, "text_projection"):
                raise DataError(
                    f"data.encoder=clip:{argument} has no text tower.", key="data.encoder", remedy="Give it images."
                )
            with quiet_transformers():
                tokenizer: Any = imported("transformers").CLIPTokenizer.from_pretrained(folder)
            longest = int(_part(_config(folder), "text_config", folder)["max_position_embeddings"])

            def run(tokens: Tensor) -> Tensor:
                pooled = model.text_model(input_ids=tokens).pooler_output
                return model.text_projection(pooled).float()  # type: ignore[no-any-return]

            def encode(texts: Sequence[str]) -> Tensor:
                tokens = tokenizer(list(texts), truncation=True, max_length=longest, padding=False)["input_ids"]
                with torch.inference_mode(), threads(1):
                    return by_length(tokens, run, _TEXT_BATCH)

            return encode

        return Plan(_num_features(folder), _identity(folder, "texts"), opened, _TEXT_CHUNK)


def _folder(source: str) -> Path:
    """Return the folder of a model; one of the hub is fetched unless it is in the hub's local cache."""
    folder = Path(source).expanduser()
    if (folder / "config.json").is_file():
        return folder
    hub = imported("huggingface_hub")

    def fetch(**how: Any) -> Path:
        fetched = Path(hub.snapshot_download(source, allow_patterns=[*_SMALL_FILES, "model*.safetensors"], **how))
        if not list(fetched.glob("*.safetensors")):
            fetched = Path(hub.snapshot_download(source, allow_patterns=[*_SMALL_FILES, "pytorch_model*.bin"], **how))
        if not _weight_files(fetched):
            raise FileNotFoundError(f"no weights in {fetched}")
        return fetched

    try:
        return fetch(local_files_only=True)
    except (OSError, ValueError):
        pass
    try:
        return fetch()
    except (OSError, ValueError) as error:
        raise MissingDataError(
            f"data.encoder=clip:{source} cannot be fetched ({error}). Expected a folder, or a model of the Hugging "
            "Face hub and a network.",
            key="data.encoder",
            remedy=f"Behind a firewall, fetch it elsewhere with\n    hf download {source} --local-dir FOLDER\n"
            "and set data.encoder=clip:FOLDER.",
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{file}: expected this file of a CLIP model, and it is not there.", remedy="Add it."
        ) from error
    except ValueError as error:
        raise DamagedDataError(f"{file}: cannot be read as JSON ({error}).", remedy="Fetch it again.") from error
    if not isinstance(content, dict):
        raise DamagedDataError(
            f"{file}: expected a JSON object, found {type(content).__name__}.", remedy="Fetch it again."
        )
    return content


def _config(folder: Path) -> dict[str, Any]:
    config = _read(folder / "config.json")
    if config.get("model_type") not in _KINDS:
        raise DataError(
            f"{folder / 'config.json'}: expected model_type to be one of {', '.join(_KINDS)}, found "
            f"{config.get('model_type')!r}.",
            key="data.encoder",
            remedy="Set data.encoder to a CLIP model.",
        )
    return config


def _settings(folder: Path) -> Mapping[str, Any]:
    """Return how the model's images are prepared, from wherever its version of transformers wrote it."""
    if not (folder / "preprocessor_config.json").is_file() and (folder / "processor_config.json").is_file():
        return dict(_read(folder / "processor_config.json").get("image_processor", {}))
    return _read(folder / "preprocessor_config.json")


def _part(config: Mapping[str, Any], tower: str, folder: Path) -> Mapping[str, Any]:
    """Return a tower's part of a configuration with the defaults that are not written down."""
    transformers = imported("transformers")
    kind = {"vision_config": "CLIPVisionConfig", "text_config": "CLIPTextConfig"}[tower]
    written = config.get(tower) if config["model_type"] == "clip" else config
    return dict(getattr(transformers, kind)(**(written or {})).to_dict())


def _num_features(folder: Path) -> int:
    config = _config(folder)
    return int(config.get("projection_dim", 512))  # 512 is what transformers takes where nothing is written


def _identity(folder: Path, what: str) -> dict[str, Any]:
    weights = _weight_files(folder)
    if not weights:
        raise MissingDataError(
            f"{folder}: expected model.safetensors or pytorch_model.bin, found neither.", remedy="Add one."
        )
    files = [*weights, *sorted(file for file in folder.iterdir() if file.suffix in (".json", ".txt"))]
    return {
        "encoder": "clip",
        "takes": what,
        "files": {file.name: file_hash(file) for file in files},
        "threads": 1,
        "versions": versions("torch", "transformers", *(("tokenizers",) if what == "texts" else ())),
    }


def _model(folder: Path) -> Any:
    kind = _KINDS[_config(folder)["model_type"]]
    with quiet_transformers():
        return getattr(imported("transformers"), kind).from_pretrained(folder).eval().float()


CLIP = Clip()

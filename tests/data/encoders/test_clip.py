"""CLIP: transformers as reference, folders and the hub, a tower alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.data.encoders.samples import needs_transformers, random_images, small_set
from umbel.data import DataError, MissingDataError, encoders
from umbel.data.encoders import base
from umbel.data.encoders.clip_pixels import Preprocess
from umbel.data.texts import Texts

torch.set_num_threads(1)


WORDS = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "c</w>", "a", "b", "c"]


@pytest.fixture
def tiny_clip(tmp_path: Path) -> Path:
    transformers = base.imported("transformers")
    folder = tmp_path / "tiny"
    towers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = towers | {"image_size": 12, "patch_size": 4}
    text = towers | {"vocab_size": 8, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "do_resize": True, "size": {"shortest_edge": 12}, "resample": 3, "do_center_crop": True,
        "crop_size": {"height": 12, "width": 12}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@needs_transformers
def test_clip_images(tiny_clip: Path) -> None:
    images = random_images(20, 3, 12, 12)
    embeddings = encoders.encode_images(images, f"clip:{tiny_clip}")
    model = base.imported("transformers").CLIPModel.from_pretrained(tiny_clip).eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.inference_mode():
        ids = torch.tensor([[0, 2, 1]])
        expected = model(pixel_values=(images / 255 - mean) / std, input_ids=ids)
    unit = functional.normalize(embeddings, dim=1)
    assert embeddings.shape == (20, 10) and torch.allclose(unit, expected.image_embeds, atol=1e-5)
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(20), atol=1e-2)  # not normalised by us
    grey = encoders.encode_images(images[:, :1], f"clip:{tiny_clip}")
    assert torch.equal(grey, encoders.encode_images(images[:, :1].expand(-1, 3, -1, -1), f"clip:{tiny_clip}"))
    data_set = encoders.encode(small_set(texts=True), f"clip:{tiny_clip}", 0)  # of both it takes the images
    assert torch.equal(data_set.test.images, encoders.encode_images(small_set().test.images, f"clip:{tiny_clip}"))


@needs_transformers
def test_clip_texts(tiny_clip: Path) -> None:
    texts = ["a b", "c", "a b", "A  B", "a b c a b c a b c"]
    embeddings = encoders.encode_texts(Texts.of(texts), f"clip:{tiny_clip}")
    model = base.imported("transformers").CLIPModel.from_pretrained(tiny_clip).eval()
    tokens = [[0, 2, 3, 1], [0, 4, 1], [0, 2, 3, 1], [0, 2, 3, 1], [0, 2, 3, 4, 2, 1]]
    for row, ids in zip(embeddings, tokens, strict=True):
        with torch.inference_mode():
            output = model(pixel_values=torch.zeros(1, 3, 12, 12), input_ids=torch.tensor([ids]))
        assert torch.allclose(functional.normalize(row, dim=0), output.text_embeds[0], atol=1e-5)
    only_texts = encoders.encode(small_set(texts=True, images=False), f"clip:{tiny_clip}", 0)
    assert only_texts.train.images.shape == (40, 10)


@needs_transformers
@pytest.mark.parametrize("shape", [(30, 30), (9, 9), (20, 31)])
def test_clip_preprocessing_is_that_of_transformers(tiny_clip: Path, shape: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    from PIL import Image

    images = random_images(3, 3, *shape)
    settings = json.loads((tiny_clip / "preprocessor_config.json").read_text())
    pixels = Preprocess.of(settings, side=12)(images)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    processor = module.CLIPImageProcessorPil.from_pretrained(tiny_clip)
    expected = torch.from_numpy(np.stack(processor(pictures)["pixel_values"]))
    level = 1 / 255 / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    # PIL computes with whole numbers: a level of 256 here and there.
    assert pixels.shape == expected.shape and ((pixels - expected).abs() <= 1.01 * level).all()
    assert (pixels - expected).abs().mean() < 0.1 * level.mean()


def test_clip_settings() -> None:
    plain = {"do_center_crop": False, "do_rescale": False, "do_normalize": False, "size": {"height": 4, "width": 4}}
    images = random_images(2, 3, 4, 4)
    assert torch.equal(Preprocess.of(plain, side=4)(images), images.float())
    assert Preprocess.of({"size": 8, "crop_size": 6, "resample": 2}, side=6)(images).shape == (2, 3, 6, 6)
    with pytest.raises(DataError, match=r"expected resample to be 2 or 3, found 1"):
        Preprocess.of({"resample": 1}, side=4)
    with pytest.raises(DataError, match=r"makes images of 6 x 6 pixels.* takes 4 x 4"):
        Preprocess.of({"crop_size": 6}, side=4)
    with pytest.raises(DataError, match=r"expected size with shortest_edge, or height and width"):
        Preprocess.of({"size": {"longest_edge": 4}}, side=4)
    with pytest.raises(DataError, match=r"cuts 9 x 9 pixels out of images that are 4 x 4"):
        Preprocess.of({"do_resize": False, "crop_size": 9}, side=9)(images)


@needs_transformers
def test_clip_that_is_damaged_or_not_there(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(2, 3, 12, 12)
    with pytest.raises(MissingDataError, match=r"expected a folder with config\.json"):
        encoders.check(f"clip:{tmp_path / 'nowhere'}", 0)
    encoders.check(f"clip:{tiny_clip}", 0)
    first = encoders.encode_images(images, f"clip:{tiny_clip}")
    settings = tiny_clip / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace("0.6", "0.7"))
    assert not torch.equal(encoders.encode_images(images, f"clip:{tiny_clip}"), first)  # settings are in the key
    settings.write_text("{")
    with pytest.raises(DataError, match=r"preprocessor_config\.json: cannot be read as JSON"):
        encoders.encode_images(images, f"clip:{tiny_clip}")
    settings.unlink()
    with pytest.raises(MissingDataError, match=r"preprocessor_config\.json: expected this file"):
        encoders.encode_images(images, f"clip:{tiny_clip}")
    (tiny_clip / "model.safetensors").unlink()
    with pytest.raises(MissingDataError, match=r"expected model\.safetensors or pytorch_model\.bin, found neither"):
        encoders.encode_texts(Texts.of(["a"]), f"clip:{tiny_clip}")
    (tiny_clip / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(DataError, match=r"expected model_type to be one of clip.*found 'bert'"):
        encoders.encode_texts(Texts.of(["a"]), f"clip:{tiny_clip}")

    def no_network(name: str, **_how: Any) -> str:
        raise OSError(f"cannot reach {name}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(MissingDataError, match=r"cannot reach owner/name\).*\n    hf download owner/name --local-dir"):
        encoders.encode_images(images, "clip:owner/name")


@needs_transformers
def test_clip_of_the_hub_is_taken_from_its_cache_first(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **how: Any) -> str:
        asked.append(how)
        if how.get("local_files_only") and len(asked) == 1:
            raise FileNotFoundError("not in the cache")
        return str(tiny_clip)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    images = random_images(2, 3, 12, 12)
    embeddings = encoders.encode_images(images, "clip:owner/name")
    assert torch.equal(embeddings, encoders.encode_images(images, f"clip:{tiny_clip}"))
    assert [bool(how.get("local_files_only")) for how in asked] == [True, False]
    assert torch.equal(encoders.encode_images(images, "clip:owner/name"), embeddings) and len(asked) == 3
    assert "model*.safetensors" in asked[0]["allow_patterns"]


@needs_transformers
def test_a_tower_alone(tiny_clip: Path) -> None:
    transformers = base.imported("transformers")
    images = random_images(4, 3, 12, 12)
    expected = encoders.encode_images(images, f"clip:{tiny_clip}")
    whole = transformers.CLIPModel.from_pretrained(tiny_clip)
    config = whole.config.vision_config
    config.projection_dim = 10
    tower = transformers.CLIPVisionModelWithProjection(config)
    tower.load_state_dict({k: v for k, v in whole.state_dict().items() if k.startswith(("vision", "visual"))})
    alone = tiny_clip.parent / "tower"
    tower.save_pretrained(alone)
    (alone / "preprocessor_config.json").write_text((tiny_clip / "preprocessor_config.json").read_text())
    assert torch.allclose(encoders.encode_images(images, f"clip:{alone}"), expected, atol=1e-6)
    with pytest.raises(DataError, match=r"has no text tower\. Give it images"):
        encoders.encode_texts(Texts.of(["a"]), f"clip:{alone}")

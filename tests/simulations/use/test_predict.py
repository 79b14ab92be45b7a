"""Pictures are predicted as the test set is, by every strategy whose model can be; the others are refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.end_to_end.test_engines import STRATEGIES
from tests.simulations.commands.command_line import umbel
from tests.simulations.use.conftest import BRIEF
from umbel import RunResult, data, load_model, predict, run
from umbel.core.refusal import Refusal


def test_pictures_are_predicted_as_the_test_set_is(small: RunResult, pictures: Path) -> None:
    predictions = predict(small.path, pictures, batch_size=7)
    test = data.load(data.DataConfig(), 0).test.images[[int(path.stem) for path in predictions.paths]]
    expected = torch.softmax(load_model(small.path).logits(test), dim=1)
    torch.testing.assert_close(predictions.probabilities, expected, atol=0.02, rtol=0)  # pixels are rounded to 8 bits
    assert [name for _, name, _ in predictions.rows()] == [str(label) for label in expected.argmax(dim=1).tolist()]
    right = [path.parent.name == name for path, name, _ in predictions.rows()]
    assert len(right) == 30 and sum(right) > 15


def test_the_command_writes_a_table(small: RunResult, pictures: Path) -> None:
    result = umbel("predict", small.path / "best.safetensors", pictures, "--csv")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert len(rows) == 30 and rows[0]["file"].endswith(".png")
    for row in rows:
        shares = {name: float(row[f"p:{name}"]) for name in load_model(small.path).classes}
        assert max(shares, key=lambda name: shares[name]) == row["class"]
        assert float(row["probability"]) == shares[row["class"]]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    one = umbel("predict", small.path, next(pictures.rglob("*.png")))
    assert one.exit_code == 0 and len(one.stdout.splitlines()) == 1 and "%" in one.stdout


def test_pictures_are_read_as_a_set_reads_them(small: RunResult, pictures: Path, tmp_path: Path) -> None:
    """In colour, larger, turned by EXIF or of 16 bits, a picture shows the same."""
    source = sorted(pictures.rglob("*.png"))[0]
    with Image.open(source) as picture:
        grey = picture.copy()
    grey.convert("RGB").save(tmp_path / "b_colour.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    grey.rotate(90, expand=True).save(tmp_path / "c_turned.png", exif=turned)
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "d_deep.png")
    shutil.copy(source, tmp_path / "a_plain.png")
    probabilities = predict(small.path, tmp_path).probabilities
    torch.testing.assert_close(probabilities, probabilities[:1].expand(4, -1))


def test_what_is_left_out_is_said(small: RunResult, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    shutil.copytree(pictures / "3", folder / "deep" / "deeper")
    (folder / "notes.txt").write_text("words")
    (folder / ".hidden").mkdir()
    shutil.copy(next(pictures.rglob("*.png")), folder / ".hidden" / "x.png")
    predictions = predict(small.path, folder)
    assert len(predictions.paths) == len(list((pictures / "3").iterdir()))
    assert any("left out 1 hidden files or folders: .hidden" in notice for notice in predictions.notices)
    assert any("notes.txt" in notice for notice in predictions.notices)


def test_links_to_folders_are_followed_and_circles_are_not(small: RunResult, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "linked").symlink_to(pictures / "3")
    (tmp_path / "some" / "circle").symlink_to(tmp_path / "some")
    assert len(predict(small.path, tmp_path / "some").paths) == len(list((pictures / "3").iterdir()))


def test_refused(small: RunResult, tmp_path: Path) -> None:
    for folder, message in ((tmp_path / "none", "no such file"), (tmp_path, "there is no picture")):
        result = umbel("predict", small.path, folder)
        assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    result = umbel("predict", small.path, tmp_path)
    assert result.exit_code == 2 and "cut.png" in result.stderr
    with pytest.raises(Refusal, match="one head for all classes"):
        predict(small.path, tmp_path, task=1)


def test_behind_an_encoder_pictures_are_embedded(pictures: Path, tmp_path: Path) -> None:
    """The components are those of the run's training images, whatever pictures are predicted."""
    encoder = ("data.encoder=pca:8", "model.name=linear", "model.sizes={}")
    result = run("digits", *BRIEF, *encoder, f"run.results={tmp_path}")
    predictions = predict(result.path, pictures)
    digits = data.encoders.encode(data.load(data.DataConfig(), 0), "pca:8", 0)
    inputs = digits.test.images[[int(path.stem) for path in predictions.paths]]
    expected = torch.softmax(load_model(result.path).logits(inputs), dim=1)
    torch.testing.assert_close(predictions.probabilities, expected, atol=0.02, rtol=0)
    alone = shutil.copy(result.path / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(Refusal, match="fitted to the training images"):
        predict(alone, pictures)


def test_a_model_that_was_never_trained_is_refused(pictures: Path, tmp_path: Path) -> None:
    result = run("digits", *BRIEF, "strategy.name=umbel.strategies.local:Local", f"run.results={tmp_path}")
    with pytest.raises(Refusal, match=r"never trained: under strategy\.name=umbel"):
        predict(result.path, pictures)


def test_a_pair_of_encoders_is_refused(pictures: Path, tmp_path: Path) -> None:
    small = ("data.num_clients=8", "client.epochs=1", "run.rounds=1", "model.name=cnn", "evaluate.every=0")
    result = run("digits", *small, *STRATEGIES["creamfl"], f"run.results={tmp_path}")
    with pytest.raises(Refusal, match=r"strategy\.name=creamfl"):
        predict(result.path, pictures)


def test_heads_of_tasks_are_told_the_task(pictures: Path, tmp_path: Path) -> None:
    tasks = ("data.partition=split_tasks", "data.num_tasks=2", "data.heads=per_task", "data.rounds_per_task=1")
    result = run("digits", *BRIEF, *tasks, f"run.results={tmp_path}")
    with pytest.raises(Refusal, match="Give --task 0 to 1"):
        predict(result.path, pictures)
    tasks_of = torch.tensor(load_model(result.path).card.tasks)
    for task in (0, 1):
        probabilities = predict(result.path, pictures, task=task).probabilities
        assert bool((probabilities[:, tasks_of != task] == 0).all())
        assert bool((probabilities[:, tasks_of == task].sum(dim=1) - 1).abs().max() < 1e-5)

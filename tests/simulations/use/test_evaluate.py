"""A trained model is worth on its test set what its run said, and on other data what it gets right by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.data.encoders.samples import needs_transformers
from tests.data.encoders.test_clip import tiny_clip as tiny_clip
from tests.end_to_end.test_engines import STRATEGIES
from tests.helpers import small_run
from tests.simulations.commands.command_line import umbel
from tests.simulations.use.conftest import BRIEF
from umbel import RunResult, evaluate, predict, run
from umbel.core.refusal import Refusal
from umbel.data.errors import MissingDataError

PER_TASK = ("data.partition=split_tasks", "data.num_tasks=2", "data.heads=per_task", "data.rounds_per_task=1")
METRICS = ("accuracy", "balanced_accuracy", "worst_class_accuracy", "loss")


def check(result: RunResult) -> None:
    """What `evaluate` finds is what the run found, and what the best model was worth, too."""
    for name, prefix in (("model.safetensors", ""), ("best.safetensors", "best/")):
        metrics = evaluate(result.path / name).metrics
        assert {key: metrics[key] for key in METRICS} == pytest.approx(
            {key: result.summary["metrics"][f"{prefix}test/{key}"] for key in METRICS}, rel=1e-5
        )


def test_as_the_run_did(small: RunResult) -> None:
    check(small)
    evaluation = evaluate(small.path)
    assert (evaluation.num_examples, evaluation.data, evaluation.split) == (359, "digits", "test")
    assert sorted(evaluation.by_class) == [str(digit) for digit in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [STRATEGIES["fedloge"], STRATEGIES["ggeur"], STRATEGIES["fedopt"], PER_TASK, ("data.max_test=50",)],
    ids=["fedloge", "ggeur", "fedopt", "per_task", "max_test"],
)
def test_as_runs_of_other_kinds_did(overrides: tuple[str, ...], tmp_path: Path) -> None:
    check(run("digits", *BRIEF, *overrides, f"run.results={tmp_path}"))


def test_domains_have_their_own(tmp_path: Path) -> None:
    try:
        result = run("digits", *BRIEF, "data.name=digits_domains", "data.max_test=100", f"run.results={tmp_path}")
    except MissingDataError:
        pytest.skip("MNIST is not there: umbel data fetch digits_domains")
    metrics = evaluate(result.path).metrics
    own = {name: value for name, value in metrics.items() if name.startswith("domain")}
    assert own and own == pytest.approx({name: result.summary["metrics"][f"test/{name}"] for name in own})


def test_on_pictures_of_a_folder(small: RunResult, pictures: Path) -> None:
    """Size and channels are the model's without being asked for; classes are matched by name."""
    evaluation = evaluate(small.path, "data.name=image_folder", f"data.path={pictures}", split="all")
    rows = predict(small.path, pictures).rows()
    assert evaluation.num_examples == 30
    assert evaluation.metrics["accuracy"] == sum(path.parent.name == name for path, name, _ in rows) / 30
    assert "As the model takes them: image_size=8." in evaluation.notices


def test_classes_are_matched_by_name_and_not_by_order(small: RunResult, pictures: Path, tmp_path: Path) -> None:
    for name in ("3", "4", "6"):  # here numbers 0, 1 and 2
        shutil.copytree(pictures / name, tmp_path / "some" / name)
    folder = ("data.name=image_folder", f"data.path={tmp_path / 'some'}")
    evaluation = evaluate(small.path, *folder, split="all")
    rows = predict(small.path, tmp_path / "some").rows()
    assert evaluation.metrics["accuracy"] == sum(path.parent.name == name for path, name, _ in rows) / len(rows) > 0.3
    (tmp_path / "some" / "4").rename(tmp_path / "some" / "four")
    with pytest.raises(Refusal, match="1 classes that the model does not know, such as 'four'"):
        evaluate(small.path, *folder, split="all")


def test_behind_an_encoder(pictures: Path, tmp_path: Path) -> None:
    """Components are those of the run's training images: on other data they are not fitted anew."""
    encoder = ("data.encoder=pca:8", "model.name=linear", "model.sizes={}")
    result = run("digits", *BRIEF, *encoder, f"run.results={tmp_path}")
    evaluation = evaluate(result.path, "data.name=image_folder", f"data.path={pictures}", split="all")
    rows = predict(result.path, pictures).rows()
    assert evaluation.metrics["accuracy"] == sum(path.parent.name == name for path, name, _ in rows) / 30


TEXTS = """
import torch
from umbel.data import DataSet, Examples
from umbel.data.texts import Texts

def load(config, seed):
    def part(number):
        labels = torch.arange(number) % 2
        words = [("a a b", "c c")[label] for label in labels.tolist()]
        return Examples(images=torch.zeros(number, 0), labels=labels, texts=Texts.of(words))
    return DataSet("words", part(40), part(10), ("some", "other"), (), (), (), "public domain")
"""


@needs_transformers
def test_texts_behind_an_encoder(
    tiny_clip: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words_in_two_classes.py").write_text(TEXTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ("data.name=words_in_two_classes:load", f"data.encoder=clip:{tiny_clip}")
    result = run("digits", *BRIEF, *words, "model.name=linear", "model.sizes={}", f"run.results={tmp_path / 'runs'}")
    check(result)
    with pytest.raises(Refusal, match="was trained on texts"):
        predict(result.path, pictures)


def test_the_command(small: RunResult, pictures: Path) -> None:
    shown = umbel("evaluate", small.path)
    accuracy = small.summary["metrics"]["test/accuracy"]
    assert shown.exit_code == 0 and f"accuracy                 {accuracy:.4f}" in shown.stdout
    content = json.loads(umbel("evaluate", small.path, "--split", "train", "--json").stdout)
    assert content["split"] == "train" and content["num_examples"] == 1438
    for overrides, message in (
        (("run.rounds=3",), "says nothing about which data"),
        (("data.encoder=pixels",), "says nothing about which data"),
        (("data.name=synthetic",), "such as"),
        (("data.name=image_folder",), "needs data.path"),
        (("data.alpha=1",), "says nothing about which data"),
        (("data.max_train=100", "--split", "train"), "says nothing about which data"),
        (("data.name=fashion_mnst",), "Did you mean"),
        (("data.name=image_folder", f"data.path={pictures}", "data.options.image_size=9"), "image_size=8"),
    ):
        result = umbel("evaluate", small.path, *overrides)
        assert result.exit_code == 2 and message in result.stderr, result.output
        assert "Traceback" not in result.output


def test_all_of_other_data_is_all_of_them(tmp_path: Path) -> None:
    cut = small_run(tmp_path, "data.max_test=20", "data.max_train=200")
    assert evaluate(cut.path).num_examples == 20
    assert "20 of 359 test examples" in " ".join(evaluate(cut.path).notices)
    whole = evaluate(cut.path, "data.name=digits", split="all")
    assert whole.num_examples == 1797


def test_tasks_of_permuted_pixels_are_the_runs_alone(tmp_path: Path) -> None:
    permuted = small_run(
        tmp_path, "data.partition=permuted_tasks", "data.num_tasks=2", "data.rounds_per_task=1", "run.rounds=2"
    )
    with pytest.raises(Refusal, match="tasks whose pixels"):
        evaluate(permuted.path)


def test_a_file_alone_has_to_be_told_the_data(small: RunResult, tmp_path: Path) -> None:
    file = shutil.copy(small.path / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(Refusal, match=r"Say data\.name"):
        evaluate(file)
    assert evaluate(file, "data.name=digits").metrics["accuracy"] == small.summary["metrics"]["test/accuracy"]

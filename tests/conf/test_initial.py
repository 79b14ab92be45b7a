"""A run that starts from the weights of a trained model: what is kept, what is new, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers import Notices
from tests.simulations.commands.command_line import umbel
from umbel import RunResult, resume, run
from umbel.core.files import read_tensors, write_tensors
from umbel.core.refusal import Refusal
from umbel.simulations.compare.prepare import compose, folder_name, parse_strategies

SMALL = (
    *("model.name=cnn", "model.sizes={width: 4, hidden: 16}", "data.num_clients=4", "data.max_train=200"),
    *("client.epochs=1", "run.rounds=1", "evaluate.clients=0", "checkpoint.every=1"),
)
STILL = ("client.lr=1e-30", "run.rounds=1")  # a round that leaves float32 weights as they are


def weights(result: RunResult) -> dict[str, Tensor]:
    return read_tensors(result.path / "model.safetensors")[0]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run("digits", *SMALL, "client.lr=0.1", f"run.results={tmp_path_factory.mktemp('first')}", "run.name=first")


@pytest.mark.parametrize("as_file", [False, True])
def test_a_run_starts_from_the_weights_of_another(first: RunResult, as_file: bool, tmp_path: Path) -> None:
    file, notices = first.path / "model.safetensors", Notices()
    start = file if as_file else first.path
    again = run(
        "digits", *SMALL, *STILL, "run.seed=7", f"model.init={start}", f"run.results={tmp_path}", listener=notices
    )
    assert again.summary["weights_sha256"] == first.summary["weights_sha256"]
    assert notices.texts == [f"model.init: all {len(weights(first))} tensors are those of {file}."]


@pytest.mark.parametrize(
    ("num_classes", "said"),
    [
        (4, "has 10 classes there and 4 here: head.bias, head.weight start anew"),
        (10, "classes of other names"),
    ],
)
def test_a_classifier_of_other_classes_starts_anew(
    first: RunResult, tmp_path: Path, num_classes: int, said: str
) -> None:
    notices = Notices()
    shape = f"num_classes: {num_classes}, image_size: 8, in_channels: 1"
    small = f"data.options={{num_examples: 200, num_test: 40, {shape}}}"
    other = ("data.name=synthetic", small, "data.max_train=0", f"run.results={tmp_path}")
    again = run("digits", *SMALL, *STILL, *other, f"model.init={first.path}", listener=notices)
    known, initial = weights(first), weights(again)
    assert {name for name in known if not torch.equal(known[name], initial[name])} == {"head.weight", "head.bias"}
    assert initial["head.weight"].shape[0] == num_classes
    assert said in notices.texts[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.sizes={width: 8, hidden: 16}",), r"weights do not fit: .*\[4, 1, 3, 3\].*here \[8, 1, 3, 3\]"),
        (("model.name=mlp", "model.sizes={}"), "is not in this model"),
        (("model.norm=local",), "batch norm"),
        (("data.encoder=pca:8", "model.name=linear", "model.sizes={}"), "reads images, this one pca:8"),
        (("model.init_sha256=0123",), "expected 0123"),
    ],
)
def test_what_does_not_fit_is_refused(
    first: RunResult, overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    with pytest.raises(Refusal, match=message):
        run("digits", *SMALL, f"model.init={first.path}", *overrides, f"run.results={results}")
    assert not results.exists() or not list(results.iterdir())


def test_refusals_of_the_command_name_the_key(first: RunResult, tmp_path: Path) -> None:
    for override, message in (
        (f"model.init={tmp_path / 'none'}", "no such file or folder"),
        (f"model.init={tmp_path}", "has no model.safetensors"),
        (f"model.init={first.path / 'config.yaml'}", "cannot be read"),
        ("model.init_sha256=00", "hash of nothing"),
    ):
        result = umbel("run", "digits", *SMALL, override, f"run.results={tmp_path / 'results'}")
        assert result.exit_code == 2 and message in result.stderr and "model.init" in result.stderr, result.output
    creamfl = umbel("run", "creamfl_emoji", f"model.init={first.path}", f"run.results={tmp_path / 'results'}")
    assert creamfl.exit_code == 2 and "models of their own" in creamfl.stderr


def test_weights_of_elsewhere_need_no_card(first: RunResult, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    write_tensors(plain, weights(first))
    again = run("digits", *SMALL, *STILL, f"model.init={plain}", f"run.results={tmp_path / 'results'}")
    assert again.summary["weights_sha256"] == first.summary["weights_sha256"]


def test_a_run_goes_on_without_the_file(first: RunResult, tmp_path: Path) -> None:
    """All that it started from is in its checkpoint."""
    start = shutil.copy(first.path / "model.safetensors", tmp_path / "start.safetensors")
    two = ("run.rounds=2", "client.lr=0.1", f"model.init={start}")
    whole = run("digits", *SMALL, *two, f"run.results={tmp_path / 'whole'}")
    begun = run("digits", *SMALL, *two, "run.rounds=1", f"run.results={tmp_path / 'begun'}")
    Path(start).unlink()
    again = resume(begun.path, "run.rounds=2")
    assert again.summary["weights_sha256"] == whole.summary["weights_sha256"]
    with pytest.raises(Refusal, match="no such file"):
        run("digits", *SMALL, *two, f"run.results={tmp_path / 'whole'}")


def test_a_comparison_tells_other_weights_under_the_same_path_apart(first: RunResult, tmp_path: Path) -> None:
    """A run that is there already is taken for the same only if it began with the same weights."""
    file = tmp_path / "start.safetensors"
    (item,) = parse_strategies("fedavg")

    def name() -> str:
        return folder_name(item, compose("digits", item, 0, [*SMALL, f"model.init={file}"]))

    write_tensors(file, weights(first))
    before = name()
    assert name() == before
    write_tensors(file, weights(first) | {"head.bias": weights(first)["head.bias"] + 1})
    assert name() != before

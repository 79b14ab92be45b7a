"""The same mistake ends in the same way on every engine: exit status 2, one message with the key, no folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.end_to_end.test_engines import SMALL
from umbel.core.refusal import Refusal
from umbel.data.errors import DataError
from umbel.server.errors import RunFailedError, RunStoppedError, StopRequested, ending, raise_again
from umbel.simulations.commands.main import main

# Found when the experiment is composed, when the data are cut, and when the model is built: ever later.
MISTAKES = {
    "a wrong name": ("strategy.name=fedavgg", "strategy.name"),
    "a value out of range": ("client.lr=-1", "client.lr"),
    "more examples than there are": ("data.min_examples=100", "data.min_examples"),
    "a size that the model cannot have": ("model.sizes={width: 0}", "model.sizes.width"),
    "an operator that does not fit": ("model.operators={msa_conv: {window: 0}}", "model.operators.msa_conv"),
    "a device that is not there": ("client.device=cuda", "client.device"),
}
ENGINES = {"inline": (), "ray": ("engine.workers=1",), "grpc": ("engine.nodes=2",)}


def refused(tmp_path: Path, *overrides: str) -> str:
    results = tmp_path / "results"
    done = CliRunner().invoke(main, ["run", "digits", "--quiet", *SMALL, f"run.results={results}", *overrides])
    assert done.exit_code == 2, (done.output, done.exception)
    assert not list(results.glob("*")), list(results.rglob("*"))
    (line,) = [line for line in done.output.splitlines() if line.startswith("Error: ")]
    return line


@pytest.mark.parametrize("mistake", MISTAKES)
def test_inline(mistake: str, tmp_path: Path) -> None:
    override, key = MISTAKES[mistake]
    if override == "client.device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert key in refused(tmp_path, override)


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")  # Ray and a federation leave open files to the garbage collector
@pytest.mark.parametrize(
    ("mistake", "engine"),
    [
        ("more examples than there are", "ray"),
        ("a size that the model cannot have", "grpc"),
        pytest.param("a size that the model cannot have", "ray", marks=pytest.mark.exhaustive),
        pytest.param("more examples than there are", "grpc", marks=pytest.mark.exhaustive),
    ],
)
def test_the_other_engines(mistake: str, engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue({"ray": "cluster", "grpc": "federation"}[engine])
    override, _ = MISTAKES[mistake]
    said = refused(tmp_path, override, f"engine.name={engine}", *ENGINES[engine])
    assert said == refused(tmp_path, override)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Refusal("model.size is 3.", key="model.size", remedy="Say 4."), Refusal),
        (StopRequested(), StopRequested),
        (KeyboardInterrupt(), StopRequested),
        (RunStoppedError("too few replies"), RunStoppedError),
        (ZeroDivisionError("division by zero"), RunFailedError),
    ],
)
def test_how_a_run_ended_travels_between_processes(error: BaseException, kind: type[BaseException]) -> None:
    with pytest.raises(kind) as caught:
        raise_again(ending(error))
    assert type(caught.value) is kind
    if isinstance(error, Refusal):
        assert vars(caught.value) == vars(error) and str(caught.value) == str(error)
    elif not isinstance(error, KeyboardInterrupt):
        assert str(error) in str(caught.value)


def test_a_refusal_says_its_key_once_and_survives_a_pickle() -> None:
    assert str(Refusal("Unknown model 'cn'.", key="model.name", remedy="Did you mean 'cnn'?")) == (
        "Unknown model 'cn' (key model.name). Did you mean 'cnn'?"
    )
    named = DataError("model.name=cn is unknown.", key="model.name")
    assert str(named) == "model.name=cn is unknown."
    again = pickle.loads(pickle.dumps(named))
    assert type(again) is DataError
    assert (str(again), again.key, again.reason, again.remedy) == (str(named), named.key, named.reason, named.remedy)


def test_a_path_that_cannot_be_written_to_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/somewhere")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("umbel.server.main.Session", gone)
        assert "No such file or directory: /somewhere" in refused(tmp_path)

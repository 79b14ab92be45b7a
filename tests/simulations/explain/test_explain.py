"""Looking inside a finished run: clients' models made again, rows, pictures, the report, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from tests.end_to_end.test_zoo_federated import OPTIONS as STRATEGIES
from tests.end_to_end.test_zoo_federated import SMALL
from umbel import resume, run
from umbel.conf.errors import ExperimentError
from umbel.core.files import (
    DamagedError,
    file_sha256,
    read_sealed,
    read_tensors,
    write_sealed,
    write_tensors,
)
from umbel.core.names import UnknownNameError
from umbel.simulations.commands.main import main
from umbel.simulations.explain import inside
from umbel.simulations.explain import look as module
from umbel.simulations.explain.finished import FinishedRun
from umbel.simulations.explain.look import Options, explain
from umbel.simulations.report.page import report

SIX = ("model.name=cnn", "data.num_clients=6", "data.max_train=300", "run.rounds=2", "evaluate.clients=0")
FEW = Options(clients=3, images=3, probe=24, shown=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    options = ("data.num_shuffled=1", "evaluate.collapse=true", "run.name=six", f"run.results={folder}")
    return run("digits", *SIX, *options).path


def test_a_clients_model_is_what_it_would_send_next(tmp_path: Path) -> None:
    """With one client, one round more of FedAvg is that client's model."""
    options = ("model.name=cnn", "data.num_clients=1", "data.max_train=100", "run.rounds=2", "client.lr_decay=0.5")
    path = run("digits", *options, "run.name=one", f"run.results={tmp_path}").path
    state = FinishedRun(path).client(0)
    shutil.copytree(path, tmp_path / "kept")
    after = read_tensors(resume(path, "run.rounds=3").path / "model.safetensors")[0]
    before = read_tensors(tmp_path / "kept" / "model.safetensors")[0]
    assert all(torch.equal(after[name], state[name]) for name in after)
    assert not any(torch.equal(after[name], before[name]) for name in after)


def test_the_same_run_gives_the_same_bits(finished: Path, tmp_path: Path) -> None:
    paths = [explain(finished, FEW, tmp_path / name).path for name in ("a", "b")]
    names = sorted(path.name for path in paths[0].iterdir())
    assert names == sorted(path.name for path in paths[1].iterdir())
    for name in names:
        assert (paths[0] / name).read_bytes() == (paths[1] / name).read_bytes(), name
    assert {"cams.png", "drift.png", "kernels.png", "layers.png", "collapse.png", "collapse_clients.png"} < set(names)


def test_rows_and_summary(finished: Path) -> None:
    seen = []
    explanation = explain(finished, FEW, told=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    summary = json.loads((explanation.path / "explain.json").read_text())
    assert summary["run"] == "six" and summary["split"] == "validation" and summary["num_images"] == 24
    assert summary["shuffled"] == list(FinishedRun(finished).data.shuffled_clients)
    assert [row["client"] for row in summary["clients"]] == [row.client for row in explanation.clients]
    frame = pd.read_parquet(explanation.path / "explain.parquet")
    assert list(frame.columns) == list(pd.read_parquet(finished / "metrics.parquet").columns)
    assert set(frame["run"]) == {"six"} and set(frame["round"]) == {2} and frame["value"].notna().all()
    server = frame[frame["side"] == "server"].set_index("metric")["value"]
    assert 0 <= server["filters/conv2.weight/sparsity"] <= 1 and 0 < server["filters/conv2.weight/entropy"] < 1
    assert {"collapse/nc1", "collapse/nc4", "accuracy"} <= set(server.index)
    for row in explanation.clients:
        own = frame[frame["client"] == row.client].set_index("metric")["value"]
        assert own["client/drift"] == row.drift and row.drift > 0 and own["client/update"] == row.update > 0
        assert -1 <= row.correlation <= 1 and 0 <= row.iou <= 1
        assert own["accuracy"] == row.accuracy


def test_a_client_that_learned_nothing_is_the_global_model(tmp_path: Path) -> None:
    path = run("digits", *SIX, "client.lr=0", f"run.results={tmp_path}").path
    for row in explain(path, FEW).clients:
        assert (
            row.drift == row.kernels == row.update == row.drift_z == 0
            and row.correlation == pytest.approx(1)
            and row.iou == 1
        )
        assert not row.flagged


def test_without_a_checkpoint_clients_train_by_their_local_loss(tmp_path: Path) -> None:
    options = (*SIX, "checkpoint.every=0", "client.lr_decay=0.5", f"run.results={tmp_path}")
    path = run("digits", *options).path
    explanation = explain(path, FEW)
    assert any("Without a checkpoint" in note for note in explanation.notes)
    kept = run("digits", *SIX, "client.lr_decay=0.5", f"run.results={tmp_path}").path
    one, other = FinishedRun(path).client(4), FinishedRun(kept).client(4)
    # What is added to the global model, or trained in place, differs by rounding.
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(s, marks=() if s in ("scaffold", "fedloge") else pytest.mark.exhaustive) for s in STRATEGIES],
)
def test_every_strategy(strategy: str, tmp_path: Path) -> None:
    chosen = ("model.name=cvt_tiny32", f"strategy={{name: {strategy}}}", *STRATEGIES[strategy], "checkpoint.every=1")
    path = run("digits", *SMALL, *chosen, f"run.results={tmp_path}").path
    if strategy in ("creamfl", "fedproto"):
        with pytest.raises(ExperimentError, match="share no classifier"):
            explain(path, FEW)
        return
    explanation = explain(path, Options(clients=-1, images=2, probe=4, shown=1))
    assert len(explanation.clients) == 2 and all(row.update > 0 for row in explanation.clients)
    assert not any("left out" in note for note in explanation.notes)


def test_batch_norm_of_a_clients_own_is_in_its_model(tmp_path: Path) -> None:
    chosen = ("model.name=cnn", "model.sizes={norm: batch}", "model.norm=local", "checkpoint.every=1")
    finished = FinishedRun(run("digits", *SMALL, *chosen, f"run.results={tmp_path}").path)
    one, other = finished.client(0), finished.client(1)
    assert not torch.equal(one["norm1.running_mean"], other["norm1.running_mean"])
    assert not torch.equal(one["norm1.running_mean"], finished.state["norm1.running_mean"])


def test_embeddings_have_no_maps(tmp_path: Path) -> None:
    chosen = ("data.encoder=pca:8", "model.name=linear", "data.num_clients=3", "run.rounds=1", "client.max_steps=2")
    explanation = explain(run("digits", *chosen, f"run.results={tmp_path}").path, FEW)
    assert [name for name, _ in explanation.pictures] == ["update.png", "collapse_clients.png"]
    assert (
        len(explanation.notes) == 4
        and "No client is accused: that takes 5" in explanation.notes[-1]
        and all(row.drift is None and row.correlation is None for row in explanation.clients)
    )


@pytest.mark.slow
def test_convits_locality(tmp_path: Path) -> None:
    path = run("digits", *SMALL, "model.name=convit_tiny32", "checkpoint.every=1", f"run.results={tmp_path}").path
    explanation = explain(path, FEW)
    frame = pd.read_parquet(explanation.path / "explain.parquet")
    locality = frame[frame["metric"].str.startswith("locality/")]
    assert len(locality) == 3 * 3 and locality["value"].between(0.5, 0.9).all()  # three gated layers, two clients
    assert "locality.png" in [name for name, _ in explanation.pictures]


def test_the_report_shows_it_while_it_is_of_these_weights(finished: Path, tmp_path: Path) -> None:
    explain(finished, FEW)
    html = report([finished], tmp_path / "a.html").read_text()
    assert "Inside the models" in html and "drift of filters" in html and "robust z" in html
    path = finished / "explain" / "explain.json"
    path.write_text(path.read_text().replace('"weights_sha256": "', '"weights_sha256": "x'))
    assert "Inside the models" not in report([finished], tmp_path / "b.html").read_text()


@pytest.mark.parametrize("content", ["", '{"run": "six", "cli', "[1, 2]", "{}", "null", "not JSON", "[" * 100_000])
def test_a_summary_that_is_cut_is_refused_in_one_line(content: str, finished: Path, tmp_path: Path) -> None:
    """By the report, which says how to make it again; another look writes it anew."""
    path = shutil.copytree(finished, tmp_path / "cut")
    (path / "explain").mkdir(exist_ok=True)
    (path / "explain" / "explain.json").write_text(content)
    result = CliRunner().invoke(main, ["report", str(path)])
    assert result.exit_code == 2 and "explain.json is damaged" in result.stderr
    assert f"umbel explain {path}" in result.stderr.replace("\n", " ") and "Traceback" not in result.stderr


def test_batches_are_no_matter(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = FinishedRun(finished)
    seen, layer = inside.probe(opened, 24, 2), inside.layer_of(opened, "")[0]
    whole = inside.look(opened.model(opened.state), opened.state, seen, layer, opened.state)
    monkeypatch.setattr(inside, "_BATCH", 10)
    parts = inside.look(opened.model(opened.state), opened.state, seen, layer, opened.state)
    assert whole.cams is not None and parts.cams is not None and whole.cams.shape == parts.cams.shape == (24, 8, 8)
    torch.testing.assert_close(whole.cams, parts.cams)


def test_what_breaks_off_is_not_in_the_report(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    explain(finished, FEW)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(module.plots, "save", _full)
        explain(finished, FEW)
    assert "Inside the models" not in report([finished], tmp_path / "a.html").read_text()


def _full(*_: object) -> None:
    raise OSError("the disk is full")


def test_a_model_that_has_diverged(finished: Path, tmp_path: Path) -> None:
    path = shutil.copytree(finished, tmp_path / "nan")
    state = read_tensors(path / "model.safetensors")[0]
    write_tensors(path / "model.safetensors", {name: tensor * torch.nan for name, tensor in state.items()})
    with pytest.raises(DamagedError, match=r"model\.safetensors is damaged"):
        explain(path, FEW)
    summary = read_sealed(path / "summary.json")
    summary["files_sha256"]["model.safetensors"] = file_sha256(path / "model.safetensors")
    write_sealed(path / "summary.json", summary)
    with pytest.raises(ExperimentError, match="expected finite weights"):
        explain(path, FEW)


def test_the_command(finished: Path, tmp_path: Path) -> None:
    words = ["explain", str(finished), "--clients", "2", "--images", "2", "--probe", "8", "--layer", "conv1"]
    result = CliRunner().invoke(main, [*words, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert "drift" in result.stderr and "No client is accused: that takes 5" in result.stderr
    assert json.loads((tmp_path / "out" / "explain.json").read_text())["layer"] == "conv1"
    for more, message in ((["--layer", "conv3"], "conv2"), (["--images", "0"], "--images should be at least 1")):
        refused = CliRunner().invoke(main, [*words, *more])
        assert refused.exit_code == 2 and message in refused.stderr


def test_what_is_no_finished_run(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="is no run"):
        explain(tmp_path)
    shutil.copytree(finished, tmp_path / "open")
    (tmp_path / "open" / "summary.json").unlink()
    with pytest.raises(ExperimentError, match="umbel resume"):
        explain(tmp_path / "open")
    with pytest.raises(UnknownNameError, match="layer with a map"):
        explain(finished, Options(layer="nothing"))


def test_a_memory_that_is_gone_costs_its_client_alone(tmp_path: Path) -> None:
    options = ("strategy.name=scaffold", f"run.results={tmp_path}")
    path = run("digits", *SIX, *options).path
    shutil.rmtree(next(path.glob("memory/*/0/2")))
    explanation = explain(path, Options(clients=-1, images=2, probe=8))
    assert [row.client for row in explanation.clients] == [0, 1, 3, 4, 5]
    assert any("Client 2 is left out" in note for note in explanation.notes)

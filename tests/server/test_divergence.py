"""A server's state that is no longer finite: refused, named with the rates, and never kept, chosen or evaluated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.helpers import SMALL, small_run, watch_phases
from umbel import resume
from umbel.core import state
from umbel.core.metrics import classify, summarise
from umbel.core.records import BadReplyError, NotFiniteError, has_diverged, reason
from umbel.core.refusal import Refusal
from umbel.server import checkpoint
from umbel.server.errors import DivergedError, RunStoppedError, ending, raise_again
from umbel.simulations.commands.main import main
from umbel.strategies.fedavg import FedAvg, State

DIVERGING = ("strategy.server_lr=3e38", "client.lr=50", "run.rounds=3", "checkpoint.every=1", "run.name=run")


def diverging_update(monkeypatch: pytest.MonkeyPatch, round_: int) -> None:
    """Let the server's step of a round give an infinity."""

    def update(phase: Any, state: Any, folded: Any, server: Any) -> Any:
        after = phase.update(state, folded, server)
        if server.round < round_:
            return after
        return State({name: tensor / 0 for name, tensor in after.model.items()})

    watch_phases(monkeypatch, FedAvg, update=update)


def test_the_last_good_state_is_kept_and_the_rates_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging_update(monkeypatch, 3)
    rates = r"client\.lr=0\.25, strategy\.server_lr=0\.5"
    options = ("strategy.server_lr=0.5", "client.lr=0.25", "run.rounds=5", "checkpoint.every=5", "run.name=run")
    with pytest.raises(DivergedError, match=rf"Round 3, train: .*model/.*as it was after round 2.*{rates}\."):
        small_run(tmp_path, *options)
    folder = tmp_path / "run"
    kept = checkpoint.latest(folder / "checkpoints")
    assert kept is not None and kept.progress.round == 2 and kept.best_model is not None
    assert all(bool(torch.isfinite(tensor).all()) for tensor in [*kept.tensors.values(), *kept.best_model.values()])
    assert not (folder / "summary.json").exists() and not (folder / "model.safetensors").exists()
    with pytest.raises(DivergedError, match="Round 3, train"):
        resume(folder)


def test_the_command_says_so_and_ends_with_3(tmp_path: Path) -> None:
    """Of rates that nobody can use, without any patch."""
    words = ["run", "digits", *SMALL, *DIVERGING, f"run.results={tmp_path}", "--quiet"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 3, result.output
    assert "Learning rates in force: client.lr=50.0, strategy.server_lr=3e+38" in result.stderr
    assert "umbel resume" not in result.stderr


def test_replies_none_of_which_is_finite_are_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"(?s)0 of 4 clients sent.*NotFiniteError.*force: client\.lr=1e\+30"):
        small_run(tmp_path, "client.lr=1e30", "run.rounds=3", "run.name=run")
    with pytest.raises(DivergedError, match="0 of 4 clients sent"):
        resume(tmp_path / "run")


def test_where_one_client_fails_otherwise_the_others_tell_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that may pass: the run can be gone on with."""

    def local(phase: Any, payload: Any, client: Any) -> Any:
        if client.id == 2:
            raise OSError("no space left")
        reply = phase.local(payload, client)
        return replace(reply, numbers={**reply.numbers, "loss": float("nan")})

    watch_phases(monkeypatch, FedAvg, local=local)
    with pytest.raises(RunStoppedError, match="0 of 4 clients sent") as stopped:
        small_run(tmp_path, "run.rounds=2", "run.name=run")
    assert not isinstance(stopped.value, DivergedError)


def test_a_failure_says_whether_its_training_has_diverged() -> None:
    assert has_diverged(reason(NotFiniteError("the number 'loss' is nan")))
    assert not has_diverged(reason(BadReplyError("NotFiniteError: this is what a client calls it")))


def test_a_state_that_begins_so_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    initial = FedAvg.initial

    def broken(self: FedAvg, server: Any) -> Any:
        return State({name: tensor * torch.nan for name, tensor in initial(self, server).model.items()})

    monkeypatch.setattr(FedAvg, "initial", broken)
    with pytest.raises(Refusal, match="before the first round, in model/"):
        small_run(tmp_path / "runs", "run.name=run")
    assert not (tmp_path / "runs" / "run").exists()


def test_what_is_not_finite_is_named() -> None:
    good = {"model": {"w": torch.ones(2), "count": torch.tensor(3)}, "best": float("-inf"), "other": object()}
    assert state.not_finite(good) is None
    assert state.not_finite(State({"w": torch.tensor([1.0, torch.inf])})) == "model/w"
    assert state.not_finite((good, [{"a": torch.tensor(torch.nan)}])) == "1/0/a"


def test_it_travels_between_processes() -> None:
    sent = json.loads(json.dumps(ending(DivergedError("Round 3: lower lr"))))
    with pytest.raises(DivergedError, match="Round 3: lower lr"):
        raise_again(sent)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_say_nothing_are_no_prediction_of_class_0(bad: float) -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    counts = classify(lambda images: torch.full((len(images), 3), bad), torch.zeros(4, 1), labels, 3)
    assert counts.correct_C.tolist() == [0, 0, 0] and summarise(counts)["accuracy"] == 0


def test_one_bad_logit_spoils_its_own_example_only() -> None:
    logits = torch.tensor([[2.0, 1.0, torch.nan], [2.0, 1.0, -torch.inf], [2.0, torch.inf, 0.0], [0.0, 3.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    counts = classify(lambda rows: logits[rows.long().flatten()], torch.arange(4)[:, None], labels, 3)
    assert counts.correct_C.tolist() == [1, 1, 0]

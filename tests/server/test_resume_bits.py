"""A run that was killed or stopped goes on with the same bits, from the newest checkpoint that is sound."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from tests.end_to_end.test_engines import STRATEGIES
from tests.helpers import Notices, small_run
from umbel import resume
from umbel.server import checkpoint
from umbel.server.errors import StopRequested
from umbel.server.listener import Listener


class Killed(BaseException):
    """What no code catches."""


class KillAfter(Listener):
    def __init__(self, round_):
        self.last = round_

    def begin(self, experiment, folder):
        self.folder = folder

    def round(self, round_, *_):
        if round_ == self.last:
            raise Killed


STRATEGY_OPTIONS = [
    ("fedavg",),
    ("fedprox", "strategy.mu=0.1"),
    ("scaffold", "strategy.weighting=examples"),
    ("fedopt", "strategy.optimizer=adam", "strategy.lr=0.01", "strategy.momentum=0.9"),
    ("fedopt", "strategy.optimizer=adam", "strategy.lr=0.01", "strategy.bias_correction=true"),
    ("fedopt", "strategy.optimizer=sgd", "strategy.momentum=0.5"),
    ("fedavg", "model.name=cvt_tiny32", "model.sizes={}", "model.norm=local"),
]


def options(strategy, *more):
    return (f"strategy.name={strategy}", *more, "run.clients_per_round=3", "run.rounds=4", "checkpoint.every=2")


def killed(results, *overrides, after=3):
    listener = KillAfter(after)
    with pytest.raises(Killed):
        small_run(results, *overrides, listener=listener)
    return listener.folder


@pytest.mark.parametrize("strategy", STRATEGY_OPTIONS, ids=" ".join)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, strategy):
    whole = small_run(tmp_path / "whole", *options(*strategy))
    folder = killed(tmp_path / "killed", *options(*strategy))
    resumed = resume(folder)
    assert resumed.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert resumed.summary["metrics"] == whole.summary["metrics"]
    columns = ["round", "side", "client", "split", "phase", "metric", "value"]
    assert resumed.metrics[columns].equals(whole.metrics[columns])


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    strategy = options("scaffold")
    whole = small_run(tmp_path / "whole", *strategy)
    folder = killed(tmp_path / "killed", *strategy, after=1)
    assert resume(folder).summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_a_resume_from_the_older_checkpoint_ends_with_the_same_bits(tmp_path):
    class KillInRoundFour(KillAfter):
        def phase(self, round_, *_):
            self.current = round_

        def clients_done(self, num_clients):
            if self.current == 4 and num_clients == 3:
                raise Killed

    # The clients have written their memory of round 4 then; it must reach back to the checkpoint of round 2 as well.
    strategy = (*options("scaffold")[:-1], "checkpoint.every=1")
    whole = small_run(tmp_path / "whole", *strategy)
    listener = KillInRoundFour(-1)
    with pytest.raises(Killed):
        small_run(tmp_path / "killed", *strategy, listener=listener)
    checkpoints = Path(listener.folder) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["round-000002", "round-000003"]
    (checkpoints / "round-000003" / "state.safetensors").unlink()
    assert resume(listener.folder).summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_a_run_can_go_on_for_longer(tmp_path):
    strategy = options("scaffold")
    whole = small_run(tmp_path / "whole", *strategy)
    short = small_run(tmp_path / "short", *strategy, "run.rounds=2")
    assert resume(short.path, "run.rounds=4").summary["weights_sha256"] == whole.summary["weights_sha256"]


@pytest.mark.parametrize("cosine", ["true", "false"])
def test_who_plans_by_the_number_of_rounds_says_so(tmp_path, cosine):
    """CreamFL's learning rate falls to 0 over the rounds that there were to be; with more it would have been higher."""
    options = (*STRATEGIES["creamfl"], "data.num_clients=8", f"strategy.server_cosine={cosine}", "checkpoint.every=1")
    short = small_run(tmp_path, *options, "run.rounds=1")
    notices = Notices()
    resume(short.path, "run.rounds=2", listener=notices)
    said = [text for text in notices.texts if "plans its course by run.rounds: rounds up to 1 ran as of 1" in text]
    assert len(said) == (cosine == "true")


def test_a_stop_is_answered_with_a_checkpoint(tmp_path):
    class Stopper(KillAfter):
        def round(self, round_, *_):
            if round_ == self.last:
                (Path(self.folder) / "stop").touch()

    strategy = (*options("scaffold")[:-1], "checkpoint.every=0")
    whole = small_run(tmp_path / "whole", *strategy)
    listener = Stopper(3)
    with pytest.raises(StopRequested):
        small_run(tmp_path / "stopped", *strategy, listener=listener)
    assert [path.name for path in (Path(listener.folder) / "checkpoints").iterdir()] == ["round-000003"]
    assert resume(listener.folder).summary["weights_sha256"] == whole.summary["weights_sha256"]


def test_what_a_resume_may_not_change(tmp_path):
    folder = killed(tmp_path, *options("fedavg"))
    with pytest.raises(ValueError, match=r"client.lr cannot change in the middle of a run"):
        resume(folder, "client.lr=0.5")
    with pytest.raises(ValueError, match=r"is no run: it has no config\.yaml"):
        resume(tmp_path / "nowhere")


def test_what_a_run_goes_on_from_is_let_go_once_a_round_has_made_another(tmp_path, monkeypatch):
    """A State is as large as the model, or larger."""
    kept, restore = [], checkpoint.restore

    def watched(found, *more):
        kept.append(weakref.ref(found))
        return restore(found, *more)

    class Alive(Listener):
        def round(self, *_):
            gc.collect()
            seen.append(kept[0]() is not None)

    seen = []
    folder = killed(tmp_path, *options("fedavg"))
    monkeypatch.setattr(checkpoint, "restore", watched)
    resume(folder, listener=Alive())
    assert seen == [False, False]

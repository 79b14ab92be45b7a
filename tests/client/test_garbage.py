"""What a round leaves to the garbage collector: a cycle that holds a payload would keep it for many rounds."""

from __future__ import annotations

import gc

import pytest
import torch

from umbel import Listener, run


class Collects(Listener):
    """Looks at what one round leaves in cycles."""

    def __init__(self) -> None:
        self.found: list[object] | None = None

    def round(self, round_, num_rounds, metrics, seconds) -> None:
        if round_ == 2:
            gc.collect()
            gc.disable()
            gc.set_debug(gc.DEBUG_SAVEALL)
        if round_ == 3:
            gc.collect()
            self.found = list(gc.garbage)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedrep", "moon", "fedopt", "fedloge"])
def test_a_round_leaves_neither_tensors_nor_objects_of_ours_in_cycles(tmp_path, strategy):
    collects = Collects()
    try:
        small = ("model.name=cnn", "data.max_train=80", "data.num_clients=4", "client.max_steps=1", "run.rounds=4")
        run("digits", *small, f"strategy.name={strategy}", f"run.results={tmp_path}", listener=collects)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert collects.found is not None
    ours = [each for each in collects.found if type(each).__module__.startswith("umbel.")]
    assert not ours
    assert not [each for each in collects.found if isinstance(each, torch.Tensor)]


def test_a_run_leaves_nothing_of_itself_in_cycles(tmp_path):
    small = ("model.name=cnn", "data.max_train=80", "data.num_clients=4", "client.max_steps=1", "run.rounds=2")
    run("digits", *small, f"run.results={tmp_path}")  # what is made once in a process
    gc.collect()
    gc.disable()
    try:
        run("digits", *small, "run.seed=1", f"run.results={tmp_path}")
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = [each for each in gc.garbage if type(each).__module__.startswith("umbel.")]
        tensors = [each for each in gc.garbage if isinstance(each, torch.Tensor)]
        assert not ours and not tensors
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()

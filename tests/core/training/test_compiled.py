"""Steps as graphs of tensor operations do what PyTorch's own steps do, whatever their numbers are, or do without."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import COMPILES
from umbel.core.losses import CrossEntropy
from umbel.core.rng import generator
from umbel.core.training import LocalConfig, compiled, fallbacks, learning_rate, train
from umbel.core.training.corrections import AffineCorrection
from umbel.core.training.loop import batch_order, make_ready
from umbel.core.training.steps import UnfitError, state_of

FP64 = LocalConfig(batch_size=4, lr=0.1, epochs=2, precision="fp64", device="cpu")
OPTIMIZERS = {
    "sgd": {"weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clip_norm": 0.2},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 0.2},
}


@pytest.fixture(autouse=True)
def seeded():
    fallbacks.log_once.cache_clear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        yield


class Scaled(nn.Module):
    """A line under a number that is no part of the state."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.line, self.scale = nn.Linear(4, 3), scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.line(x)
        return logits


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


def examples(n: int = 10) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, generator=generator(1), dtype=torch.float64), torch.arange(n) % 3


def by_graphs(model: nn.Module, config: LocalConfig, correct=None, loss=None, backend: str = "eager") -> nn.Module:
    """Train by steps that are graphs, in the order of `train`."""
    x, y = examples()
    x = x.to(next(model.parameters()).dtype)
    leave_out = make_ready(model, len(y), config)
    cpu = torch.device("cpu")
    steps = compiled.Steps(model, config, learning_rate(config, 1), correct, loss or CrossEntropy(), cpu, backend)
    for index in batch_order(len(y), config, generator(0), leave_out):
        steps(x[index], y[index])
    return model


def ordinarily(model: nn.Module, config: LocalConfig, correct=None, loss=None) -> nn.Module:
    x, y = examples()
    x = x.to(next(model.parameters()).dtype)
    words = {"batches": generator(0), "noise": generator(2), "correct": correct, "loss": loss or CrossEntropy()}
    train(model, x, y, config, **words)
    return model


def assert_close(left: nn.Module, right: nn.Module, atol: float = 1e-12) -> None:
    for name, tensor in state_of(left).items():
        torch.testing.assert_close(tensor, state_of(right)[name], rtol=0, atol=atol, msg=name)


def correction(model: nn.Module, strength: float = 0.3) -> AffineCorrection:
    parameters = [p.detach() for p in model.parameters()]
    return AffineCorrection(strength, [p + 0.1 for p in parameters], [torch.full_like(p, 0.02) for p in parameters])


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(name, marks=pytest.mark.exhaustive if name in ("sgd", "adam") else ()) for name in OPTIMIZERS],
)
def test_graphs_do_what_optimizers_do_batch_norm_and_the_odd_batch_included(optimizer):
    model, other = classifier(), None
    other = copy.deepcopy(model)
    config = replace(FP64, **OPTIMIZERS[optimizer])
    before, loss = copy.deepcopy(state_of(model)), CrossEntropy(label_smoothing=0.1)
    assert_close(by_graphs(model, config, correction(model), loss), ordinarily(other, config, correction(other), loss))
    assert model[1].num_batches_tracked.item() == 6
    assert all(not torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())


@pytest.mark.slow
def test_a_graph_reads_the_numbers_of_whoever_comes_next():
    """Corrections and weights of classes differ from client to client; attributes make another graph."""
    first, second = Scaled(1.0).double(), Scaled(1.0).double()
    other = copy.deepcopy(second)
    weighted = [CrossEntropy(weight_C=torch.tensor(w, dtype=torch.float64)) for w in ([1.0, 2.0, 3.0], [3.0, 1.0, 1.0])]
    by_graphs(first, FP64, correction(first), weighted[0])
    by_graphs(second, FP64, correction(second), weighted[1])
    assert_close(second, ordinarily(other, FP64, correction(other), weighted[1]))
    changed = Scaled(3.0).double()
    other = copy.deepcopy(changed)
    assert_close(by_graphs(changed, FP64), ordinarily(other, FP64))


@pytest.mark.slow
def test_a_local_run_looks_a_graph_up_once_for_each_form_of_batch(monkeypatch):
    """What a step is takes as long to compare as small steps take."""
    sought, graph_of = [], compiled.graph_of

    def noted(step, form, tensors, backend):
        sought.append(tensors[-2].stride())
        return graph_of(step, form, tensors, backend)

    monkeypatch.setattr(compiled, "graph_of", noted)
    model, (x, y) = Scaled(1.0).double(), examples(8)
    other = copy.deepcopy(model)
    across = x.T.contiguous().T  # the same numbers in another order of memory
    batches = [(images[i : i + 4], y[i : i + 4]) for images in (x, across) for i in (0, 4)]
    steps = compiled.Steps(model, FP64, FP64.lr, None, CrossEntropy(), torch.device("cpu"), "eager")
    optimizer = torch.optim.SGD(other.parameters(), lr=FP64.lr)
    for batch, labels in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(other(batch), labels)
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(steps(batch, labels), loss.detach(), rtol=0, atol=1e-12)
    assert sought == [(4, 1), (1, 8)]
    assert_close(model, other)


def test_parameters_that_a_pass_does_not_use_stay():
    model = Scaled(1.0).double()
    model.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    by_graphs(model, replace(FP64, batch_size=16, weight_decay=0.5))  # no batch is full
    assert model.idle.tolist() == [1.0, 1.0]


class Branching(nn.Module):
    """What it does depends on the numbers that come."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.line(x)
        return y if float(x.sum()) > 0 else 2 * y


@pytest.mark.slow
def test_what_cannot_be_a_graph_does_without_and_says_so_once(caplog):
    model = Branching().double()
    other = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING, logger="umbel.client"):
        assert_close(by_graphs(model, FP64), ordinarily(other, FP64))
    (said,) = caplog.messages
    assert said.startswith("client.compile=step: Branching trains without, for it cannot be compiled (")


def test_a_correction_that_may_read_anything_is_left_to_pytorch(caplog):
    def correct(parameters, gradients):
        for gradient in gradients:
            gradient.add_(1.0)

    model = Scaled(1.0).double()
    other = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING, logger="umbel.client"):
        for _ in range(2):
            ordinarily(model, replace(FP64, compile="step"), correct)
            ordinarily(other, FP64, correct)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert len(caplog.messages) == 1 and "corrected by a function that may read anything" in caplog.messages[0]


def test_a_graph_that_does_something_else_is_not_used_and_that_is_told(caplog):
    """As a compiler's fault would be: here it makes a backend that loses what it is to add."""

    def forgetful(module, examples):
        def run(*tensors):
            before = [tensor.clone() for tensor in tensors]
            made = module(*tensors)
            for tensor, old in zip(tensors, before, strict=True):
                if tensor.is_floating_point():
                    tensor.copy_(old + 0.7 * (tensor - old))
            return made

        return run

    model = Scaled(1.0).double()
    other = copy.deepcopy(model)
    with caplog.at_level(logging.WARNING, logger="umbel.client"):
        made = by_graphs(model, FP64, backend=forgetful)
    assert_close(made, ordinarily(other, FP64))
    (said,) = caplog.messages
    assert "trains without" in said and "comes to other" in said and "than the step, by 30.0% of its length" in said


def test_what_one_process_cannot_compile_is_told_to_whoever_listens_each_time_with_what_it_means_for_bits():
    """As on a machine whose disk is full: which steps are graphs is then no matter of the model."""

    def full(module, examples):
        raise OSError("No space left on device")

    for _ in range(2):
        model, heard = Scaled(1.0).double(), list[str]()
        other = copy.deepcopy(model)
        with fallbacks.told_to(heard):
            made = by_graphs(model, FP64, backend=full)
        assert_close(made, ordinarily(other, FP64))
        (said,) = heard
        assert said.startswith("client.compile=step: Scaled trains without where it cannot be compiled (")
        assert "No space left on device" in said and said.endswith("may end with other bits.")


@pytest.mark.parametrize("attribute", [torch.ones(3), object()])
def test_attributes_on_which_it_may_depend_are_refused_by_name(attribute):
    model = Scaled(1.0)
    model.line.frame = attribute
    with pytest.raises(UnfitError, match=rf"its attribute line\.frame is a {type(attribute).__name__}"):
        by_graphs(model, replace(FP64, precision="fp32"))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own parts, on its first import
@COMPILES
@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_kernels_of_the_compiler_change_only_rounding(optimizer, tmp_path, monkeypatch):
    """The compiler takes some ten seconds for each graph."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    model = classifier().float()
    other = copy.deepcopy(model)
    config = replace(FP64, precision="fp32", **OPTIMIZERS[optimizer])
    made = by_graphs(model, config, correction(model), backend="inductor")
    assert_close(made, ordinarily(other, config, correction(other)), atol=1e-5)

"""Clients that train at once come to what each comes to by itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from umbel.core.losses import CrossEntropy
from umbel.core.rng import generator
from umbel.core.training import Constrained, LocalConfig, train
from umbel.core.training.corrections import AffineCorrection
from umbel.core.training.steps import UnfitError, state_of, training_only
from umbel.core.training.together import Done, Job, train_together
from umbel.models import build, names

FP64 = LocalConfig(batch_size=4, lr=0.05, epochs=2, precision="fp64", device="cpu")
CONFIGS = {
    "sgd": {"weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True, "clip_norm": 0.2},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1, "max_steps": 4, "epochs": 0},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 0.2},
    "whole": {"batch_size": 0, "lr_decay": 0.5},
}


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        yield


def classifier(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), *layers, nn.Linear(6, 3)).double()


def shifted(x: Tensor, source: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=source, dtype=x.dtype)


def arguments(model: nn.Module, client: int, config: LocalConfig, shape: Sequence[int], num_classes: int) -> dict:
    """Return what `train` is called with for a client: data, order, weights of classes and correction of its own."""
    dtype = next(model.parameters()).dtype
    y = torch.randint(num_classes, (shape[0],), generator=generator(client, purpose="labels"))
    parameters = [p.detach() for p in model.parameters()]
    shifts = [torch.full_like(p, 0.01 * client) for p in parameters]
    return {
        "images": torch.randn(*shape, generator=generator(client)).to(dtype),
        "labels": y,
        "config": config,
        "batches": generator(client, purpose="batches"),
        "noise": generator(client, purpose="noise"),
        "round_": 2,
        "correct": AffineCorrection(0.3, [p + 0.1 for p in parameters], shifts),
        "loss": CrossEntropy(0.1, "balanced").of(y, num_classes),
    }


def both(
    model: nn.Module, config: LocalConfig, shape: Sequence[int] = (10, 1, 2, 2), num_classes: int = 3, **changes
) -> tuple[list[Done], list[Done]]:
    """Train three clients that begin with weights of their own, at once and one by one."""
    jobs, alone = [], []
    for client in range(3):
        own = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(0.01 * client)
        model.load_state_dict(own.state_dict())
        jobs.append(Job.of(model, **{**arguments(model, client, config, shape, num_classes), **changes}))
        report = train(own, **{**arguments(own, client, config, shape, num_classes), **changes})
        alone.append(Done(state_of(own), report))
    return train_together(jobs), alone


def check(at_once: Sequence[Done], alone: Sequence[Done], tolerance: float) -> None:
    for one, other in zip(at_once, alone, strict=True):
        assert one.report.loss == pytest.approx(other.report.loss, abs=tolerance)
        assert (one.report.num_steps, one.report.lr) == (other.report.num_steps, other.report.lr)
        assert one.state.keys() == other.state.keys()
        for name, tensor in one.state.items():
            torch.testing.assert_close(tensor, other.state[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("augment", [None, shifted])
@pytest.mark.parametrize("config", CONFIGS)
def test_at_once_is_one_by_one(config, augment):
    """The last batch is shorter; losses, corrections, orders and noise are each client's own."""
    at_once, alone = both(classifier(nn.ReLU()), replace(FP64, **CONFIGS[config]), augment=augment)
    check(at_once, alone, 1e-12)
    assert not torch.allclose(alone[1].state["1.weight"], alone[2].state["1.weight"], atol=1e-3)


@pytest.mark.parametrize("shape", [(9, 1, 2, 2), (1, 1, 2, 2)])
def test_batch_norm_too_with_its_counter_and_batches_of_one(shape):
    at_once, alone = both(classifier(nn.BatchNorm1d(6)), FP64, shape)
    check(at_once, alone, 1e-12)
    assert at_once[0].state["2.num_batches_tracked"].item() == (4 if shape[0] == 9 else 0)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_other_precisions(precision, tolerance):
    model = build("cnn", 3, image_size=8, in_channels=1, width=4, hidden=16)
    at_once, alone = both(model, replace(FP64, precision=precision), (6, 1, 8, 8))
    check(at_once, alone, tolerance)


def test_an_autocast_that_somebody_left_does_not_keep_weights_of_earlier_steps():
    model = build("cnn", 3, image_size=8, in_channels=1, width=4, hidden=16)
    begun = copy.deepcopy(model)
    _, expected = both(model, replace(FP64, precision="bf16"), (6, 1, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        _, alone = both(begun, replace(FP64, precision="bf16"), (6, 1, 8, 8))
    check(alone, expected, 0.0)


def test_frozen_parameters_stay_and_unused_ones_too():
    model = classifier()
    model[1].weight.requires_grad_(False)
    model.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    before = model[1].weight.detach().clone()
    at_once, alone = both(model, replace(FP64, weight_decay=0.5), correct=None)
    check(at_once, alone, 1e-12)
    assert torch.equal(at_once[0].state["1.weight"], before)
    assert at_once[0].state["idle"].tolist() == [1.0, 1.0]


def test_parameters_that_were_not_to_be_trained_stay_also_when_the_model_has_been_let_go():
    model, config = classifier(), replace(FP64, weight_decay=0.5, momentum=0.9)
    weight, others = "1.weight", [name for name, _ in model.named_parameters() if name != "1.weight"]
    before, twin = model[1].weight.detach().clone(), copy.deepcopy(model)
    given = [{**arguments(model, client, config, (6, 1, 2, 2), 3), "correct": None} for client in range(2)]
    with training_only(model, others):
        jobs = [Job.of(model, **each) for each in given]
        assert not jobs[0].is_same(Job.of(model, **arguments(model, 0, config, (6, 1, 2, 2), 3)))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not jobs[0].is_same(Job.of(model, **given[0]))
    done = train_together(jobs)
    assert all(torch.equal(each.state[weight], before) for each in done)
    with training_only(twin, others):
        train(twin, **given[0])
    assert torch.equal(twin[1].weight, before)
    for name, tensor in state_of(twin).items():
        torch.testing.assert_close(done[0].state[name], tensor, rtol=0, atol=1e-12)


def test_what_a_client_comes_to_does_not_depend_on_who_else_is_there():
    model = build("cnn", 3, image_size=8, in_channels=1, width=4, hidden=16)
    jobs = [
        Job.of(model, **arguments(model, client, replace(FP64, precision="fp32"), (6, 1, 8, 8), 3))
        for client in range(4)
    ]
    whole, some = train_together(jobs), train_together([jobs[1], jobs[3]], [1, 3], width=4)
    for one, other in ((whole[1], some[0]), (whole[3], some[1])):
        assert one.report == other.report
        assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())


@pytest.mark.parametrize("batch_size", [5, 16])
@pytest.mark.parametrize("features", [9, 27, 301])
def test_a_job_alone_in_its_slot_has_the_bits_that_it_has_among_all(features, batch_size):
    """Of odd lengths, each slot lies differently in memory, and kernels round by that."""
    model = build("linear", 7, image_size=1, in_channels=features)
    config = replace(FP64, precision="fp32", batch_size=batch_size)
    given = [arguments(model, client, config, (2 * batch_size, features, 1, 1), 7) for client in range(4)]
    jobs = [Job.of(model, **each) for each in given]
    whole = train_together(jobs)
    for slot, job in enumerate(jobs):
        (alone,) = train_together([job], [slot], width=4)
        assert alone.report == whole[slot].report
        for name, tensor in alone.state.items():
            assert torch.equal(tensor, whole[slot].state[name]), (slot, name)


class Bound(Constrained):
    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x

    def constrain_(self) -> None:
        pass


def test_refusals():
    with pytest.raises(UnfitError, match="vmap refuses it"):
        both(classifier(nn.Dropout(0.5)), FP64)
    with pytest.raises(UnfitError, match="back within bounds"):
        both(classifier(Bound()), FP64)
    with pytest.raises(UnfitError, match="corrected by a function"):
        both(classifier(), FP64, correct=lambda parameters, gradients: None)
    with pytest.raises(UnfitError, match="objective is a function that may read"):
        both(classifier(), FP64, objective=lambda model, x, y: model(x).mean())
    model = classifier()
    jobs = [Job.of(model, **arguments(model, 0, FP64, (n, 1, 2, 2), 3)) for n in (5, 6)]
    with pytest.raises(UnfitError, match="differ in more than their numbers"):
        train_together(jobs)


class Large(nn.Module):
    """Takes more memory than there is."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.")


def test_what_a_process_lacks_is_not_taken_for_the_models_doing():
    with pytest.raises(RuntimeError, match="can't allocate"):
        both(classifier(Large()), FP64)


@contextmanager
def hooked(model: nn.Module) -> Iterator[None]:
    handle = model[1].register_forward_hook(lambda module, given, output: 5.0 * output)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def swapped(model: nn.Module) -> Iterator[None]:
    before = model[2]
    model[2] = nn.Sigmoid()
    try:
        yield
    finally:
        model[2] = before


@contextmanager
def dropping(model: nn.Module) -> Iterator[None]:
    model[3].p = 0.5
    try:
        yield
    finally:
        model[3].p = 0.0


@contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    model.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    try:
        yield
    finally:
        del model.idle


@pytest.mark.parametrize(
    ("change", "said"),
    [(hooked, "has hooks"), *((each, "change what it computes") for each in (swapped, dropping, widened))],
)
def test_what_was_done_to_a_model_around_its_training_is_not_forgotten(change, said):
    """A half lets go of the model before the jobs are done, and puts back what it had done to it."""
    model = classifier(nn.ReLU(), nn.Dropout(0.0))
    given = [{**arguments(model, client, FP64, (6, 1, 2, 2), 3), "correct": None} for client in range(2)]
    with change(model):
        jobs = [Job.of(model, **each) for each in given]
    plain = Job.of(model, **given[0])
    assert not jobs[0].is_same(plain) and not plain.is_same(jobs[0])
    with pytest.raises(UnfitError, match=said):
        train_together(jobs)
    assert len(train_together([plain])) == 1


def test_a_model_that_was_looked_at_in_evaluation_mode_is_the_same():
    """Whoever begins to train puts it into training mode."""
    model = classifier(nn.ReLU())
    given = arguments(model, 1, FP64, (5, 1, 2, 2), 3)
    job = Job.of(model.eval(), **given)
    model.train()
    assert job.is_same(Job.of(model, **given))
    assert len(train_together([job])) == 1


def test_a_job_is_the_same_only_if_all_that_training_reads_is():
    model = classifier()
    given = arguments(model, 1, FP64, (5, 1, 2, 2), 3)
    job = Job.of(model, **given)
    assert job.is_same(Job.of(model, **arguments(model, 1, FP64, (5, 1, 2, 2), 3)))
    x = given["images"].clone()
    x[0] += 1e-9
    changes = [
        {"images": x},
        {"labels": (given["labels"] + 1) % 3},
        {"batches": generator(7)},
        {"noise": generator(7)},
        {"round_": 3},
        {"config": replace(FP64, lr=0.04)},
        {"correct": replace(given["correct"], strength=0.2)},
        {"correct": lambda parameters, gradients: None},
        {"loss": CrossEntropy()},
        {"augment": shifted},
        {"objective": lambda model, x, y: model(x).mean()},
    ]
    assert not any(job.is_same(Job.of(model, **{**given, **change})) for change in changes)
    assert not job.is_same(Job.of(copy.deepcopy(model), **given))
    with torch.no_grad():
        model[1].bias[0] += 1e-9
    assert not job.is_same(Job.of(model, **given))


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-10), ("fp32", 1e-5)])
@pytest.mark.parametrize("name", [name for name in names() if name.endswith("_tiny32")])
def test_every_family_trains_at_once(name, precision, tolerance):
    """Two steps of each; a family with kernels that are put back within bounds says so."""
    model = build(name, 4, image_size=32, in_channels=3).double()
    model = model if precision == "fp64" else model.float()
    config = replace(FP64, batch_size=3, epochs=1, precision=precision, lr=0.01)
    if any(isinstance(module, Constrained) for module in model.modules()):
        with pytest.raises(UnfitError, match="bounds"):
            both(model, config, (6, 3, 32, 32), 4)
        return
    check(*both(model, config, (6, 3, 32, 32), 4), tolerance)

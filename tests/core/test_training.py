"""The local training loop: closed forms of every hyper-parameter, and what it leaves alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from umbel.core.rng import generator
from umbel.core.training import Constrained, LocalConfig, full_gradient, learning_rate, num_processed, train
from umbel.models import build

PLAIN = LocalConfig(epochs=1, batch_size=0, lr=0.25, device="cpu", precision="fp64")


class Line(nn.Module):
    """f(x) = w x with w = 1."""

    def __init__(self, start=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x):
        return self.w * x.flatten(1).sum(1)


def run(config, images=(1.0,), start=1.0, loss=lambda output, _: (output**2 / 2).mean(), **more):
    """Train w on w^2 x^2 / 2 and return it; with x = 1 the gradient is w."""
    model = Line(start)
    x = torch.tensor(images, dtype=torch.float64)[:, None]
    words = {"batches": generator(0, purpose="batches"), "noise": generator(0, purpose="noise"), **more}
    report = train(model, x, torch.zeros(len(x)).long(), config, loss=loss, **words)
    return model.w.item(), report


def test_sgd():
    # 1 - 1/4 = 3/4, - 3/16 = 9/16; losses 1/2 and 9/32.
    weight, report = run(replace(PLAIN, epochs=2))
    assert weight == 9 / 16
    assert (report.loss, report.num_steps, report.lr) == ((1 / 2 + 9 / 32) / 2, 2, 0.25)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "batch_size", "num_processed_of_ten"),
    [
        (1, 0, 0, 10),
        (3, 0, 4, 30),
        (3, 2, 4, 8),
        (3, 4, 4, 14),
        (3, 99, 4, 30),
        (0, 5, 4, 18),
        (0, 3, 0, 30),
        (2, 0, 16, 20),
    ],
)
def test_the_examples_of_a_training_are_known_before_it(epochs, max_steps, batch_size, num_processed_of_ten):
    seen = []

    def loss(output, _):
        seen.append(len(output))
        return (output**2 / 2).mean()

    config = replace(PLAIN, epochs=epochs, max_steps=max_steps, batch_size=batch_size)
    run(config, images=(1.0,) * 10, loss=loss)
    assert num_processed(config, 10) == sum(seen) == num_processed_of_ten
    assert num_processed(config, 0) == 0


def test_momentum():
    # v = 1, w = 3/4; v = 1/2 + 3/4 = 5/4, w = 3/4 - 5/16.
    assert run(replace(PLAIN, epochs=2, momentum=0.5))[0] == 7 / 16


def test_nesterov():
    # v = 1, step 1 + 1/2: w = 5/8; v = 1/2 + 5/8 = 9/8, step 5/8 + 9/16 = 19/16, w = 5/8 - 19/64.
    assert run(replace(PLAIN, epochs=2, momentum=0.5, nesterov=True))[0] == 21 / 64


def test_weight_decay():
    # gradient 1 + 1/2 * 1
    assert run(replace(PLAIN, weight_decay=0.5))[0] == 1 - 3 / 8


class Bounded(Constrained):
    """w in f(x) = w x, which may not fall below 0.9."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.seen = []

    def constrain_(self):
        assert not torch.is_grad_enabled()
        self.seen.append(self.w.item())
        self.w.clamp_(min=0.9)

    def forward(self, x):
        return self.w * x.flatten(1).sum(1)


def test_bounds_hold_after_each_step():
    # 1 - 1/4 = 3/4 is put back to 0.9, and from there 0.9 - 0.9/4 = 0.675 again.
    model, x = Bounded(), torch.ones(1, 1, dtype=torch.float64)
    words = {"batches": generator(0, purpose="batches"), "noise": generator(0, purpose="noise")}
    config = replace(PLAIN, epochs=2)
    train(nn.Sequential(model), x, torch.zeros(1).long(), config, loss=lambda f, _: (f**2 / 2).mean(), **words)
    assert model.seen == pytest.approx([0.75, 0.675])
    assert model.w.item() == 0.9


def test_clip_norm():
    # The gradient is 1; half of it is left (torch divides by the norm + 1e-6).
    assert run(replace(PLAIN, clip_norm=0.5))[0] == pytest.approx(1 - 1 / 8, abs=1e-6)
    assert run(replace(PLAIN, clip_norm=2.0))[0] == 3 / 4


def test_learning_rate_decays_by_round():
    config = replace(PLAIN, lr_decay=0.5)
    assert [learning_rate(config, round_) for round_ in (1, 2, 3)] == [0.25, 0.125, 0.0625]
    weight, report = run(config, round_=3)
    assert (weight, report.lr) == (1 - 1 / 16, 1 / 16)


def rates(**changes: object) -> list[float]:
    config = replace(PLAIN, **changes)
    return [learning_rate(config, round_) for round_ in range(1, 8)]


def test_schedules_by_their_formulas():
    assert rates(lr_schedule="step", lr_decay=0.5, lr_step=3) == [0.25] * 3 + [0.125] * 3 + [0.0625]
    cosine = [0.125 * (1 + math.cos(math.pi * t / 6)) for t in range(7)]
    assert rates(lr_schedule="cosine", lr_rounds=6) == pytest.approx(cosine, abs=1e-15)
    assert cosine[0] == 0.25 and rates(lr_schedule="cosine", lr_rounds=6)[6] == 0  # a round too many
    assert rates() == [0.25] * 7


def test_warm_up_rises_to_the_rate_and_the_schedule_begins_after_it():
    rising = [0.0625, 0.125, 0.1875, 0.25]
    assert rates(lr_warmup=4, lr_decay=0.5) == [*rising, 0.25, 0.125, 0.0625]
    assert rates(lr_warmup=4, lr_schedule="step", lr_decay=0.5, lr_step=2) == [*rising, 0.25, 0.25, 0.125]
    cosine = [0.125 * (1 + math.cos(math.pi * t / 3)) for t in range(3)]
    assert rates(lr_warmup=4, lr_schedule="cosine", lr_rounds=7) == pytest.approx([*rising, *cosine], abs=1e-15)


def test_adam_and_adamw():
    # Adam's first step is lr * sign; with decay 1/2 Adam adds it to the gradient, AdamW shrinks w by lr / 2 first.
    assert run(replace(PLAIN, optimizer="adam"))[0] == pytest.approx(3 / 4, abs=1e-7)
    assert run(replace(PLAIN, optimizer="adam", weight_decay=0.5))[0] == pytest.approx(3 / 4, abs=1e-7)
    weight, _ = run(replace(PLAIN, optimizer="adamw", weight_decay=0.5))
    assert weight == pytest.approx(1 - 1 / 8 - 1 / 4, abs=1e-7)


def test_max_steps():
    config = replace(PLAIN, epochs=3, batch_size=2, max_steps=4)
    assert run(config, [1.0] * 5)[1].num_steps == 4
    assert run(replace(config, max_steps=0), [1.0] * 5)[1].num_steps == 9
    assert run(replace(config, max_steps=100), [1.0] * 5)[1].num_steps == 9
    assert run(replace(config, epochs=0, max_steps=7), [1.0] * 5)[1].num_steps == 7  # as many passes as it takes


def test_batches_cover_all_examples_in_an_order_of_their_own():
    seen = []

    def loss(output, _):
        seen.append(output.detach().tolist())
        return 0 * output.sum()

    config = replace(PLAIN, epochs=2, batch_size=4)
    values = [float(i) for i in range(10)]
    run(config, values, loss=loss)
    first, second = ([value for batch in seen[i : i + 3] for value in batch] for i in (0, 3))
    assert [len(batch) for batch in seen] == [4, 4, 2, 4, 4, 2]
    assert sorted(first) == sorted(second) == values and first != second != values
    again, seen = seen, []
    torch.manual_seed(17)
    run(config, values, loss=loss)
    assert seen == again  # by its own generator
    run(config, values, loss=loss, batches=generator(1, purpose="batches"))
    assert seen[6:] != again


def test_loss_is_the_mean_over_examples():
    # Batches of 4 and 1: a mean over batches would weigh the last example four times.
    _, report = run(replace(PLAIN, batch_size=4, lr=0.0), [1.0, 1.0, 1.0, 1.0, 3.0])
    assert report.loss == pytest.approx((4 * 0.5 + 4.5) / 5)


def test_correction_sees_parameters_and_changes_gradients():
    def correct(parameters, gradients):
        assert parameters[0].item() == gradients[0].item() == 1.0
        gradients[0].add_(2.0)

    assert run(PLAIN, correct=correct)[0] == 1 / 4
    # Clipping comes after it: the norm 3 is cut to 1.
    assert run(replace(PLAIN, clip_norm=1.0), correct=correct)[0] == pytest.approx(3 / 4, abs=1e-6)


def test_correction_moves_parameters_that_the_pass_did_not_use():
    model = Line()
    model.idle = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def correct(parameters, gradients):
        for gradient in gradients:
            gradient.add_(1.0)

    words = {"batches": generator(0), "noise": generator(0)}
    x = torch.ones(1, 1, dtype=torch.float64)
    train(model, x, torch.zeros(1).long(), PLAIN, correct=correct, loss=lambda y, _: 0 * y.sum(), **words)
    assert (model.w.item(), model.idle.item()) == (3 / 4, 3 / 4)


def test_frozen_parameters_stay():
    model = Line()
    model.frozen = nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
    x = torch.ones(1, 1, dtype=torch.float64)
    config = replace(PLAIN, weight_decay=0.5)
    train(model, x, torch.zeros(1).long(), config, batches=generator(0), noise=generator(0), loss=lambda y, _: y.sum())
    assert model.frozen.item() == 1.0 and model.w.item() != 1.0


def classifier(dropout=0.0, norm=True):
    torch.manual_seed(3)
    layers = [nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(6, 3))


def examples(n, dtype=torch.float32):
    random = torch.Generator().manual_seed(5)
    x = torch.randn(n, 1, 2, 2, generator=random).to(dtype)
    return x, torch.randint(0, 3, (n,), generator=random)


def fit(model, n, noise=0, **changes):
    config = replace(LocalConfig(batch_size=4, lr=0.1, device="cpu"), **changes)
    dtype = torch.float64 if config.precision == "fp64" else torch.float32
    x, y = examples(n, dtype)
    return train(model.to(dtype), x, y, config, batches=generator(0), noise=generator(noise, purpose="noise"))


@pytest.fixture(autouse=True)
def restored():
    with torch.random.fork_rng(devices=[]):
        yield


def test_batch_norm_leaves_a_last_batch_of_one_out():
    model = classifier()
    assert fit(model, 9).num_steps == 2
    assert model[2].num_batches_tracked.item() == 2
    assert fit(classifier(norm=False), 9).num_steps == 3  # without batch norm nothing is left out


@pytest.mark.parametrize(("n", "batch_size"), [(1, 4), (1, 0), (5, 1)])
def test_batch_norm_with_batches_of_one_uses_its_running_statistics(n, batch_size):
    model = classifier()
    before = model[1].weight.detach().clone()
    report = fit(model, n, batch_size=batch_size)
    assert report.num_steps == n and report.loss > 0
    assert model[2].running_mean.abs().max() == 0  # untouched
    assert not torch.equal(model[1].weight, before)  # trained all the same
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
def test_precisions(precision):
    model = classifier()
    report = fit(model, 12, precision=precision, epochs=20)
    expected = torch.float64 if precision == "fp64" else torch.float32
    assert {p.dtype for p in model.parameters()} == {expected}
    assert report.loss < 1.0 and all(torch.isfinite(p).all() for p in model.parameters())


def test_bf16_rounds_the_forward_pass_only():
    full, low = classifier(norm=False), classifier(norm=False)
    fit(full, 8)
    fit(low, 8, precision="bf16")
    difference = max((a - b).abs().max().item() for a, b in zip(full.parameters(), low.parameters(), strict=True))
    assert 0 < difference < 0.05


def test_dropout_is_reproducible_and_the_global_generator_untouched():
    def ends(noise):
        model = classifier(dropout=0.5)
        torch.manual_seed(torch.seed() % 1000)  # whatever it happens to be
        before = torch.get_rng_state()
        fit(model, 12, noise=noise, epochs=2)
        assert torch.equal(torch.get_rng_state(), before)
        return model[1].weight.tolist()

    assert ends(0) == ends(0) != ends(1)


def test_augmentation_has_a_generator_of_its_own():
    def ends(dropout, noise=0):
        draws = []

        def augment(x, source):
            draws.append(torch.rand(1, generator=source).item())
            return x

        x, y = examples(8)
        config = LocalConfig(batch_size=4, device="cpu")
        words = {"batches": generator(0), "noise": generator(noise)}
        train(classifier(dropout=dropout), x, y, config, augment=augment, **words)
        return draws

    assert ends(0.0) == ends(0.5) and len(set(ends(0.0))) == 2
    assert ends(0.0) != ends(0.0, noise=1)


@pytest.mark.parametrize("batch_size", [0, 3, 4])
def test_full_gradient_is_that_of_the_mean_loss(batch_size):
    model = classifier(dropout=0.5).double()
    x, y = examples(10, torch.float64)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    gradient = full_gradient(model, x, y, batch_size=batch_size)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    for left, right in zip(gradient, expected, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-14)


def test_a_model_of_the_zoo_learns():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build("cnn", 3, image_size=8, in_channels=1, width=4, hidden=16)
    y = torch.arange(30) % 3
    x = torch.zeros(30, 1, 8, 8)
    for row, label in enumerate(y.tolist()):
        x[row, 0, 2 * label : 2 * label + 2] = 1.0
    config = LocalConfig(epochs=30, batch_size=10, lr=0.1, momentum=0.9, device="cpu")
    train(model, x, y, config, batches=generator(0), noise=generator(0))
    assert (model.eval()(x).argmax(1) == y).all()

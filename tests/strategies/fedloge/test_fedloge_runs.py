"""FedLoGe as a strategy: what is trained by what, what stays, what is evaluated."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.helpers import SMALL_FEDLOGE as SMALL
from tests.helpers import watch_phases
from umbel import models, run
from umbel.conf.load import load
from umbel.conf.schema import Experiment
from umbel.core import metrics
from umbel.core.metrics import collapse, split_at
from umbel.core.rng import generator
from umbel.core.training import LocalConfig
from umbel.models.weights import shared_state
from umbel.server.exchange import Exchange
from umbel.server.session import Session
from umbel.strategies import neural_collapse
from umbel.strategies.fedloge.frames import make_frame, pack_frame, unpack_frame
from umbel.strategies.fedloge.heads import Heads, realign_global, sum_of_losses
from umbel.strategies.fedloge.method import Config, FedLoGe


def heads(frame: torch.Tensor | None, personal: torch.nn.Linear | None) -> Heads:
    torch.manual_seed(0)
    model = models.build("cnn", 5, 8, 1, width=2, hidden=6)
    return Heads(model, frame, personal)


def gradients(module: Heads) -> dict[str, torch.Tensor]:
    module.zero_grad()
    images = torch.randn(7, 1, 8, 8, generator=generator(1))
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    sum_of_losses(module(images), labels).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_the_trunk_learns_from_the_frame_alone_and_heads_do_not_touch_it():
    frame = make_frame(Config(sparsity=0.3), 6, 5, generator(0))["weight"]
    plain = gradients(heads(frame, None))
    torch.manual_seed(3)
    personal = torch.nn.Linear(6, 5)
    module = heads(frame, personal)
    with torch.no_grad():
        module.model.head.weight.add_(torch.randn(5, 6, generator=generator(2)))
    moved = gradients(module)
    trunk = [name for name in plain if not name.startswith("model.head")]
    assert trunk and all(torch.equal(plain[name], moved[name]) for name in trunk)
    assert not torch.equal(plain["model.head.weight"], moved["model.head.weight"])
    assert set(moved) - set(plain) == {"personal.weight", "personal.bias"}
    assert "frame" not in dict(module.named_parameters())


def test_each_head_has_its_own_gradient():
    frame = make_frame(Config(sparsity=0.3), 6, 5, generator(0))["weight"]
    torch.manual_seed(3)
    personal = torch.nn.Linear(6, 5)
    module = heads(frame, personal)
    own = gradients(module)
    images, labels = torch.randn(7, 1, 8, 8, generator=generator(1)), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    f = module.model.features(images).detach()
    for name, head in (("model.head.weight", module.model.head), ("personal.weight", personal)):
        (expected,) = torch.autograd.grad(F.cross_entropy(head(f), labels), head.weight)
        torch.testing.assert_close(own[name], expected)


def test_without_a_frame_psi_trains_the_trunk():
    module = heads(None, None)
    own = gradients(module)
    images, labels = torch.randn(7, 1, 8, 8, generator=generator(1)), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    expected = torch.autograd.grad(F.cross_entropy(module.model(images), labels), list(module.model.parameters()))
    for (name, _), gradient in zip(module.model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(own[f"model.{name}"], gradient)


@pytest.mark.parametrize("balanced", [False, True])
def test_the_frame_drops_its_share(balanced):
    weight = make_frame(Config(sparsity=0.75, norm=0.3, balanced_mask=balanced), 64, 8, generator(0))["weight"]
    used = (weight != 0).sum(1)
    assert weight.shape == (8, 64) and 0.15 < float(used.sum()) / weight.numel() < 0.35
    assert (set(used.tolist()) == {16}) == balanced
    assert torch.allclose(torch.linalg.norm(weight, dim=1), torch.full((8,), 0.3))
    assert make_frame(Config(frame="none"), 64, 8, generator(0)) == {}
    dense = make_frame(Config(frame="etf", norm=2.0), 64, 8, generator(0))["weight"]
    assert torch.allclose(torch.linalg.norm(dense, dim=1), torch.full((8,), 2.0))


def test_head_middle_and_tail():
    # Of 100 examples the first class has 60, which ends before 75 %; the second begins at 60, the third at 80.
    assert split_at(torch.tensor([60, 20, 10, 6, 3, 1])).tolist() == [0, 0, 1, 1, 2, 2]
    assert split_at(torch.tensor([1, 60, 3, 20, 6, 10])).tolist() == [2, 0, 2, 0, 1, 1]


def test_options_that_cannot_be():
    for wrong in (
        *({"frame": "dense"}, {"sparsity": 1.0}, {"norm": 0.0}, {"weighting": "size"}, {"personal_form": "both"}),
        *({"personal_form": "psi", "align_personal": False}, {"collapse": -1}),
        *({"norm": math.inf}, {"norm": math.nan}, {"scale": math.inf}, {"server_lr": math.nan}, {"sparsity": math.nan}),
    ):
        with pytest.raises(ValueError, match=rf"strategy\.{next(iter(wrong))}\b"):
            FedLoGe(Config(**wrong))
    with pytest.raises(ValueError, match=r"client\.clip_norm=0"):
        FedLoGe(Config()).check(Experiment(client=LocalConfig(clip_norm=1.0)))


def test_the_frame_stays_the_personal_head_stays_at_home_and_the_model_is_realigned(tmp_path, monkeypatch):
    sent, frames = [], []

    def watch(phase, payload, client):
        reply = phase.local(payload, client)
        sent.append((phase.name, sorted(reply.trees), sorted(next(iter(reply.trees.values())))))
        return reply

    def look(phase, state, folded, server):
        new = phase.update(state, folded, server)
        frames.append(new.frame["weight"])
        return new

    watch_phases(monkeypatch, FedLoGe, local=watch, update=look)
    result = run("digits", *SMALL, f"run.results={tmp_path}")
    assert {(name, tuple(trees)) for name, trees, _ in sent} == {("classes", ("counts",)), ("train", ("delta",))}
    assert all("personal" not in key and "phi" not in key for _, _, keys in sent for key in keys)
    assert all(torch.equal(frame, frames[0]) for frame in frames)
    head = load_file(result.path / "model.safetensors")["head.weight"]
    assert torch.allclose(torch.linalg.norm(head, dim=1), torch.ones(10))
    reported = result.summary["metrics"]
    assert {"test/accuracy", "test/psi/accuracy", "test/frame/accuracy"} <= reported.keys()
    assert {"clients/test/accuracy_mean", "clients/test/phi/accuracy_mean", "clients/test/generic/accuracy_mean"} <= (
        reported.keys()
    )


def test_a_test_class_that_is_absent_in_training_is_a_miss_and_not_a_lost_client(tmp_path):
    skew = ("data.partition=dirichlet", "data.alpha=0.1", "data.min_examples=10")
    result = run("digits", *SMALL, *skew, f"run.results={tmp_path}")
    assert result.summary["num_failures"] == 0
    data = Session(load("digits", [*SMALL, *skew])).data
    rows = result.metrics.query("side == 'client' and split == 'test' and round == 2").set_index(["client", "metric"])
    missed = []
    for number in range(4):
        client = data.client(number)
        missed.append(float((~torch.isin(client.test.labels, client.train.labels)).double().mean()))
        assert rows.loc[(number, "accuracy"), "value"] <= 1 - missed[-1]
        # One that is ruled out counts with a loss of 100; all others are guessed at.
        for name in ("loss", "phi/loss"):
            assert 0 < rows.loc[(number, name), "value"] - 100 * missed[-1] < 3
        assert 0 < rows.loc[(number, "generic/loss"), "value"] < 3
    assert sum(share > 0 for share in missed) == 1


def test_batch_norm_may_stay_with_the_clients(tmp_path):
    options = [option for option in SMALL if not option.startswith("model")]
    result = run("digits", *options, "model.name=cvt_tiny32", "model.norm=local", f"run.results={tmp_path}")
    assert result.summary["num_failures"] == 0


def test_a_client_that_lies_about_its_classes_is_left_out(tmp_path, monkeypatch):
    def lie(phase, payload, client):
        reply = phase.local(payload, client)
        if phase.name == "classes" and client.id == 1:
            reply.trees["counts"]["examples"] = torch.ones(3, dtype=torch.float64)
        return reply

    watch_phases(monkeypatch, FedLoGe, local=lie)
    result = run("digits", *SMALL, f"run.results={tmp_path}")
    # It has no frame either, which came with the phase that it lied in: both rounds ask again, and it cannot train.
    assert result.summary["num_failures"] == 4
    rows = result.metrics.query("metric == 'num_replies' and split == 'train'")
    assert set(rows["value"]) == {3.0}


def test_a_client_that_missed_the_frame_gets_it_in_the_next_round(tmp_path, monkeypatch):
    asked = []

    def away(phase, payload, client):
        asked.append((client.round, phase.name, client.id))
        if client.round == 1 and client.id == 1:
            raise RuntimeError("the network was down")
        return phase.local(payload, client)

    watch_phases(monkeypatch, FedLoGe, local=away)
    result = run("digits", *SMALL, "run.rounds=3", f"run.results={tmp_path}")
    assert result.summary["num_failures"] == 2  # round 1: the frame, and training
    assert [(r, p) for r, p, client in asked if client == 1] == [
        *((1, "classes"), (1, "train"), (2, "classes"), (2, "train"), (3, "train")),
    ]
    assert {r for r, p, client in asked if p == "classes" and client == 0} == {1, 2}


def test_all_parts_off_is_fedavg(tmp_path):
    off = ("strategy.frame=none", "strategy.align=false", "strategy.personal=false")
    mine = run("digits", *SMALL, *off, f"run.results={tmp_path}", "run.name=off")
    plain = [option for option in SMALL if not option.startswith("strategy")]
    fedavg = run("digits", *plain, "strategy.name=fedavg", f"run.results={tmp_path}", "run.name=fedavg")
    assert mine.summary["weights_sha256"] == fedavg.summary["weights_sha256"]


def test_a_personal_head_changes_nothing_that_is_shared(tmp_path):
    one = run("digits", *SMALL, f"run.results={tmp_path}", "run.name=one")
    other = run("digits", *SMALL, "strategy.personal=false", f"run.results={tmp_path}", "run.name=other")
    assert one.summary["weights_sha256"] == other.summary["weights_sha256"]


@pytest.mark.parametrize(("num_classes", "width"), [(5, 7), (10, 64)])
def test_a_frame_travels_bit_for_bit(num_classes, width):
    weight = make_frame(Config(sparsity=0.25), width, num_classes, generator(0))["weight"]
    packed = pack_frame(weight)
    assert torch.equal(unpack_frame(packed), weight)
    kept = num_classes * width - round(0.25 * num_classes * width)
    assert packed["values"].numel() in (kept, kept + 1) and packed["mask"].numel() == -(-num_classes * width // 8)


def traffic(monkeypatch, *overrides, folder):
    """Tensor bytes down and up of one client, by round and phase."""
    bytes_of = {}
    original = Exchange.run

    def measured(self, work, payload, cohort, *rest):
        answer, report = original(self, work, payload, cohort, *rest)
        assert not report.failures
        bytes_of[work.round, work.phase] = (report.bytes_down / len(cohort), report.bytes_up / len(cohort))
        return answer, report

    monkeypatch.setattr(Exchange, "run", measured)
    result = run("digits", *SMALL, *overrides, f"run.results={folder}")
    return bytes_of, result


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_bytes_are_those_of_the_formulas(tmp_path, monkeypatch, norm):
    sizes = f"model.sizes={{width: 4, hidden: 16, norm: {norm}}}"
    bytes_of, result = traffic(monkeypatch, sizes, "strategy.collapse=2", "evaluate.every=0", folder=tmp_path)
    model = models.build("cnn", 10, 8, 1, width=4, hidden=16, norm=norm)
    c, d = 10, 16
    theta = sum(t.numel() for n, t in shared_state(model).items() if not n.startswith("head."))
    each_way = 4 * (theta + c * (d + 1))
    kept = c * d - round(0.6 * c * d)
    assert bytes_of.pop((1, "classes")) == (4 * kept + c * d // 8 + 8, 8 * c)
    assert bytes_of.pop((1, "train")) == bytes_of.pop((2, "train")) == (each_way, each_way)
    assert bytes_of.pop((2, "features")) == (each_way, 8 * (c + c * d + 1 + d + d * (d + 1) // 2))
    assert bytes_of.pop((2, "nearest")) == (each_way + 8 * c * d + c, 0)
    assert not bytes_of
    names = {f"collapse/{name}" for name in ("nc1", "nc2_lengths", "nc2_angles", "nc3", "psi/nc3", "frame/nc3", "nc4")}
    rows = result.metrics[result.metrics["metric"].str.startswith("collapse/")]
    assert set(rows["metric"]) == names and set(rows["round"]) == {2} and len(rows) == len(names)
    assert 0 <= float(rows.query("metric == 'collapse/nc4'")["value"].iloc[0]) <= 1


def test_collapse_is_that_of_all_examples_together_and_changes_nothing(tmp_path, monkeypatch):
    states, pooled = [], {}

    def watch(phase, payload, client):
        if phase.name == "nearest":
            features, labels = neural_collapse.features_of(client.model(payload.trees["model"]), client)
            pooled.setdefault("features", []).append(features)
            pooled.setdefault("labels", []).append(labels)
        return phase.local(payload, client)

    def look(phase, state, folded, server):
        states.append((phase.name, phase.update(state, folded, server)))
        return states[-1][1]

    watch_phases(monkeypatch, FedLoGe, local=watch, update=look)
    fp64 = ("client.precision=fp64", "strategy.bias=false")
    one = run("digits", *SMALL, *fp64, "strategy.collapse=2", f"run.results={tmp_path}", "run.name=one")
    last = [state for name, state in states if name == "nearest"][-1]
    features, labels = torch.cat(pooled["features"]), torch.cat(pooled["labels"])
    sums = collapse.class_sums(features, labels, 10)
    head = realign_global(last.model["head.weight"])
    expected = collapse.describe(sums, head)
    agreeing = collapse.num_agreeing(features, features @ head.T, sums.means(), sums.present())
    assert last.collapse["nc4"] == pytest.approx(agreeing / len(labels), abs=1e-12)
    for name, value in expected.items():
        assert last.collapse[name] == pytest.approx(value, rel=1e-10, abs=1e-10)
    other = run("digits", *SMALL, *fp64, f"run.results={tmp_path}", "run.name=other")
    assert one.summary["weights_sha256"] == other.summary["weights_sha256"]


def test_a_bias_that_is_dropped_stays_zero(tmp_path):
    for options in ((), ("strategy.frame=none",)):
        name = f"run.name=bare{len(options)}"
        result = run("digits", *SMALL, "strategy.bias=false", *options, name, f"run.results={tmp_path}")
        assert not load_file(result.path / "model.safetensors")["head.bias"].any()
    result = run("digits", *SMALL, f"run.results={tmp_path}", "run.name=with")
    assert load_file(result.path / "model.safetensors")["head.bias"].any()


def test_class_groups_are_reported_for_server_and_clients(tmp_path):
    tail = ("data.partition=long_tail", "data.imbalance=20", "data.max_train=0", "data.min_examples=5")
    result = run("digits", *SMALL, *tail, f"run.results={tmp_path}")
    reported = result.summary["metrics"]
    for group in ("head", "middle", "tail"):
        for where in ("validation", "test", "test/psi", "test/frame", "clients/test", "clients/test/generic"):
            assert 0 <= reported[f"{where}/accuracy_{group}"] <= 1, where
    assert "accuracy_tail" in set(result.metrics.query("side == 'server'")["metric"])


def test_head_and_tail_are_the_same_classes_for_every_strategy(tmp_path, monkeypatch):
    seen = {"fedloge": set(), "fedavg": set()}
    told = metrics.by_group
    tail = ("data.partition=long_tail", "data.imbalance=20", "data.max_train=0", "data.min_examples=5")
    tail += ("data.num_clients=4", "data.client_test=0.4", "run.rounds=1", f"run.results={tmp_path}")
    for name, groups in seen.items():
        monkeypatch.setattr(metrics, "by_group", lambda c, g, to=groups: to.add(tuple(g.tolist())) or told(c, g))
        run("digits", *tail, f"strategy.name={name}")
    # Of all examples that clients have, also those held out, class 8 would be in the tail and class 7 not.
    assert seen["fedavg"] == seen["fedloge"] == {(0, 0, 0, 0, 1, 1, 1, 2, 1, 2)}


def test_counters_of_batch_norm_stay_at_home(tmp_path, monkeypatch):
    sent = []

    def watch(phase, payload, client):
        reply = phase.local(payload, client)
        sent.extend((tree, name, t.dtype) for tree, named in reply.trees.items() for name, t in named.items())
        return reply

    watch_phases(monkeypatch, FedLoGe, local=watch)
    sizes = "model.sizes={width: 4, hidden: 16, norm: batch}"
    result = run("digits", *SMALL, sizes, f"run.results={tmp_path}")
    assert result.summary["num_failures"] == 0
    assert all(dtype.is_floating_point for _, _, dtype in sent)
    assert ("delta", "norm1.running_mean", torch.float32) in sent
    assert not any("num_batches_tracked" in name for _, name, _ in sent)
    counter = load_file(result.path / "model.safetensors")["norm1.num_batches_tracked"]
    assert counter.dtype == torch.int64 and int(counter) == 0  # an average would be a fraction of the steps


def test_a_client_with_one_example_trains_under_batch_norm(tmp_path):
    sizes = "model.sizes={width: 4, hidden: 16, norm: batch}"
    odd = ("client.batch_size=1", "data.client_test=0", "run.rounds=1")
    few = ("data.max_train=14", "data.server_validation=0", "data.client_test=0.5", "run.rounds=1")
    for number, options in enumerate((odd, few)):
        name = f"run.name={number}"
        result = run("digits", *SMALL, sizes, *options, name, f"run.results={tmp_path}")
        assert result.summary["num_failures"] == 0
        weights = load_file(result.path / "model.safetensors").values()
        assert all(bool(torch.isfinite(w.double()).all()) for w in weights)

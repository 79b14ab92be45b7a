"""CreamFL as a whole: what travels, who takes part, what the server makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tests.helpers import watch_phases
from umbel import resume, run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core import training
from umbel.core.records import BadReplyError, Payload
from umbel.core.rng import generator
from umbel.models.pair import Encoders, class_logits, margin_loss, pair_contrast, soft_contrast
from umbel.server.errors import RunStoppedError
from umbel.server.listener import Listener
from umbel.server.session import Session, quotas
from umbel.strategies.creamfl.architectures import modality
from umbel.strategies.creamfl.contrasts import pair_loss
from umbel.strategies.creamfl.method import Config, CreamFL
from umbel.strategies.creamfl.public import fingerprint
from umbel.strategies.creamfl.representations import Representations, from_wire, to_wire

PUBLIC = 90  # of 400 examples of fewer captions: three tenths of what a tenth for validation leaves, class by class
DIMENSION = 8
PAIRS = (
    *("data.name=synthetic", "data.num_clients=6", "data.partition=iid", "data.public=0.3"),
    "data.options={num_examples: 400, num_test: 40, num_classes: 4, image_size: 8, attributes: 8}",
    *("data.text_encoder=bpe", "data.vocabulary=80", "data.text_length=10"),
    *("model.name=cnn", "model.sizes={width: 4, hidden: 16}"),
    *("strategy.name=creamfl", "strategy.num_image=2", "strategy.num_text=2", "strategy.num_both=2"),
    *("strategy.image_models=[cnn, mlp]", "strategy.text_models=[gru, transformer]", f"strategy.dimension={DIMENSION}"),
    "strategy.image_sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8, depth: 1}}",
    "strategy.text_sizes={gru: {width: 8}, transformer: {width: 8, depth: 1, heads: 2}}",
    "strategy.server_text_sizes={width: 16, depth: 1, heads: 2}",
    *("strategy.pair_loss=infonce", "strategy.server_lr=0.003", "strategy.server_batch_size=32"),
    *("client.epochs=1", "client.optimizer=adam", "client.lr=0.001", "run.rounds=2", "evaluate.clients=0"),
)


def go(tmp_path, *options: str, **more):
    return run("digits", *PAIRS, f"run.results={tmp_path}", "run.name=run", *options, **more)


# ---- losses --------------------------------------------------------------------------------------------------


def test_soft_contrast_is_the_likelihood_of_all_pairs():
    distance = torch.tensor([[0.5, 1.0], [2.0, 0.0]], dtype=torch.float64)
    found = soft_contrast(distance, torch.eye(2, dtype=torch.bool), torch.tensor(3.0), torch.tensor(2.0))
    logits = [2 * (2 - 3 * d) for d in (0.5, 1.0, 2.0, 0.0)]
    p = [1 / (1 + math.exp(-x)) for x in logits]
    assert float(found) == pytest.approx(
        -(math.log(p[0]) + math.log(1 - p[1]) + math.log(1 - p[2]) + math.log(p[3])) / 2
    )


def test_pair_contrast_shares_between_partners():
    image = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64), dim=1)
    text = F.normalize(torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64), dim=1)
    logits = (image @ text.T / 0.5).tolist()
    rows = [[x - math.log(sum(map(math.exp, row))) for x in row] for row in logits]
    columns = [[x - math.log(sum(map(math.exp, column))) for x in column] for column in zip(*logits, strict=True)]
    alone = pair_contrast(image, text, torch.eye(2, dtype=torch.bool), 0.5)
    assert float(alone) == pytest.approx(-(rows[0][0] + rows[1][1] + columns[0][0] + columns[1][1]) / 4)
    shared = pair_contrast(image, text, torch.ones(2, 2, dtype=torch.bool), 0.5)
    assert float(shared) == pytest.approx(-(sum(map(sum, rows)) + sum(map(sum, columns))) / 8)


def test_margin_loss_subtracts_four_from_the_true_class_and_keeps_centres_apart():
    unit = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([[0.05, 0.3], [-1.0, 0.2]], dtype=torch.float64)
    logits = [128 * 0.05 - 4, 0.0]  # the negative weight counts as 0
    own = -logits[0] + math.log(math.exp(logits[0]) + 1)
    gram = [[0.05**2 + 0.09, 0.06], [0.06, 0.04]]
    centre = sum(-row[i] + math.log(sum(map(math.exp, row))) for i, row in enumerate(gram)) / 2
    assert float(margin_loss(unit, weight, torch.tensor([0]))) == pytest.approx(own + centre / 2)
    assert class_logits(unit, weight).tolist() == [[pytest.approx(6.4), 0.0]]


# ---- what travels --------------------------------------------------------------------------------------------


def unit(rows: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, DIMENSION, generator=generator(seed)), dim=1)


@pytest.mark.parametrize(("wire", "size", "off"), [("float32", 4, 1e-6), ("float16", 2, 1e-3), ("int8", 1, 0.02)])
def test_the_wire_keeps_directions(wire, size, off):
    vectors = unit(50)
    sent = to_wire(vectors, wire)
    assert sent.element_size() == size
    back = from_wire(sent)
    torch.testing.assert_close(torch.linalg.norm(back, dim=1), torch.ones(50))
    assert float((back - vectors).abs().max()) < off


def test_int8_uses_its_whole_range_in_each_row():
    sent = to_wire(unit(20), "int8")
    assert (sent.abs().amax(1) == 127).all()


def payload(rows: int = 5, wire: str = "float32") -> Payload:
    sent = {name: to_wire(unit(rows, seed), wire) for seed, name in enumerate(("image", "text"))}
    return Payload({"representations": sent})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "expected image, text or both"),
        ({"sound": unit(5)}, "expected image, text or both"),
        ({"image": unit(4)}, r"expected image as torch.float32 \[5, 8\]"),
        ({"image": unit(5)[:, :4]}, r"expected image as"),
        ({"image": unit(5).double()}, r"expected image as torch.float32"),
        ({"image": 2 * unit(5)}, "no unit vectors"),
        ({"text": torch.zeros(5, DIMENSION)}, "no unit vectors"),
        ({"text": torch.full((5, DIMENSION), math.nan)}, "NaN"),
    ],
)
def test_representations_that_lie_are_refused(tree, message):
    with pytest.raises(BadReplyError, match=message):
        Representations("float32").check("representations", tree, payload())


def test_representations_that_are_true_are_taken():
    for wire in ("float32", "float16", "int8"):
        Representations(wire).check("representations", {"text": to_wire(unit(5), wire)}, payload(wire=wire))


class Spy(Listener):
    """Keeps what failed."""

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        self.reasons[client] = reason


@pytest.mark.parametrize(("wire", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_tensor_bytes_are_the_formula(tmp_path, wire, size):
    summary = go(tmp_path, f"strategy.wire={wire}").summary
    rounds, clients, senders = 2, 6, 8  # two clients send both modalities
    matrix = PUBLIC * DIMENSION * size
    assert summary["bytes_down"]["tensors"] == rounds * clients * (2 * matrix + 4 * PUBLIC)
    assert summary["bytes_up"]["tensors"] == rounds * senders * matrix
    assert summary["num_failures"] == 0


def test_a_part_of_the_public_set_costs_its_part(tmp_path):
    summary = go(tmp_path, "strategy.public_per_round=40", "run.rounds=1").summary
    assert summary["bytes_up"]["tensors"] == 8 * 40 * DIMENSION * 4
    assert summary["bytes_down"]["tensors"] == 6 * (2 * 40 * DIMENSION * 4 + 4 * 40)


def test_no_message_holds_a_weight(tmp_path, monkeypatch):
    seen: list[tuple[str, ...]] = []

    def names(trees) -> tuple[str, ...]:
        return tuple(f"{tree}/{name}" for tree, tensors in trees.items() for name in tensors)

    def broadcast(phase, state, server):
        sent = phase.broadcast(state, server)
        seen.append(names(sent.trees))
        return sent

    def local(phase, sent, client):
        reply = phase.local(sent, client)
        seen.append(names(reply.trees))
        return reply

    def evaluated(self, state, server):
        sent = to_evaluate(self, state, server)
        seen.append(names(sent.trees))
        return sent

    to_evaluate = CreamFL.evaluated
    monkeypatch.setattr(CreamFL, "evaluated", evaluated)
    watch_phases(monkeypatch, CreamFL, broadcast=broadcast, local=local)
    go(tmp_path, "evaluate.clients=-1", "run.rounds=1")
    allowed = {"representations/image", "representations/text", "index/rows"}
    assert len(seen) == 8
    assert {name for each in seen for name in each} == allowed


# ---- a run ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clients_of_every_kind_are_measured_and_the_server_learns(tmp_path):
    result = go(tmp_path, "run.rounds=6", "strategy.server_epochs=3", "evaluate.clients=-1")
    metrics = result.summary["metrics"]
    assert {"clients/test/image/accuracy", "clients/test/text/accuracy", "clients/test/retrieval/i2t_recall@1"} <= set(
        metrics
    )
    rows: pd.DataFrame = result.metrics
    rsum = rows[(rows.side == "server") & (rows.split == "validation") & (rows.metric == "rsum")].sort_values("round")
    assert rsum.value.iloc[-1] > rsum.value.iloc[0] + 50
    assert result.summary["best_round"] > 1
    assert len(result.summary["representations_sha256"]) == 64


def test_every_client_has_a_model_of_its_own(tmp_path):
    """Kinds by partition number, architectures in turn, different weights."""
    config = Config(num_image=2, num_text=2, num_both=2)
    assert [modality(client, config) for client in range(6)] == ["image", "image", "text", "text", "both", "both"]
    result = go(tmp_path, "run.rounds=1", "checkpoint.every=1")
    from safetensors.torch import load_file

    found = {int(path.parent.name): load_file(path) for path in sorted((result.path / "memory").rglob("*.safetensors"))}
    assert sorted(found) == list(range(6))
    assert not any("text" in name for name in found[0])
    assert any("convolution" in name or "conv" in name for name in found[0])  # cnn, then mlp
    assert any("layers" in name for name in found[1])
    assert not any("encoders/image" in name for name in found[2])
    assert any("image" in name for name in found[4])
    assert any("text" in name for name in found[4])
    assert not torch.equal(found[4]["encoders/text_map.weight"], found[5]["encoders/text_map.weight"])


def test_a_round_without_a_modality_goes_on(tmp_path):
    """Two clients a round, not stratified: a pair with images alone and one with texts alone, which else cannot be."""
    heard = Spy()
    options = ("strategy.stratify=false", "run.clients_per_round=2", "run.rounds=4", "run.seed=25")
    session = Session(load("digits", [*PAIRS, *options]))
    cohorts = [session.cohort(session.strategy.phase("contrast"), round_, {}) for round_ in range(1, 5)]
    assert {(0, 1), (2, 3)} <= set(cohorts)
    summary = go(tmp_path, *options, "evaluate.every=4", listener=heard).summary
    assert summary["rounds"] == 4
    assert not heard.reasons
    matrices = sum(2 if client >= 4 else 1 for cohort in cohorts for client in cohort)
    assert summary["bytes_up"]["tensors"] == matrices * len(session.data.public) * DIMENSION * 4


@pytest.mark.parametrize("stratify", [True, False])
def test_a_stratified_sample_has_every_kind_and_another_may_not(stratify):
    session = Session(load("digits", [*PAIRS, "run.clients_per_round=3", f"strategy.stratify={str(stratify).lower()}"]))
    phase = session.strategy.phase("contrast")
    cohorts = [session.cohort(phase, round_, {}) for round_ in range(1, 12)]
    every = [sorted(client // 2 for client in cohort) == [0, 1, 2] for cohort in cohorts]
    assert all(every) if stratify else not all(every)
    assert len(set(cohorts)) > 3


@pytest.mark.parametrize(
    ("number", "sizes"),
    [
        (10, [10, 10, 15]),
        (1, [3, 3, 3]),
        (2, [3, 3, 3]),
        (4, [3, 3, 3]),
        (5, [1, 1, 30]),
        (9, [3, 3, 3]),
        (4, [0, 1, 9]),
    ],
)
def test_quotas_are_proportional_on_average_with_one_each(number, sizes):
    steps = 360
    found = [quotas(number, sizes, Fraction(step, steps)) for step in range(steps)]
    for each in found:
        assert sum(each) == number
        assert all(0 <= quota <= size for quota, size in zip(each, sizes, strict=True))
        if number >= sum(size > 0 for size in sizes):
            assert all(quota > 0 for quota, size in zip(each, sizes, strict=True) if size)
    if all(number * size >= sum(sizes) for size in sizes) or number < len(sizes):  # one each is nobody's more than due
        means = [sum(column) / steps for column in zip(*found, strict=True)]
        assert means == pytest.approx([number * size / sum(sizes) for size in sizes], abs=0.06)


def test_no_kind_is_shut_out_when_a_round_has_fewer_clients_than_kinds():
    session = Session(load("digits", [*PAIRS, "run.clients_per_round=1"]))
    phase = session.strategy.phase("contrast")
    assert {session.cohort(phase, round_, {})[0] // 2 for round_ in range(1, 30)} == {0, 1, 2}


@pytest.mark.slow
def test_noise_hardly_counts_under_contrast(tmp_path, monkeypatch):
    """Weights of the clients with images, one of which sends noise, beside the third of the mean."""
    found: list[torch.Tensor] = []
    from umbel.strategies.creamfl import ensemble

    original = ensemble.aggregate

    def watched(*arguments):
        made = original(*arguments)
        found.append(made[1].mean(1))
        return made

    monkeypatch.setattr(ensemble, "aggregate", watched)
    options = ("strategy.noise_clients=[0]", "strategy.ensemble_temperature=0.05", "strategy.server_epochs=3")
    go(tmp_path, *options, "run.rounds=6", "client.epochs=2", "evaluate.every=6")
    image = found[-2]  # text comes last
    assert len(image) == 4
    torch.testing.assert_close(image.sum(), torch.tensor(1.0))
    assert float(image[0]) < 0.6 * float(image[1:].mean())


def test_distillation_towards_itself_moves_nothing(tmp_path):
    """With a target that is what the server says, the gradient is zero and plain SGD stays where it is."""
    session = Session(load("digits", [*PAIRS, "strategy.server_optimizer=sgd", "strategy.server_clip_norm=0"]))
    strategy, server = session.strategy, session.context(1)
    state = strategy.initial(session.context(0))
    model = strategy._load(state, server)
    own = strategy._read(model, server)
    strategy._distil(model, own, {}, server)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state.model[name], rtol=0, atol=1e-6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strategy._distil(model, {"image": own["image"].roll(1, 0)}, {}, server)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved
    assert not any(name.startswith("text") for name in moved)  # the modality without a target is left alone


def test_a_modality_without_an_ensemble_is_not_moved_by_what_the_optimiser_remembers(tmp_path):
    session = Session(load("digits", [*PAIRS, "strategy.server_weight_decay=0.1"]))
    strategy, server = session.strategy, session.context(1)
    model = strategy._load(strategy.initial(session.context(0)), server)
    moments = strategy._learn(model, {}, server)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = strategy._distil(model, {"image": strategy._read(model, server)["image"].roll(1, 0)}, moments, server)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("image") for name in moved)
    assert after.keys() == moments.keys()
    assert strategy._distil(model, {}, moments, server) == moments


@pytest.mark.parametrize(("epochs", "steps"), [(4, 3), (0, 7)])
def test_a_budget_of_steps_is_a_rounds(tmp_path, monkeypatch, epochs, steps):
    done: list[int] = []
    train = training.train

    def counted(*arguments, **options):
        report = train(*arguments, **options)
        done.append(report.num_steps)
        return report

    monkeypatch.setattr(training, "train", counted)
    options = ("strategy.distil=0", f"client.epochs={epochs}", f"client.max_steps={steps}", "run.rounds=1")
    go(tmp_path, *options)
    assert sum(done[1:]) == 6 * steps  # the first is the server's


def test_losses_are_not_rounded_under_autocast(tmp_path):
    session = Session(load("digits", [*PAIRS, "client.precision=bf16"]))
    strategy, server = session.strategy, session.context(1)
    model = strategy._load(strategy.initial(session.context(0)), server)
    with torch.autocast("cpu", torch.bfloat16):
        loss = pair_loss(strategy.config, model, torch.arange(PUBLIC))
        found = loss(torch.stack([unit(9), unit(9, 1)]), torch.arange(9))
        image = model.encode_image(torch.rand(2, 1, 8, 8))
    assert found.dtype == torch.float32
    torch.testing.assert_close(torch.linalg.norm(image, dim=1), torch.ones(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("wire", ["float32", "int8"])
def test_a_model_that_diverged_does_not_hide_in_int8(wire, bad):
    vectors = unit(4)
    vectors[2] = bad
    with pytest.raises(ValueError, match="diverged"):
        to_wire(vectors, wire)


def test_the_fingerprint_sees_images_texts_and_labels():
    public = Session(load("digits", [*PAIRS])).data.public
    whole = replace(public, images=(255 * public.images.clamp(0, 1)).to(torch.uint8))
    found = [
        fingerprint(each)
        for each in (
            whole,
            replace(whole, images=255 - whole.images),
            replace(whole, labels=whole.labels.flip(0)),
            replace(whole, tokens=whole.tokens.flip(0)),
            replace(whole, texts=whole.texts.take(torch.arange(len(whole)).flip(0))),
        )
    ]
    assert len(set(found)) == 5
    assert fingerprint(whole) == found[0]


@pytest.mark.slow
def test_each_switch_changes_the_outcome(tmp_path):
    base = go(tmp_path / "base").summary
    switches = (
        *("strategy.inter=false", "strategy.intra=false", "strategy.contrast=0", "strategy.ensemble=mean"),
        *("strategy.distil=0", "strategy.wire=int8", "strategy.class_loss=plain", "strategy.exclude_self=true"),
        *("strategy.pair_loss=pcme", "strategy.server_cosine=false", "strategy.public_per_round=50"),
    )
    found = {each: go(tmp_path / each, each).summary["representations_sha256"] for each in switches}
    assert len({base["representations_sha256"], *found.values()}) == len(switches) + 1


def test_a_stop_and_a_resume_change_no_bits(tmp_path):
    class Stopping(Listener):
        def begin(self, experiment, folder: str) -> None:
            self._folder = folder

        def round(self, round_: int, num_rounds: int, metrics, seconds: float) -> None:
            if round_ == 3:
                raise KeyboardInterrupt

    options = ("run.rounds=5", "checkpoint.every=2", "strategy.stratify=false", "run.clients_per_round=3")
    whole = go(tmp_path / "whole", *options).summary
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut", *options, listener=Stopping())
    gone_on = resume(tmp_path / "cut" / "run").summary
    for key in ("weights_sha256", "representations_sha256"):
        assert gone_on[key] == whole[key]


def test_another_public_set_is_noticed(tmp_path, monkeypatch):
    calls: list[int] = []

    def strange(public) -> float:
        calls.append(1)
        return fingerprint(public) + (len(calls) > 1)

    monkeypatch.setattr("umbel.strategies.creamfl.method.fingerprint", strange)
    with pytest.raises(RunStoppedError, match="another public set"):
        go(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("data.public=0", "data.text_encoder=minilm"), "data.public"),
        (("data.text_encoder=",), "data.text_encoder"),
        (("strategy.num_both=1",), "should make data.num_clients=6"),
        (("data.augment=flip",), "data.augment"),
        (("strategy.wire=float8",), "strategy.wire"),
        (("strategy.ensemble=median",), "strategy.ensemble"),
        (("strategy.text_models=[grue]",), "strategy.text_models"),
        (("strategy.image_models=[cn]",), "cnn"),
        (("strategy.image_sizes={cvt_13: {}}",), "strategy.image_sizes.cvt_13"),
        (("strategy.temperature=0",), "strategy.temperature"),
        (("strategy.image_models=[]",), "strategy.image_models"),
        (("strategy.image_sizes={cnn: {widht: 2}}",), r"strategy\.image_sizes\.cnn\.widht"),
        (("strategy.text_sizes={gru: {wdth: 2}}",), r"strategy\.text_sizes\.gru\.wdth"),
        (("strategy.text_sizes={gru: 3}",), r"strategy\.text_sizes\.gru should be a mapping"),
        (("strategy.text_sizes={gru: []}",), r"strategy\.text_sizes\.gru should have at least one entry"),
        (("strategy.image_sizes={cnn: [{}, {widht: 2}]}",), r"strategy\.image_sizes\.cnn\[1\]\.widht"),
        (("strategy.server_text_sizes={wdth: 2}",), r"strategy\.server_text_sizes\.wdth"),
        (("strategy.noise_clients=[6]",), r"noise_clients names \[6\]"),
        (("strategy.server_weight_decay=-1",), "server_weight_decay"),
        (("strategy.distil=.inf",), "distil"),
        (("strategy.public_per_round=1", "strategy.exclude_self=true"), "exclude_self"),
        (("model.norm=local",), r"model\.norm=local"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(options, message):
    with pytest.raises(ExperimentError, match=message):
        load("digits", [*PAIRS, *options])


def test_a_set_without_texts_is_refused(tmp_path):
    with pytest.raises((ExperimentError, ValueError), match="texts"):
        go(tmp_path, "data.name=digits", "data.options={}")


def test_encoders_need_a_modality():
    with pytest.raises(ValueError, match="found neither"):
        Encoders(None, None, 4)


def test_the_phases_of_a_round():
    phases = CreamFL(Config(num_image=1, num_text=1, num_both=1)).phases(None)
    assert [(each.name, each.who, each.groups) for each in phases] == [
        ("learn", "server", ()),
        ("contrast", "sample", (0, 1, 2)),
    ]


def test_models_that_cannot_read_the_public_set_are_refused_before_the_first_round(tmp_path):
    with pytest.raises(ValueError, match="image"):
        go(tmp_path, "strategy.image_models=[cvt_tiny32]", "strategy.image_sizes={}", "data.encoder=pixels")
    assert not (tmp_path / "run" / "summary.json").exists()

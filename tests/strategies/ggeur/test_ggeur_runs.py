"""GGEUR as a strategy: completion, what travels, its base."""

from __future__ import annotations

import pytest
import torch

from umbel import run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.conf.schema import Experiment
from umbel.core.records import BadReplyError, Payload, Reply
from umbel.core.rng import generator
from umbel.core.training import LocalConfig
from umbel.data.config import DataConfig
from umbel.data.types import Examples
from umbel.strategies.ggeur.completion import completion
from umbel.strategies.ggeur.method import GGEUR, Config
from umbel.strategies.ggeur.pooling import (
    Prototypes,
    class_statistics,
    domain_means,
    from_sums,
    pool_statistics,
    statistics_tree,
    sums_tree,
)
from umbel.strategies.ggeur.shapes import geometry

D = 5


def shape_of(num: int = 50):
    features = torch.randn(num, D, generator=generator(0), dtype=torch.float64) + 3
    return geometry(class_statistics(features, torch.zeros(num).long(), 1)), features


def test_completion_fills_up_to_the_target_and_no_further():
    shape, features = shape_of()
    for num_own, target, expected in ((10, 30, 20), (10, 15, 5), (10, 10, 0), (10, 4, 0)):
        drawn = completion(shape, 0, features[:num_own], target, generator(1))
        assert drawn.shape == (expected, D)
    assert torch.equal(
        completion(shape, 0, features[:3], 9, generator(1)), completion(shape, 0, features[:3], 9, generator(1))
    )
    assert not len(completion(shape, 0, features[:0], 9, generator(1)))


def test_with_enough_of_its_own_each_is_drawn_around_once():
    _, features = shape_of()
    still = geometry(class_statistics(features[:1], torch.zeros(1).long(), 1))  # no variance: draws are their anchors
    own = features[:10]
    drawn = completion(still, 0, own, 18, generator(1))
    places = torch.cdist(drawn, own).argmin(1)
    assert len(places.unique()) == 8 and torch.allclose(drawn, own[places])
    few = completion(still, 0, own[:2], 9, generator(1), draws=4)
    assert torch.allclose(few, own[:2][torch.cdist(few, own[:2]).argmin(1)]) and len(few) == 7


def test_classes_that_are_absent_are_drawn_around_their_mean_if_asked():
    shape, features = shape_of()
    mean = features.mean(0)
    drawn = completion(shape, 0, features[:0], 4000, generator(1), mean_D=mean)
    assert drawn.shape == (4000, D) and (drawn.mean(0) - mean).abs().max() < 0.1


def test_other_domains_prototypes_are_drawn_around():
    _, features = shape_of()
    still = geometry(class_statistics(features[:1], torch.zeros(1).long(), 1))
    foreign = torch.stack([torch.full((D,), 50.0), torch.full((D,), 90.0)]).double()
    drawn = completion(still, 0, features[:0], 100, generator(1), foreign_AD=foreign, per_prototype=10)
    assert sorted(drawn[:, 0].round().tolist()) == [50.0] * 10 + [90.0] * 10
    capped = completion(still, 0, features[:5], 12, generator(1), foreign_AD=foreign, per_prototype=10)
    assert len(capped) == 7


def test_sums_pool_to_the_same_statistics():
    features = torch.randn(90, D, generator=generator(0), dtype=torch.float64) + 2
    labels = torch.arange(90) % 3
    parts = [class_statistics(features[k::4], labels[k::4], 4) for k in range(4)]
    summed = sum(sums_tree(part, 1)["sums"] for part in parts)
    ours, theirs = from_sums(summed), pool_statistics(parts)
    assert torch.equal(ours.count_C, theirs.count_C)
    torch.testing.assert_close(ours.mean_CD, theirs.mean_CD)
    torch.testing.assert_close(ours.covariance_CDD, theirs.covariance_CDD)


def test_rare_classes_are_withheld():
    features, labels = torch.randn(4, D), torch.tensor([0, 0, 0, 2])
    statistics = class_statistics(features, labels, 3)
    assert list(statistics_tree(statistics, 1)) == ["0", "2"] and list(statistics_tree(statistics, 2)) == ["0"]
    assert sums_tree(statistics, 2)["sums"][2].abs().sum() == 0
    examples = Examples(features, labels, torch.tensor([0, 0, 1, 1]))
    assert list(domain_means(examples.images, examples.labels, examples.domains, 2)) == ["0/0"]


def test_means_of_domains_by_hand():
    features = torch.tensor([[1.0], [3.0], [10.0]])
    prototypes = domain_means(features, torch.tensor([0, 0, 0]), torch.tensor([1, 1, 0]), 1)
    assert {name: value.tolist() for name, value in prototypes.items()} == {"0/0": [1, 10], "1/0": [2, 4]}


def test_options_that_cannot_be():
    wrong = [{"scale": "std"}, {"complete": "some"}, {"release": "all"}, {"target": -1}]
    for options in [*wrong, {"base": "ggeur"}, {"base": "creamfl"}, {"release": "sums", "within_only": True}]:
        with pytest.raises(ValueError, match=r"strategy\."):
            GGEUR(Config(**options))
    with pytest.raises(ValueError, match="Did you mean 'fedavg'"):
        GGEUR(Config(base="fedavgg"))
    with pytest.raises(ValueError, match="linear in the gradients"):
        GGEUR(Config(base="scaffold")).check(
            Experiment(data=DataConfig(encoder="pixels"), client=LocalConfig(clip_norm=1.0))
        )


ASKED = Payload({}, {"classes": 3.0, "features": 2.0})


def row(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize("name", ["0/0", "12/2", "9999/1"])
def test_prototypes_are_taken_alone_and_summed(name):
    fold = Prototypes()
    fold.check("prototypes", {name: row(1, 5, 6)}, ASKED)
    summed = fold.merge(
        fold.lift({name: row(1, 5, 6)}, 4, 0), fold.lift({name: row(2, 5, 6), "1/1": row(1, 0, 0)}, 4, 1)
    )
    fold.check_accumulator("prototypes", summed, ASKED, [0, 1])
    assert summed[name].tolist() == [3, 10, 12]


WRONG_PROTOTYPES = {
    "junk": row(2, 1, 1),
    "0": row(2, 1, 1),
    "0/3": row(2, 1, 1),  # a class that is not there
    "00/1": row(2, 1, 1),
    "0/01": row(2, 1, 1),
    "\u0663/1": row(2, 1, 1),  # a digit, and not one of ours
    "10000/1": row(2, 1, 1),
    "0/1": row(2, 1),
    "0/2": row(0, 1, 1),  # of nobody
    "1/1": row(float("nan"), 1, 1),
}


@pytest.mark.parametrize("name", WRONG_PROTOTYPES)
def test_wrong_prototypes_are_refused_alone_and_in_a_nodes_sum(name):
    fold, tree = Prototypes(), {name: WRONG_PROTOTYPES[name]}
    with pytest.raises(BadReplyError, match="prototypes"):
        fold.check("prototypes", tree, ASKED)
    with pytest.raises(BadReplyError, match="prototypes"):
        fold.check_accumulator("prototypes", fold.lift(tree, 4, 0), ASKED, [0])


SMALL = (
    "data.encoder=pca:8",
    "model.name=linear",
    "data.num_clients=4",
    "data.partition=dirichlet",
    "data.alpha=0.1",
    "data.max_train=400",
    "run.rounds=2",
    "evaluate.clients=0",
    "checkpoint.every=0",
)


@pytest.mark.parametrize("base", ["fedavg", "fedprox", "scaffold"])
def test_without_augmentation_it_is_its_base(base, tmp_path):
    name = (f"strategy.name={base}",)
    plain = run("digits", *SMALL, *name, f"run.results={tmp_path}", "run.name=plain")
    over = ("strategy.name=ggeur", f"strategy.base={base}", "strategy.augment=false")
    same = run("digits", *SMALL, *over, f"run.results={tmp_path}", "run.name=same")
    assert same.summary["weights_sha256"] == plain.summary["weights_sha256"]
    mine = run(
        "digits", *SMALL, "strategy.name=ggeur", f"strategy.base={base}", f"run.results={tmp_path}", "run.name=mine"
    )
    assert mine.summary["weights_sha256"] != plain.summary["weights_sha256"]


def test_the_bases_options_are_set_and_checked(tmp_path):
    over = ("strategy.name=ggeur", "strategy.base=fedprox", "strategy.target=20")
    weak, strong = (
        run("digits", *SMALL, *over, f"strategy.base_options={{mu: {mu}}}", f"run.results={tmp_path}", f"run.name={mu}")
        for mu in (0.0, 5.0)
    )
    assert weak.summary["weights_sha256"] != strong.summary["weights_sha256"]
    with pytest.raises(ExperimentError, match=r"strategy\.base_options\.nu.*Did you mean 'mu'"):
        load("digits", [*SMALL, *over, "strategy.base_options={nu: 1}"])
    with pytest.raises(ExperimentError, match=r"Set data\.encoder"):
        load("digits", ["strategy.name=ggeur", "model.name=linear"])


class Lying(GGEUR):
    """GGEUR of which client 2 sends other statistics than it has: of a class that there is not."""

    def describe(self, payload, client):
        reply = super().describe(payload, client)
        if client.id != 2:
            return reply
        tree = dict(reply.trees["statistics"])
        tree |= self.lie(*next(iter(tree.items())))
        return Reply({"statistics": tree}, {}, reply.num_examples)

    def lie(self, label, packed):
        return {"99": packed}


class LyingWidth(Lying):
    def lie(self, label, packed):
        return {label: torch.ones(6)}


class LyingName(Lying):
    def lie(self, label, packed):
        return {f"0{label}": packed}


@pytest.mark.parametrize("liar", [Lying, LyingWidth, LyingName])
def test_a_client_that_lies_about_its_statistics_is_left_out(liar, tmp_path):
    name = f"strategy.name={__name__}:{liar.__name__}"
    result = run("digits", *SMALL, name, "strategy.target=20", f"run.results={tmp_path}")
    assert result.summary["num_failures"] == 1


def test_bytes_are_those_of_the_formulas(tmp_path):
    options = ("strategy.name=ggeur", "strategy.rank=3", "strategy.complete=all", "run.rounds=1", "evaluate.every=0")
    result = run("digits", *SMALL, *options, f"run.results={tmp_path}")
    from umbel.conf.federation import federation

    data = federation(load("digits", [*SMALL, *options]))
    held = sum(len(torch.unique(data.client(k).train.labels)) for k in range(4))
    d, c, model = 8, 10, 4 * (8 * 10 + 10)
    assert result.summary["bytes_up"]["tensors"] == held * 4 * (1 + d + d * (d + 1) // 2) + 4 * model
    assert result.summary["bytes_down"]["tensors"] == 4 * (4 * c * 3 * (d + 1) + 4 * c * d) + 4 * model


def test_completion_of_absent_classes_helps(tmp_path):
    options = [option for option in SMALL if not option.startswith("run.rounds")]
    options = (
        *options,
        "run.rounds=8",
        "client.epochs=2",
        "data.max_train=1000",
        "data.encoder=pca:16",
        "data.alpha=0.05",
    )
    options = (*options, "data.top_up=true", "data.min_examples=5", f"run.results={tmp_path}")
    plain = run("digits", *options, "strategy.name=fedavg").summary["metrics"]["test/accuracy"]
    mine = run("digits", *options, "strategy.name=ggeur", "strategy.complete=all").summary["metrics"]["test/accuracy"]
    assert mine > plain + 0.05

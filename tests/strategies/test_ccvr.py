"""CCVR: pooled statistics are the union's, a calibrated head decides as LDA does, and training knows nothing of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.contexts import client_context
from tests.helpers import bits, small_run
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.fold_tree import FoldTree
from umbel.core.records import Payload
from umbel.core.rng import build_seeded, generator
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.base import Model
from umbel.models.weights import shared_state
from umbel.server.session import Session
from umbel.strategies.ccvr import CCVR, Config, State, calibrate, draw, pooled_statistics, unbiased
from umbel.strategies.ggeur.pooling import ClassStatistics, class_statistics

SKEWED = ("strategy.name=ccvr", "data.partition=shards", "data.max_train=400", "data.max_test=0", "client.batch_size=8")
LABELS = torch.tensor([0, 1, 3, 0, 0, 3, 1, 0, 3])  # nobody has class 2


def model_of(seed: int) -> Model:
    return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), seed, torch.float64)


def test_what_clients_send_is_pooled_to_the_statistics_of_the_union():
    """By numpy's definition: means, and covariances over N - 1, of all clients' features of a class together."""
    images = torch.rand(9, 1, 3, 3, generator=generator(1), dtype=torch.float64)
    strategy, model = CCVR(Config()), model_of(0)
    state = State({}, 1)
    payload = Payload({"model": shared_state(model_of(0))}, {"classes": 4.0, "width": float(model.num_features)})
    fold = strategy.fold_statistics()
    tree = FoldTree(fold, 3)
    for client, rows in enumerate((slice(0, 4), slice(4, 5), slice(5, 9))):  # of unequal size, one with one example
        context = client_context(Examples(images[rows], LABELS[rows]), 4, model_of(7))
        reply = strategy.describe(payload, context)
        fold.check(reply, payload, reply.num_examples)
        tree.add_reply(client, client, reply)
    found = unbiased(pooled_statistics(fold.finish(tree.root()), 4, model.num_features))
    features = model.eval().features(images).detach()
    assert found.count_C.tolist() == [4, 2, 0, 3] and not state.head
    for label in (0, 1, 3):
        own = features[label == LABELS]
        torch.testing.assert_close(found.mean_CD[label], own.mean(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(found.covariance_CDD[label], torch.cov(own.T), rtol=0, atol=1e-12)
    assert not found.mean_CD[2].any() and not found.covariance_CDD[2].any()


def test_unbiased_covariances_by_hand():
    # Of 0, 2: 1 over N = 2, 2 over N - 1 = 1. Of a single example, and of none: 0 over anything.
    statistics = class_statistics(torch.tensor([[0.0], [2.0], [5.0]]).double(), torch.tensor([0, 0, 2]), 3)
    assert statistics.covariance_CDD.flatten().tolist() == [1, 0, 0]
    assert unbiased(statistics).covariance_CDD.flatten().tolist() == [2, 0, 0]


def gaussians() -> ClassStatistics:
    """Three classes of one covariance, and one without examples."""
    mean = torch.tensor([[4.0, 0.0], [-2.0, 3.0], [0.0, 0.0], [-2.0, -3.0]], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.8], [0.8, 2.0]], dtype=torch.float64)
    present = torch.tensor([100.0, 7.0, 0.0, 30.0], dtype=torch.float64)
    return ClassStatistics(present, mean, covariance * (present > 0)[:, None, None])


def test_draws_have_the_moments_of_their_class_and_are_equally_many():
    features, labels = draw(gaussians(), 4000, generator(0))
    assert torch.bincount(labels, minlength=4).tolist() == [4000, 4000, 0, 4000]
    for label in (0, 1, 3):
        own = features[labels == label]
        torch.testing.assert_close(own.mean(0), gaussians().mean_CD[label], rtol=0, atol=0.1)
        torch.testing.assert_close(torch.cov(own.T), gaussians().covariance_CDD[label], rtol=0, atol=0.15)
    still = ClassStatistics(torch.ones(1), torch.tensor([[3.0, -1.0]]).double(), torch.zeros(1, 2, 2).double())
    assert draw(still, 2, generator(0))[0].tolist() == [[3.0, -1.0], [3.0, -1.0]]  # a single example: it


def linear_discriminant(statistics: ClassStatistics, features: Tensor) -> Tensor:
    """The optimal decision of equally likely classes of one covariance S: argmax m' S^-1 x - m' S^-1 m / 2."""
    directions = torch.linalg.solve(statistics.covariance_CDD[0], statistics.mean_CD.T).T
    scores = features @ directions.T - (directions * statistics.mean_CD).sum(1) / 2
    scores[:, statistics.count_C == 0] = -torch.inf
    return scores.argmax(1)


def test_a_calibrated_head_decides_as_the_linear_discriminant():
    torch.manual_seed(0)
    head = nn.Linear(2, 4).double()
    with torch.no_grad():  # as skewed clients leave it: all is class 1
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 5.0, 0.0, 0.0]))
    features, labels = draw(gaussians(), 500, generator(1))
    config = Config(epochs=60, lr=0.05, batch_size=50)
    calibrate(head, features, labels, config, generator(2), generator(3))
    fresh, truth = draw(gaussians(), 2000, generator(4))
    ours, optimal = head(fresh).argmax(1), linear_discriminant(gaussians(), fresh)
    assert (ours == optimal).double().mean() > 0.99
    right = [(each == truth).double().mean() for each in (ours, optimal)]
    assert right[0] > right[1] - 0.003 > 0.97
    # Near the optimum itself: the differences of its rows are those of the discriminant, S^-1 (m_a - m_b).
    expected = torch.linalg.solve(gaussians().covariance_CDD[0], gaussians().mean_CD[0] - gaussians().mean_CD[1])
    found = head.weight[0] - head.weight[1]
    assert F.cosine_similarity(found, expected, dim=0) > 0.97


def test_training_is_the_bases_bit_for_bit_and_without_passes_so_is_the_model(tmp_path):
    plain = small_run(tmp_path / "plain", "strategy={name: fedprox, mu: 0.5}")
    over = ("strategy.name=ccvr", "strategy.base=fedprox", "strategy.base_options={mu: 0.5}")
    idle, calibrated, often = (
        small_run(tmp_path / name, *over, *more)
        for name, more in (("idle", ("strategy.epochs=0",)), ("once", ()), ("often", ("strategy.every=1",)))
    )
    assert bits(idle) == bits(plain) != bits(calibrated)
    assert bits(often) == bits(calibrated)  # what it calibrates on the way does not come back to the base
    steps = [run.summary["spent"]["server"]["steps"] for run in (plain, calibrated, often)]
    assert steps == [0, steps[1], 2 * steps[1]] and steps[1] > 0


def test_what_label_skew_did_to_the_head_is_undone(tmp_path):
    """Clients of two classes each: the trunk learned what the head forgot."""
    result = small_run(tmp_path, *SKEWED, "run.rounds=6", "client.epochs=2", "client.lr=0.1")
    metrics = result.summary["metrics"]
    assert metrics["test/accuracy"] > metrics["test/base/accuracy"] + 0.1


def test_only_what_the_last_round_left_is_calibrated():
    session = Session(load("digits", ["strategy.name=ccvr", "strategy.every=2", "run.rounds=5", "model.name=cnn"]))
    strategy = session.strategy
    asked = [
        [phase.name for phase in strategy.phases(State(strategy.initial(session.context(0)).base, 5, round_))]
        for round_ in range(5)
    ]
    assert [each[-1] for each in asked] == ["train", "statistics", "train", "statistics", "statistics"]
    # A head that was calibrated is not that of the model after the next training.
    state = State(strategy.initial(session.context(0)).base, 5, 2, {"head.bias": torch.ones(10)})
    assert strategy.model(state)["head.bias"].tolist() == [1.0] * 10
    (train,) = strategy.phases(state)
    assert train.name == "train"


@pytest.mark.parametrize("base", ["fedper", "ditto", "fedloge", "creamfl", "fedbuff", "ccvr", "flwr:FedAvg", "ggeur"])
def test_bases_without_one_model_for_all_are_refused(base):
    with pytest.raises(ExperimentError, match=rf"strategy\.base={base}"):
        load("digits", ["strategy.name=ccvr", f"strategy.base={base}"])


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("data.partition=split_tasks", "data.rounds_per_task=2", "run.rounds=10"), "data.rounds_per_task"),
        (("run.patience=2",), "run.patience"),
        (("model.name=cnn", "model.norm=local"), "model.norm"),
        (("run.budget=steps=100", "strategy.every=3"), "run.budget"),
        (("strategy.num_virtual=0",), "strategy.num_virtual"),
        (("strategy.base_options={mu: 1}",), "strategy.base_options.mu"),
    ],
)
def test_what_it_does_not_go_with_is_refused(more, key):
    with pytest.raises(ExperimentError) as refused:
        load("digits", ["strategy.name=ccvr", *more])
    assert refused.value.key == key


def test_a_run_may_end_early_where_every_round_is_calibrated(tmp_path):
    result = small_run(tmp_path, "strategy.name=ccvr", "strategy.every=1", "run.rounds=9", "run.budget=steps=40")
    assert result.summary["rounds"] < 9 and "test/base/loss" in result.summary["metrics"]

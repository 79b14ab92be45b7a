"""Metrics by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tests.helpers import small_run
from umbel import run
from umbel.core import metrics
from umbel.core.metrics import ClassCounts


def logits_for(predicted, num_classes=3):
    return torch.nn.functional.one_hot(torch.tensor(predicted), num_classes).float() * 4


def counts(batch_size=2):
    # Classes 0 0 0 1 2; guesses 0 0 1 1 0: class 0 has 2 of 3, class 1 has 1 of 1, class 2 has 0 of 1.
    table = logits_for([0, 0, 1, 1, 0])
    images = torch.arange(5.0)
    labels = torch.tensor([0, 0, 0, 1, 2])
    return metrics.classify(lambda x: table[x.long()], images, labels, 3, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_classify(batch_size):
    counted = counts(batch_size)
    assert counted.correct_C.tolist() == [2, 1, 0] and counted.total_C.tolist() == [3, 1, 1]
    right, wrong = -4 + math.log(math.exp(4) + 2), math.log(math.exp(4) + 2)
    assert counted.loss_sum == pytest.approx(3 * right + 2 * wrong, rel=1e-6)
    assert counted.num_examples == 5


def test_summarise():
    summary = metrics.summarise(counts())
    assert summary["accuracy"] == pytest.approx(3 / 5)
    assert summary["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert summary["worst_class_accuracy"] == 0.0
    assert summary["loss"] == pytest.approx(counts().loss_sum / 5)
    assert metrics.per_class(counts()) == pytest.approx({0: 2 / 3, 1: 1.0, 2: 0.0})


def test_classes_that_do_not_occur_do_not_count():
    class_counts = ClassCounts(torch.tensor([1.0, 0.0, 2.0]), torch.tensor([2.0, 0.0, 2.0]), 4.0)
    assert metrics.summarise(class_counts) == {
        "accuracy": 0.75,
        "balanced_accuracy": 0.75,  # (1/2 + 1) / 2
        "worst_class_accuracy": 0.5,
        "loss": 1.0,
    }
    assert metrics.per_class(class_counts) == {0: 0.5, 2: 1.0}
    empty = ClassCounts(torch.zeros(2), torch.zeros(2), 0.0)
    assert all(math.isnan(value) for value in metrics.summarise(empty).values())


def test_counts_add():
    both = counts() + counts()
    assert both.correct_C.tolist() == [4, 2, 0] and both.num_examples == 10
    assert metrics.summarise(both) == pytest.approx(metrics.summarise(counts()))


def test_over_clients():
    statistics = metrics.over_clients([0.75, 0.25, math.nan])
    assert statistics == {"mean": 0.5, "std": 0.25, "worst10": 0.25, "min": 0.25, "jain": 0.8}
    assert metrics.over_clients([0.0, 0.5, 0.0, 0.0])["jain"] == 0.25 and metrics.over_clients([0.0] * 3)["jain"] == 1.0
    # Of 20 clients the worst two: (0 + 1) / 2.
    assert metrics.over_clients([float(i) for i in range(20)])["worst10"] == 0.5
    assert metrics.over_clients([float(i) for i in range(20)], less_is_better=True)["worst10"] == 18.5
    assert all(math.isnan(value) for value in metrics.over_clients([math.nan]).values())


def test_mean_and_deviation():
    assert metrics.mean_and_deviation([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))  # (1 + 1) / (2 - 1)
    assert metrics.mean_and_deviation([7.0]) == (7.0, 0.0)


def test_class_groups_pool_their_examples():
    class_counts = ClassCounts(torch.tensor([9.0, 1.0, 1.0, 0.0]), torch.tensor([10.0, 2.0, 4.0, 0.0]), 1.0)
    groups = torch.tensor([0, 1, 1, 2])
    assert metrics.by_group(class_counts, groups) == {
        "accuracy_head": 0.9,
        "accuracy_middle": 2 / 6,  # over examples; the mean of the classes would be 3/8
    }
    assert metrics.by_group(class_counts, torch.tensor([2, 2, 2, 0])) == {"accuracy_tail": 11 / 16}
    for wrong in (torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, -1])):
        with pytest.raises(ValueError, match="group 0, 1 or 2 for each of 4 classes"):
            metrics.by_group(class_counts, wrong)


def test_domains_count_once_each():
    small = ClassCounts(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), 1.0)
    large = ClassCounts(torch.tensor([50.0, 40.0]), torch.tensor([50.0, 50.0]), 1.0)
    absent = ClassCounts(torch.zeros(2), torch.zeros(2), 0.0)
    assert metrics.by_domain({"ink": small, "oil": large, "wax": absent}) == pytest.approx(
        {"domain/ink/accuracy": 0.5, "domain/oil/accuracy": 0.9, "domains_mean": 0.7, "domains_worst": 0.5}
    )
    assert metrics.by_domain({"wax": absent}) == {}


DOMAINS = (
    *("data.name=synthetic", "data.options={num_domains: 3, image_size: 8, num_test: 100, noise: 1.0}"),
    *("data.max_train=300", "data.num_clients=3", "data.server_validation=0.2", "run.rounds=1"),
    *("model.name=cnn", "model.sizes={width: 4, hidden: 8}", "client.device=cpu"),
)


def test_the_server_reports_each_domain_their_mean_and_the_worst(tmp_path):
    result = run("digits", *DOMAINS, f"run.results={tmp_path}")
    reported = result.summary["metrics"]
    for split in ("validation", "test"):
        apart = [reported[f"{split}/domain/domain {d}/accuracy"] for d in range(3)]
        assert len(set(apart)) > 1
        assert reported[f"{split}/domains_mean"] == pytest.approx(sum(apart) / 3)
        assert reported[f"{split}/domains_worst"] == min(apart)
    # 34, 33 and 33 test examples: the whole is the mean weighted by them, in metrics as in rows.
    sizes = (34, 33, 33)
    whole = sum(n * reported[f"test/domain/domain {d}/accuracy"] for d, n in enumerate(sizes)) / 100
    assert reported["test/accuracy"] == pytest.approx(whole)
    rows = result.metrics.query("side == 'server' and split == 'test' and metric == 'domains_worst'")
    assert rows["value"].tolist() == [reported["test/domains_worst"]]


def test_domains_in_a_sequence_count_the_tasks_seen(tmp_path):
    sequence = ("data.partition=split_tasks", "data.num_tasks=2", "data.rounds_per_task=1", "run.rounds=2")
    result = run("digits", *DOMAINS, *sequence, f"run.results={tmp_path}")
    rows = result.metrics.query("side == 'server' and split == 'test' and round == 1")
    by_name = dict(zip(rows["metric"], rows["value"], strict=True))
    # After the first task only its examples count, in the whole as in each domain.
    assert by_name["accuracy"] == pytest.approx(by_name["task/0/accuracy"])
    assert min(by_name[f"domain/domain {d}/accuracy"] for d in range(3)) <= by_name["accuracy"]
    assert max(by_name[f"domain/domain {d}/accuracy"] for d in range(3)) >= by_name["accuracy"]


def test_a_set_without_domains_has_no_such_metric(tmp_path):
    reported = small_run(tmp_path, "run.rounds=1").summary["metrics"]
    assert not any("domain" in name or "accuracy_tail" in name for name in reported)


def test_retrieval_is_by_cosine():
    """By their product the second text, which is longer, would be nearest to both images."""
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.1, 0.0], [5.0, 6.0]])
    assert metrics.retrieval(images, texts, torch.arange(2), torch.arange(2))["i2t_recall@1"] == 100


def test_the_first_ten_are_ten():
    angle = torch.arange(12.0) / 20  # text j is further from the image the higher j
    texts = torch.stack([angle.cos(), angle.sin()], 1)
    images, ids = torch.tensor([[1.0, 0.0]]).repeat(12, 1), torch.arange(12)
    recalls = metrics.retrieval(images, texts, ids, ids)
    assert [recalls[f"i2t_recall@{k}"] for k in (1, 5, 10)] == pytest.approx([100 * k / 12 for k in (1, 5, 10)])

"""Metrics beyond counts: their formulas, functions of one's own, and what has no value."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from sklearn import metrics as sklearn_metrics

from umbel import run
from umbel.core.metrics import scores
from umbel.core.refusal import Refusal

SOURCE = torch.Generator().manual_seed(0)
LABELS = torch.randint(0, 4, (60,), generator=SOURCE)
LOGITS = torch.randn(60, 4, generator=SOURCE, dtype=torch.float64) + 1.5 * torch.nn.functional.one_hot(LABELS, 4)
SHARES = LOGITS.softmax(1).numpy()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f1", sklearn_metrics.f1_score(LABELS, LOGITS.argmax(1), average="macro")),
        ("precision", sklearn_metrics.precision_score(LABELS, LOGITS.argmax(1), average="macro")),
        ("recall", sklearn_metrics.recall_score(LABELS, LOGITS.argmax(1), average="macro")),
        ("kappa", sklearn_metrics.cohen_kappa_score(LABELS, LOGITS.argmax(1))),
        ("matthews", sklearn_metrics.matthews_corrcoef(LABELS, LOGITS.argmax(1))),
        ("auroc", sklearn_metrics.roc_auc_score(LABELS, SHARES, average="macro", multi_class="ovr")),
    ],
)
def test_they_are_those_of_scikit_learn(name: str, expected: float) -> None:
    assert scores.score(name, LOGITS, LABELS) == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    # Every prediction says .8, two of four are right: |.5 - .8|.
    logits = torch.log(torch.tensor([[0.8, 0.2]] * 4))
    assert scores.score("calibration_error", logits, torch.tensor([0, 0, 1, 1])) == pytest.approx(0.3, abs=1e-6)


def test_among_the_first_five() -> None:
    logits = torch.arange(8.0).repeat(8, 1)  # the first five are the classes 3 to 7
    assert scores.score("top5", logits, torch.arange(8)) == pytest.approx(5 / 8)
    assert scores.score("top5", LOGITS, LABELS) == 1.0  # of four classes all are among them


def test_a_class_that_is_ruled_out_is_no_fault() -> None:
    logits = LOGITS.clone()
    logits[:, 3] = -math.inf
    for name in scores.BY_NAME:
        assert math.isfinite(scores.score(name, logits, LABELS))


def test_classes_that_do_not_occur_have_no_part() -> None:
    """As on a client that holds two classes of ten."""
    labels = torch.tensor([0, 1, 0, 1, 1])
    perfect = 5.0 * torch.nn.functional.one_hot(labels, 10).double()
    for name in ("auroc", "average_precision"):
        assert scores.score(name, perfect, labels) == 1.0
        assert scores.score(name, perfect, labels) == scores.score(name, perfect[:, :2], labels)
        assert math.isnan(scores.score(name, perfect, torch.zeros(5, dtype=torch.int64)))


def test_batches_are_put_together_and_what_has_no_value_is_left_out() -> None:
    seen = scores.Seen()
    assert seen.scores(["f1"]) == {}
    for start in range(0, 60, 25):
        seen.add(LOGITS[start : start + 25], LABELS[start : start + 25])
    assert seen.scores(["f1"]) == {"f1": scores.score("f1", LOGITS, LABELS)}
    broken = scores.Seen()
    broken.add(torch.full((2, 3), math.nan), torch.tensor([0, 1]))
    assert broken.scores(["f1", "auroc"]) == {}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scores.py").write_text(
        "def margin(logits, labels):\n"
        "    top = logits.topk(2).values\n"
        "    return (top[:, 0] - top[:, 1]).mean()\n\n\n"
        "def words(logits, labels):\n    return 'good'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scores", raising=False)


@pytest.mark.usefixtures("own")
def test_a_function_of_ones_own() -> None:
    name = "my_scores:margin"
    scores.check([name, "f1"], "evaluate.metrics")
    seen = scores.Seen()
    seen.add(torch.tensor([[3.0, 1.0, 0.0], [0.0, 4.0, 1.0]]), torch.tensor([0, 0]))
    assert seen.scores([name]) == {"margin": 2.5}
    with pytest.raises(Refusal, match="should return a number"):
        scores.score("my_scores:words", LOGITS, LABELS)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["f2"], "Unknown metric 'f2'"),
        (["f1", "f1"], "two metrics called f1"),
        (["my_scores:median"], "no 'median'"),
        (["no_module_here:f"], "no_module_here"),
    ],
)
def test_what_is_none_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(Refusal, match=said) as refused:
        scores.check(names, "evaluate.metrics")
    assert refused.value.key == "evaluate.metrics"


def brier(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return ((logits.softmax(1) - torch.nn.functional.one_hot(labels, logits.shape[1])) ** 2).sum(1).mean()


brier.higher_is_better = False  # type: ignore[attr-defined]


def test_the_worst_clients_of_an_error_are_those_that_have_most_of_it(tmp_path: Path) -> None:
    small = ("data.num_clients=12", "data.max_train=600", "client.max_steps=1", "run.rounds=1")
    asked = f"evaluate.metrics=[f1, calibration_error, '{__name__}:brier']"
    done = run("digits", *small, asked, "evaluate.clients=-1", f"run.results={tmp_path}")
    table, metrics = done.metrics, done.summary["metrics"]
    for name, worst in (("f1", min), ("calibration_error", max), ("brier", max)):
        of = table[(table["side"] == "client") & (table["split"] == "test") & (table["metric"] == name)]
        assert len(of) == 12
        assert metrics[f"clients/test/{name}_worst10"] == pytest.approx(worst(of["value"]), rel=1e-12), name

"""The papers' settings of FOT, on made-up images of the same form and small networks of the same kind."""

from __future__ import annotations

import pytest

from tests.places import ROOT
from umbel import run
from umbel.conf.load import load

SMALL = (
    "data.name=synthetic",
    "data.options={num_examples: 160, num_test: 40, image_size: 32, in_channels: 3, num_classes: 4}",
    "data.num_tasks=2",
    "data.rounds_per_task=1",
    "data.num_clients=3",
    "run.clients_per_round=2",
    "run.rounds=2",
    "client.max_steps=2",
    "client.device=cpu",
)
NETWORKS = {
    "alexnet": ("model.sizes={width: 2, hidden: 12}",),
    "resnet, no norm": ("model.name=resnet18", "model.sizes={width: 2, norm: none}"),
    "resnet, norm of the batch": ("model.name=resnet18", "model.sizes={width: 2, norm: batch_stateless}"),
    "resnet, norm averaged": ("model.name=resnet18", "model.sizes={width: 2}", "strategy.rest=freeze"),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_split_cifar_in_small(network, tmp_path):
    result = run("fot_cifar100_paper", *SMALL, *NETWORKS[network], f"run.results={tmp_path}")
    table = result.metrics
    ranks = table[table["metric"].str.startswith("rank/") & (table["round"] == 1)]
    layers = 5 if network == "alexnet" else 20  # conv1-3, fc1, fc2; conv1, 16 of blocks, 3 shortcuts
    assert len(ranks) == layers and (ranks["value"] > 0).all()
    assert result.summary["num_failures"] == 0


def test_the_presets_have_the_papers_numbers():
    mnist, cifar = load("fot_pmnist_paper"), load("fot_cifar100_paper")
    for preset, clients, tasks, rounds, batch in ((mnist, (125, 64), 10, 200, 64), (cifar, (50, 25), 10, 1000, 16)):
        assert (preset.data.num_clients, preset.num_sampled) == clients
        schedule = (preset.data.num_tasks, preset.data.rounds_per_task, preset.run.rounds)
        assert schedule == (tasks, rounds, tasks * rounds)
        assert (preset.client.batch_size, preset.client.lr, preset.client.weight_decay) == (batch, 0.01, 1e-5)
        options = preset.strategy.options
        authors = {"sketched": "local", "ratio_power": 1, "min_directions": 1, "bias": "free", "rest": "free"}
        assert {key: options[key] for key in authors} == authors and options["weighting"] == "uniform"
    assert mnist.strategy.options["threshold"] == 0.96 and cifar.strategy.options["threshold"] == 0.87
    assert cifar.strategy.options["increment"] == 0.001 and cifar.data.heads == "per_task"


def test_the_presets_that_were_measured_differ_in_their_tasks_alone():
    permuted, split = load("fot_permuted"), load("fot_split")
    assert (permuted.model, permuted.client, permuted.strategy, permuted.run) == (
        split.model,
        split.client,
        split.strategy,
        split.run,
    )


def test_the_page_has_the_rows_that_were_measured():
    root = ROOT
    measured = (root / "benchmarks" / "results" / "fot.md").read_text(encoding="utf-8")
    page = (root / "docs" / "strategies" / "fot.md").read_text(encoding="utf-8")
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert len(rows) == 6 and "\n".join(rows) in page  # the head and four contenders
    assert "../../benchmarks/results/fot.md" in page

"""Each part of FedLoGe is one key: what it changes in a run, and what it leaves alone."""

from __future__ import annotations

import functools
import importlib
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import SMALL_FEDLOGE as SMALL
from tests.places import BENCHMARKS
from umbel import RunResult, run
from umbel.conf.load import load

# Keys of the server or of training: the weights that are saved are others.
SHARED = (
    *("frame=etf", "frame=none", "sparsity=0", "sparsity=0.3", "norm=0.7", "balanced_mask=true", "bias=false"),
    *("align=false", "scale=1.7", "weighting=uniform", "server_lr=0.5"),
)
# Keys of evaluation and of the personal half.
OWN = ("personal=false", "align_personal=false", "personal_form=psi", "collapse=1")


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run with a key, once for all tests of this file; without a key the defaults."""
    folder: Path = tmp_path_factory.mktemp("keys")

    @functools.cache
    def made(key: str) -> RunResult:
        options = (f"strategy.{key}",) if key else ()
        result = run("digits", *SMALL, *options, f"run.results={folder}", f"run.name=run-{key.replace('=', '-')}")
        assert result.summary["num_failures"] == 0
        return result

    return lambda key="": made(key)


def on_clients(result: RunResult, predictor: str) -> dict[tuple[int, str], float]:
    """Loss and accuracy of a predictor on each client's own test examples in the last round; `` is the model."""
    prefix = f"{predictor}/" if predictor else ""
    wanted = [f"{prefix}loss", f"{prefix}accuracy"]
    table = result.metrics
    rows = table[(table["side"] == "client") & (table["split"] == "test") & (table["round"] == 2)]
    rows = rows[rows["metric"].isin(wanted)]
    return {
        (int(client), str(metric).removeprefix(prefix)): float(value)
        for client, metric, value in zip(rows["client"], rows["metric"], rows["value"], strict=True)
    }


def others(first: Mapping[Any, float], second: Mapping[Any, float]) -> bool:
    """Whether every client's loss differs."""
    assert first.keys() == second.keys() and len(first) == 8  # 4 clients, loss and accuracy
    return all(first[key] != second[key] for key in first if key[1] == "loss")


@pytest.mark.parametrize("key", SHARED)
def test_a_key_of_what_is_shared_changes_the_weights(of, key):
    assert of(key).summary["weights_sha256"] != of().summary["weights_sha256"]


@pytest.mark.parametrize("key", OWN)
def test_a_key_of_what_is_a_clients_own_leaves_the_weights_alone(of, key):
    assert of(key).summary["weights_sha256"] == of().summary["weights_sha256"]


def test_alignment_and_its_length_are_all_that_align_and_scale_change(of):
    keys = ("", "scale=1.7", "align=false")
    plain, longer, unaligned = (load_file(of(key).path / "model.safetensors") for key in keys)
    for name, tensor in plain.items():
        if name != "head.weight":
            assert torch.equal(tensor, longer[name]) and torch.equal(tensor, unaligned[name]), name
    psi = unaligned["head.weight"]
    rows = psi / torch.linalg.norm(psi, dim=1, keepdim=True)
    torch.testing.assert_close(plain["head.weight"], rows)
    torch.testing.assert_close(longer["head.weight"], 1.7 * rows)
    for where in ("validation", "test"):
        assert of("align=false").summary["metrics"][f"{where}/loss"] == of().summary["metrics"][f"{where}/psi/loss"]


def test_without_la_fr_clients_are_evaluated_with_phi_alone(of):
    bare = on_clients(of("align_personal=false"), "")
    assert bare == on_clients(of(), "phi") and others(bare, on_clients(of(), ""))
    assert not on_clients(of("align_personal=false"), "phi")
    assert on_clients(of("align_personal=false"), "generic") == on_clients(of(), "generic")


def test_the_personal_form_changes_the_personal_predictor_alone(of):
    readme = of("personal_form=psi")
    assert others(on_clients(readme, ""), on_clients(of(), ""))
    assert others(on_clients(readme, ""), on_clients(readme, "psi"))
    for predictor in ("phi", "generic", "psi"):
        assert on_clients(readme, predictor) == on_clients(of(), predictor)


def test_without_personal_heads_clients_are_evaluated_with_the_generic_model(of):
    generic = on_clients(of("personal=false"), "")
    assert generic == on_clients(of(), "generic") and others(generic, on_clients(of(), ""))
    assert not on_clients(of("personal=false"), "phi") and not on_clients(of("personal=false"), "generic")
    assert on_clients(of("personal=false"), "psi") == on_clients(of(), "psi")


def test_measuring_collapse_adds_rows_and_changes_none(of):
    def rows(result: RunResult) -> Counter[tuple[str, ...]]:
        kept = result.metrics[["round", "side", "client", "split", "metric", "value"]]
        kept = kept[kept["split"] != "costs"]  # to look is work, too
        return Counter(tuple(map(str, row)) for row in kept.itertuples(index=False))

    plain, measured = rows(of()), rows(of("collapse=1"))
    assert plain <= measured
    added = Counter((row[0], row[4]) for row in (measured - plain).elements() if not row[4].startswith("num_"))
    names = ("nc1", "nc2_lengths", "nc2_angles", "nc3", "psi/nc3", "frame/nc3", "nc4")
    expected = {(round_, metric) for round_ in "12" for metric in ("agreement", *(f"collapse/{n}" for n in names))}
    assert set(added) == expected and set(added.values()) == {1}


def test_every_contender_of_the_studies_composes_with_the_gamma_of_its_name(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    studies = importlib.import_module("fedloge")
    for module in ("fedloge", "studies"):
        sys.modules.pop(module, None)

    def gamma(study: str, name: str) -> float | None:
        chosen = studies.STUDIES[study]
        strategy = load(chosen.experiment, [*chosen.common, *chosen.contenders[name]]).strategy
        return strategy.options["norm"] if strategy.options.get("frame") == "sparse" else None

    named = {
        (study, name): float(name.split()[1].rstrip(","))
        for study, chosen in studies.STUDIES.items()
        for name in chosen.contenders
        if name.startswith("gamma")
    }
    assert len(named) == 6 + 4 + 1
    of_presets = {"fashion": 1.0, "fashion_flat": 1.0, "natural": 3.0, "natural_25": 3.0, "fashion_20": 0.1}
    expected = named | {(study, studies.FEDLOGE): value for study, value in of_presets.items()}
    expected |= {("steady", f"{studies.FEDLOGE} | {setting}"): 1.0 for setting in studies.SETTINGS}
    for study, chosen in studies.STUDIES.items():
        for name in chosen.contenders:
            assert gamma(study, name) == expected.get((study, name)), (study, name)
    assert load("fedloge_cifar10_paper").strategy.options["norm"] == 0.1
    assert load("fedloge_cifar100_paper").strategy.options["norm"] == 0.1

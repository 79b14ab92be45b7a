"""The methods go on after a kill with the same bits: what they keep at the server and in clients' memory is complete.

`test_resume.py` kills processes at random moments; here a run ends in the middle, from within, with nothing saved but
its last checkpoint, which is older than the last round: so that clients' memory must be rolled back too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from umbel import resume, run
from umbel.server.errors import StopRequested
from umbel.server.listener import Listener
from umbel.strategies.fedloge.method import FedLoGe
from umbel.strategies.fot.method import FOT
from umbel.strategies.ggeur.method import GGEUR

SMALL = (
    "data.num_clients=4",
    "data.max_train=120",
    "run.rounds=5",
    "run.participation=0.75",
    "run.seed=2",
    "checkpoint.every=2",
    "evaluate.every=2",
    "model.name=cnn",
    "model.sizes={width: 2, hidden: 8}",
)
SEQUENCE = ("data.partition=permuted_tasks", "data.num_tasks=3", "data.rounds_per_task=2", "run.rounds=6")
METHODS = {
    "ggeur over scaffold": (
        *("strategy.name=ggeur", "strategy.base=scaffold", "strategy.complete=all", "strategy.target=20"),
        *("data.encoder=pca:8", "model.name=linear", "model.sizes={}"),
    ),
    "ggeur, domains": (
        *("strategy.name=ggeur", "strategy.domains=true", "strategy.within_only=true", "strategy.target=20"),
        *("data.name=synthetic", "data.options={num_domains: 2, num_examples: 200, image_size: 4, num_classes: 3}"),
        *("data.partition=domain", "data.num_clients=2", "run.participation=1.0"),
        *("data.encoder=pixels", "model.name=linear", "model.sizes={}"),
    ),
    "ggeur, a model under training": (
        *("strategy.name=ggeur", "strategy.refresh=2", "strategy.base=fedopt", "strategy.base_options={momentum: 0.5}"),
        *("strategy.guide=0.8", "strategy.complete=all", "strategy.target=20", "strategy.rank=3"),
    ),
    "ggeur, private": (
        *("strategy.name=ggeur", "strategy.release=sums", "strategy.clip=10", "strategy.epsilon=20"),
        *("data.encoder=pca:4", "model.name=linear", "model.sizes={}"),
    ),
    "fot": ("strategy.name=fot", "strategy.threshold=0.7", "strategy.increment=0.1", *SEQUENCE),
    "fot, authors' form": (
        *("strategy.name=fot", "strategy.sketched=local", "strategy.ratio_power=1", "strategy.min_directions=1"),
        *("strategy.bias=free", "strategy.rest=free", *SEQUENCE),
    ),
    "fot, momentum at the server": (
        *("strategy.name=fot", "strategy.threshold=0.7", "strategy.server_momentum=0.5", *SEQUENCE),
        "strategy.residual=server",
    ),
    "fedbuff": (
        *("strategy.name=fedbuff", "strategy.buffer_size=2", "run.rounds=8"),
        *("simulation.devices.speed={name: lognormal, median: 50, sigma: 1.0}", "simulation.devices.upload=1e5"),
        *("simulation.devices.on_seconds=2", "simulation.devices.off_seconds={name: exponential, mean: 1}"),
    ),
    "ewc": ("strategy.name=ewc", "strategy.strength=10", "strategy.form=online", "strategy.decay=0.5", *SEQUENCE),
    "lwf": ("strategy.name=lwf", *SEQUENCE),
    "replay": ("strategy.name=replay", "strategy.memory=10", *SEQUENCE),
    "fedmd": (
        *("strategy.name=fedmd", "data.public=0.2", "strategy.models=[cnn, mlp]", "strategy.transfer_epochs=1"),
        *("strategy.sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8}}", "strategy.public_per_round=10"),
    ),
    "fedgems": (
        *("strategy.name=fedgems", "data.public=0.2", "strategy.models=[cnn, mlp]", "strategy.server_epochs=2"),
        "strategy.sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8}}",
    ),
    "fedet": (
        *("strategy.name=fedet", "data.public=0.2", "strategy.models=[cnn, mlp]", "strategy.server_epochs=2"),
        *("strategy.sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8}}", "strategy.width=8"),
    ),
    "feddyn": ("strategy.name=feddyn", "strategy.alpha=0.1"),
    "moon": ("strategy.name=moon",),
    "ditto": ("strategy.name=ditto",),
    "pfedme": ("strategy.name=pfedme", "strategy.inner_steps=2"),
    "apfl": ("strategy.name=apfl",),
    "fedrod": ("strategy.name=fedrod",),
    "creff": ("strategy.name=creff", "strategy.num_features=4", "strategy.match_steps=3", "strategy.retrain_steps=5"),
    "fedetf": ("strategy.name=fedetf",),
    "lgfedavg": ("strategy.name=lgfedavg",),
    "fedproto": ("strategy.name=fedproto",),
    "ccvr": ("strategy.name=ccvr", "strategy.base=scaffold", "strategy.every=2"),
    "fedrep": ("strategy.name=fedrep", "strategy.head_epochs=1"),
    "fedavg, the first of those that are there": (
        *("run.clients_per_round=2", "run.over_sample=1", "run.deadline=1.0"),
        *("simulation.devices.speed={name: lognormal, median: 50, sigma: 1.0}", "simulation.devices.on_seconds=2"),
        "simulation.devices.off_seconds={name: exponential, mean: 1}",
    ),
    "fedloge": (
        *("strategy.name=fedloge", "data.partition=long_tail", "data.imbalance=5"),
        "model.sizes={width: 2, hidden: 12}",
    ),
}


EXHAUSTIVE = pytest.mark.exhaustive


class KilledError(RuntimeError):
    """Stands for the end of the process: no code of the project knows it."""


class Ends(Listener):
    """Ends a run after a round: asked (`stop`), or at once."""

    def __init__(self, after: int, asked: bool) -> None:
        self._after, self._asked = after, asked

    def begin(self, experiment: Any, folder: str) -> None:
        self._folder = Path(folder)

    def round(self, round_: int, num_rounds: int, metrics: dict[str, float], seconds: float) -> None:
        if round_ == self._after:
            if not self._asked:
                raise KilledError
            (self._folder / "stop").touch()


def without_seconds(result: Any) -> Any:
    table = result.metrics.drop(columns=["run", "seconds"])
    return table.sort_values(list(table.columns)).reset_index(drop=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Uninterrupted runs, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("whole")

    class Runs(dict[str, Any]):
        def __missing__(self, method: str) -> Any:
            options = (*SMALL, *METHODS[method], f"run.results={folder}", f"run.name={len(list(folder.iterdir()))}")
            self[method] = run("digits", *options)
            return self[method]

    return Runs()


def ends_alike(method: str, after: int, asked: bool, whole: dict[str, Any], tmp_path: Path, *engine: str) -> None:
    expected = whole[method]
    with pytest.raises(StopRequested if asked else KilledError):
        options = (*SMALL, *METHODS[method], *engine, f"run.results={tmp_path}", "run.name=part")
        run("digits", *options, listener=Ends(after, asked))
    again = resume(tmp_path / "part")
    for key in ("weights_sha256", "metrics", "best_round"):
        assert again.summary[key] == expected.summary[key]
    for key in ("bytes_up", "bytes_down"):  # of the rounds that count, not of those that were lost
        assert again.summary[key]["tensors"] == expected.summary[key]["tensors"]
    assert without_seconds(again).equals(without_seconds(expected))


COVERED = ("ggeur over scaffold", "ggeur, a model under training", "fot", "fedloge")


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in COVERED else EXHAUSTIVE) for m in METHODS])
def test_killed_between_checkpoints(method, whole, tmp_path):
    """Round 3 is lost, and with it what clients made of it; in a sequence it is the middle of a task."""
    ends_alike(method, 3, False, whole, tmp_path)


@pytest.mark.parametrize("method", ["fot", *(pytest.param(m, marks=EXHAUSTIVE) for m in METHODS if "fot," in m)])
@pytest.mark.parametrize(("after", "asked"), [(2, False), (4, True), (5, True)])
def test_a_sequence_stopped_at_a_boundary_and_behind_it(method, after, asked, whole, tmp_path):
    """Rounds 2 and 4 end a task: the bases that they made are all that the next round knows of it."""
    ends_alike(method, after, asked, whole, tmp_path)


@pytest.mark.parametrize("method", ["ggeur over scaffold", "fedloge"])
@pytest.mark.parametrize("after", [1, 4])
def test_stopped_when_asked(method, after, whole, tmp_path):
    ends_alike(method, after, True, whole, tmp_path)


@pytest.mark.parametrize(
    ("method", "kind"),
    [("ggeur over scaffold", GGEUR), ("fot", FOT), ("fedloge", FedLoGe)],
    ids=["ggeur", "fot", "fedloge"],
)
def test_nothing_is_begun_again(method, kind, tmp_path, monkeypatch):
    """A frame, trials of models: what `initial` does may cost much, and a checkpoint has it."""
    with pytest.raises(KilledError):
        run("digits", *SMALL, *METHODS[method], f"run.results={tmp_path}", "run.name=part", listener=Ends(3, False))
    monkeypatch.setattr(kind, "initial", lambda *_: pytest.fail("began again"))
    assert resume(tmp_path / "part").summary["rounds"] >= 5


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("method", ["fedloge", "fot"])
def test_on_two_ray_workers(method, whole, tmp_path):
    ends_alike(method, 3, False, whole, tmp_path, "engine.name=ray", "engine.workers=2")

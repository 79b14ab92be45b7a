"""The same experiment and seed give the same bits on every engine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.helpers import COMPILES, bits
from umbel import run
from umbel.server.errors import RunStoppedError
from umbel.server.listener import Listener
from umbel.simulations.engines import federate, processes_engine
from umbel.simulations.engines.ray_worker import RayWorker
from umbel.simulations.engines.worker import WorkerProcess

# Ray and processes that outlive the call that started them leave open files to the garbage collector.
pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.filterwarnings("ignore")]

# 8 clients, 6 of them a round: blocks of 4 and 2, of which the first straddles two nodes.
SMALL = (
    "model.name=cnn",
    "model.sizes={width: 4, hidden: 16}",
    "data.num_clients=8",
    "data.max_train=200",
    "data.alpha=1.0",
    "client.epochs=1",
    "run.rounds=2",
    "run.participation=0.75",
    "run.seed=3",
    "evaluate.every=2",
)
TWO_TASKS = ("data.partition=permuted_tasks", "data.num_tasks=2", "data.rounds_per_task=1")
STRATEGIES = {
    "fedavg": ("strategy.name=fedavg",),
    "fedprox": ("strategy.name=fedprox", "strategy.mu=0.1"),
    "scaffold": ("strategy.name=scaffold",),
    "fedopt": ("strategy.name=fedopt", "strategy.optimizer=yogi", "strategy.lr=0.03", "strategy.momentum=0.9"),
    "fedloge": ("strategy.name=fedloge",),
    "fot": ("strategy.name=fot", "strategy.threshold=0.7", *TWO_TASKS),
    "ggeur": (
        *("strategy.name=ggeur", "strategy.base=scaffold", "strategy.complete=all", "strategy.target=20"),
        *("data.encoder=pca:8", "model.name=linear", "model.sizes={}"),
    ),
    "fedbuff": (
        *("strategy.name=fedbuff", "strategy.buffer_size=3", "run.rounds=5"),
        *("simulation.devices.speed={name: lognormal, median: 50, sigma: 1.0}", "simulation.devices.upload=1e5"),
    ),
    "creamfl": (
        "data.name=synthetic",
        "data.options={num_examples: 300, num_test: 40, num_classes: 4, image_size: 8, attributes: 5}",
        *("data.max_train=0", "data.public=0.3", "data.text_encoder=bpe", "data.vocabulary=80", "data.text_length=10"),
        *("strategy.name=creamfl", "strategy.num_image=2", "strategy.num_text=3", "strategy.num_both=3"),
        *("strategy.dimension=8", "strategy.image_models=[mlp, cnn]", "strategy.text_models=[gru, transformer]"),
        "strategy.image_sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8, depth: 1, dropout: 0.1}}",
        "strategy.text_sizes={gru: {width: 8}, transformer: {width: 8, depth: 1, heads: 2}}",
        *("strategy.server_text_sizes={width: 16, depth: 1, heads: 2}", "strategy.wire=int8"),
    ),
    "feddyn": ("strategy.name=feddyn", "strategy.alpha=0.1"),
    "fednova": ("strategy.name=fednova", "strategy.mu=0.1", "client.momentum=0.5", "client.batch_size=8"),
    "moon": ("strategy.name=moon", "client.batch_size=8"),
    "fedntd": ("strategy.name=fedntd", "client.batch_size=8"),
    "ditto": ("strategy.name=ditto", "strategy.pull=0.3", "client.batch_size=8"),
    "pfedme": ("strategy.name=pfedme", "strategy.inner_steps=2", "client.batch_size=8"),
    "apfl": ("strategy.name=apfl", "client.batch_size=8"),
    "fedrod": ("strategy.name=fedrod", "client.batch_size=8"),
    "creff": ("strategy.name=creff", "strategy.num_features=4", "strategy.match_steps=3", "strategy.retrain_steps=5"),
    "fedetf": ("strategy.name=fedetf", "client.batch_size=8"),
    "ccvr": ("strategy.name=ccvr", "strategy.base=moon", "strategy.num_virtual=20", "strategy.every=2"),
    "fedper": ("strategy.name=fedper",),
    "fedrep": ("strategy.name=fedrep", "strategy.head_epochs=2"),
    "lgfedavg": ("strategy.name=lgfedavg",),
    "fedproto": ("strategy.name=fedproto", "client.batch_size=8"),
    "fedbabu": ("strategy.name=fedbabu", "strategy.finetune_epochs=1"),
    "ewc": ("strategy.name=ewc", "strategy.strength=10", *TWO_TASKS),
    "lwf": ("strategy.name=lwf", *TWO_TASKS),
    "replay": ("strategy.name=replay", "strategy.memory=5", *TWO_TASKS),
    "fedmd": (
        *("strategy.name=fedmd", "data.public=0.2", "strategy.models=[cnn, mlp]", "strategy.transfer_epochs=1"),
        *(
            "strategy.sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8, dropout: 0.2}}",
            "strategy.public_per_round=20",
        ),
    ),
    "fedgems": (
        *("strategy.name=fedgems", "data.public=0.2", "strategy.models=[cnn, mlp]", "strategy.server_epochs=2"),
        "strategy.sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8}}",
    ),
    "fedet": (
        *("strategy.name=fedet", "data.public=0.2", "strategy.models=[cnn, mlp]", "strategy.server_epochs=2"),
        *("strategy.sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8, dropout: 0.2}}", "strategy.width=8"),
    ),
    # Six of eight clients, each with a fifth of the examples of an eighth left out: squads of four and of two.
    "together": ("strategy.name=scaffold", "data.partition=iid", "client.together=4", "client.channels_last=true"),
}


# Those whose phases, memory or folds differ; the others add nothing to an engine but their own arithmetic.
COVERED = ("scaffold", "fedloge", "fot", "ggeur", "fedbuff", "creamfl", "together")
# Over gRPC, where a run takes half a minute: memory and phases of several kinds (over SCAFFOLD), and no weights at all.
COVERED_GRPC = ("ggeur", "creamfl")


def covering(name: str, *values: object, covered: bool) -> object:
    return pytest.param(name, *values, marks=() if covered else pytest.mark.exhaustive)


class Inline(dict[str, str]):
    """The hash of each strategy on the inline engine, made when it is asked for; all are different."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> str:
        digest = bits(run("digits", *SMALL, *STRATEGIES[name], f"run.results={self._folder}"))
        assert digest not in self.values()
        self[name] = digest
        return digest


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Inline:
    return Inline(tmp_path_factory.mktemp("inline"))


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("strategy", "workers"),
    [
        *(
            covering(name, 1 + i % 2, covered=False)
            for i, name in enumerate(name for name in STRATEGIES if name not in COVERED)
        ),
        *(
            covering(name, workers, covered=i % 2 == 2 - workers)
            for i, name in enumerate(COVERED)
            for workers in (1, 2)
        ),
    ],
)
def test_ray_gives_the_same_bits(strategy: str, workers: int, inline: Inline, tmp_path: Path) -> None:
    engine = ("engine.name=ray", f"engine.workers={workers}", f"run.results={tmp_path}")
    result = run("digits", *SMALL, *STRATEGIES[strategy], *engine)
    assert bits(result) == inline[strategy]


@pytest.mark.parametrize(
    ("strategy", "workers"),
    [covering(name, 1 + i % 3, covered=name in COVERED) for i, name in enumerate(STRATEGIES)],
)
def test_processes_give_the_same_bits(strategy: str, workers: int, inline: Inline, tmp_path: Path) -> None:
    engine = ("engine.name=processes", f"engine.workers={workers}", f"run.results={tmp_path}")
    result = run("digits", *SMALL, *STRATEGIES[strategy], *engine)
    assert bits(result) == inline[strategy]


def test_processes_that_begin_anew_give_the_same_bits(inline: Inline, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(processes_engine, "may_copy", lambda experiment: False)
    heard, options = Notices(), ("engine.name=processes", "engine.workers=auto", f"run.results={tmp_path}")
    assert bits(run("digits", *SMALL, *STRATEGIES["scaffold"], *options, listener=heard)) == inline["scaffold"]
    assert any(text.startswith("engine.workers=auto: ") for text in heard.texts)


class Notices(Listener):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


@pytest.mark.usefixtures("cluster")
def test_what_a_worker_does_without_is_told_once(tmp_path: Path) -> None:
    """Nobody reads a worker's log."""
    noisy = ("model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}", "data.partition=iid", "client.together=4")
    listener = Notices()
    engine = ("engine.name=ray", "engine.workers=1", f"run.results={tmp_path}")
    run("digits", *SMALL, *noisy, *engine, listener=listener)
    assert [text for text in listener.texts if text.startswith("client.together=4: mlp trains one client")] == [
        text for text in listener.texts if "client.together" in text
    ]
    assert sum("client.together" in text for text in listener.texts) == 1


@pytest.mark.exhaustive
@COMPILES
@pytest.mark.usefixtures("cluster")
def test_ray_gives_the_same_bits_by_compiled_steps(tmp_path: Path) -> None:
    """Each worker compiles, or reads what another has compiled."""
    options = (*SMALL, "strategy.name=scaffold", "client.compile=step", "client.batch_size=8")
    inline = run("digits", *options, f"run.results={tmp_path}")
    assert inline.summary["modes"]["compile"] == "step"
    for workers in (1, 2):
        engine = ("engine.name=ray", f"engine.workers={workers}")
        assert bits(run("digits", *options, *engine, f"run.results={tmp_path}")) == bits(inline)
    plain = run("digits", *options, "client.compile=none", f"run.results={tmp_path}")
    assert bits(plain) != bits(inline)


@pytest.mark.parametrize("strategy", [covering(name, covered=name in COVERED_GRPC) for name in STRATEGIES])
def test_grpc_gives_the_same_bits(strategy: str, inline: Inline, federation: Path, tmp_path: Path) -> None:
    result = run("digits", *SMALL, *STRATEGIES[strategy], "engine.name=grpc", f"run.results={tmp_path}")
    assert bits(result) == inline[strategy]
    assert result.summary["num_failures"] == 0
    if strategy in ("scaffold", "ggeur"):  # memory stays on the nodes: each partition's with the node that holds it
        files = list(federation.glob(f"nodes/*/state/{result.path.name}*/0/*/*.safetensors"))
        held = sorted(int(path.parent.name) // 4 for path in files)
        nodes = sorted(int(path.parts[-6]) for path in files)
        assert held == nodes
        assert nodes


@pytest.mark.exhaustive  # a minute and a half: a process for every message
def test_stock_supernodes_give_the_same_bits(inline: Inline, tmp_path: Path, monkeypatch) -> None:
    """Flower's own nodes, which start a process for every message: two rounds, so that memory is read."""
    home = tmp_path / "home"
    monkeypatch.setenv("UMBEL_HOME", str(home))
    options = (*SMALL, *STRATEGIES["scaffold"], "evaluate.every=0", f"run.results={tmp_path}")
    expected = inline["scaffold"]  # evaluation changes no bits
    try:
        federate.start(2, home, stock=True)
        assert run("digits", *options, "engine.name=grpc").summary["weights_sha256"] == expected
    finally:
        federate.stop(home)


ENGINES = {"ray": RayWorker, "processes": WorkerProcess}


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("engine", list(ENGINES))
def test_a_worker_that_dies_is_replaced(engine: str, inline: Inline, tmp_path: Path, monkeypatch) -> None:
    """Its clients run again, from the same memory and the same random numbers, also those that it was done with."""
    marker = tmp_path / "died"
    original = ENGINES[engine].run

    def dying(self, opening, clients, closes, memory):
        self.round = self.round if opening is None else opening.work.round
        if closes and self.round == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, opening, clients, closes, memory)

    monkeypatch.setattr(ENGINES[engine], "run", dying)
    options = (f"engine.name={engine}", "engine.workers=2", f"run.results={tmp_path}")
    result = run("digits", *SMALL, *STRATEGIES["scaffold"], *options)
    assert marker.exists()
    assert result.summary["weights_sha256"] == inline["scaffold"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("engine", "word"), [covering("ray", "", covered=False), ("processes", "SIGKILL")])
def test_clients_that_kill_every_worker_are_given_up(engine: str, word: str, tmp_path: Path, monkeypatch) -> None:
    original = ENGINES[engine].run

    def dying(self, opening, clients, closes, memory):
        if {4, 5} & set(clients):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, opening, clients, closes, memory)

    class Failures(Listener):
        def __init__(self) -> None:
            self.reasons: dict[int, str] = {}

        def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
            self.reasons[client] = reason

    monkeypatch.setattr(ENGINES[engine], "run", dying)
    heard = Failures()
    options = (f"engine.name={engine}", "engine.workers=1", f"run.results={tmp_path}", "run.rounds=1")
    result = run("digits", *SMALL, *options, "evaluate.every=0", listener=heard)
    assert heard.reasons.keys() == {4, 5}
    assert all("died 3 times" in reason and word in reason for reason in heard.reasons.values())
    assert result.summary["num_failures"] == 2


@pytest.mark.exhaustive  # half a minute: a federation of its own, and a deadline
def test_too_few_nodes_end_with_a_message(tmp_path: Path, monkeypatch) -> None:
    """A federation whose only node holds half of the clients: a deadline, never a wait for ever."""
    home = tmp_path / "home"
    monkeypatch.setenv("UMBEL_HOME", str(home))
    command = federate._node_command
    monkeypatch.setattr(
        federate,
        "_node_command",
        lambda folder, config, *rest: command(folder, config.replace("num-partitions=1", "num-partitions=2"), *rest),
    )
    try:
        federate.start(1, home)
        with pytest.raises(RunStoppedError, match=r"nobody holds the clients 4-7 of 8\. Start more nodes"):
            run("digits", *SMALL, "engine.name=grpc", "engine.node_timeout_seconds=15", f"run.results={tmp_path}")
    finally:
        federate.stop(home)

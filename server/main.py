"""One run from beginning to end: folder, loop, model, summary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from umbel.conf.load import portable_hash
from umbel.conf.own_data import is_own
from umbel.conf.schema import Experiment
from umbel.conf.unused import unused
from umbel.core.device import set_threads
from umbel.core.kernels import kernels
from umbel.core.memory import MemoryStore, Version
from umbel.core.refusal import Refusal
from umbel.core.training import modes
from umbel.data.sites.agreement import Agreement
from umbel.server import agree, checkpoint, coverage, reading
from umbel.server.checkpoint import Checkpoint
from umbel.server.describe import describe
from umbel.server.flower import strategies as flower
from umbel.server.gather import directory_of
from umbel.server.listener import Both, FileListener, Listener
from umbel.server.lock import exclusive
from umbel.server.nodes import Directory
from umbel.server.port import Port
from umbel.server.results import RunFolder, new_folder
from umbel.server.rounds import FederatedRun
from umbel.server.session import Session


def execute(
    experiment: Experiment, port: Port, listener: Listener, folder: Path | None = None, resume: bool = False
) -> Path:
    """Run an experiment, or go on with one.

    Args:
        experiment: The experiment.
        port: How nodes are reached.
        listener: Told of everything that happens.
        folder: The run's folder, from `new_folder`; None makes one.
        resume: Go on from the folder's last checkpoint.

    Returns:
        The run's folder, with model and summary.

    Raises:
        RunStoppedError: The run cannot go on.
        StopRequested: Somebody asked it to stop.
        Refusal: It is refused, or what it would go on from is damaged.
    """
    flower.check(experiment)
    set_threads(experiment.run.threads)  # before anything is written down about this process
    path = folder or new_folder(experiment, "nodes")  # only Flower starts one without a folder, over its nodes
    told = Both(listener, FileListener(path))
    run_folder = RunFolder(path, experiment)
    with exclusive(path), _told_of_its_end(told):
        before = _last_checkpoint(run_folder) if resume else None
        told.begin(experiment, str(path))
        agreement, directory = _agreed(experiment, port, run_folder, told)
        session = Session(experiment, agreement)
        for text in (*unused(experiment.engine), *port.notices, *session.data.notices):
            told.notice(text)
        if before is None and (text := session.start()):
            told.notice(text)
        if resume:
            told.resumed(before.progress.round if before else 0)
            for text in _notices(path, session, before):
                told.notice(text)
        run = FederatedRun(session, run_folder, told, before)
        del before  # a State that no round changes
        run.fall_back(modes.notices(*session.trains))
        run.start(port, directory)
        _finish(run, run_folder, agreement)
    return path


def _agreed(
    experiment: Experiment, port: Port, folder: RunFolder, told: Listener
) -> tuple[Agreement | None, Directory | None]:
    """Return what sites with data of their own agree on, or agreed on when the run began, and the nodes if asked.

    Raises:
        Refusal: A site's data do not go with the experiment.
        RunStoppedError: Nodes do not come, or do not answer.
    """
    if not is_own(experiment):
        return None, None
    if (before := agree.kept(folder.path)) is not None:
        return before, None
    directory = directory_of(experiment, port, folder, told)
    directory.wait(folder.look_for_stop)
    ask = agree.Round(experiment, port, directory, portable_hash(experiment), told.notice, folder.look_for_stop)
    agreement = ask.agree()
    agree.keep(folder.path, agreement)
    return agreement, directory


def _last_checkpoint(folder: RunFolder) -> Checkpoint | None:
    """Return what a run goes on from.

    Raises:
        DamagedError: There are checkpoints, but none is sound.
        Refusal: More rounds are done than the run is to have.
    """
    memory = MemoryStore(folder.path / "memory" / folder.identity(), cache_size=0)
    is_here = reading.memory_place(folder.path) == "run"

    def check(checkpoint: Checkpoint) -> None:
        for client, version in checkpoint.progress.memories.items() if is_here else ():
            memory.read(int(client), Version(*version))

    before, rounds = checkpoint.latest(folder.checkpoints, check), folder.experiment.run.rounds
    done = before.progress.round if before else 0
    if done > rounds:
        raise Refusal(
            f"run.rounds={rounds}, and {done} rounds of {folder.path} are done.",
            key="run.rounds",
            remedy=f"Set run.rounds={done} or more; for a shorter run start a new one.",
        )
    if before is not None:
        folder.take_metrics(before.metrics)
    return before


def _notices(folder: Path, session: Session, before: Checkpoint | None) -> Iterator[str]:
    """Say what whoever resumes a run should know."""
    if before is None:
        return
    for text in before.passed_over:
        yield f"Passed over a damaged checkpoint, the run goes on after round {before.progress.round}: {text}"
    if text := other_arithmetic(folder):
        yield text
    rounds, planned = session.experiment.run.rounds, before.progress.num_rounds
    strategy, client = session.experiment.strategy.name, session.experiment.client
    planner = f"strategy.name={strategy}" if session.strategy.plans_rounds else ""
    if client.lr_schedule == "cosine" and not client.lr_rounds:
        planner = planner or "client.lr_schedule=cosine"
    if planner and rounds != planned:
        yield (
            f"{planner} plans its course by run.rounds: rounds up to "
            f"{before.progress.round} ran as of {planned}, those to come run as of {rounds}. A run of {rounds} rounds "
            "from its beginning ends with other weights."
        )


@contextmanager
def _told_of_its_end(listener: Listener) -> Iterator[None]:
    """Tell a listener how what is inside ended, whatever that was."""
    try:
        yield
    except BaseException as error:
        listener.end(error)
        raise
    listener.end(None)


def other_arithmetic(folder: Path) -> str:
    """Say whether this process rounds otherwise than the one that began a run; "" where it does not, or none knows."""
    before = reading.environment(folder).get("kernels") if (folder / "env.json").is_file() else None
    now = kernels()
    if not isinstance(before, dict) or before.get("bits") == now["bits"]:
        return ""
    then, here = (", ".join(f"{key}={value}" for key, value in each.items()) for each in (before, now))
    return (
        f"This run began where arithmetic rounds otherwise ({then}; here {here}). It goes on, but its weights will not "
        "be to the bit those of a run that was never interrupted."
    )


def _finish(run: FederatedRun, folder: RunFolder, agreement: Agreement | None) -> None:
    session, progress = run.session, run.progress
    model = session.full_state(session.strategy.model(run.state))
    folder.write_metrics()
    folder.write_confusion(progress.confusion)
    card = describe(session, run.state, model)
    digest = folder.write_model(model, card=card)
    if run.best_model is not None:
        folder.write_model(session.full_state(run.best_model), "best.safetensors", card)
    experiment = session.experiment
    best = {f"best/{name}": value for name, value in progress.best_metrics.items()}
    covered = coverage.summary(progress.coverage, progress.turns, run.lost, experiment.data.num_clients)
    folder.write_summary(
        {
            "run": folder.path.name,
            "experiment": experiment.name,
            "strategy": experiment.strategy.name,
            "seed": experiment.run.seed,
            "rounds": progress.round,
            "metrics": {**progress.last_metrics, **best},
            "best_round": progress.best_round,
            "ended": progress.ended,
            "seconds": {name: round(value, 3) for name, value in progress.seconds.items()},
            "bytes_up": progress.bytes_up,
            "bytes_down": progress.bytes_down,
            "spent": progress.spent,
            "passes": progress.passes,
            "num_failures": progress.num_failures,
            **(
                {}
                if session.virtual is None
                else {"virtual_seconds": progress.virtual_seconds, "num_late": progress.num_late}
            ),
            "coverage": covered,
            "num_parameters": sum(t.numel() for t in run.session.strategy.model(run.state).values()),
            "weights_sha256": digest,
            "config_hash": session.config_hash,
            "modes": modes.named(*session.trains) | ({"fallbacks": progress.fallbacks} if progress.fallbacks else {}),
        }
        | _representations(folder, session.strategy.representations(run.state))
        | ({} if agreement is None else agree.summary(agreement))
    )
    if text := coverage.in_words({"coverage": covered}):
        run.listener.lost(text)


def _representations(folder: RunFolder, representations: dict[str, Tensor]) -> dict[str, str]:
    """Write a strategy's representations, if it has some, and return their hash for the summary."""
    if not representations:
        return {}
    return {"representations_sha256": folder.write_model(representations, "representations.safetensors")}

"""A run that was submitted to Flower: composed out of the bundle and run over Flower's grid."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from umbel.conf.load import load, split_overrides
from umbel.conf.schema import Experiment
from umbel.core.refusal import Refusal
from umbel.core.wire.flower_versions import fleet
from umbel.server.errors import StopRequested
from umbel.server.flower.inbox import FlowerPort
from umbel.server.flower.internals import hasten
from umbel.server.flower.printed import PrintedListener
from umbel.server.listener import FileListener, Listener, mend
from umbel.server.lock import exclusive
from umbel.server.main import execute
from umbel.server.variables import RESULTS

_ORPHAN_SECONDS = 5.0


def _end_with_parent() -> None:
    """End this process some seconds after the one that started it, whatever it is doing then.

    Flower asks it to stop when its SuperLink is gone, but an upload that is under way tries again for ever and would
    keep the process, and the run's folder, until somebody kills it.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration names."""
    fleet()  # refuses a Flower that nobody has tried, before anything of it is met
    hasten()
    _end_with_parent()
    config = context.run_config
    text = str(config.get("experiment-yaml", "")) or None
    folder, results = str(config.get("folder", "")), os.environ.get(RESULTS, "")
    told = PrintedListener() if results else Listener()
    try:
        experiment = load(str(config["experiment"]), split_overrides(str(config.get("overrides", ""))), text)
        if results:
            experiment, folder = at_home(experiment, folder, Path(results))
    except Exception as error:
        told.end(error)
        if folder and not results:  # whoever started the run follows it there
            FileListener(Path(folder)).end(error)
        raise
    resume = bool(config.get("resume", ""))
    logging.getLogger("umbel").info("experiment %s", experiment.name)
    try:
        execute(experiment, FlowerPort(grid), told, Path(folder) if folder else None, resume)
    except StopRequested:
        logging.getLogger("umbel").warning("stopped on request; go on with: umbel resume %s", folder)
    except Exception as error:
        if isinstance(told, PrintedListener) and not told.ended:  # there was no folder yet to tell of it
            told.end(error)
        raise


def at_home(experiment: Experiment, run: str, results: Path) -> tuple[Experiment, str]:
    """Return the experiment with its results where this server keeps runs, and the folder of one that goes on.

    Args:
        experiment: The experiment, from another machine.
        run: The name of the run that goes on; empty for a new one.
        results: Where this server keeps runs.

    Raises:
        Refusal: There is no such run.
    """
    experiment = replace(experiment, run=replace(experiment.run, results=str(results)))
    if not run:
        return experiment, ""
    folder = results / run
    if Path(run).name != run or run == ".." or not (folder / "config.yaml").is_file():
        raise Refusal(f"This server has no run {run!r}.", remedy="See umbel federate status.")
    with exclusive(folder):  # after a kill the server may still be writing
        mend(folder)
        (folder / "stop").unlink(missing_ok=True)
    return experiment, str(folder)

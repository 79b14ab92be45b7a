"""A run that was submitted to Flower: composed out of the bundle and run over Flower's grid."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from umbel.conf.load import load, split_overrides
from umbel.server.errors import StopRequested
from umbel.server.flower.inbox import FlowerPort
from umbel.server.listener import FileListener, Listener
from umbel.server.main import execute

_PULL_SECONDS = 0.02
_ORPHAN_SECONDS = 5.0


def _hasten() -> None:
    """Look sooner for a reply's objects: it is announced before they are up, and Flower then sleeps a second.

    That second was most of a round. The wait still doubles up to Flower's ten seconds; a Flower that keeps its
    default elsewhere is only slower.
    """
    try:
        from flwr.supercore.inflatable.inflatable_utils import pull_objects
    except ImportError:
        return
    defaults = getattr(pull_objects, "__kwdefaults__", None) or {}
    if "initial_backoff" in defaults:
        defaults["initial_backoff"] = _PULL_SECONDS


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
    _hasten()
    _end_with_parent()
    config = context.run_config
    text = str(config.get("experiment-yaml", "")) or None
    folder = str(config.get("folder", ""))
    try:
        experiment = load(str(config["experiment"]), split_overrides(str(config.get("overrides", ""))), text)
    except Exception as error:
        if folder:  # whoever started the run follows it there
            FileListener(Path(folder)).end(error)
        raise
    resume = bool(config.get("resume", ""))
    logging.getLogger("umbel").info("experiment %s", experiment.name)
    try:
        execute(experiment, FlowerPort(grid), Listener(), Path(folder) if folder else None, resume)
    except StopRequested:
        logging.getLogger("umbel").warning("stopped on request; go on with: umbel resume %s", folder)

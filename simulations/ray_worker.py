"""The actor of the Ray engine: a process that runs the one ClientApp, block after block."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

import core
from core.messages import Pieces
from simulations.flower_internals import identify, make_context


class RayWorker:
    """The actor: a process that runs blocks of clients.

    Args:
        run_config: The run configuration, as Flower would give it.
        node_config: The node's configuration.
        core_file: Where the driver's `core` is; a worker that imported another one refuses.
        arrays: The federation's arrays, out of the object store.
        meta: The rest of the federation.
    """

    def __init__(
        self,
        run_config: dict[str, Any],
        node_config: dict[str, Any],
        core_file: str,
        arrays: dict[str, Any],
        meta: dict[str, Any],
    ) -> None:
        self._error: Exception | None = None
        try:
            self._begin(run_config, node_config, core_file, arrays, meta)
        except Exception as error:  # noqa: BLE001 - an actor that raises here is a stack of Ray's; `ready` says it
            self._error = error

    def _begin(
        self,
        run_config: dict[str, Any],
        node_config: dict[str, Any],
        core_file: str,
        arrays: dict[str, Any],
        meta: dict[str, Any],
    ) -> None:
        if str(Path(str(core.__file__)).resolve()) != core_file:
            raise ImportError(
                f"This worker imported {core.__file__}, the driver {core_file}: another `core` package comes first "
                "on the worker's path. Start from another folder, or install the project on this machine."
            )
        from conf.federation import adopt
        from conf.load import load
        from data.federation import Federation

        identify()
        self._context = make_context(run_config, node_config)
        experiment = load(str(run_config["experiment"]), (), str(run_config["experiment-yaml"]))
        adopt(experiment, Federation.from_arrays(arrays, meta))
        from client.app import worker_for

        worker_for(self._context)  # model and device are ready before the first block comes

    def run(self, arrays: dict[str, ArrayRecord], head: str, kind: str) -> RecordDict:
        """Run one block.

        Args:
            arrays: The phase's payload, out of the object store.
            head: The block's work.
            kind: Flower's message type.
        """
        if self._error is not None:
            raise self._error
        from client import app as client_app

        message = Message(Pieces(head, arrays).content(), 1, kind)
        return client_app.app(message, self._context).content

    def ready(self) -> tuple[int, str, str]:
        """Return the worker's process id, once it is ready, and what kept it from that: (id, kind, message)."""
        return os.getpid(), type(self._error).__name__ if self._error else "", str(self._error or "")

"""The actor of the Ray engine: a process that runs the one ClientApp, block after block."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict

import umbel
from umbel.core.messages import Pieces
from umbel.server.errors import ending
from umbel.simulations.engines.flower_internals import identify, make_context


class RayWorker:
    """The actor: a process that runs blocks of clients.

    Args:
        run_config: The run configuration, as Flower would give it.
        node_config: The node's configuration.
        umbel_file: Where the driver's `umbel` is; a worker that imported another one refuses.
        arrays: The federation's arrays, out of the object store.
        meta: The rest of the federation.
    """

    def __init__(
        self,
        run_config: dict[str, Any],
        node_config: dict[str, Any],
        umbel_file: str,
        arrays: dict[str, Any],
        meta: dict[str, Any],
    ) -> None:
        self._error: Exception | None = None
        try:
            self._begin(run_config, node_config, umbel_file, arrays, meta)
        except Exception as error:  # noqa: BLE001 - an actor that raises here is a stack of Ray's; `ready` says it
            self._error = error

    def _begin(
        self,
        run_config: dict[str, Any],
        node_config: dict[str, Any],
        umbel_file: str,
        arrays: dict[str, Any],
        meta: dict[str, Any],
    ) -> None:
        if str(Path(umbel.__file__).resolve()) != umbel_file:
            raise ImportError(
                f"This worker imported {umbel.__file__}, the driver {umbel_file}: another `umbel` comes first "
                "on the worker's path. Start from another folder, or install the project on this machine."
            )
        from umbel.conf.federation import adopt
        from umbel.conf.load import load
        from umbel.data.federation import Federation

        identify()
        self._context = make_context(run_config, node_config)
        experiment = load(str(run_config["experiment"]), (), str(run_config["experiment-yaml"]))
        adopt(experiment, Federation.from_arrays(arrays, meta))
        from umbel.client.handlers import process

        process.worker(self._context)  # model and device are ready before the first block comes

    def run(self, arrays: dict[str, ArrayRecord], head: str, kind: str) -> RecordDict:
        """Run one block.

        Args:
            arrays: The phase's payload, out of the object store.
            head: The block's work.
            kind: Flower's message type.
        """
        if self._error is not None:
            raise self._error
        from umbel.client.app import app

        message = Message(Pieces(head, arrays).content(), 1, kind)
        return app(message, self._context).content

    def ready(self) -> tuple[int, dict[str, Any] | None]:
        """Return the worker's process id, once it is ready, and what kept it from that."""
        return os.getpid(), None if self._error is None else ending(self._error)

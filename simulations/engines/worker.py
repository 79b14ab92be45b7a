"""A worker: a process that keeps model and data, and runs the clients that it is given."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import umbel
from umbel.server.errors import ending

if TYPE_CHECKING:  # a worker that imported another umbel says so before it loads more of it
    from umbel.client.share import Share
    from umbel.core.flat import Outline
    from umbel.core.wire.packed import Lay, Packed
    from umbel.core.wire.work import Work
    from umbel.simulations.engines.how_many import Probed, Training


@dataclass
class Opening:
    """What all workers are told of a phase.

    Attributes:
        work: All clients of the phase.
        outline: What lies where in the payload.
        numbers: The payload's numbers.
        memory: Its tensors, [B] uint8, mapped from where all workers have them.
        file: The file in memory that begins with them, where it is one.
    """

    work: Work
    outline: Outline
    numbers: dict[str, float]
    memory: Any = None
    file: int = -1


class WorkerProcess:
    """What a worker does, however it is started and reached.

    Args:
        run_config: The run configuration, as Flower would give it.
        node_config: The node's configuration.
        umbel_file: Where the driver's `umbel` is; a worker that imported another one refuses.
        arrays: The federation's arrays, out of memory that all workers of a machine share.
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
        self._share: Share | None = None
        self._training: Training | None = None
        try:
            self._begin(run_config, node_config, umbel_file, arrays, meta)
        except Exception as error:  # noqa: BLE001 - `ready` says it
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
        from umbel.client.process import Place, process
        from umbel.conf.federation import adopt
        from umbel.conf.load import load
        from umbel.data.federation import Federation

        self._place = Place(run_config, node_config)
        experiment = load(str(run_config["experiment"]), (), str(run_config["experiment-yaml"]))
        adopt(experiment, Federation.from_arrays(arrays, meta))
        process.worker(self._place)  # model and device are ready before the first clients come

    def run(
        self,
        opening: Opening | None,
        clients: Sequence[int],
        closes: bool,
        lay: Lay | None = None,
    ) -> Packed | None:
        """Run clients of a phase, in their order.

        Args:
            opening: The phase, with the first clients of it that come here; then None.
            clients: Their numbers.
            closes: No more of them come.
            lay: Lays the tensors of an answer down; None takes new memory.

        Returns:
            What came of all clients since the opening, with the last ones; until then None.
        """
        if self._error is not None:
            raise self._error
        self._training = None  # what was measured with it is known
        from umbel.client.lending import LentPayload
        from umbel.client.process import process
        from umbel.core.wire.packed import Packed

        if opening is not None:
            lent = LentPayload(opening.outline, opening.memory, opening.numbers, opening.file)
            self._share = process.worker(self._place).share(opening.work, lent)
        assert self._share is not None, "clients come after a phase was opened"
        self._share.run(clients)
        if not closes:
            return None
        share, self._share = self._share, None
        return Packed.of(share.outcome(), lay)

    def warm_up(self) -> None:
        """Make ready for `probe`, if it is not."""
        if self._error is not None:
            raise self._error
        if self._training is None:
            from umbel.client.process import process
            from umbel.simulations.engines.how_many import Training

            self._training = Training(process.worker(self._place).host)

    def probe(self) -> Probed:
        """Say how fast this worker trains, and how many such memory holds."""
        self.warm_up()
        assert self._training is not None
        return self._training.probe(self._gpu())

    def _gpu(self) -> str:
        """Return which GPU it sees; "" where it sees all that there are."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def serve(self, address: str, number: int) -> None:
        """Run what the driver says over a line (`umbel.simulations.engines.lines`), until it hangs up."""
        if self._error is not None:
            raise self._error
        from umbel.simulations.engines.lines import serve

        serve(self, address, number)

    def answer(self, kind: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Answer a question that is no part of a phase.

        Args:
            kind: A kind of `umbel.client.process`.
            asked: The question.
        """
        if self._error is not None:
            raise self._error
        from umbel.client.process import answer

        return answer(kind, asked, self._place)

    def ready(self) -> tuple[int, dict[str, Any] | None, str]:
        """Return the process id, once it is ready, what kept it from that, and which machine it is on, if asked."""
        gc.collect()
        gc.freeze()  # what it holds stays: the collector need not go through it again and again
        return os.getpid(), None if self._error is None else ending(self._error), ""

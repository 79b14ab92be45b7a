"""A process that runs clients of one experiment, with what it keeps from one phase to the next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from umbel.client.evaluation import evaluate_client
from umbel.client.generators import set_apart
from umbel.client.host import Clients, Host
from umbel.client.lending import LentPayload
from umbel.client.own_data import OwnData
from umbel.client.share import OnClient, Part, Share
from umbel.conf.federation import OwnSite
from umbel.conf.load import build_strategy, portable_hash
from umbel.conf.own_data import is_own
from umbel.conf.schema import Experiment
from umbel.core.evaluation import evaluation_fold
from umbel.core.memory import MemoryStore
from umbel.core.records import Payload, Reply
from umbel.core.wire.work import Outcome, Work
from umbel.data.declared import declared
from umbel.strategies.base import EVALUATE, ClientContext

_RUN = re.compile(r"\w[\w.-]*")


class ConfigMismatchError(RuntimeError):
    """Client and server composed different experiments."""


class Worker:
    """A process that runs clients of one experiment.

    Args:
        experiment: The experiment, composed here.
        memory_folder: Where this site keeps its clients' memory.
        own: The site of this node, where sites have data of their own and its configuration names them.
    """

    def __init__(self, experiment: Experiment, memory_folder: Path, own: OwnSite | None = None) -> None:
        set_apart("flwr")
        self.experiment = experiment
        self.config_hash = portable_hash(experiment)
        self.strategy = build_strategy(experiment)
        self._memory_folder = memory_folder
        # What the sites hold is a run's data once all have agreed on classes, which comes with the work.
        self.own_data = OwnData(experiment, own) if is_own(experiment) else None
        self._hosted = Host(experiment) if self.own_data is None else None
        self._agreed: Mapping[str, Any] = {}
        self._clients: Clients | None = None
        self._run = ("", "")
        self._framing: dict[str, int] = {}

    @property
    def host(self) -> Host:
        """Model, device and data of this process."""
        assert self._hosted is not None, "no work has come"
        return self._hosted

    def declared(self, clients: Iterable[int]) -> dict[str, Any]:
        """Return what a greeting says of the data: training examples of each client over all its tasks, and classes.

        Images are not touched. Nothing of a site's own data that are refused: it is said when all agree on classes.
        """
        if self.own_data is not None:
            return self.own_data.declared(clients)
        counts: list[int] = self.host.data.num_train.tolist()
        examples = {str(client): counts[client] for client in clients}
        return {"examples": examples, "classes": declared(self.host.data)}

    def agree(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a step of the agreement on sites' data.

        Raises:
            ConfigMismatchError: The server runs another experiment, or one whose data are no site's own.
        """
        self._check_hash(str(asked.get("agree")))
        if self.own_data is None:
            raise ConfigMismatchError("The server asks for sites' own data, of which this experiment has none.")
        return self.own_data.answer(asked)

    def _check_hash(self, theirs: str) -> None:
        if theirs != self.config_hash:
            raise ConfigMismatchError(
                f"The server runs the experiment {theirs}, this client composed {self.config_hash}. "
                "Both must have the same version of umbel and the same experiment and overrides."
            )

    def _begin(self, work: Work) -> Clients:
        """Check that the server runs the same experiment, and open the run's memory."""
        self._check_hash(work.config_hash)
        begins = self._run != (work.run, work.attempt)
        if self.own_data is not None and (begins or self._agreed != work.agreed):  # files may be others by now
            self._hosted = Host(self.experiment, self.own_data.agreed(work.agreed))
            self._agreed, self._clients = work.agreed, None
        if self._clients is None or begins:
            if not _RUN.fullmatch(work.run):
                raise ValueError(f"The server calls its run {work.run!r}, which is no name of a folder.")
            self._clients = Clients(self.host, MemoryStore(self._memory_folder / work.run))
            self._run = (work.run, work.attempt)
        return self._clients

    def share(self, work: Work, lent: LentPayload) -> Share:
        """Begin a share of a phase, whose clients run when they are named.

        Args:
            work: All that may be named.
            lent: What they receive.

        Raises:
            ConfigMismatchError: The server runs another experiment.
            UnknownNameError: The strategy has no such phase.
        """
        return Share(self._begin(work), self._part(work.phase), work, lent, self._framing)

    def run(self, work: Work, payload: Payload, on_client: OnClient | None = None) -> Outcome:
        """Run the clients of `work` and return what came of it.

        Args:
            work: Which clients, and where each stands.
            payload: What they receive.
            on_client: Called after each client.

        Raises:
            ConfigMismatchError: The server runs another experiment.
            UnknownNameError: The strategy has no such phase.
        """
        share = self.share(work, LentPayload.of(payload))
        share.run(work.leaves, on_client)
        return share.outcome()

    def _part(self, name: str) -> Part:
        """Return the part of a client in the exchange of a name: a phase of the strategy, or the loop's own."""
        if name == EVALUATE:
            num_scores = len(self.experiment.evaluate.metrics)
            return Part(self._evaluate, evaluation_fold(self.host.data.num_classes, num_scores), remembers=False)
        phase = self.strategy.phase(name)
        return Part(phase.local, phase.fold())

    def _evaluate(self, payload: Payload, client: ClientContext) -> Reply:
        asked, schedule = self.experiment.evaluate, self.experiment.schedule
        heads = self.host.task_heads
        return evaluate_client(self.strategy, payload, client, asked.batch_size, schedule, heads, asked.metrics)

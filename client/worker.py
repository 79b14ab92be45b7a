"""Do a node's share of a phase: run its clients in order, fold what can be folded here, report the rest."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from umbel.client.evaluation import evaluate_client
from umbel.client.host import NORM, Clients, Host
from umbel.conf.load import build_strategy, portable_hash
from umbel.conf.schema import Experiment
from umbel.core.blocks import BlockTree, fold_block
from umbel.core.evaluation import evaluation_fold
from umbel.core.folds import Product
from umbel.core.memory import MemoryRecord, MemoryStore, Version
from umbel.core.messages import encode_reply, framing_bytes
from umbel.core.records import Payload, Reply
from umbel.core.work import Outcome, Work
from umbel.strategies.base import EVALUATE, ClientContext

OnClient = Callable[[int], None]
_RUN = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Part:
    """A client's part of an exchange.

    Attributes:
        local: What it does with what it received.
        fold: How the replies combine.
        remembers: Whether its memory goes on from it; an evaluation changes nothing.
    """

    local: Callable[[Payload, ClientContext], Reply]
    fold: Product
    remembers: bool = True


class ConfigMismatchError(RuntimeError):
    """Client and server composed different experiments."""


class Worker:
    """A process that runs clients of one experiment.

    Args:
        experiment: The experiment, composed here.
        memory_folder: Where this site keeps its clients' memory.
    """

    def __init__(self, experiment: Experiment, memory_folder: Path) -> None:
        self.experiment = experiment
        self.config_hash = portable_hash(experiment)
        self.strategy = build_strategy(experiment)
        self._memory_folder = memory_folder
        self._host = Host(experiment)
        self._clients: Clients | None = None
        self._run = ("", "")
        self._framing: dict[str, int] = {}

    def _begin(self, work: Work) -> Clients:
        """Check that the server runs the same experiment, and open the run's memory."""
        if work.config_hash != self.config_hash:
            raise ConfigMismatchError(
                f"The server runs the experiment {work.config_hash}, this client composed {self.config_hash}. "
                "Both must have the same version of umbel and the same experiment and overrides."
            )
        if self._clients is None or self._run != (work.run, work.attempt):
            if not _RUN.fullmatch(work.run):
                raise ValueError(f"The server calls its run {work.run!r}, which is no name of a folder.")
            self._clients = Clients(self._host, MemoryStore(self._memory_folder / work.run))
            self._run = (work.run, work.attempt)
        return self._clients

    def run(self, work: Work, payload: Payload, on_client: OnClient | None = None) -> Outcome:
        """Run the clients of `work` and return what came of it.

        Whatever a client raises is its own failure, not the phase's.

        Args:
            work: Which clients, in which blocks.
            payload: What they receive.
            on_client: Called after each client.

        Raises:
            ConfigMismatchError: The server runs another experiment.
            UnknownNameError: The strategy has no such phase.
        """
        clients = self._begin(work)
        part = self._part(work.phase)
        outcome = Outcome()
        tree = BlockTree(part.fold, work.num_blocks)
        for block in work.blocks:
            replies: dict[int, Reply | None] = {}
            for client in (client for client in block.clients if client in work.clients):
                start = time.perf_counter()
                replies[client] = self._run_client(clients, client, part, work, payload, outcome)
                outcome.seconds[client] = time.perf_counter() - start
                if on_client is not None:
                    on_client(client)
            if work.clients.issuperset(block.clients):
                tree.add(0, block.index, fold_block(part.fold, block, replies))
            else:
                outcome.singles |= {client: reply for client, reply in replies.items() if reply is not None}
        outcome.nodes = list(tree.nodes())
        return outcome

    def _part(self, name: str) -> Part:
        """Return the part of a client in the exchange of a name: a phase of the strategy, or the loop's own."""
        if name == EVALUATE:
            return Part(self._evaluate, evaluation_fold(self._host.data.num_classes), remembers=False)
        phase = self.strategy.phase(name)
        return Part(phase.local, phase.fold())

    def _evaluate(self, payload: Payload, client: ClientContext) -> Reply:
        size, schedule = self.experiment.evaluate.batch_size, self.experiment.schedule
        return evaluate_client(self.strategy, payload, client, size, schedule, self._host.task_heads)

    def _run_client(
        self, clients: Clients, client: int, part: Part, work: Work, payload: Payload, outcome: Outcome
    ) -> Reply | None:
        remembered: list[MemoryRecord] = []
        try:
            version = work.memories.get(client)
            before = clients.memory.read(client, version) if version else None
            context = clients.context(client, work.round, work.phase, before, remembered.append)
            reply = part.local(payload, context)
            part.fold.check(reply, payload)
            if part.remembers:
                self._remember(clients, client, work, before, remembered, outcome)
        except Exception as error:  # noqa: BLE001 - a client may fail in any way; the federation must not
            outcome.failures[client] = f"{type(error).__name__}: {error}"
            return None
        outcome.bytes_up += reply.num_bytes
        if work.phase not in self._framing:
            self._framing[work.phase] = framing_bytes(encode_reply(reply))
        outcome.framing_up += self._framing[work.phase]
        return reply

    def _remember(
        self,
        clients: Clients,
        client: int,
        work: Work,
        before: MemoryRecord | None,
        remembered: list[MemoryRecord],
        outcome: Outcome,
    ) -> None:
        """Write the client's memory, now that its reply is good."""
        own = self._host.own_parts()
        if not remembered and not own:
            return
        record = remembered[-1] if remembered else before or MemoryRecord()
        own = own or (dict(before.trees.get(NORM, {})) if before else {})
        if own:
            record = MemoryRecord({**record.trees, NORM: own}, record.numbers)
        version = Version(work.round, work.step, work.attempt)
        clients.memory.write(client, version, record, work.memories.get(client), work.checkpoint_round)
        outcome.remembered.append(client)

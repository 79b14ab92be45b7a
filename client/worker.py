"""Do a node's share of a phase: run its clients in order, fold what can be folded here, report the rest."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from umbel.client.deadline import attempt
from umbel.client.evaluation import evaluate_client
from umbel.client.host import NORM, Clients, Host
from umbel.client.lending import LentData, LentPayload
from umbel.client.own_data import OwnData
from umbel.client.shared import Shared, gradients_on
from umbel.conf.federation import OwnSite
from umbel.conf.load import build_strategy, portable_hash
from umbel.conf.own_data import is_own
from umbel.conf.schema import Experiment
from umbel.core.blocks import BlockTree
from umbel.core.evaluation import evaluation_fold
from umbel.core.folds import Partial, Product, Shapes
from umbel.core.memory import MemoryRecord, MemoryStore, Version
from umbel.core.messages import encode_reply, framing_bytes
from umbel.core.records import BadReplyError, Payload, Reply, plain, reason
from umbel.core.tree import clone
from umbel.core.work import Outcome, Work
from umbel.data.declared import declared
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


@dataclass(frozen=True)
class _Exchange:
    """What the clients of a message take part in.

    Attributes:
        work: Which clients, in which blocks.
        part: A client's part.
        lent: What they receive.
        shared: What they share otherwise.
        shapes: The shapes that their replies have, as far as the payload leaves them open.
    """

    work: Work
    part: Part
    lent: LentPayload
    shared: Shared
    shapes: Shapes = field(default_factory=dict)


@dataclass(frozen=True)
class _Answer:
    """What came of a client.

    Attributes:
        reply: Its reply; in memory of its own where it travels singly.
        lifted: Its accumulator where its block is added up here, else None.
        record: Its memory from now on; None leaves it as it is.
        framing: Bytes of framing that the reply would have, sent singly.
    """

    reply: Reply
    lifted: Partial | None
    record: MemoryRecord | None
    framing: int


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
    def _host(self) -> Host:
        assert self._hosted is not None, "no work has come"
        return self._hosted

    def declared(self, clients: Iterable[int]) -> dict[str, Any]:
        """Return what a greeting says of the data: training examples of each client over all its tasks, and classes.

        Images are not touched. Nothing of a site's own data that are refused: it is said when all agree on classes.
        """
        if self.own_data is not None:
            return self.own_data.declared(clients)
        counts: list[int] = self._host.data.num_train.tolist()
        examples = {str(client): counts[client] for client in clients}
        return {"examples": examples, "classes": declared(self._host.data)}

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
        if self.own_data is not None and (self._hosted is None or self._agreed != work.agreed):
            self._hosted = Host(self.experiment, self.own_data.agreed(work.agreed))
            self._agreed, self._clients = work.agreed, None
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
        exchange = _Exchange(work, self._part(work.phase), LentPayload(payload), Shared(self._host.device))
        outcome = Outcome()
        tree = BlockTree(exchange.part.fold, work.num_blocks)
        for block in work.blocks:
            whole, folded = work.clients.issuperset(block.clients), exchange.part.fold.zero()
            for client in (client for client in block.clients if client in work.clients):
                start = time.perf_counter()
                answer, failure = self._turn(clients, client, exchange, whole)
                outcome.seconds[client] = time.perf_counter() - start
                if answer is None:
                    outcome.failures[client] = failure
                else:
                    folded = self._take(client, answer, exchange, folded, outcome)
                if on_client is not None:
                    on_client(client)
            if whole:
                tree.add(0, block.index, folded)
        outcome.nodes = list(tree.nodes())
        return outcome

    def _take(self, client: int, answer: _Answer, exchange: _Exchange, folded: Partial, outcome: Outcome) -> Partial:
        """Count a good answer, and return what its block comes to with it."""
        phase = exchange.work.phase
        outcome.bytes_up += answer.reply.num_bytes
        outcome.framing_up += self._framing.setdefault(phase, answer.framing)
        if answer.record is not None:
            outcome.remembered.append(client)
        if answer.lifted is None:
            outcome.singles[client] = answer.reply
            return folded
        return exchange.part.fold.merge(folded, answer.lifted)

    def _part(self, name: str) -> Part:
        """Return the part of a client in the exchange of a name: a phase of the strategy, or the loop's own."""
        if name == EVALUATE:
            num_scores = len(self.experiment.evaluate.metrics)
            return Part(self._evaluate, evaluation_fold(self._host.data.num_classes, num_scores), remembers=False)
        phase = self.strategy.phase(name)
        return Part(phase.local, phase.fold())

    def _evaluate(self, payload: Payload, client: ClientContext) -> Reply:
        asked, schedule = self.experiment.evaluate, self.experiment.schedule
        heads = self._host.task_heads
        return evaluate_client(self.strategy, payload, client, asked.batch_size, schedule, heads, asked.metrics)

    def _turn(self, clients: Clients, client: int, exchange: _Exchange, whole: bool) -> tuple[_Answer | None, str]:
        """Run one client and put back what all share; return its answer, or None and why there is none.

        Args:
            clients: All clients.
            client: Its number.
            exchange: What it takes part in.
            whole: Its block is added up here.
        """
        part, work, lent, process = exchange.part, exchange.work, LentData(), os.getpid()
        seconds, whose = self.experiment.engine.client_seconds, f"Client {client}"
        remembered: list[MemoryRecord] = []
        try:
            version = work.memories.get(client)
            before = clients.memory.read(client, version) if version else None
            context = clients.context(client, work.round, work.phase, before, remembered.append, lent)
        except Exception as error:  # noqa: BLE001 - its memory is gone, its data cannot be read: that is its own matter
            return None, reason(error)
        with gradients_on():
            try:
                # In two steps, so that there are few frames between the command and a gradient.
                said = attempt(partial(part.local, exchange.lent.lend(), context), seconds, whose)
                act = partial(self._answer, said.made, exchange, before, remembered, whole, client)
                done = attempt(act, seconds, whose) if not said.failure else said.without()
            finally:
                if os.getpid() != process:
                    os._exit(0)  # the client forked: what went on here would be the run a second time
                if changed := self._put_back(exchange, lent):
                    clients.forget(client)
        if not done.in_time:
            clients.forget(client)
        if changed:
            who = f"{done.failure} It also" if done.failure else "it"
            return None, f"{who} changed what others get as it was: {', '.join(changed)}"
        if (answer := done.made) is None:
            return None, done.failure
        try:
            exchange.part.fold.agree(exchange.shapes, (answer.lifted or answer.reply).trees, answer.lifted is not None)
        except BadReplyError as error:
            return None, reason(error)
        if answer.record is not None:
            remember = partial(self._remember, clients, client, exchange.work, answer.record)
            if failure := attempt(remember, seconds, whose).failure:
                return None, failure
        return answer, ""

    def _put_back(self, exchange: _Exchange, lent: LentData) -> list[str]:
        """Put back what a client should have left as it was, and return what that is."""
        changed = [*exchange.shared.put_back(), *lent.take_back()]
        if not exchange.lent.take_back():
            changed.append("the payload")
        self._host.take_back()
        return changed

    def _answer(
        self,
        said: object,
        exchange: _Exchange,
        before: MemoryRecord | None,
        remembered: list[MemoryRecord],
        whole: bool,
        client: int,
    ) -> _Answer:
        """Return what comes of what a client said; nothing of it belongs to the client any more."""
        fold, phase = exchange.part.fold, exchange.work.phase
        reply = plain(said)
        fold.check(reply, exchange.lent.payload)
        framing = self._framing.get(phase) or framing_bytes(encode_reply(reply))
        record = self._record(before, remembered) if exchange.part.remembers else None
        if whole:
            return _Answer(reply, fold.lift(client, reply), record, framing)
        return _Answer(reply.owned(), None, record, framing)

    def _record(self, before: MemoryRecord | None, remembered: list[MemoryRecord]) -> MemoryRecord | None:
        """Return what a client's memory will be, in memory of its own; None leaves it as it is."""
        own = self._host.own_parts()
        if not remembered and not own:
            return None
        record = remembered[-1] if remembered else before or MemoryRecord()
        own = own or (dict(before.trees.get(NORM, {})) if before else {})
        trees = {**record.trees, NORM: own} if own else record.trees
        return MemoryRecord({name: clone(tree) for name, tree in trees.items()}, dict(record.numbers))

    def _remember(self, clients: Clients, client: int, work: Work, record: MemoryRecord) -> None:
        """Write a client's memory, now that its reply is good."""
        version = Version(work.round, work.step, work.attempt)
        clients.memory.write(client, version, record, work.memories.get(client), work.checkpoint_round)

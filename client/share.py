"""A node's share of a phase: its clients run one after the other, and what can be added up here is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from umbel.client.ahead import Turn, at_once, do_at_once
from umbel.client.deadline import attempt
from umbel.client.host import OWN, Clients
from umbel.client.lending import LentData, LentPayload
from umbel.client.shared import Shared, gradients_on
from umbel.core.device import give_back_memory
from umbel.core.fold_tree import FoldTree
from umbel.core.folds import Partial, Product, Shapes
from umbel.core.memory import MemoryRecord, Version
from umbel.core.records import BadReplyError, Payload, Reply, plain, reason
from umbel.core.spent import Spent, counted
from umbel.core.stored import Spill
from umbel.core.training import Trainer, train
from umbel.core.training.fallbacks import told_to
from umbel.core.training.together import Done, Job
from umbel.core.tree import clone
from umbel.core.wire.heads import reply_framing
from umbel.core.wire.work import ClientTime, Outcome, Work
from umbel.strategies.base import ClientContext

OnClient = Callable[[int], None]

_LARGE = 16 << 20  # bytes of a payload: memory counts more than the moment that it takes to give it back


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
class _Answer:
    """What came of a client.

    Attributes:
        reply: Its reply; where it waits, in memory of its own or in a file.
        lifted: Its accumulator where it does not, and that is no plain sum; else None.
        record: Its memory from now on; None leaves it as it is.
        framing: Bytes of framing that the reply would have, sent singly.
        spent: What its training cost.
    """

    reply: Reply
    lifted: Partial | None
    record: MemoryRecord | None
    framing: int
    spent: Spent


class Share:
    """A node's share of a phase.

    Args:
        clients: All clients of this process.
        part: What each of them does.
        work: Which of them take part, and where each stands.
        lent: What they receive.
        framing: Bytes of framing of a reply by phase, as far as they are known; what is found out is added.
    """

    def __init__(self, clients: Clients, part: Part, work: Work, lent: LentPayload, framing: dict[str, int]) -> None:
        self._clients, self._host = clients, clients.host
        self._part, self._work, self._lent, self._framing = part, work, lent, framing
        self._is_large = lent.payload.num_bytes >= _LARGE
        self._seconds = self._host.experiment.engine.client_seconds
        self._outcome = Outcome()
        # Not methods: tree and share would know each other, and keep the payload until garbage is collected.
        lift = partial(_lift, part.fold, self._seconds, self._outcome)
        memory_bytes = self._host.experiment.engine.memory_bytes
        spill = Spill(memory_bytes, partial(_tell, self._outcome))
        self._tree = FoldTree(part.fold, work.num_leaves, spill, memory_bytes, lift)
        self._shapes: Shapes = {}  # of replies, as far as the payload leaves them open
        squads = work.squads if part.remembers else ()  # an evaluation trains nothing
        self._squad_of = {client: squad for squad in squads for client in squad}

    def run(self, chosen: Iterable[int], on_client: OnClient | None = None) -> None:
        """Run clients, in their order.

        Whatever a client raises is its own failure, not the phase's.

        Args:
            chosen: Of those of the work.
            on_client: Called after each of them.
        """
        with told_to(self._outcome.fallbacks):  # here, so that there is no frame more
            self._shared, outcome = Shared(self._host.device), self._outcome
            clients, ahead = list(chosen), dict[int, Turn[_Answer]]()
            for client in clients:
                began, begin = time.time(), time.perf_counter()
                if client in self._squad_of and client not in ahead:
                    ahead |= self._at_once(client, set(clients))
                if (came := ahead.pop(client, None)) is None:
                    came = Turn(*self._turn(client), time.perf_counter() - begin, began)
                outcome.seconds[client] = came.seconds
                outcome.times.append(ClientTime(client, os.getpid(), came.began, came.seconds))
                if came.answer is None:
                    outcome.failures[client] = came.failure
                    self._tree.add_reply(self._work.leaves[client], client, None)
                else:
                    self._take(client, came.answer)
                del came  # it is added up, or waits in the tree
                if self._is_large:
                    give_back_memory()
                if on_client is not None:
                    on_client(client)

    def _at_once(self, client: int, here: Collection[int]) -> dict[int, Turn[_Answer]]:
        """Let a client's whole squad take its turns, as far as it runs here."""
        squad = self._squad_of[client]

        def turn(each: int, trainer: Trainer) -> Turn[_Answer]:
            began, begin = time.time(), time.perf_counter()
            answer, failure = self._turn(each, trainer, waits=True)
            return Turn(answer, failure, time.perf_counter() - begin, began)

        def do(jobs: Mapping[int, Job]) -> dict[int, Done]:
            try:
                return do_at_once(self._host, jobs, squad, self._seconds)
            finally:
                self._shared.put_back()

        return at_once([each for each in squad if each in here], turn, do)

    def outcome(self) -> Outcome:
        """Return what came of the clients that ran; the share is at its end."""
        self._outcome.singles = dict(self._tree.replies())
        self._outcome.nodes = [node for node in self._tree.nodes() if node[0]]  # at the bottom are holes alone
        return self._outcome

    def _take(self, client: int, answer: _Answer) -> None:
        """Count a good answer, and add it up."""
        place, outcome = self._work.leaves[client], self._outcome
        outcome.bytes_up += answer.reply.num_bytes
        outcome.framing_up += self._framing.setdefault(self._work.phase, answer.framing)
        outcome.spent.add(answer.spent.steps, answer.spent.examples, answer.spent.passes)
        if answer.record is not None:
            outcome.remembered.append(client)
        if answer.lifted is None:
            self._tree.add_reply(place, client, answer.reply)
        else:
            self._tree.add(0, place, answer.lifted)

    def _turn(self, client: int, trainer: Trainer = train, waits: bool = False) -> tuple[_Answer | None, str]:
        """Run one client and put back what all share; return its answer, or None and why there is none.

        Args:
            client: Its number.
            trainer: Stands in for `train`.
            waits: Others have their turn before its answer is added up.
        """
        clients, part, work, lent, process = self._clients, self._part, self._work, LentData(), os.getpid()
        seconds, whose = self._seconds, f"Client {client}"
        remembered: list[MemoryRecord] = []
        try:
            version = work.memories.get(client)
            before = clients.memory.read(client, version) if version else None
            context = clients.context(client, work.round, work.phase, before, remembered.append, lent, trainer)
        except Exception as error:  # noqa: BLE001 - its memory is gone, its data cannot be read: that is its own matter
            return None, reason(error)
        with gradients_on(), counted() as spent:
            try:
                # In two steps, so that there are few frames between the command and a gradient.
                said = attempt(partial(part.local, self._lent.lend(), context), seconds, whose)
                act = partial(self._answer, said.made, before, remembered, client, waits, spent)
                done = attempt(act, seconds, whose) if not said.failure else said.without()
            finally:
                if os.getpid() != process:
                    os._exit(0)  # the client forked: what went on here would be the run a second time
                if changed := self._put_back(lent):
                    clients.forget(client)
        if not done.in_time:
            clients.forget(client)
        if changed:
            who = f"{done.failure} It also" if done.failure else "it"
            return None, f"{who} changed what others get as it was: {', '.join(changed)}"
        if done.made is None:
            return None, done.failure
        answer = done.made
        try:
            part.fold.agree(self._shapes, (answer.lifted or answer.reply).trees, answer.lifted is not None)
        except BadReplyError as error:
            return None, reason(error)
        if answer.record is not None:
            remember = partial(self._remember, client, answer.record)
            if failure := attempt(remember, seconds, whose).failure:
                return None, failure
        return answer, ""

    def _put_back(self, lent: LentData) -> list[str]:
        """Put back what a client should have left as it was, and return what that is."""
        changed = [*self._shared.put_back(), *lent.take_back()]
        if not self._lent.take_back():
            changed.append("the payload")
        self._host.take_back()
        return changed

    def _answer(
        self,
        said: object,
        before: MemoryRecord | None,
        remembered: list[MemoryRecord],
        client: int,
        waits: bool,
        spent: Spent,
    ) -> _Answer:
        """Return what comes of what a client said; nothing of it belongs to the client any more."""
        fold, phase = self._part.fold, self._work.phase
        reply = plain(said)
        fold.check(reply, self._lent.payload, self._work.most_examples.get(client, math.inf))
        framing = self._framing.get(phase) or reply_framing(reply)
        record = self._record(before, remembered) if self._part.remembers else None
        if waits or self._tree.waits(self._work.leaves[client]):
            return _Answer(self._tree.kept(reply), None, record, framing, spent)
        if fold.is_sum:  # is added at once, piece by piece, and no code of anybody's runs for it
            return _Answer(reply, None, record, framing, spent)
        return _Answer(reply, fold.lift(client, reply), record, framing, spent)

    def _record(self, before: MemoryRecord | None, remembered: list[MemoryRecord]) -> MemoryRecord | None:
        """Return what a client's memory will be, in memory of its own; None leaves it as it is."""
        own = self._host.own_parts()
        if not remembered and not own:
            return None
        record = remembered[-1] if remembered else before or MemoryRecord()
        own = own or (dict(before.trees.get(OWN, {})) if before else {})
        trees = {**record.trees, OWN: own} if own else record.trees
        return MemoryRecord({name: clone(tree) for name, tree in trees.items()}, dict(record.numbers))

    def _remember(self, client: int, record: MemoryRecord) -> None:
        """Write a client's memory, now that its reply is good."""
        work = self._work
        version = Version(work.round, work.step, work.attempt)
        self._clients.memory.write(client, version, record, work.memories.get(client), work.checkpoint_round)


def _tell(outcome: Outcome, text: str) -> None:
    if text not in outcome.notices:
        outcome.notices.append(text)


def _lift(fold: Product, seconds: float, outcome: Outcome, client: int, reply: Reply) -> Partial:
    """Return the accumulator of a reply that has waited; where its fold raises, that is its client's failure."""
    done = attempt(partial(fold.lift, client, reply), seconds, f"Client {client}")
    if done.made is not None:
        return done.made
    outcome.failures[client] = done.failure
    return fold.zero()

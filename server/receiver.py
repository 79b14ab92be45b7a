"""Answers of nodes, taken apart and trusted in nothing: what is wrong with one costs its own clients, and no others."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from umbel.core.fold_tree import FoldTree, merged
from umbel.core.folds import Partial, Product, Shapes
from umbel.core.names import shortened
from umbel.core.records import BadReplyError, Payload, Reply, reason
from umbel.core.spent import Passes, Spent
from umbel.core.wire.limits import Limits, Size
from umbel.core.wire.work import ClientTime, Outcome
from umbel.server.port import Answer

_FRAMING = 1024  # bytes that a reply's framing may have beyond that of the answer that it was added up in


@dataclass
class Report:
    """What an exchange cost and what went wrong in it.

    Attributes:
        cohort: The selected clients.
        failures: For each client that failed, its node and the reason.
        seconds: Time that each client took, by its node's word: at most the time that the server waited.
        remembered: Clients that wrote their memory and whose reply was good.
        bytes_down: Tensor bytes that the selected clients received, each counted.
        bytes_up: Tensor bytes that they sent. Of replies that came singly, they are measured; what replies had that
            a node added up is the node's word, and at most so many times the sum that came.
        framing_down: Bytes of framing down.
        framing_up: Bytes of framing up, by the nodes' word: at most so many times the framing that came.
        spent: What training cost the clients, by the nodes' word.
        times: When each client ran, where that is known.
        notices: What whoever reads the result should know.
        fallbacks: What trained without a fast mode that was asked for, and why, by the nodes' word.
    """

    cohort: tuple[int, ...] = ()
    failures: dict[int, tuple[int, str]] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    remembered: set[int] = field(default_factory=set)
    bytes_down: int = 0
    bytes_up: int = 0
    framing_down: int = 0
    framing_up: int = 0
    spent: Spent = field(default_factory=Spent)
    times: list[ClientTime] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    fallbacks: list[str] = field(default_factory=list)


class Receiver:
    """Takes the answers of a phase.

    Args:
        tree: Where good replies go.
        cohort: The phase's clients, in their order.
        fold: How replies combine.
        payload: What the clients received.
        report: What went wrong goes here.
        most: Returns the most examples that a client's reply may count.
    """

    def __init__(
        self,
        tree: FoldTree,
        cohort: Sequence[int],
        fold: Product,
        payload: Payload,
        report: Report,
        most: Callable[[int], float] = lambda client: math.inf,
    ) -> None:
        self._tree = tree
        self._cohort = tuple(cohort)
        self._places = {client: place for place, client in enumerate(cohort)}
        self._fold = fold
        self._payload = payload
        self._report = report
        self._most = most
        self._began = time.monotonic()
        self._height = (len(cohort) - 1).bit_length()
        self._shapes: Shapes = {}
        self._limits: dict[frozenset[int], Limits] = {}
        self._done: set[int] = set()
        self.answered: set[int] = set()

    @property
    def num_done(self) -> int:
        """How many clients are accounted for."""
        return len(self._done)

    def fail(self, client: int, node: int, reason: str) -> None:
        """Record a client that failed, unless it is accounted for already."""
        if client not in self._done:
            self._done.add(client)
            self._report.failures[client] = (node, shortened(reason) or "it gave no reason")
            self._tree.add_reply(self._places[client], client, None)

    def limits(self, clients: frozenset[int]) -> Limits:
        """Return the most that an answer for these clients may be, by the payload and the fold."""
        if clients in self._limits:
            return self._limits[clients]
        branches = merged([self._places[client] for client in clients], len(self._cohort))
        total = sum((self._fold.most(self._payload, len(leaves)) for leaves in branches), Size())
        self._limits[clients] = Limits.of_answer(total, len(clients))
        return self._limits[clients]

    def take(self, answer: Answer, clients: frozenset[int]) -> None:
        """Take a node's answer for the clients that it was given."""
        node, outcome = answer.node, answer.outcome
        if outcome is None:
            self._fail_all(clients, node, answer.error)
            return
        num_before = self.num_done
        most_bytes = self._take_nodes(outcome, node, clients)
        single_bytes = self._take_singles(outcome, node, clients)
        for client in sorted(clients.intersection(outcome.failures)):
            self.fail(client, node, outcome.failures[client])
        if num_taken := self.num_done - num_before:  # not an answer that came twice; an engine may answer by blocks
            self._count(outcome, single_bytes, most_bytes, num_taken * (answer.framing + _FRAMING))
            self._report.remembered |= clients.intersection(outcome.remembered)
        self.answered.add(node)
        self._report.times += outcome.times
        self._report.notices += outcome.notices
        self._report.fallbacks += outcome.fallbacks
        waited = time.monotonic() - self._began
        self._report.seconds |= {
            client: min(seconds, waited)
            for client, seconds in outcome.seconds.items()
            if client in clients and seconds >= 0
        }

    def _count(self, outcome: Outcome, single_bytes: int, most_bytes: int, most_framing: int) -> None:
        """Count what came: what a node says of it, held to what there was."""
        self._report.bytes_up += min(max(outcome.bytes_up, single_bytes), single_bytes + most_bytes)
        self._report.framing_up += min(max(outcome.framing_up, 0), most_framing)
        said = outcome.spent
        passes = {
            spec: Passes(max(each.forward, 0), max(each.backward, 0), max(each.head, 0))
            for spec, each in said.passes.items()
        }
        self._report.spent.add(max(said.steps, 0), max(said.examples, 0), passes)

    def _fail_all(self, clients: Collection[int], node: int, reason: str) -> None:
        for client in sorted(clients):
            self.fail(client, node, reason)

    def _take_nodes(self, outcome: Outcome, node: int, clients: frozenset[int]) -> int:
        """Take accumulators; return the most bytes that the replies in them can have had."""
        for (level, index), flaw in outcome.flaws.items():
            self._fail_all(self._covered(level, index, clients), node, flaw)
        most_bytes = 0
        for level, index, partial in outcome.nodes:
            covered = self._covered(level, index, clients)
            if not covered:
                continue
            good = [client for client in covered if client not in outcome.failures]
            if flaw := self._flaw(partial, good):
                self._fail_all(covered, node, flaw)
                continue
            for client in covered:
                self._done.add(client)
                if client in outcome.failures:
                    text = shortened(outcome.failures[client]) or "it gave no reason"
                    self._report.failures[client] = (node, text)
            most_bytes += partial.num_replies * partial.num_bytes
            self._tree.add(level, index, partial)
        return most_bytes

    def _covered(self, level: int, index: int, clients: frozenset[int]) -> list[int]:
        """Return the clients below a node of the tree, if there is one and they are all this node's and still open."""
        if not 0 < level <= self._height or not 0 <= index << level < len(self._cohort):
            return []  # no such node of the tree, or a reply, which comes as one: its clients stay without an answer
        covered = list(self._cohort[index << level : (index + 1) << level])
        if not clients.issuperset(covered) or not self._done.isdisjoint(covered):
            return []  # it answers for clients that are not its own: those stay without an answer
        return covered

    def _take_singles(self, outcome: Outcome, node: int, clients: frozenset[int]) -> int:
        """Take replies that came singly; return the bytes of those that are good."""
        num_bytes = 0
        for client, reply in outcome.singles.items():
            if client not in clients or client in self._done or client in outcome.failures:
                continue
            if flaw := self._flaw_of(client, reply):
                self.fail(client, node, flaw)
                continue
            self._done.add(client)
            num_bytes += reply.num_bytes
            self._tree.add_reply(self._places[client], client, reply)
        return num_bytes

    def _flaw(self, partial: Partial, clients: Sequence[int]) -> str:
        """Say why an accumulator that should hold these clients' replies cannot be used; "" when it can."""
        try:
            self._fold.check_partial(partial, self._payload, clients, self._most)
            if clients:
                self._fold.agree(self._shapes, partial.trees, lifted=True)
        except BadReplyError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - what a fold of somebody's own makes of what came
            return reason(error)
        return ""

    def _flaw_of(self, client: int, reply: Reply) -> str:
        """Say why a reply cannot be used; "" when it can."""
        try:
            self._fold.check(reply, self._payload, self._most(client))
            self._fold.agree(self._shapes, reply.trees, lifted=False)
        except BadReplyError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - likewise
            return reason(error)
        return ""

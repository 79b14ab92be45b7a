"""Which node holds which clients, and who that node is."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from umbel.core import clients
from umbel.core.files import write_json
from umbel.core.names import shortened
from umbel.server.errors import RunStoppedError
from umbel.server.greeting import ForbiddenError, Greeting, Member, challenge, check_claims, most_bytes, site_of
from umbel.server.port import Port, Question, Said
from umbel.server.sites import SITES, Sites

NODES = "nodes.json"  # in the run's folder: who is there, and who was turned away
_HELLO = "query"  # umbel.client.process answers it
_FIRST_WAIT, _LONGEST_WAIT = 0.005, 0.25
_WRITE_SECONDS = 5.0  # how old what stands in the file may be
_MOST_NOTICES = 20  # in a run's report; the log has all
_MOST_REFUSALS = 1000  # that are kept
_AHEAD_SECONDS, _BEHIND_SECONDS = 4.0, 240.0  # Flower turns away what is signed 5 s ahead or 305 s behind
log = logging.getLogger("umbel.server")


@dataclass
class _Refused:
    """A node that is turned away.

    Attributes:
        reason: Why.
        at: When, in seconds of the clock.
        until_left: The nodes that must have left before it is greeted again; none: as long as it is there.
        stands: Whether it is still so.
    """

    reason: str
    at: float
    until_left: frozenset[int] = frozenset()
    stands: bool = True


@dataclass(frozen=True)
class Told:
    """Who hears of what happens to nodes.

    Attributes:
        notice: Told a sentence for the run's report.
        folder: The run's folder; None keeps no file.
    """

    notice: Callable[[str], None] = field(default=lambda text: None)
    folder: Path | None = None


class Directory:
    """The nodes of the federation and the clients that each holds.

    Who holds a client first keeps it: another node that holds it too gets it when the first has left.

    Args:
        port: How nodes are reached.
        config_hash: Hash of the server's experiment; a node that composed another is refused.
        num_clients: Clients in total.
        timeout_seconds: How long to wait for nodes that together hold every client.
        run: The run's identity, which is signed with a greeting.
        sites: Who may take part, and with what; None accepts every node.
        told: Who hears of it.
        repeats: In how many tasks each example occurs, and is counted.
        class_bytes: What a greeting may say of the classes of one client.
    """

    def __init__(
        self,
        port: Port,
        config_hash: str,
        num_clients: int,
        timeout_seconds: float,
        run: str = "",
        sites: Sites | None = None,
        told: Told | None = None,
        repeats: int = 1,
        class_bytes: int = 0,
    ) -> None:
        self._most_bytes = most_bytes(num_clients, class_bytes)
        self._port, self._config_hash, self._num_clients = port, config_hash, num_clients
        self._timeout, self._run, self._sites = timeout_seconds, run, sites
        self._told, self._repeats = told or Told(), repeats
        self._check: Callable[[Greeting], str] = lambda greeting: ""
        self._members: dict[int, Member] = {}  # in the order in which they came
        self._refused: dict[int, _Refused] = {}
        self._challenges: dict[int, str] = {}
        self._num_failed: dict[int, int] = {}
        self._present: set[int] = set()
        self._num_notices = 0
        self._written = -math.inf
        self._changed = True

    def wait(self, on_wait: Callable[[], None] | None = None) -> None:
        """Wait until the nodes that are there hold every client.

        Raises:
            RunStoppedError: They do not, within the timeout; the message says which clients are missing.
        """
        if self._port.strangers and self._sites is None:
            self._say(f"The server has no list of sites ({SITES}): it knows nobody, and takes every node at its word.")
        deadline = time.monotonic() + self._timeout
        wait = _FIRST_WAIT
        while True:
            self.refresh()
            missing = set(range(self._num_clients)).difference(*(member.held for member in self._members.values()))
            if not missing:
                return
            if time.monotonic() >= deadline or self._nobody_else_comes():
                raise RunStoppedError(self._too_few(missing))
            if on_wait is not None:
                on_wait()
            wait = min(wait * 1.5, _LONGEST_WAIT)
            time.sleep(wait)

    def _nobody_else_comes(self) -> bool:
        """Say whether a run has the nodes that it started itself, and all of them have been turned away."""
        away = {node for node, refused in self._refused.items() if refused.stands}
        return not self._port.strangers and bool(self._present) and self._present <= away

    def _too_few(self, missing: set[int]) -> str:
        text = (
            f"Waited {self._timeout:g} s: {len(self._members)} nodes are connected, and nobody holds the clients "
            f"{clients.written(missing)} of {self._num_clients}. Start more nodes (umbel federate up --nodes N), or "
            "raise engine.node_timeout_seconds."
        )
        silent = sorted(self._port.silent())
        if silent:
            text += f"\nNo answer yet from {', '.join(f'node {node}' for node in silent)}: busy with another run?"
        for node, refused in list(self._refused.items())[-_MOST_NOTICES:]:
            text += f"\nNode {node} was refused: {refused.reason}"
        return text

    def hold_to(self, check: Callable[[Greeting], str]) -> None:
        """Turn nodes away that come from now on and of whose greeting `check` says why; "" where they may stay."""
        self._check = check

    def refresh(self) -> None:
        """Greet nodes that are new and forget those that left.

        Nobody waits here: a node that comes in the middle of a run is of use once it has answered.
        """
        self._present = self._port.nodes()
        self._read_sites()
        self._forget(self._present)
        turned_away = {node for node, refused in self._refused.items() if refused.stands}
        new = sorted(self._present - self._members.keys() - turned_away - self._port.silent())
        greetings = [self._greeting(node) for node in new]
        answers = self._port.greet(greetings, time.monotonic() + self._timeout, self._most_bytes)
        for answer in sorted(answers, key=lambda answer: answer.node):
            self._welcome(answer)
        self._write()

    def _greeting(self, node: int) -> Question:
        self._challenges[node] = challenge()
        hello = {"hello": self._config_hash, "challenge": self._challenges[node], "run": self._run}
        return Question(node, _HELLO, hello)

    def _read_sites(self) -> None:
        """Take up what has changed in the list of sites: who may no longer take part goes, who was refused may try."""
        changed, problem = self._sites.refresh() if self._sites else (False, "")
        if problem:
            self._say(problem)
        if not changed or self._sites is None:
            return
        dropped = set()
        for node, member in list(self._members.items()):
            site = self._sites.now.sites.get(member.greeting.key)
            try:
                if site is None:
                    raise ForbiddenError(f"{member.whose} is no longer on the list of sites.")
                check_claims(member.greeting, site, self._num_clients, self._repeats)
            except ForbiddenError as error:
                del self._members[node]
                dropped.add(node)
                self._refuse(node, str(error))
            else:
                self._members[node] = replace(member, site=site)
        for node, refused in self._refused.items():
            refused.stands = refused.stands and node in dropped
        self._changed = True

    def _forget(self, present: set[int]) -> None:
        """Forget nodes that have left, and let those that waited for them be greeted again."""
        gone = self._members.keys() - present
        self._changed = self._changed or bool(gone)
        for node in gone:
            del self._members[node]
        for node in self._challenges.keys() - present:
            del self._challenges[node]
        for node, refused in self._refused.items():
            blocked = refused.until_left and not refused.until_left.isdisjoint(self._members)
            if node not in present or (refused.until_left and not blocked):
                refused.stands = False  # whoever comes back is asked anew

    def _welcome(self, answer: Said) -> None:
        node = answer.node
        asked = self._challenges.pop(node, None)
        if asked is None:
            return  # nobody asked, or it answered before
        if answer.error:
            self._num_failed[node] = self._num_failed.get(node, 0) + 1
            if self._num_failed[node] >= self._port.num_tries:
                self._refuse(node, answer.error)
            return
        try:
            said = answer.read()
            site = site_of(said, asked, self._run, node, self._sites.now) if self._sites is not None else None
            greeting = Greeting.read(said, self._num_clients)
            if site is not None:
                check_claims(greeting, site, self._num_clients, self._repeats)
        except (ValueError, RecursionError) as error:  # whatever it sent
            self._refuse(node, str(error))
            return
        if greeting.config_hash != self._config_hash:
            reason = (
                f"it composed the experiment {greeting.config_hash}, the server {self._config_hash}: different "
                "versions of umbel or of the experiment."
            )
            self._refuse(node, reason)
            return
        if other := self._check(greeting):
            self._refuse(node, other)
            return
        first = [
            other.node for other in self._members.values() if site is not None and other.greeting.key == greeting.key
        ]
        if site is not None and first:
            reason = f"the key of the site {site.name} is in use by node {first[0]}, which stays until it leaves."
            self._refuse(node, reason, frozenset(first))
            return
        self._accept(Member(node, greeting, site, time.time()))

    def _accept(self, member: Member) -> None:
        for other in self._members.values():
            if both := member.held & other.held:
                self._say(
                    f"Node {member.node} says that it holds the clients {shortened(clients.written(both))}, which node "
                    f"{other.node} held first: they stay with that one until it leaves."
                )
        skew = member.clock_skew
        if math.isfinite(skew) and not -_BEHIND_SECONDS < skew < _AHEAD_SECONDS:
            self._say(f"The clock of {member.whose} is {skew:+.0f} s off the server's; Flower takes -305 to +5 s.")
        self._members[member.node] = member
        self._refused.pop(member.node, None)
        self._num_failed.pop(member.node, None)
        self._changed = True
        log.info("node %d accepted: %s, clients %s", member.node, member.whose, clients.written(member.held))

    def _refuse(self, node: int, reason: str, until_left: frozenset[int] = frozenset()) -> None:
        """Turn a node away and say so; one that waits for another to leave is not told of twice."""
        reason = shortened(reason)
        before = self._refused.pop(node, None)
        self._refused[node] = _Refused(reason, time.time(), until_left)
        while len(self._refused) > _MOST_REFUSALS:
            self._refused.pop(next(iter(self._refused)))
        self._changed = True
        if before is None or before.reason != reason:
            self._say(f"Node {node} was refused: {reason}")

    def _say(self, text: str) -> None:
        log.warning(text)
        self._num_notices += 1
        if self._num_notices <= _MOST_NOTICES:
            self._told.notice(text)
        elif self._num_notices == _MOST_NOTICES + 1:
            self._told.notice("There is more about nodes that were refused: the server's log has all of it.")

    def split(self, cohort: Iterable[int]) -> tuple[dict[int, frozenset[int]], list[int]]:
        """Return the clients of a cohort by the node that runs them, and those that nobody holds.

        A client that several nodes hold goes to the one that came first (of those that came together, the one with the
        lowest id).
        """
        remaining = set(cohort)
        assigned: dict[int, frozenset[int]] = {}
        for member in self._members.values():
            mine = frozenset(remaining & member.held)
            if mine:
                assigned[member.node] = mine
                remaining -= mine
        return assigned, sorted(remaining)

    def may_be_called(self, node: int, name: str) -> bool:
        """Say whether a node may call its site so: not as another site of the list is called."""
        member = self._members.get(node)
        own = member.site.name if member is not None and member.site is not None else ""
        listed = self._sites.now.sites.values() if self._sites is not None else ()
        return name == own or all(site.name != name for site in listed)

    def most_examples(self, client: int) -> int | None:
        """Return how many training examples a client has, over all its tasks, by the word of the node that holds it.

        Where its node did not say, it is the most that its site may claim; None where there is no limit either.
        """
        for member in self._members.values():
            if client in member.held:
                examples = member.greeting.examples
                if examples is not None:
                    return examples[client]
                most = member.site.max_examples if member.site else None
                return None if most is None else most * self._repeats
        return None

    def _write(self) -> None:
        """Write who is there into the run's folder, when that has changed or what stands there is old."""
        if self._told.folder is None or not (self._changed or time.monotonic() - self._written > _WRITE_SECONDS):
            return
        self._changed, self._written = False, time.monotonic()
        refused = [(node, each) for node, each in self._refused.items() if node not in self._members]
        content = {
            "time": round(time.time(), 1),
            "sites": str(self._sites.path) if self._sites else None,
            "nodes": [member.as_dict() for member in self._members.values()],
            "silent": sorted(self._port.silent()),
            "refused": [
                {"node": node, "reason": each.reason, "time": round(each.at, 1), "present": node in self._present}
                for node, each in refused[-_MOST_NOTICES:]
            ],
        }
        write_json(self._told.folder / NODES, content)

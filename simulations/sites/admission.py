"""Who is let in: the keys of `sites.yaml`, registered at the SuperLink, and the runs that its submitters signed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from umbel.client.node.policy import PURPOSE, signed_content
from umbel.core.files import stamp
from umbel.core.names import shortened
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, read_public, verify
from umbel.simulations.sites.flower_door import Control, ControlError, NodeEntry, RunEntry, connected
from umbel.simulations.sites.names import Address
from umbel.simulations.sites.register import Register, Site, read_register

_MOST_RUNS = 1000  # that are looked at, the newest
_UNREGISTERED = "unregistered"


class Admission:
    """Keeps the SuperLink to what a file of sites says, which is read again when it changes.

    Args:
        sites: The file.
        control: The Control API.
        authority: The certificate that the SuperLink's is signed by.
        say: Told what happens.
    """

    def __init__(self, sites: Path, control: Address, authority: Path, say: Callable[[str], None]) -> None:
        self._sites, self._control, self._authority, self.say = sites, control, authority, say
        self._stamp: tuple[int, ...] | None = None  # of the file when it was read
        self._register: Register | None = None
        self._not_taken: set[str] = set()  # keys that the SuperLink did not register
        self._runs_ended: set[int] = set()
        self._runs_taken: set[int] = set()
        self.online: set[str] = set()

    @property
    def is_stale(self) -> bool:
        """Whether the file may say something else than the SuperLink has been told."""
        return stamp(self._sites) != self._stamp

    def forget(self) -> None:
        """Take the SuperLink for one that has been told nothing."""
        self._stamp = None

    def look(self) -> None:
        """Have the SuperLink take the keys of `sites.yaml` and no others, and say which sites came and went.

        Whatever it was told by others: every account of this machine reaches its control port, and can register keys.

        Raises:
            Refusal: The file cannot be read, and never could.
        """
        register = self._read()
        wanted = {mark_of(site.key): name for name, site in register.sites.items() if not site.revoked}
        with connected(self._control, self._authority) as control:
            nodes = [node for node in control.nodes() if node.status != _UNREGISTERED]
            known = {mark_of(node.key) for node in nodes}
            for node in nodes:
                if mark_of(node.key) not in wanted:
                    control.unregister(node.node_id)
                    self.say(_why_unregistered(node, register))
            for mark, name in wanted.items():
                if mark not in known and mark not in self._not_taken:
                    self._take(control, name, register.sites[name])
        online = {wanted[mark] for node in nodes if node.online and (mark := mark_of(node.key)) in wanted}
        for name in sorted(online - self.online):
            self.say(f"{name} is connected.")
        for name in sorted(self.online - online):
            self.say(f"{name} is gone.")
        self.online = online

    def _read(self) -> Register:
        if self._register is not None and not self.is_stale:
            return self._register
        now = stamp(self._sites)
        try:
            self._register = read_register(self._sites)
        except Refusal as error:
            if self._register is None:
                raise
            self.say(f"{error} What it said before holds.")
        self._stamp = now
        self._not_taken.clear()
        return self._register

    def _take(self, control: Control, name: str, site: Site) -> None:
        try:
            control.register(site.key, name)
        except ControlError as error:
            self._not_taken.add(mark_of(site.key))
            self.say(f"{name} is not taken: {error} A key that was revoked once needs a successor: init --site.")
            return
        self.say(f"{name} is taken, with the clients {site.clients}.")

    def check_runs(self) -> None:
        """Stop runs that no submitter of `sites.yaml` has signed, or none who is one now."""
        submitters = self._read().submitters
        with connected(self._control, self._authority) as control:
            for run in control.runs(limit=_MOST_RUNS):
                if run.run_id in self._runs_ended:
                    continue
                if run.finished:
                    self._runs_ended.add(run.run_id)
                    continue
                signer = run.config.get("signer", "")
                known = submitters.get(signer)
                if known is None or not _is_signed(run, known.key):
                    control.stop(run.run_id)
                    self._runs_ended.add(run.run_id)  # behind a stop that may fail
                    self.say(f"Run {run.run_id} is stopped: {_why_not(signer, known is not None)}.")
                elif run.run_id not in self._runs_taken:
                    self._runs_taken.add(run.run_id)
                    name = shortened(run.config.get("experiment", ""))
                    self.say(f"Run {run.run_id} of {shortened(signer) or 'somebody'}: {name}.")


def nodes_by_key(nodes: list[NodeEntry]) -> dict[str, NodeEntry]:
    """Return nodes by the names of their keys; those that the SuperLink no longer takes are not among them."""
    return {mark_of(node.key): node for node in nodes if node.status != _UNREGISTERED}


def mark_of(key: str) -> str:
    """Return the name of a public key."""
    try:
        return fingerprint(read_public(key))
    except Refusal:
        return "that is none"


def key_in(line: str) -> str:
    """Return whose key a line of the SuperLink's log shows, in words."""
    begin, end = line.find("-----BEGIN PUBLIC KEY"), line.find("-----END PUBLIC KEY-----")
    if not 0 <= begin < end:
        return "without a key"
    return f"with the key {mark_of(line[begin : end + 24].replace(chr(92) + 'n', chr(10)))}"


def _why_unregistered(node: NodeEntry, register: Register) -> str:
    mark = mark_of(node.key)
    for name, site in register.sites.items():
        if mark_of(site.key) == mark:
            return f"{name} is no longer taken: its key is unregistered."
    return f"{shortened(node.name) or 'Somebody'} is not taken: sites.yaml does not have the key {mark}."


def _is_signed(run: RunEntry, key: str) -> bool:
    try:
        content = signed_content(run.bundle_hash, run.config)
    except Refusal:
        return False  # it says something twice
    return verify(read_public(key), PURPOSE, content, run.config.get("signature", ""))


def _why_not(signer: str, known: bool) -> str:
    if not signer:
        return "it is not signed"
    signer = shortened(signer)
    return f"the key of {signer} did not sign it" if known else f"{signer!r} is no submitter of sites.yaml"

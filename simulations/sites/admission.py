"""Who is let in: the keys of `sites.yaml`, registered at the SuperLink, and the runs that its submitters signed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from umbel.client.node.policy import PURPOSE, signed_content
from umbel.core.identity import fingerprint, read_public, verify
from umbel.core.names import shortened
from umbel.core.refusal import Refusal
from umbel.simulations.sites.flower_door import Control, ControlError, NodeEntry, RunEntry, connected
from umbel.simulations.sites.names import Address
from umbel.simulations.sites.register import Register, Site, read_register

_MOST_RUNS = 1000  # that are looked at, the newest


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
        self._stamp: tuple[int, ...] = ()
        self._register = Register("", {}, {})
        self._runs_seen: set[int] = set()
        self.online: set[str] = set()

    @property
    def is_stale(self) -> bool:
        """Whether the file says something else than the SuperLink has been told."""
        return self._now() != self._stamp

    def forget(self) -> None:
        """Take the SuperLink for one that has been told nothing."""
        self._stamp = ()

    def _now(self) -> tuple[int, ...]:
        try:
            status = self._sites.stat()
        except OSError:
            return (0,)
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    def synchronise(self) -> None:
        """Register the keys of `sites.yaml` at the SuperLink and unregister all others."""
        stamp = self._now()
        try:
            register = self._register = read_register(self._sites)
        except Refusal as error:
            self._stamp = stamp
            self.say(f"{error} What it said before holds.")
            return
        with connected(self._control, self._authority) as control:
            known = nodes_by_key(control.nodes())
            wanted = {mark_of(site.key): name for name, site in register.sites.items() if not site.revoked}
            for mark, node in known.items():
                if mark not in wanted:
                    control.unregister(node.node_id)
                    self.say(f"{node.name or mark} is no longer taken: its key is unregistered.")
            for mark, name in wanted.items():
                if mark not in known:
                    self._take(control, name, register.sites[name])
        self._stamp = stamp

    def _take(self, control: Control, name: str, site: Site) -> None:
        try:
            control.register(site.key, name)
        except ControlError as error:
            self.say(f"{name} is not taken: {error} A key that was revoked once needs a successor: init --site.")
            return
        self.say(f"{name} is taken, with the clients {site.clients}.")

    def check_runs(self) -> None:
        """Stop new runs that no submitter of `sites.yaml` has signed."""
        submitters = self._register.submitters
        with connected(self._control, self._authority) as control:
            for run in control.runs(limit=_MOST_RUNS):
                if run.run_id in self._runs_seen:
                    continue
                if run.finished:
                    self._runs_seen.add(run.run_id)
                    continue
                signer = run.config.get("signer", "")
                known = submitters.get(signer)
                if submitters and (known is None or not _is_signed(run, known.key)):
                    control.stop(run.run_id)
                    self.say(f"Run {run.run_id} is stopped: {_why_not(signer, known is not None)}.")
                else:
                    name = shortened(run.config.get("experiment", ""))
                    self.say(f"Run {run.run_id} of {shortened(signer) or 'somebody'}: {name}.")
                self._runs_seen.add(run.run_id)  # behind a stop that may fail

    def look(self) -> None:
        """Say which sites came and went."""
        with connected(self._control, self._authority) as control:
            online = {node.name for node in control.nodes() if node.online}
        for name in sorted(online - self.online):
            self.say(f"{name} is connected.")
        for name in sorted(self.online - online):
            self.say(f"{name} is gone.")
        self.online = online


def nodes_by_key(nodes: list[NodeEntry]) -> dict[str, NodeEntry]:
    """Return nodes by the names of their keys; those that the SuperLink no longer takes are not among them."""
    return {mark_of(node.key): node for node in nodes if node.status != "unregistered"}


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


def _is_signed(run: RunEntry, key: str) -> bool:
    content = signed_content(run.bundle_hash, run.config)
    return verify(read_public(key), PURPOSE, content, run.config.get("signature", ""))


def _why_not(signer: str, known: bool) -> str:
    if not signer:
        return "it is not signed"
    return f"the key of {signer} did not sign it" if known else f"{shortened(signer)!r} is no submitter of sites.yaml"

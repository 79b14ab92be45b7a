"""The server's list of sites: whose key is whose, which clients each has, and what it may claim.

    federation: hospitals
    submitters:
      alice: {key: "-----BEGIN PUBLIC KEY----- ..."}
    sites:
      north:
        key: "-----BEGIN PUBLIC KEY----- ..."
        clients: "0-3"
        max_examples: 20000
        revoked: false

`clients: "0 of 4"` has the first of four equal shares of all clients, however many an experiment has. The file is read
again when it has changed, so that sites come and go while the server is up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from umbel.conf.written import Scalar, Tree, read_yaml, resolve
from umbel.core import clients
from umbel.core.files import stamp
from umbel.core.names import nearest, shortened, shown
from umbel.core.refusal import Refusal
from umbel.server.variables import SITES as SITES

if TYPE_CHECKING:  # where there is no list, there is no need of keys
    from umbel.core.wire.identity import PublicKey

_SHARE = re.compile(r"\s*([0-9]{1,9}) of ([0-9]{1,9})\s*")
_TOP, _SUBMITTER, _SITE = ("federation", "submitters", "sites"), ("key",), ("key", "clients", "max_examples", "revoked")


@dataclass(frozen=True)
class Site:
    """A site that may take part.

    Attributes:
        name: Its name.
        key: The public half of its key.
        fingerprint: Name of the key.
        clients: The clients that it has, or
        share: which of how many equal shares of all clients, from 0 on.
        max_examples: The most training examples that one of its clients may have, each counted once however many
            tasks it occurs in; None sets no limit.
        revoked: Whether it is turned away from now on.
    """

    name: str
    key: PublicKey
    fingerprint: str
    clients: tuple[range, ...]
    share: tuple[int, int] | None = None
    max_examples: int | None = None
    revoked: bool = False

    def foreign(self, claimed: Iterable[int], num_clients: int) -> list[int]:
        """Return those of the claimed clients that it does not have, of `num_clients` in all."""
        from umbel.core.wire.work import held_by  # brings torch, for which a supervisor need not wait

        held = self.clients if self.share is None else (held_by(*self.share, num_clients),)
        return [client for client in claimed if not any(client in part for part in held)]

    def common(self, other: Site) -> str:
        """Say which clients it has in common with another site; "" where there are none."""
        if self.share is not None and other.share is not None and self.share[1] == other.share[1]:
            return "the same share" if self.share == other.share else ""
        if self.share is not None or other.share is not None:
            return "clients, perhaps: one has a share, the other has not, or one of another number of shares"
        both = clients.common(self.clients, other.clients)
        return f"client {both[0]}" if both else ""


@dataclass(frozen=True)
class SiteList:
    """What a file of sites says.

    Attributes:
        federation: Name of the federation; empty where the file gives none.
        submitters: Public keys of those who may have runs run, by name.
        sites: The sites by the fingerprints of their keys.
    """

    federation: str = ""
    submitters: Mapping[str, PublicKey] = field(default_factory=dict)
    sites: Mapping[str, Site] = field(default_factory=dict)


def read_sites(path: Path) -> SiteList:
    """Read a file of sites.

    Raises:
        Refusal: It cannot be read, has unknown keys, a key that is none, or two sites share a key or a client.
    """
    return _Reader(path).read()


class Sites:
    """A file of sites, and what it says now.

    Args:
        path: The file.

    Raises:
        Refusal: It cannot be read.

    Attributes:
        path: The file.
        now: What it said when it could last be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = stamp(self.path)
        self.now = read_sites(path)

    @classmethod
    def of_environment(cls) -> Sites | None:
        """Return the list that the environment names; None where it names none."""
        path = os.environ.get(SITES)
        return cls(Path(path)) if path else None

    def refresh(self) -> tuple[bool, str]:
        """Look whether the file has changed, and read it again if so.

        Returns:
            Whether it says something else now; and why it could not be read, in which case what it said before holds.
        """
        now = stamp(self.path)
        if now == self._seen:
            return False, ""
        self._seen = now
        try:
            self.now = read_sites(self.path)
        except Refusal as error:
            return False, f"{error} What it said before holds."
        return True, ""


class _Reader:
    """Reads one file."""

    def __init__(self, path: Path) -> None:
        self._name = shown(path)
        self._path = path

    def read(self) -> SiteList:
        try:
            text = self._path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
            raise Refusal(f"The list of sites {self._name} cannot be read: {reason}.", key=SITES) from error
        top = self._mapping(read_yaml(text, self._name), "the file", _TOP)
        submitters = self._named(top, "submitters")
        by_key: dict[str, Site] = {}
        for name, content in self._named(top, "sites").items():
            site = self._site(name, content)
            for other in by_key.values():
                self._check_apart(site, other)
            by_key[site.fingerprint] = site
        federation = self._value(top, "federation", "", str)
        keys = {name: self._key(self._mapping(each, name, _SUBMITTER), name) for name, each in submitters.items()}
        return SiteList(federation, keys, by_key)

    def _site(self, name: str, content: Tree) -> Site:
        from umbel.core.wire.identity import fingerprint

        where = f"sites.{name}"
        fields = self._mapping(content, where, _SITE)
        text = fields.get("clients", Scalar(""))
        written = text.text if isinstance(text, Scalar) else ""
        match = _SHARE.fullmatch(written)
        share = (int(match[1]), int(match[2])) if match else None
        held = () if share else clients.parse(written, f"{where}.clients")
        if not held and not (share and share[0] < share[1]):
            self._refuse(f"{where} has no clients", 'Write them as in clients: "0-3".')
        most = self._value(fields, f"{where}.max_examples", None, int)
        if most is not None and most < 1:
            self._refuse(f"{where}.max_examples={most}", "Give a number above 0, or null for no limit.")
        key = self._key(fields, where)
        revoked = self._value(fields, f"{where}.revoked", False, bool)
        return Site(name, key, fingerprint(key), held, share, most, revoked)

    def _check_apart(self, site: Site, other: Site) -> None:
        if site.fingerprint == other.fingerprint:
            self._refuse(f"the sites {other.name} and {site.name} have one key", "Each site makes a key of its own.")
        if not (site.revoked or other.revoked) and (both := site.common(other)):
            self._refuse(f"the sites {other.name} and {site.name} both have {both}", "A client is at one site.")

    def _key(self, fields: Mapping[str, Tree], where: str) -> PublicKey:
        from umbel.core.wire.identity import read_public

        text = fields.get("key")
        if not isinstance(text, Scalar) or not text.text:
            self._refuse(f"{where} has no key", "Give its public key in PEM.")
        try:
            return read_public(text.text)
        except Refusal as error:
            self._refuse(f"{where}.key: {error}", "Give a public key on P-384 in PEM.")

    def _named(self, top: Mapping[str, Tree], key: str) -> Mapping[str, Tree]:
        value = top.get(key, Scalar(""))
        return {} if isinstance(value, Scalar) and value.is_null else self._mapping(value, key)

    def _mapping(self, value: Tree, where: str, known: tuple[str, ...] = ()) -> Mapping[str, Tree]:
        if not isinstance(value, dict):
            self._refuse(f"{where} is no mapping", "Write it as in the documentation.")
        for key in value:
            if known and key not in known:
                guess = nearest(key, known)
                hint = f"Did you mean {guess[0]}?" if guess else f"Known: {', '.join(known)}."
                self._refuse(f"unknown key {shortened(key)!r} in {where}", hint)
        return value

    def _value(self, fields: Mapping[str, Tree], where: str, default: Any, kind: type) -> Any:
        value = fields.get(where.rpartition(".")[2])
        if value is None or (isinstance(value, Scalar) and value.is_null):
            return default
        made = resolve(value, where) if isinstance(value, Scalar) else value
        if kind is str and isinstance(value, Scalar):
            return value.text
        if type(made) is not kind:
            self._refuse(f"{where} should be {kind.__name__}", "Put it right there.")
        return made

    def _refuse(self, problem: str, remedy: str) -> NoReturn:
        raise Refusal(f"{self._name}: {problem.rstrip('.')}.", remedy=remedy)

"""`sites.yaml`: whose keys the server takes, for which clients. The server reads it (`umbel.server.sites`)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from umbel.conf.typed import untyped
from umbel.conf.written import read_yaml
from umbel.core import clients
from umbel.core.files import write_text
from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, read_public
from umbel.simulations.sites.names import check_name

_HEAD = """\
# Who takes part in this federation. `umbel federate admit` and `umbel federate revoke` write it; by hand is fine too.
# The server reads it again when it changes.
"""


@dataclass(frozen=True)
class Site:
    """A site as the server knows it.

    Attributes:
        key: Its public key, PEM.
        clients: The client numbers that are its own, as `0-3`.
        max_examples: The most training examples that one of them may have, each counted once however many tasks it
            occurs in; None sets no limit of its own.
        revoked: Whether it is no longer taken.
    """

    key: str
    clients: str
    max_examples: int | None = None
    revoked: bool = False


@dataclass(frozen=True)
class Submitter:
    """Somebody who has runs run.

    Attributes:
        key: The public key, PEM.
    """

    key: str


@dataclass(frozen=True)
class Register:
    """The content of `sites.yaml`.

    Attributes:
        federation: Name of the federation.
        submitters: By name.
        sites: By name.
    """

    federation: str
    submitters: Mapping[str, Submitter]
    sites: Mapping[str, Site]

    def check(self) -> None:
        """Refuse names, keys and clients that cannot be, a key that stands twice, and clients of two sites."""
        if shared := self.sites.keys() & self.submitters.keys():
            raise Refusal(f"{min(shared)} is a site and a submitter.", remedy="Choose two names.")
        keys: dict[str, str] = {}
        owners = {name: each.key for name, each in self.submitters.items()}
        owners |= {name: each.key for name, each in self.sites.items()}
        for name, key in owners.items():
            check_name(name, "a site or a submitter")
            mark = fingerprint(read_public(key))
            if mark in keys:
                raise Refusal(f"{keys[mark]} and {name} have the same key.", remedy="Each has one of its own.")
            keys[mark] = name
        held: dict[str, tuple[range, ...]] = {}
        for name, site in self.sites.items():
            ranges = clients.parse(site.clients, f"sites.{name}.clients")
            if not ranges:
                raise Refusal(f"{name} has no clients.", remedy="Give it some: 0-3.")
            if site.revoked:
                continue
            for other, theirs in held.items():
                if both := clients.common(ranges, theirs):
                    raise Refusal(f"{other} and {name} would both hold client {both[0]}.", remedy="A client is at one.")
            held[name] = ranges

    def with_site(self, name: str, site: Site) -> Register:
        """Return it with one site more.

        Raises:
            Refusal: There is one of the name, the key is known, or the clients are another's.
        """
        if name in self.sites and not self.sites[name].revoked:
            raise Refusal(
                f"There is a site {name} already.", remedy=f"Revoke it first, or choose another name: revoke {name}"
            )
        more = replace(self, sites={**self.sites, name: site})
        more.check()
        return more

    def with_submitter(self, name: str, submitter: Submitter) -> Register:
        """Return it with one submitter more.

        Raises:
            Refusal: There is one of the name, or the key is known.
        """
        if name in self.submitters:
            raise Refusal(f"There is a submitter {name} already.", remedy="Revoke them first, or choose another name.")
        more = replace(self, submitters={**self.submitters, name: submitter})
        more.check()
        return more

    def without(self, name: str) -> Register:
        """Return it with a site revoked, or without a submitter.

        Raises:
            Refusal: There is none of the name, or it is revoked already.
        """
        if name not in {**self.sites, **self.submitters}:
            raise unknown("site or submitter", name, [*self.sites, *self.submitters])
        if name in self.submitters:
            return replace(self, submitters={key: each for key, each in self.submitters.items() if key != name})
        if self.sites[name].revoked:
            raise Refusal(f"{name} is revoked already.")
        return replace(self, sites={**self.sites, name: replace(self.sites[name], revoked=True)})


def read_register(path: Path) -> Register:
    """Read `sites.yaml`.

    Raises:
        Refusal: It cannot be read, or says what cannot be.
    """
    try:
        content: Any = untyped(read_yaml(path.read_text(encoding="utf-8"), str(path)), "")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}.") from error
    try:
        register = Register(
            str(content["federation"]),
            {name: Submitter(**each) for name, each in (content.get("submitters") or {}).items()},
            {
                name: Site(**{**each, "clients": str(each["clients"])})
                for name, each in (content.get("sites") or {}).items()
            },
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{path} is no list of sites: {error}.") from error
    register.check()
    return register


def write_register(path: Path, register: Register) -> None:
    """Write `sites.yaml`, whole or not at all."""
    register.check()
    lines = [_HEAD + f'federation: "{register.federation}"', "submitters:" + ("" if register.submitters else " {}")]
    for name, submitter in register.submitters.items():
        lines += [f'  "{name}":', _key(submitter.key)]
    lines.append("sites:" + ("" if register.sites else " {}"))
    for name, site in register.sites.items():
        most = "null" if site.max_examples is None else str(site.max_examples)
        lines += [f'  "{name}":', _key(site.key), f'    clients: "{site.clients}"', f"    max_examples: {most}"]
        lines.append(f"    revoked: {str(site.revoked).lower()}")
    write_text(path, "\n".join(lines) + "\n")


def changed(path: Path) -> FileLock:
    """Return the lock under which `sites.yaml` is read, changed and written."""
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=10)


def _key(text: str) -> str:
    return "    key: |\n" + textwrap.indent(text.strip(), " " * 6)

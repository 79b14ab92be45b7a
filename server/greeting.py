"""What a node says of itself when it is greeted, read without trust, and who it is by the list of sites."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel.core import clients, identity
from umbel.core.names import shortened
from umbel.server.sites import Site, SiteList

_CHALLENGE_BYTES = 32
_MOST = 1 << 62  # examples of a client


class ForbiddenError(ValueError):
    """A node is turned away; the message says why."""


@dataclass(frozen=True)
class Greeting:
    """What a node answered.

    Attributes:
        config_hash: Hash of the experiment that it composed.
        clients: The clients that it says it holds.
        examples: Training examples of each, where it says so.
        version: Its version of umbel.
        time: Its clock, in seconds; NaN where it does not say.
        key: Fingerprint of the key that it says it has; "" where it has none.
        said: The answer as it came.
    """

    config_hash: str
    clients: frozenset[int]
    examples: Mapping[int, int] | None
    version: str
    time: float
    key: str
    said: Mapping[str, Any]

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Greeting:
        """Read an answer.

        Raises:
            ForbiddenError: It is not of the form that it should have.
        """
        try:
            held = frozenset(_count(client) for client in said["partitions"])
            examples = said.get("examples")
            if examples is not None:
                examples = {int(client): _count(number) for client, number in dict(examples).items()}
                if examples.keys() != held:
                    raise ValueError("it counts the examples of other clients than it holds")
            config_hash, site, now = said["config_hash"], said.get("site"), said.get("time", math.nan)
            if type(config_hash) is not str:
                raise TypeError("its hash of the experiment is no text")
            return cls(
                config_hash,
                held,
                examples,
                shortened(str(said.get("version", ""))),
                float(now) if isinstance(now, int | float) else math.nan,
                str(site["key"]) if site is not None else "",
                said,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ForbiddenError(f"its greeting cannot be read: {error!r}") from error


@dataclass(frozen=True)
class Member:
    """A node that takes part.

    Attributes:
        node: Its id.
        greeting: What it said of itself.
        site: Which site it is of; None where the server knows none.
        since: When it was accepted, in seconds of the server's clock.
    """

    node: int
    greeting: Greeting
    site: Site | None
    since: float

    @property
    def held(self) -> frozenset[int]:
        """The clients that it holds."""
        return self.greeting.clients

    @property
    def whose(self) -> str:
        """What it is called in a sentence."""
        return f"the site {self.site.name}" if self.site else f"node {self.node}"

    @property
    def clock_skew(self) -> float:
        """Seconds that its clock is ahead of the server's; NaN where it did not say."""
        return self.greeting.time - self.since

    def as_dict(self) -> dict[str, Any]:
        """Return what the run's file says of it."""
        examples = self.greeting.examples
        return {
            "node": self.node,
            "site": self.site.name if self.site else None,
            "key": self.site.fingerprint if self.site else None,
            "clients": clients.written(self.held),
            "num_examples": None if examples is None else sum(examples.values()),
            "version": self.greeting.version,
            "clock_skew": round(self.clock_skew, 1) if math.isfinite(self.clock_skew) else None,
            "since": round(self.since, 1),
        }


def challenge() -> str:
    """Return a challenge that was never given before and cannot be guessed."""
    return secrets.token_hex(_CHALLENGE_BYTES)


def site_of(greeting: Greeting, challenge: str, run: str, node: int, known: SiteList, num_clients: int) -> Site:
    """Return the site that a node is of.

    Args:
        greeting: What it answered.
        challenge: What it was sent.
        run: The run's identity.
        node: The node.
        known: The sites that may take part.
        num_clients: Clients in total.

    Raises:
        ForbiddenError: It is of none, is revoked, did not sign this greeting, or claims what is not its own.
    """
    if not greeting.key:
        raise ForbiddenError("it has no key, and this server knows its sites by their keys.")
    site = known.sites.get(greeting.key)
    if site is None:
        raise ForbiddenError(f"its key {shortened(greeting.key)} is not on the list of sites.")
    signature = greeting.said["site"].get("signature")
    content = identity.greeting_content(challenge, run, node, greeting.said)
    if not isinstance(signature, str) or not identity.verify(site.key, identity.GREETING, content, signature):
        raise ForbiddenError(
            f"it says that it is the site {site.name} and has not signed this greeting with that site's key: "
            "another key, or a greeting that was recorded and is played again."
        )
    check_claims(greeting, site, num_clients)
    return site


def check_claims(greeting: Greeting, site: Site, num_clients: int) -> None:
    """Check that a node claims no more than its site may.

    Raises:
        ForbiddenError: The site is revoked, the clients are not its own, or have too many examples.
    """
    if site.revoked:
        raise ForbiddenError(f"the key of the site {site.name} ({site.fingerprint}) has been revoked.")
    if foreign := site.foreign(greeting.clients, num_clients):
        raise ForbiddenError(
            f"the site {site.name} claims the clients {shortened(clients.written(foreign))}, which are not its own."
        )
    for client, number in sorted((greeting.examples or {}).items()):
        if site.max_examples is not None and number > site.max_examples:
            raise ForbiddenError(
                f"the site {site.name} says that client {client} has {number} training examples; it may claim "
                f"{site.max_examples} (max_examples)."
            )


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"{shortened(repr(value))} is no count")
    return value

"""What a node says of itself when it is greeted, read without trust, and who it is by the list of sites."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from umbel.core import clients
from umbel.core.names import shortened
from umbel.server.sites import Site, SiteList

_CHALLENGE_BYTES = 32
_MOST = 1 << 62  # examples of a client
_FEWEST_BYTES = 1 << 16  # of a greeting: hashes, the signature, a hundred names of classes
_CLIENT_BYTES = 100  # of its numbers, which come twice, its number of examples and the name of its site
_CLASSES_BYTES = 1 << 24  # of the classes of all of its clients


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
    def read(cls, said: Mapping[str, Any], num_clients: int) -> Greeting:
        """Read an answer.

        Args:
            said: The answer.
            num_clients: Clients in total.

        Raises:
            ForbiddenError: It is not of the form that it should have, or claims a client that there is not.
        """
        try:
            held = frozenset(_client(client, num_clients) for client in said["partitions"])
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


def most_bytes(num_clients: int, class_bytes: int = 0) -> int:
    """Return how long a greeting may be.

    Args:
        num_clients: Clients in total.
        class_bytes: What it may say of the classes of one client.
    """
    return _FEWEST_BYTES + _CLIENT_BYTES * num_clients + min(class_bytes * num_clients, _CLASSES_BYTES)


def site_of(said: Mapping[str, Any], challenge: str, run: str, node: int, known: SiteList) -> Site:
    """Return the site that a node is of, before anything else is made of what it says.

    Args:
        said: What it answered.
        challenge: What it was sent.
        run: The run's identity.
        node: The node.
        known: The sites that may take part.

    Raises:
        ForbiddenError: It is of none, is revoked, or did not sign this greeting.
    """
    signed = said.get("site")
    if signed is None:
        raise ForbiddenError("it has no key, and this server knows its sites by their keys.")
    key, signature = (signed.get("key"), signed.get("signature")) if isinstance(signed, Mapping) else (None, None)
    if not isinstance(key, str) or not isinstance(signature, str):
        raise ForbiddenError("its greeting cannot be read: it has no text for its key and its signature.")
    site = known.sites.get(key)
    if site is None:
        raise ForbiddenError(f"its key {shortened(key)} is not on the list of sites.")
    _check_stands(site)
    from umbel.core.wire import identity  # here: a run without a list of sites does without

    content = identity.greeting_content(challenge, run, node, said)
    if not identity.verify(site.key, identity.GREETING, content, signature):
        raise ForbiddenError(
            f"it says that it is the site {site.name} and has not signed this greeting with that site's key: "
            "another key, or a greeting that was recorded and is played again."
        )
    return site


def check_claims(greeting: Greeting, site: Site, num_clients: int, repeats: int = 1) -> None:
    """Check that a node claims no more than its site may.

    Args:
        greeting: What it answered.
        site: Its site.
        num_clients: Clients in total.
        repeats: In how many tasks each example occurs, and is counted.

    Raises:
        ForbiddenError: The site is revoked, the clients are not its own, or have too many examples.
    """
    _check_stands(site)
    if foreign := site.foreign(greeting.clients, num_clients):
        raise ForbiddenError(
            f"the site {site.name} claims the clients {shortened(clients.written(foreign))}, which are not its own."
        )
    for client, number in sorted((greeting.examples or {}).items()):
        if site.max_examples is not None and number > site.max_examples * repeats:
            times = "" if repeats == 1 else f" in each of {repeats} tasks"
            raise ForbiddenError(
                f"the site {site.name} says that client {client} has {number} training examples; it may claim "
                f"{site.max_examples}{times} (max_examples)."
            )


def _check_stands(site: Site) -> None:
    if site.revoked:
        raise ForbiddenError(f"the key of the site {site.name} ({site.fingerprint}) has been revoked.")


def _client(value: object, num_clients: int) -> int:
    client = _count(value)
    if client >= num_clients:
        raise ValueError(f"it claims client {client}, and the experiment has {num_clients}")
    return client


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError(f"{shortened(repr(value))} is no count")
    return value

"""Names and addresses as an administrator writes them, checked once."""

from __future__ import annotations

import re
from dataclasses import dataclass

from umbel.core.refusal import Refusal

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")


def check_name(name: str, what: str, key: str = "") -> str:
    """Return a name of a site, a submitter or a federation, which is also that of a folder.

    Raises:
        Refusal: It has something else than small letters, digits and hyphens.
    """
    if not _NAME.fullmatch(name):
        raise Refusal(
            f"{name[:60]!r} is no name of {what}: small letters, digits and hyphens, at most 40, none at the ends.",
            key=key,
            remedy="Such as st-mary.",
        )
    return name


@dataclass(frozen=True)
class Address:
    """Where somebody listens.

    Attributes:
        host: A name or an address.
        port: A port.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(text: str, key: str = "") -> Address:
    """Return what `HOST:PORT` says; an address of IPv6 stands in brackets.

    Raises:
        Refusal: It says none.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise Refusal(f"{text[:80]!r} is no HOST:PORT.", key=key, remedy="Such as fl.example.org:9092.")
    return Address(host, int(port))

"""Why a site is not taken, in words: name, port, proxy, certificate, key, clock. Nothing is sent."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

from umbel.core.refusal import Refusal
from umbel.simulations.sites.names import Address

_SECONDS = 5.0
_TLS = {
    "certificate has expired": "its certificate has expired; its administrator renews it (umbel federate renew), or "
    "the clock of this machine is wrong",
    "certificate is not yet valid": "its certificate is not valid yet: the clock of this machine is behind",
    "self-signed certificate": "its certificate is of another authority than ca.pem: another federation's server, or "
    "somebody in between",
    "self signed certificate": "its certificate is of another authority than ca.pem: another federation's server, or "
    "somebody in between",
    "unable to get local issuer certificate": "its certificate is of another authority than ca.pem: another "
    "federation's server, or somebody in between",
    "Hostname mismatch": "its certificate is for another name; its administrator adds this one (umbel federate renew "
    "--server)",
    "IP address mismatch": "its certificate is for another address; its administrator adds this one (umbel federate "
    "renew --server)",
    "WRONG_VERSION_NUMBER": "it speaks no TLS: a server without encryption, or another program",
}
# What Flower answers a node whose requests it does not take, and what that means.
_ANSWERS = {
    "Invalid timestamp": "The clock of this machine and the server's differ: the server takes one that is 5 s ahead or "
    "305 s behind. Let both follow a time server (timedatectl set-ntp true).",
    "Missing authentication metadata": "The server asks for a key, and none was sent.",
    "Invalid signature": "The server does not take the signature: the key is damaged.",
    "Invalid node ID": "The key belongs to another node: does a second `join` run with the same key?",
    "FLEET_NODE_ACTIVATION_FAILED": "The server does not know this key, or it was revoked: ask its administrator, who "
    "finds it in sites.yaml.",
    "Failed to activate SuperNode": "The server does not know this key, or it was revoked: ask its administrator, who "
    "finds it in sites.yaml.",
    "CERTIFICATE_VERIFY_FAILED": "The server's certificate is not of the authority in ca.pem.",
}


def answer_in_words(line: str) -> str:
    """Return what a line of the node's log means, where it says why the node was not taken; else nothing."""
    return next((meaning for answer, meaning in _ANSWERS.items() if answer in line), "")


def unreachable(server: Address, authority: Path) -> str:
    """Return why a server cannot be reached; empty where it can, under the right certificate.

    Args:
        server: Where it should be.
        authority: The certificate of the authority that signs the server's.
    """
    proxy = _proxy(server.host)
    hint = f" The proxy {proxy} is set; gRPC uses it: set no_proxy={server.host}, or unset it." if proxy else ""
    try:
        addresses = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return f"The name {server.host} is not known here (DNS: {error.strerror}).{hint}"
    reason = ""
    for family, kind, protocol, _, address in addresses:
        with socket.socket(family, kind, protocol) as plain:
            plain.settimeout(_SECONDS)
            try:
                plain.connect(address)
            except OSError as error:
                reason = f"{_port_in_words(server, error)}{hint}"
                continue
            return _tls_in_words(plain, server, authority)
    return reason


def _port_in_words(server: Address, error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"Nobody answers at {server} within {_SECONDS:.0f} s: a firewall drops it, or the machine is off."
    if error.errno == errno.ECONNREFUSED:
        return f"Port {server.port} of {server.host} is closed: the server is not up, or listens on another port."
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return f"There is no way from here to {server.host} ({error.strerror})."
    return f"{server} cannot be reached: {error.strerror or error}."


def _tls_in_words(plain: socket.socket, server: Address, authority: Path) -> str:
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(plain, server_hostname=server.host):
            return ""
    except ssl.SSLError as error:
        text = getattr(error, "verify_message", "") or str(error)
        meaning = next((words for answer, words in _TLS.items() if answer in text or answer in str(error)), text)
        return f"The server at {server} is not taken: {meaning}."
    except (TimeoutError, ConnectionError) as error:
        return f"{server} accepts connections and speaks no TLS ({error or type(error).__name__})."


def _proxy(host: str) -> str:
    proxies = getproxies()
    proxy = proxies.get("grpc") or proxies.get("https") or proxies.get("http") or ""
    return "" if not proxy or proxy_bypass(host) else proxy


def check_files(*files: Path) -> None:
    """Refuse a folder that lacks a file."""
    for file in files:
        if not file.is_file():
            raise Refusal(f"{file} is missing.", remedy="Copy what the federation's administrator sent beside it.")

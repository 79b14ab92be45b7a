"""Gives the page to browsers of this machine: it only reads, and knows runs by what was found, never by a path."""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from umbel.core.files import plain
from umbel.core.names import shortened
from umbel.core.refusal import Refusal
from umbel.simulations.watch.page import Page
from umbel.simulations.watch.paths import Shortener
from umbel.simulations.watch.shelf import Shelf

LOOK_SECONDS = 1.0  # between two looks at the folder, while somebody watches
_IDLE_SECONDS = 20.0  # without a question, after which nobody looks any more
_LESS_OFTEN = 20
_FREE = "Give another --port, or 0 for a free one."
_NO_HOST = "Leave --host out for 127.0.0.1."
_LONGEST = 100  # letters of a question's part
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Looker(threading.Thread):
    """Looks at a shelf again and again, for as long as somebody asks.

    At runs under way it looks each time; at all others so often that it takes a twentieth of one core.

    Args:
        shelf: The shelf.
        every_seconds: Between two looks.
    """

    def __init__(self, shelf: Shelf, every_seconds: float = LOOK_SECONDS) -> None:
        super().__init__(name="umbel-watch", daemon=True)
        self._shelf, self._every = shelf, every_seconds
        self._asked = time.monotonic()
        self._wake = threading.Event()
        self._ends = False

    def asked(self) -> None:
        """Somebody has asked."""
        if time.monotonic() - self._asked > _IDLE_SECONDS:
            self._wake.set()
        self._asked = time.monotonic()

    def run(self) -> None:
        due = 0.0
        while not self._ends:
            self._wake.clear()
            began = time.monotonic()
            try:
                if began >= due:
                    has_read = self._shelf.look()  # that took longer than the next will
                    due = 0.0 if has_read else began + _LESS_OFTEN * (time.monotonic() - began)
                else:
                    self._shelf.look_at_running()
                self._shelf.flaw = ""
            except Exception as error:  # noqa: BLE001 - the page says it, and the file system may come back
                self._shelf.flaw = shortened(f"{type(error).__name__}: {error}")
            idle = time.monotonic() - self._asked > _IDLE_SECONDS
            self._wake.wait(None if idle else self._every)

    def end(self) -> None:
        """Look no more."""
        self._ends = True
        self._wake.set()


class Guard:
    """Refuses requests for another host, as by DNS rebinding, and says in each answer what the page may do.

    Args:
        app: The application.
        names: Names that the server may be asked by, beside addresses.
        everywhere: Whether it may be asked by any address, or by this machine's own loopback alone.
        policy: The content security policy.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], everywhere: bool, policy: str) -> None:
        self._app, self._names, self._everywhere, self._policy = app, names, everywhere, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update({**_HEADERS, "Content-Security-Policy": self._policy})
            await send(message)

        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            answer = PlainTextResponse("This is not the host that was asked for.\n", 421)
            await answer(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def _is_ours(self, host: str) -> bool:
        """Say whether a Host header means this server; a page of somebody else's name does not."""
        name, _, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
        if not name:
            name, port = host, ""
        if port and not (port.isascii() and port.isdigit()):
            return False
        name = name.removeprefix("[").removesuffix("]").lower()
        with suppress(ValueError):
            address = ipaddress.ip_address(name)
            return self._everywhere or address.is_loopback
        return name in self._names


def application(shelf: Shelf, looker: Looker, page: Page, host: str) -> ASGIApp:
    """Return what answers requests; where other machines may ask, without the paths of this one.

    Args:
        shelf: The runs.
        looker: Told that somebody asks.
        page: The page.
        host: The address that the server is bound to.
    """
    everywhere = not is_loopback(host)
    said: Callable[[dict[str, Any]], dict[str, Any]] = Shortener(shelf.root) if everywhere else dict

    def runs(request: Request) -> Response:
        looker.asked()
        return _json(said(shelf.rows(_number(request, "since"), _text(request, "epoch"))))

    def run(request: Request) -> Response:
        looker.asked()
        found = shelf.detail(_text(request, "id"), _number(request, "after"), _number(request, "generation", -1))
        if found is None:
            return _json({"error": "There is no such run."}, 404)
        return _json(said(found | {"again": ""} if everywhere else found))  # there it would be no path to go by

    def index(request: Request) -> Response:
        return Response(page.html, media_type="text/html")

    routes = [Route("/", index), Route("/api/runs", runs), Route("/api/run", run)]
    app = GZipMiddleware(Starlette(routes=routes), minimum_size=2000, compresslevel=5)
    names = {"localhost", host.lower()}
    if everywhere:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return Guard(app, names, everywhere, page.policy)


def _text(request: Request, name: str) -> str:
    return request.query_params.get(name, "")[:_LONGEST]


def _number(request: Request, name: str, default: int = 0) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < _LONGEST // 5 else default


def _json(content: dict[str, Any], status: int = 200) -> Response:
    text = json.dumps(plain(content), allow_nan=False, separators=(",", ":"))  # halves of pairs stay escaped
    return Response(text, status, media_type="application/json")


def is_loopback(host: str) -> bool:
    """Say whether nobody but this machine reaches an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: An address or a name of this machine.
        port: 0 takes one that is free.

    Raises:
        Refusal: It cannot be had; the message says why.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise Refusal(f"{host} is no address ({error}).", key="--host", remedy=_NO_HOST) from error
    opened = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # elsewhere it would let two servers have one port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(64)
    except OSError as error:
        opened.close()
        reasons = {
            errno.EADDRINUSE: (
                f"Port {port} of {host} is taken.",
                "--port",
                _FREE,
            ),
            errno.EACCES: (f"Port {port} is for the administrator.", "--port", _FREE),
            errno.EADDRNOTAVAIL: (f"{host} is no address of this machine.", "--host", _NO_HOST),
        }
        if error.errno not in reasons:
            raise
        reason, key, remedy = reasons[error.errno]
        raise Refusal(reason, key=key, remedy=remedy) from error
    return opened


def address_of(opened: socket.socket, host: str) -> str:
    """Return what a browser of this machine is to be given."""
    port = opened.getsockname()[1]
    name = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
    return f"http://{name}:{port}/"


class Server:
    """A server of one folder's page.

    Args:
        shelf: The runs.
        opened: A socket that listens; it is closed in the end.
        host: The address that it is bound to.
        every_seconds: Between two looks at the folder.
    """

    def __init__(self, shelf: Shelf, opened: socket.socket, host: str, every_seconds: float = LOOK_SECONDS) -> None:
        self._looker = Looker(shelf, every_seconds)
        self._opened = opened
        config = uvicorn.Config(
            application(shelf, self._looker, Page(shelf.root, not is_loopback(host)), host),
            log_level="critical",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until `end`, or until a signal, which is raised again behind it."""
        self._looker.start()
        try:
            self._server.run(sockets=[self._opened])
        finally:
            self._looker.end()
            self._opened.close()

    def end(self) -> None:
        """Ask it, from another thread, to end."""
        self._server.should_exit = True

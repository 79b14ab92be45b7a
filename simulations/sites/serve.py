"""The server of a federation: Flower's SuperLink, kept going, with the keys of `sites.yaml` and nobody else's.

Sites connect to its Fleet API: TLS, and each request signed by a key that is registered. Its Control API listens on
loopback alone. What it remembers is in a SQLite file in the folder, so that one that starts again knows keys and runs.
"""

from __future__ import annotations

import ipaddress
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from umbel.core.refusal import Refusal
from umbel.core.wire.flower_versions import fleet
from umbel.core.wire.identity import public_text, read_key
from umbel.server.variables import RESULTS
from umbel.server.variables import SITES as SITES_VARIABLE
from umbel.simulations.engines.processes import opened
from umbel.simulations.sites import authority
from umbel.simulations.sites.admission import Admission, key_in
from umbel.simulations.sites.flower_door import ControlError
from umbel.simulations.sites.folders import CA, SERVER_CERTIFICATE, SERVER_KEY, server_folder
from umbel.simulations.sites.names import Address, address_of
from umbel.simulations.sites.register import read_register
from umbel.simulations.sites.settings import SERVER, SITES, ServerSettings, read_settings
from umbel.simulations.sites.supervise import Kept, Log, Voice, say_ready, supervisor

_LOOK_SECONDS = 10.0  # how often to ask which sites are there
_TIDY_SECONDS = 60.0  # how often to look at the database's log of changes
_WAL_BYTES = 4 << 20  # from which on it is written back
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0  # for runs to write their checkpoints
# What is printed when a node comes or goes, and when a key is registered or unregistered, by whomever.
_MOVES = ("Activated node_id", "Deactivated node_id", "ControlServicer.RegisterNode", "ControlServicer.UnregisterNode")
# What is printed again and again while nothing happens.
_NOISE = ("ControlServicer.ListNodes", "ControlServicer.ListRuns", "[Fleet.GetRun]", "[Fleet.PushMessages]")


class Server:
    """One federation's server.

    Args:
        folder: The server's folder, absolute.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = read_settings(folder / SERVER, ServerSettings)
        self.listen = address_of(self.settings.listen, "listen")
        self.control = Address("127.0.0.1", self.settings.control_port)
        self.results = (folder / self.settings.results).absolute()
        self.database = (folder / self.settings.database).absolute()
        self._superlink_log = Log(
            folder / "logs" / "superlink.log", self.settings.log_megabytes, self.settings.log_files
        )
        self.say = Voice(
            Log(folder / "logs" / "serve.log", self.settings.log_megabytes, self.settings.log_files),
            self.settings.federation,
        )
        self._submitted = threading.Event()
        self._submitted.set()  # what was submitted before this began
        self._moved = threading.Event()
        self._admission = Admission(folder / SITES, self.control, folder / CA, self.say)
        self._superlink = self._kept()

    def _kept(self) -> Kept:
        command = [
            "flower-superlink",
            *("--ssl-certfile", str(self.folder / SERVER_CERTIFICATE)),
            *("--ssl-keyfile", str(self.folder / SERVER_KEY)),
            *("--ssl-ca-certfile", str(self.folder / CA)),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            *("--database", str(self.database)),
            *("--fleet-api-type", "grpc-rere", "--fleet-api-address", str(self.listen)),
            *("--host", self.control.host, "--port", str(self.control.port)),
        ]
        environment = {
            SITES_VARIABLE: str(self.folder / SITES),
            RESULTS: str(self.results),
            "GRPC_VERBOSITY": "INFO",  # it tells of handshakes that fail
        }
        return Kept(command, self.database.parent, environment, self._superlink_log, self._on_line)

    def check(self) -> None:
        """Refuse a folder that cannot serve, and say what is soon over."""
        folder = self.folder
        if fleet() != "grpc":
            raise Refusal(
                "This version of Flower has one port for sites and for control, so that each site could send code.",
                remedy="Install the one that umbel is made for: pip install 'flwr>=1.39,<1.40'",
            )
        register = read_register(folder / SITES)
        key = read_key(folder / SERVER_KEY)
        certificate = folder / SERVER_CERTIFICATE
        if authority.public_of(certificate) != public_text(key):
            raise Refusal(f"{certificate} is not of {SERVER_KEY}.", remedy="Renew both: umbel federate renew")
        if not authority.verifies(folder / CA, certificate):
            raise Refusal(f"{certificate} is not of the authority {CA}.", remedy="Copy both from the same place.")
        for file in (certificate, folder / CA):
            left = authority.certificate_times(file).days_left()
            if left <= 0:
                raise Refusal(f"{file} ended {-left:.0f} days ago.", remedy="Renew it: umbel federate renew")
            if left < authority.SOON_DAYS:
                self.say(f"{file.name} ends in {left:.0f} days. Renew it: umbel federate renew")
        for address in (self.listen, self.control):
            if address.host != "127.0.0.1" and not _is_any(address.host):
                continue
            if opened(address.port):
                raise Refusal(f"Somebody listens on port {address.port} already.", key="listen", remedy="Stop them.")
        if not register.submitters:
            self.say("There are no submitters: every run is stopped. Take one in: umbel federate admit")

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            Refusal: It cannot start.
        """
        with supervisor(self.folder, "A server") as told_to_stop:
            self.check()
            for folder in (self.database.parent, self.results):
                folder.mkdir(parents=True, exist_ok=True)
                authority.lock_down(folder)
            self.write_back(always=True)
            self._superlink.start()
            try:
                self._await(told_to_stop)
                self._serve(told_to_stop)
            finally:
                self.end()

    def end(self) -> None:
        """Let the runs write their checkpoints, then end the SuperLink."""
        if self._superlink.pid:
            self._stop_runs()
        self._superlink.end()
        self.write_back(always=True)
        self.say("The server is down.")

    def _serve(self, told_to_stop: Callable[[], bool]) -> None:
        look_at = tidy_at = 0.0
        while not told_to_stop():
            if (status := self._superlink.look()) is not None:
                seconds = self._superlink.seconds_to_start
                self.say(f"The SuperLink ended with status {status}; it is started again in {seconds:.0f} s.")
                self._admission.forget()
                self._submitted.set()
            now = time.monotonic()
            if not self._superlink.pid:
                continue
            try:
                if self._admission.is_stale:
                    self._moved.set()
                    self._submitted.set()  # who signed what runs may be a submitter no more
                if self._submitted.is_set():
                    self._submitted.clear()
                    try:
                        self._admission.check_runs()
                    except ControlError:
                        self._submitted.set()  # to be looked at again
                        raise
                if now > look_at or self._moved.is_set():
                    self._moved.clear()
                    self._admission.look()
                    look_at = now + _LOOK_SECONDS
            except ControlError as error:  # it begins, or is about to end
                self.say.seldom(str(error))
                time.sleep(1.0)
            if now > tidy_at:
                self.write_back()
                tidy_at = now + _TIDY_SECONDS

    def _await(self, told_to_stop: Callable[[], bool]) -> None:
        """Wait until both ports are open and the keys are registered."""
        deadline = time.monotonic() + _START_SECONDS
        while not told_to_stop():
            if not self._superlink.pid:
                self._superlink.look()
                tail = "\n".join(last_lines(self.folder / "logs" / "superlink.log", 8))
                raise Refusal(f"The SuperLink ended at once:\n{tail}")
            if time.monotonic() > deadline:
                raise Refusal(f"The SuperLink did not open its ports within {_START_SECONDS:.0f} s.")
            if opened(self.control.port):
                with suppress(ControlError):
                    self._admission.look()
                    break
        else:
            return
        say_ready(self.folder)
        register = read_register(self.folder / SITES)
        waiting = [
            name for name, site in register.sites.items() if not site.revoked and name not in self._admission.online
        ]
        self.say(
            f"The server of {self.settings.federation} is up: sites connect to port {self.listen.port} (TLS), the "
            f"control port {self.control} is for this machine alone. Waiting for: {', '.join(waiting) or 'nobody'}."
        )

    def _on_line(self, line: str) -> bool:
        """Take note of what the SuperLink prints; return whether it is worth keeping."""
        if "Created run" in line:
            self._submitted.set()
        if any(words in line for words in _MOVES):
            self._moved.set()
        if "Attempted to register SuperNode" in line:
            self.say.seldom(f"Somebody {key_in(line)} was turned away: sites.yaml does not have it, or it is revoked.")
        if "Handshake failed" in line:
            plain = "HTTP_REQUEST" in line or "WRONG_VERSION_NUMBER" in line
            why = "it spoke no TLS" if plain else "it does not take this server's certificate, or breaks off"
            self.say.seldom(f"Somebody who connected was turned away: {why}.")
        is_access = "/v1/" in line and " 200" in line
        return not is_access and not any(noise in line for noise in _NOISE)

    def _stop_runs(self) -> None:
        active = [folder for folder in self.results.glob("*/") if is_active(folder)]
        for folder in active:
            (folder / "stop").touch()
            self.say(f"{folder.name} is asked to write a checkpoint and to stop.")
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and any(is_active(folder) for folder in active) and self._superlink.pid:
            time.sleep(0.2)

    def write_back(self, always: bool = False) -> None:
        """Write the database's log of changes back into it, so that it does not grow for ever."""
        wal = self.database.with_name(self.database.name + "-wal")
        if not self.database.is_file() or not (always or (wal.is_file() and wal.stat().st_size > _WAL_BYTES)):
            return
        with suppress(sqlite3.Error), closing(sqlite3.connect(self.database, timeout=1.0)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def serve(folder: Path) -> None:
    """Serve until told to stop.

    Args:
        folder: The server's folder, or that of the whole federation.

    Raises:
        Refusal: It cannot start.
    """
    Server(server_folder(folder).absolute()).run()


def is_active(folder: Path) -> bool:
    """Say whether a run's server is at work on its folder."""
    if not (folder / "progress.jsonl").is_file() or (folder / "summary.json").is_file():
        return False
    lock = FileLock(folder / "lock")  # that of `umbel.server.lock`, which would bring torch
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def last_lines(path: Path, number: int) -> list[str]:
    """Return the end of a text file."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 200 * number - 4096))
        return file.read().decode("utf-8", "replace").splitlines()[-number:]
    return []


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False

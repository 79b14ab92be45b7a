"""A site's node, kept going: this project's warm SuperNode with the site's key, trusted signers and policy."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from umbel.client.node.policy import Policy
from umbel.core import clients
from umbel.core.names import shortened
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, read_key
from umbel.simulations.sites import authority
from umbel.simulations.sites.diagnose import answer_in_words, check_files, unreachable
from umbel.simulations.sites.folders import CA, POLICY, SITE_KEY, TRUSTED
from umbel.simulations.sites.names import address_of
from umbel.simulations.sites.settings import SITE, SiteSettings, read_settings
from umbel.simulations.sites.supervise import Kept, Log, Voice, say_ready, supervisor

_CONNECTED = ("is connected to", "Connection successful after")  # what the node's log says of its connection
_LOST = "Connection attempt failed, retrying"
_REFUSED = " is not taken: "  # what it says of a run that the site's policy refuses
_PATIENCE_SECONDS = 60.0  # how often to say why a node is not taken


class Site:
    """One site.

    Args:
        folder: The site's folder, absolute.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = read_settings(folder / SITE, SiteSettings)
        self.server = address_of(self.settings.server, "server")
        self.state = (folder / self.settings.state).absolute()
        self._log = Log(folder / "logs" / "node.log", self.settings.log_megabytes, self.settings.log_files)
        self.say = Voice(
            Log(folder / "logs" / "join.log", self.settings.log_megabytes, self.settings.log_files), self.settings.name
        )
        self._connected = threading.Event()
        self._node = Kept(self.command(), self.state, {"UMBEL_STATE": str(self.state)}, self._log, self._on_line)

    def command(self) -> list[str]:
        """Return what starts the node."""
        return [
            *(sys.executable, "-m", "umbel.client.node.supernode"),
            *("--superlink", str(self.server), "--root-certificates", str(self.folder / CA)),
            *("--key", str(self.folder / SITE_KEY)),
            *("--trusted", str(self.folder / TRUSTED), "--policy", str(self.folder / POLICY)),
            *("--node-config", self.node_config(), "--home", str(self.state / "bundles")),
        ]

    def node_config(self) -> str:
        """Return the node's configuration, as Flower's nodes take it."""
        settings = self.settings
        values: dict[str, object] = {"partitions": settings.clients, "state-folder": str(self.state / "memory")}
        if settings.data:
            values["site-data"] = str((self.folder / settings.data).absolute())
        if settings.device:
            values["device"] = settings.device
        return " ".join(
            f"{key}={json.dumps(value, ensure_ascii=False)}"
            for key, value in {**values, **settings.node_config}.items()
        )

    def check(self) -> None:
        """Refuse a folder that cannot join, and say what is soon over."""
        folder = self.folder
        check_files(*(folder / name for name in (CA, SITE_KEY, TRUSTED, POLICY)))
        key = read_key(folder / SITE_KEY)
        if folder.stat().st_mode & 0o022:
            raise Refusal(f"Others may write into {folder}.", remedy=f"chmod go-w {folder}")
        if '"' in str(folder) + self.settings.data + self.settings.device:
            raise Refusal(f"Flower takes no path with a quote in a node's configuration: {folder}.", remedy="Move it.")
        if not clients.parse(self.settings.clients, "clients"):
            raise Refusal(f"{folder / SITE} has no clients.", key="clients", remedy="Such as 0-3.")
        policy = Policy.read(folder / POLICY, folder / TRUSTED)
        if not policy.signers():
            self.say("trusted.yaml names nobody: every run will be refused.")
        left = authority.certificate_times(folder / CA).days_left()
        if left <= 0:
            raise Refusal(f"{folder / CA} ended {-left:.0f} days ago.", remedy="Ask the administrator for a new one.")
        if left < authority.SOON_DAYS:
            self.say(f"{CA} ends in {left:.0f} days: ask the administrator for a new one.")
        if self.settings.data:
            check_files((folder / self.settings.data).absolute())
        self.say(f"{self.settings.name} has the key {fingerprint(key)} and the clients {self.settings.clients}.")

    def run(self) -> None:
        """Keep the node going until told to stop.

        Raises:
            Refusal: The folder cannot join.
        """
        with supervisor(self.folder, "A node") as told_to_stop:
            self.check()
            self.state.mkdir(parents=True, exist_ok=True)
            authority.lock_down(self.state)
            try:
                self._keep(told_to_stop)
            finally:
                self._node.end()
                self.say("The node is down.")
                self.close()

    def close(self) -> None:
        """Close the logs."""
        self._log.close()
        self.say.close()

    def _keep(self, told_to_stop: Callable[[], bool]) -> None:
        self._say_why()
        self._node.start()
        ask_at, connected = time.monotonic() + _PATIENCE_SECONDS, False
        while not told_to_stop():
            if (status := self._node.look()) is not None:
                self._connected.clear()
                if not self._say_why():
                    self.say(f"The node ended with status {status}; the end of its log is in {self._log.path}.")
                self.say(f"It is started again in {self._node.seconds_to_start:.0f} s.")
                ask_at = time.monotonic() + _PATIENCE_SECONDS
            if self._connected.is_set() != connected:
                connected = not connected
                ask_at = time.monotonic() + (0.0 if not connected else _PATIENCE_SECONDS)
                self.say(f"Connected to {self.server}; waiting for runs." if connected else "The connection is lost.")
                say_ready(self.folder, connected)
            if not connected and time.monotonic() > ask_at:
                ask_at = time.monotonic() + _PATIENCE_SECONDS
                if not self._say_why():
                    self.say(f"The server can be reached, and has not taken this node yet; see {self._log.path}.")

    def _say_why(self) -> bool:
        reason = unreachable(self.server, self.folder / CA)
        if reason:
            self.say(reason)
        return bool(reason)

    def _on_line(self, line: str) -> bool:
        if any(word in line for word in _CONNECTED):
            self._connected.set()
        if _LOST in line:
            self._connected.clear()
        meaning = answer_in_words(line)
        if _REFUSED in line:
            meaning = shortened(f"Run {line.partition(' run ')[2]}")
        if meaning:
            self.say.seldom(meaning)
        return "flwr DEBUG ChannelConnectivity" not in line


def join(folder: Path) -> None:
    """Take part until told to stop.

    Raises:
        Refusal: The folder cannot join.
    """
    Site(_absolute(folder)).run()


def dry_run(folder: Path, experiment: str, overrides: Sequence[str], show: Callable[[str], object]) -> None:
    """Show what this site's data are and what would be sent; nothing is.

    Args:
        folder: The site's folder.
        experiment: The experiment, its name or path; empty looks at the data alone.
        overrides: `key=value` each, for the experiment.
        show: Told a line at a time.

    Raises:
        Refusal: The data cannot be read, do not go with the experiment, or have other clients than the folder says; or
            the folder cannot join.
    """
    site = Site(_absolute(folder))
    try:
        site.check()
    finally:
        site.close()
    show(unreachable(site.server, site.folder / CA) or f"The server at {site.server} answers, and is the right one.")
    if not site.settings.data:
        show(f"No data file is set: runs use their own data set. Set `data` in {site.folder / SITE}.")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from umbel.client.node import site_data  # brings torch, for which a supervisor need not wait

    named = clients.parse(site.settings.clients, "clients")
    held = sum(len(each) for each in named)
    number = site_data.dry_run(
        (site.folder / site.settings.data).absolute(), experiment or None, tuple(overrides), show, named
    )
    if held != number:
        raise Refusal(
            f"{site.folder / SITE} says that this site has the clients {site.settings.clients}, {held} in all, and its "
            f"data have {number}.",
            key="clients",
            remedy="A column or a level of folders of the data file says whose an example is; or change the one.",
        )


def _absolute(folder: Path) -> Path:
    return folder.expanduser().absolute()

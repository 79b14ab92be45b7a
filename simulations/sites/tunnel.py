"""The way from a submitter's machine to the server: an SSH tunnel to its control port, and its runs' folder over SSH.

Whoever may open that tunnel, the server's own accounts decide. Its end here is a socket in a folder of the submitter's
alone: a port would be open to every account of this machine. On the server itself there is no tunnel.
"""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from umbel.core import leftovers
from umbel.core.names import shortened
from umbel.core.refusal import Refusal
from umbel.simulations.engines.processes import end_with_parent
from umbel.simulations.sites.command import Command
from umbel.simulations.sites.folders import CA, submitter_key
from umbel.simulations.sites.names import Address
from umbel.simulations.sites.settings import SUBMIT, SubmitSettings, read_settings

_MOST_BYTES = 1 << 24
_SSH_FAILED = 255  # what ssh ends with by itself; anything else is the command's
_OPEN_SECONDS = 60.0  # a person may have to type a password
_PLAIN = re.compile(
    r"[\w./-]{1,40}", re.ASCII
)  # a path of a socket has some hundred letters, and ssh reads % and : in it
_KEEP_ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")


class TunnelError(RuntimeError):
    """The server cannot be reached by SSH; what ssh says is in the message."""


@dataclass(frozen=True)
class Submitter:
    """Somebody who submits, and how they reach the server.

    Attributes:
        folder: The folder, absolute.
        settings: What it says.
        control: The Control API, where it is reached without a tunnel.
    """

    folder: Path
    settings: SubmitSettings
    control: Address | None = None

    @classmethod
    def read(cls, folder: Path, control: Address | None = None) -> Submitter:
        """Read a submitter's folder.

        Raises:
            Refusal: It is none.
        """
        folder = folder.expanduser().absolute()
        settings = read_settings(folder / SUBMIT, SubmitSettings)
        for file in (folder / CA, submitter_key(folder, settings.name)):
            if not file.is_file():
                raise Refusal(f"{file} is missing.", remedy="Copy what the federation's administrator sent beside it.")
        if control is None and not settings.ssh:
            control = Address("127.0.0.1", settings.control_port)
        return cls(folder, settings, control)

    @property
    def is_local(self) -> bool:
        """Whether this machine is the server."""
        return self.control is not None

    @contextmanager
    def way(self) -> Iterator[Address | Path]:
        """Yield where the Control API is reached, as long as it is needed: an address, or a socket of this file system.

        Raises:
            TunnelError: It cannot be reached.
        """
        if self.control is not None:
            yield self.control
            return
        usual = tempfile.gettempdir()
        place = usual if _PLAIN.fullmatch(usual) else "/tmp"  # noqa: S108 - the folder in it is this process's alone
        with tempfile.TemporaryDirectory(prefix=leftovers.prefix("tunnel"), dir=place) as folder:  # mode 700
            here = Path(folder) / "control"
            forward = f"{here}:127.0.0.1:{self.settings.control_port}"
            command = self.ssh("-N", "-o", "ExitOnForwardFailure=yes", "-L", forward)
            said = Path(folder) / "said"
            with said.open("wb") as words:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, preexec_fn=end_with_parent
                )
            try:
                deadline = time.monotonic() + _OPEN_SECONDS
                while not _listens(here):
                    if process.poll() is not None or time.monotonic() > deadline:
                        lines = said.read_text(errors="replace").splitlines()[-3:]
                        raise TunnelError(_ssh_failed(self.settings.ssh, shortened(" ".join(lines))))
                    time.sleep(0.1)
                yield here
            finally:
                process.kill()
                process.wait()

    def ssh(self, *options: str, command: Sequence[str] = ()) -> list[str]:
        """Return a command line of ssh; each word of what runs there arrives as it is here."""
        program = shutil.which("ssh")
        if program is None:
            raise TunnelError("There is no ssh on this machine. Install OpenSSH's client, or submit on the server.")
        there = [shlex.join(command)] if command else []
        return [program, *_KEEP_ALIVE, *self.settings.ssh_options, *options, "--", self.settings.ssh, *there]

    def there(self, *command: str) -> str:
        """Run a command on the server and return what it prints.

        Raises:
            TunnelError: It fails, or prints more than a file of settings may have.
        """
        with self.run(*command) as run:
            content = run.output.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise TunnelError(f"{self.where} sends more than {_MOST_BYTES:,} bytes of what should be a small file.")
        if run.status:
            raise self.failed(run)
        return content.decode("utf-8", "replace")

    def has(self, file: str) -> bool:
        """Say whether there is a file on the server.

        Raises:
            TunnelError: It cannot be reached.
        """
        with self.run("test", "-f", file) as run:
            run.output.read(1)
        if run.status not in (0, 1):
            raise self.failed(run)
        return run.status == 0

    def run(self, *command: str) -> Command:
        """Return a command that runs on the server."""
        return Command(command if self.is_local else self.ssh(command=command))

    @property
    def where(self) -> str:
        """What the server is called in a sentence."""
        return "this machine" if self.is_local else self.settings.ssh

    def failed(self, run: Command) -> TunnelError:
        """Return the error of a command that has failed, in its words or those of ssh."""
        if not self.is_local and run.status == _SSH_FAILED:
            return TunnelError(_ssh_failed(self.where, run.said))
        return TunnelError(f"It cannot be done on {self.where}: {run.said or f'status {run.status}'}.")


def _listens(place: Path) -> bool:
    """Say whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(place)) == 0


def _ssh_failed(host: str, said: str) -> str:
    words = said.rstrip(".") or "it does not answer"
    return f"{host} cannot be reached by ssh: {words}. Try it by hand, and set `ssh` in {SUBMIT} to what works."

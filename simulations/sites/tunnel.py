"""The way from a submitter's machine to the server: an SSH tunnel to its control port, and its runs' folder over SSH.

Whoever may open that tunnel, the server's own accounts decide. On the server itself there is no tunnel.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from umbel.core.refusal import Refusal
from umbel.simulations.engines.processes import end_with_parent, free_ports, opened
from umbel.simulations.sites.folders import CA, submitter_key
from umbel.simulations.sites.names import Address
from umbel.simulations.sites.settings import SUBMIT, SubmitSettings, read_settings

_OPEN_SECONDS = 60.0  # a person may have to type a password
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
    def way(self) -> Iterator[Address]:
        """Yield where the Control API is reached, as long as it is needed.

        Raises:
            TunnelError: It cannot be reached.
        """
        if self.control is not None:
            yield self.control
            return
        [port] = free_ports(1)
        forward = f"127.0.0.1:{port}:127.0.0.1:{self.settings.control_port}"
        command = self.ssh("-N", "-o", "ExitOnForwardFailure=yes", "-L", forward)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=end_with_parent
        )
        try:
            deadline = time.monotonic() + _OPEN_SECONDS
            while not opened(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise TunnelError(_ssh_failed(self.settings.ssh, process.communicate()[1]))
                time.sleep(0.1)
            yield Address("127.0.0.1", port)
        finally:
            process.kill()
            process.communicate()

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
            TunnelError: It fails.
        """
        line = list(command) if self.is_local else self.ssh(command=command)
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TunnelError(_ssh_failed("this machine" if self.is_local else self.settings.ssh, done.stderr))
        return done.stdout


def _ssh_failed(host: str, said: str) -> str:
    words = " ".join(line.strip() for line in said.splitlines()[-3:]) or "it does not answer"
    return f"{host} cannot be reached by ssh: {words}. Try it by hand, and set `ssh` in {SUBMIT} to what works."

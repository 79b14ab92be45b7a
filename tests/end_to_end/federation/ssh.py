"""An SSH server of a test, with keys of its own: for one user, on one machine of a network."""

from __future__ import annotations

import getpass
import shutil
import subprocess
from pathlib import Path

PORT = 2222


def sshd() -> str:
    """Return where OpenSSH's server is; empty where there is none."""
    return shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin") or ""


def make(folder: Path, address: str, port: int = PORT) -> tuple[list[str], list[str]]:
    """Make keys and settings.

    Returns:
        The server's command line, and the options by which `ssh` reaches it.
    """
    folder.mkdir()
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, capture_output=True
        )
    Path("/run/sshd").mkdir(exist_ok=True)  # where it shuts itself in before somebody has logged in
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "known").write_text(f"[{address}]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "config").write_text(
        f"Port {port}\nListenAddress {address}\nHostKey {folder / 'host'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\nPasswordAuthentication no\nUsePAM no\nStrictModes no\n"
        "PermitRootLogin prohibit-password\n"
    )
    options = [
        *("-F", "none", "-p", str(port), "-i", str(folder / "user"), "-l", getpass.getuser()),
        *("-o", f"UserKnownHostsFile={folder / 'known'}", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
    ]
    return [sshd(), "-D", "-e", "-f", str(folder / "config")], options

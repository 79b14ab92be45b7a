"""Containers without an engine: an image's command in its environment, bare, or held as the compose file holds it.

A process that is held is in a network namespace, runs as the image's user without any capability, and sees the machine
read-only but for /tmp and what is mounted. That takes root, or the right to make namespaces.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.places import ROOT
from tests.project.docker.images import BIN, DOCKER, STAGES, image_environment, tool

# Binds what is named, each (from, to, ro or rw), below a root of its own, and becomes the user there.
_HOLD = r"""
root=$1 user=$2 count=$3; shift 3
mount -t tmpfs -o mode=755 tmpfs "$root"
while [ "$count" -gt 0 ]; do
  from=$1 to=$root$2 how=$3; shift 3; count=$((count - 1))
  if [ -d "$from" ]; then mkdir -p "$to"; elif [ ! -e "$to" ]; then mkdir -p "${to%/*}"; touch "$to"; fi
  mount --bind "$from" "$to"
  [ "$how" = rw ] || mount -o remount,bind,ro "$to"
done
for link in bin sbin lib lib64; do [ ! -L "/$link" ] || cp -a "/$link" "$root/$link"; done
mkdir -p "$root/umbel" "$root/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -o remount,ro "$root"
cd "$root"
exec chroot . setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all \
  --inh-caps=-all -- env --chdir=/umbel "$@"
"""


def may_hold() -> bool:
    """Say whether this process may make namespaces."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "setpriv", "chroot", "mount"))):
        return False
    name = f"umbel-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return made


class Networks:
    """The networks of the compose file: each site has one with the server, and none with another site."""

    def __init__(self, sites: Sequence[str]) -> None:
        self._mark = uuid.uuid4().hex[:6]
        self._ip = functools.partial(_call, tool("ip"))
        for name in ("server", *sites):
            self._ip("netns", "add", self.of(name))
            self._ip("-n", self.of(name), "link", "set", "lo", "up")
        for number, site in enumerate(sites, start=1):
            here, there = f"u{self._mark}s{number}", f"u{self._mark}c{number}"
            self._ip("-n", self.of("server"), "link", "add", here, "type", "veth", "peer", there)
            self._ip("-n", self.of("server"), "link", "set", there, "netns", self.of(site))
            for name, link, end in (("server", here, 1), (site, there, 2)):
                self._ip("-n", self.of(name), "address", "add", f"10.213.{number}.{end}/24", "dev", link)
                self._ip("-n", self.of(name), "link", "set", link, "up")
        self.addresses = {site: f"10.213.{number}.2" for number, site in enumerate(sites, start=1)}
        self.servers = {site: f"10.213.{number}.1" for number, site in enumerate(sites, start=1)}
        self._names = ("server", *sites)

    def of(self, name: str) -> str:
        return f"umbel-{self._mark}-{name}"

    @classmethod
    @contextlib.contextmanager
    def made(cls, sites: Sequence[str]) -> Iterator[Networks]:
        made = cls(sites)
        try:
            yield made
        finally:
            for name in made._names:
                made._ip("netns", "delete", made.of(name))


def _call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Machine:
    """Where containers run.

    Attributes:
        folder: For their logs and roots.
        links: Networks in which their processes are held; None starts them bare.
    """

    folder: Path
    links: Networks | None = None

    def container(self, image: str, mounts: Mapping[str, Path], at: str) -> Container:
        """Return a container that has not been started, on the network of `server` or of a site."""
        folder = self.folder / f"{at}-{uuid.uuid4().hex[:6]}"
        (folder / "root").mkdir(parents=True)
        if self.links is None:
            return Container(image, folder, dict(mounts))
        hosts, users = folder / "hosts", folder / "passwd"
        hosts.write_text(f"127.0.0.1 localhost\n{self.links.servers.get(at, '127.0.0.1')} server\n")
        users.write_text("umbel:x:10001:10001::/umbel:/usr/sbin/nologin\n")
        mounts = {**mounts, "/etc/hosts:ro": hosts, "/etc/passwd:ro": users}
        return Container(image, folder, mounts, self.links.of(at))


class Container:
    """A container of an image.

    Args:
        image: `server` or `client`.
        folder: For its log and its root.
        mounts: What it mounts: path in it -> folder or file here; a path with `:ro` behind it is read-only.
        network: A network namespace, in which the process is held; empty starts it bare, on folders of this machine.
    """

    def __init__(self, image: str, folder: Path, mounts: Mapping[str, Path], network: str = "") -> None:
        self.image, self.mounts, self.network = image, mounts, network
        self.log, self._root = folder / "log", folder / "root"
        self.process: subprocess.Popen[str] | None = None
        environment = {key: self._here(value) for key, value in image_environment(image).items()}
        own = {"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"}
        if not network:
            own |= {"HOME": str(self._root), "TMPDIR": str(self._root)}
        self.environment = {**environment, **own}

    def _here(self, word: str) -> str:
        """Return a word of a bare process: paths of the image are folders of this machine."""
        if not self.network:
            for path, folder in self.mounts.items():
                word = word.replace(path.partition(":")[0], str(folder))
        return word

    def _words(self, command: Sequence[str]) -> list[str]:
        words = [self._here(word) for word in command]
        if words[0] == "umbel-health":
            words = [sys.executable, str(DOCKER / "health.py"), *words[1:]]
        if not self.network:
            return words
        user = STAGES[self.image].last("USER").partition(":")[0]
        places = [(str(path), str(path), "ro") for path in (Path(sys.base_prefix).resolve(), ROOT)]
        places += [(f"/{name}", f"/{name}", "ro") for name in ("usr", "etc", "dev", "proc")]
        places += [(f"/{name}", f"/{name}", "ro") for name in ("bin", "lib", "lib64") if _is_folder(f"/{name}")]
        for path, folder in self.mounts.items():
            target, _, how = path.partition(":")
            places.append((str(folder), target, how or "rw"))
        flat = [word for place in places for word in place]
        held = ["sh", "-euc", _HOLD, "hold", str(self._root), user, str(len(places)), *flat, *words]
        return [tool("ip"), "netns", "exec", self.network, *held]

    def start(self, *command: str) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self._words(command),
                cwd="/" if self.network else self._root,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `docker exec` does, and wait for its end."""
        return subprocess.run(
            self._words(command),
            cwd="/" if self.network else self._root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )

    def health(self, folder: str) -> str:
        """Return what the health check says is wrong; nothing when it is well."""
        done = self.run("umbel-health", folder)
        assert (done.returncode, bool(done.stderr)) in ((0, False), (1, True))
        return done.stderr

    def wait_until_healthy(self, folder: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while wrong := self.health(folder):
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, wrong + self.log.read_text()
            time.sleep(0.3)

    def wait_for(self, text: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def stop(self) -> int:
        """Ask as `docker stop` does: SIGTERM, and after a while SIGKILL to all that the command started."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _is_folder(path: str) -> bool:
    return Path(path).is_dir() and not Path(path).is_symlink()

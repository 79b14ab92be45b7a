"""The bundle that carries the project's code to where it runs, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zipfile
from pathlib import Path

from flwr.cli.archive_utils import safe_extract_zip
from flwr.cli.config_utils import get_fab_metadata
from flwr.common.config import get_project_dir

_MANIFEST = ".info"  # Flower's, in the archive and not in what is installed


def flower_name(bundle: bytes) -> str:
    """Return the name that Flower gives the folder of an installed bundle."""
    return get_project_dir(*get_fab_metadata(bundle), hashlib.sha256(bundle).hexdigest()).name


def unpack(bundle: bytes, folder: Path, name: str) -> Path:
    """Unpack a bundle once, however many processes do so at a time.

    Flower's own installation copies file by file into the folder that it then takes for complete, so that a second
    process that comes in between, or after a kill, finds a part; and it prints.

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
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unpacking-") as temporary:
        part = Path(temporary) / name
        part.mkdir()
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            safe_extract_zip(archive, part)
        shutil.rmtree(part / _MANIFEST)
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():  # unless another process was faster
                raise
    return target

"""The bundle that carries the project's code to where it runs, unpacked whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from flwr.cli.install import install_from_fab


def unpack(bundle: bytes, folder: Path, name: str | None = None) -> Path:
    """Unpack a bundle once, however many processes do so at a time.

    Flower's own installation copies file by file into the folder that it then takes for complete: a second process
    that comes in between, or after a kill, finds a part.

    Args:
        bundle: Flower's app bundle (FAB).
        folder: Where to unpack.
        name: Name of the unpacked folder; None gives it Flower's name for the bundle.

    Returns:
        The unpacked folder.

    Raises:
        click.ClickException: The bundle is damaged.
        OSError: It cannot be written.
    """
    if name is not None and (folder / name).is_dir():
        return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="unpacking-") as temporary:
        unpacked = install_from_fab(bundle, Path(temporary), skip_prompt=True)
        target = folder / (name or unpacked.name)
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # unless another process was faster
                raise
    return target

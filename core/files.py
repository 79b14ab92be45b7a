"""Files that are whole or not there: written beside, flushed to disk, and renamed into place."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umbel.core.leftovers import beside
from umbel.core.refusal import Refusal

if TYPE_CHECKING:  # torch takes seconds, and who writes text needs none
    from torch import Tensor

_LARGE = 4 << 20  # bytes of tensors, of which a copy would count
_ERRNO = re.compile(r"os error (\d+)")
_SEAL = "sha256"  # the key of a sealed file's own hash


class DamagedError(Refusal):
    """A file that is not what was written; the message names it, and says what to do."""

    @classmethod
    def of(cls, path: Path, what: str, remedy: str) -> DamagedError:
        """Return the refusal of a file.

        Args:
            path: The file.
            what: What is wrong with it, as "it does not have the hash that ...".
            remedy: What to do, in a sentence.
        """
        return cls(f"{path} is damaged: {what}.", remedy=remedy)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new one, also after a crash."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    _write(path, write)


def _write(path: Path, write: Callable[[Path], None]) -> None:
    """Have a file written beside its place, and put it there once it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_bytes(path, text.encode())


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the given order; a number that is not finite is written as null."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with a hash of itself, exactly: numbers that are not finite come back as they were."""
    sealed = {**content, _SEAL: hash_of(content)}
    write_text(path, json.dumps(sealed, indent=2, ensure_ascii=False) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the hash.

    Raises:
        ValueError: It is no JSON, has no hash, or does not have that hash.
        OSError: It cannot be read.
    """
    content = read_json(path)
    if not isinstance(content, dict) or _SEAL not in content:
        raise ValueError("it has no hash of itself")
    seal = content.pop(_SEAL)
    if seal != hash_of(content):
        raise ValueError("it does not have the hash that stands in it")
    return content


def hash_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a mapping that JSON knows, in hexadecimal; the order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise named tensors as safetensors; tensors that share storage are copied apart."""
    from safetensors.torch import save

    return save(_apart(tensors), metadata=_said(metadata))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in row-major order on the CPU; those that share storage with one before are copied."""
    apart: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if place in known else own
        known.add(place)
    return apart


def _said(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    # An empty mapping in place of None, without a tensor, makes safetensors write what it cannot read.
    return dict(metadata) if metadata else None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors atomically as safetensors, without a copy of them in memory where they are large.

    Raises:
        OSError: There is no room, or no way to write there.
    """
    if sum(tensor.nbytes for tensor in tensors.values()) < _LARGE:
        write_bytes(path, tensors_to_bytes(tensors, metadata))
        return
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        # It writes into a file beside the one that it is told, which is its owner's alone, and renames that.
        with _folder_beside(path) as folder:
            file = folder / "tensors"
            file.touch()
            mode = file.stat().st_mode
            try:
                save_file(_apart(tensors), file, _said(metadata))
            except SafetensorError as error:
                if number := _ERRNO.search(str(error)):
                    raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
                raise
            file.chmod(mode)
            file.replace(temporary)

    _write(path, write)


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Make a folder beside a file's place, for as long as it takes to write the file."""
    folder = beside(path)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors (in memory of their own) and the file's metadata.

    Raises:
        ValueError: The file is damaged.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = path.read_bytes()
    try:
        views = load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return {name: torch.clone(tensor) for name, tensor in views.items()}, metadata


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a folder atomically: `fill` writes into a temporary one, which is then renamed to `path`.

    If `fill` fails (a full disk), nothing of it remains and an older folder at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.mkdir()
    try:
        fill(temporary)
        _sync_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def stamp(path: Path) -> tuple[int, ...]:
    """Return what is another value once a file has changed, or is gone: then it is empty."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_mtime_ns, status.st_size, status.st_ino)

"""A line between two processes of one machine: a socket for what is said, memory for what is large.

The memory has no name: nothing of it stays when both are killed.
"""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from umbel.core.flat import Outline
from umbel.core.stored import File
from umbel.core.tree import Tree

_LENGTH = struct.Struct("<Q")
_MOST_KEPT = 64 << 20  # bytes of an answer in memory
_LARGE = 16 << 20  # bytes from which on memory counts more than the moment that it takes to have it from the system
_GROWN = 1.25  # memory that is too small is made so much larger than what is asked for


class LineError(OSError):
    """The process at the other end is gone."""


class Memory:
    """Memory that another process maps as well, once it has been handed over."""

    def __init__(self) -> None:
        self.file = -1
        self.version = 0
        self._map: mmap.mmap | None = None

    def of(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return so much of it, [num_bytes], at its beginning; what was there before is overwritten."""
        if self._map is None or len(self._map) < num_bytes:
            self.close()
            self.file = os.memfd_create("umbel")
            os.ftruncate(self.file, max(int(num_bytes * _GROWN), mmap.PAGESIZE))
            self._map = mmap.mmap(self.file, 0)
            self.version += 1
        return np.frombuffer(self._map, np.uint8, num_bytes)

    def lay(self, trees: Mapping[str, Tree], outline: Outline, tell: Callable[[str], None] = lambda text: None) -> bool:
        """Lay trees down; say whether they are in a file on disk, of their own, which the other end keeps.

        So a large answer is in no process's memory as a whole.

        Args:
            trees: The trees.
            outline: What lies where.
            tell: Told what a user should know: there is no room on disk.
        """
        if outline.num_bytes > _MOST_KEPT:
            try:
                file = File.new()
                file.write(trees, outline)
            except OSError as error:
                where = tempfile.gettempdir()
                tell(f"A worker's answer finds no room on disk, in {where}: {error}. It takes memory, as all like it.")
            else:
                self.close()
                self.file, self.version = os.dup(file.descriptor), self.version + 1
                return True
        outline.write(trees, torch.from_numpy(self.of(outline.num_bytes)))
        return False

    def look_away(self) -> None:
        """Let what is large stay where it is, but in no memory of this process's: who looks at it has it again."""
        self._advise("MADV_DONTNEED")

    def empty(self) -> None:
        """Give what is large back to the system, in all processes; who looks at it all the same finds zeros."""
        self._advise("MADV_REMOVE")

    def _advise(self, name: str) -> None:
        if self._map is not None and len(self._map) >= _LARGE and (advice := getattr(mmap, name, None)) is not None:
            with suppress(OSError):  # a system that does not do it for such memory: it stays
                self._map.madvise(advice)

    def given_away(self) -> None:
        """Forget what `lay` has put into a file: it is the other end's now."""
        if self._map is None:
            self.close()

    def close(self) -> None:
        """Give it back; who has mapped it keeps it."""
        if self.file >= 0:
            os.close(self.file)
        self.file, self._map = -1, None


class Line:
    """One end of a line.

    Args:
        end: A connected socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._told = 0  # the version of our memory that the other end has
        self._theirs: mmap.mmap | None = None
        self.file = -1  # of the other end's memory, or none

    def send(self, content: Any, memory: Memory | None = None) -> None:
        """Say something; a memory that the other end does not have yet is handed over with it.

        Raises:
            LineError: Nobody is there any more.
        """
        body = pickle.dumps(content, protocol=5)
        files = [memory.file] if memory is not None and memory.version != self._told else []
        try:
            head = _LENGTH.pack(len(body))
            sent = socket.send_fds(self.socket, [head], files)
            self.socket.sendall(head[sent:] + body)
        except OSError as error:
            raise LineError(str(error)) from error
        if memory is not None:
            self._told = memory.version

    def receive(self) -> Any:
        """Return what the other end says; wait for it.

        Raises:
            LineError: Nobody is there any more.
        """
        try:
            head, files, flags, _ = socket.recv_fds(self.socket, _LENGTH.size, 1)
            if flags & socket.MSG_CTRUNC:  # this process has as many files open as it may
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            head += self._exactly(_LENGTH.size - len(head))
            for file in files:
                self._theirs = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
                self._close_file()
                self.file = file
            return pickle.loads(self._exactly(_LENGTH.unpack(head)[0]))  # noqa: S301 - our own process
        except OSError as error:
            raise LineError(str(error)) from error

    def _exactly(self, num_bytes: int) -> bytes:
        parts = bytearray()
        while len(parts) < num_bytes:
            part = self.socket.recv(min(num_bytes - len(parts), 1 << 20))
            if not part:
                raise LineError("it is closed")
            parts += part
        return bytes(parts)

    def memory(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return the other end's memory, [num_bytes]; nobody writes into it here."""
        if not num_bytes:
            return np.empty(0, np.uint8)
        assert self._theirs is not None, "it was handed over"
        return np.frombuffer(self._theirs, np.uint8, num_bytes)

    def file_of_answer(self) -> File:
        """Return the file that the other end has handed over; nothing of it is kept here."""
        file, self.file, self._theirs = File(self.file), -1, None
        return file

    def hang_up(self) -> None:
        """Close it, also where another process has a copy of this end."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """Close this process's end."""
        self.socket.close()
        self._close_file()

    def _close_file(self) -> None:
        if self.file >= 0:
            os.close(self.file)
        self.file = -1

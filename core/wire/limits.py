"""How much of a message is read, before anything is made of it."""

from __future__ import annotations

from dataclasses import dataclass

MOST_DIMENSIONS = 16  # of a tensor; models have five at most, and collected replies one more
_TENSORS, _VALUES = 64, 1 << 16  # beyond what can be: what is a little too much can be read, and named
_HEADER, _HEADER_EACH = 4096, 1024  # bytes of a header of tensors: name, dtype, shape and place take some hundred each
_HEAD, _HEAD_EACH = 1 << 16, 1 << 14  # bytes of a head: a reason of 500 letters takes 6,000, escaped
_BESIDE = 1 << 16  # bytes of Flower's own: identifiers, types, NumPy's header


@dataclass(frozen=True)
class Size:
    """The most that some replies may come to.

    Attributes:
        num_bytes: Of the values of their tensors.
        num_tensors: How many tensors.
    """

    num_bytes: int = 0
    num_tensors: int = 0

    def __add__(self, other: Size) -> Size:
        """Return what both may come to."""
        return Size(self.num_bytes + other.num_bytes, self.num_tensors + other.num_tensors)

    def __mul__(self, number: int) -> Size:
        """Return what so many of this size may come to."""
        return Size(self.num_bytes * number, self.num_tensors * number)


@dataclass(frozen=True)
class Limits:
    """The most that is read of a message.

    The defaults are for what a node gets of its server, and for what is not known before: a gibibyte of head, and of
    tensors as many bytes as came.

    Attributes:
        head_bytes: Of the JSON head.
        header_bytes: Of the header of the tensors.
        value_bytes: Of the values of the tensors.
        num_tensors: How many tensors.
        num_entries: Of each list in an answer's head.
    """

    head_bytes: int = 1 << 30
    header_bytes: int = 100_000_000  # what safetensors itself reads
    value_bytes: int = 1 << 50
    num_tensors: int = 1_000_000
    num_entries: int = 1 << 30

    @classmethod
    def of_answer(cls, size: Size, num_clients: int) -> Limits:
        """Return those of a node's answer.

        Args:
            size: The most that its accumulators and replies may come to.
            num_clients: Clients that it answers for.
        """
        num_tensors = min(size.num_tensors + _TENSORS, cls.num_tensors)
        return cls(
            head_bytes=_HEAD + _HEAD_EACH * num_clients,
            header_bytes=min(_HEADER + _HEADER_EACH * num_tensors, cls.header_bytes),
            value_bytes=size.num_bytes + _VALUES,
            num_tensors=num_tensors,
            num_entries=2 * num_clients + 64,
        )

    @property
    def message_bytes(self) -> int:
        """Of a message with all that Flower puts around it."""
        return self.head_bytes + self.header_bytes + self.value_bytes + _BESIDE

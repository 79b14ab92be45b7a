"""What is refused before anything starts: one error, with the key to change, the reason, and what to do."""

from __future__ import annotations

from collections.abc import Mapping


class Refusal(ValueError):  # noqa: N818 - it is no fault of the program
    """Something that was asked for cannot be; nothing has started, nothing is lost.

    Every command ends with exit status 2 upon it, on every engine.

    Args:
        reason: What was expected and what was found, in sentences.
        key: The configuration key or command-line option to change; empty when there is none.
        remedy: What to do about it, in a sentence.

    Attributes:
        key: As given.
        reason: As given.
        remedy: As given.
    """

    def __init__(self, reason: str, *, key: str = "", remedy: str = "") -> None:
        self.reason, self.key, self.remedy = reason, key, remedy
        where = "" if not key or key in reason or key in remedy else f" (key {key})"
        body = f"{reason.rstrip('.')}{where}." if where else reason
        super().__init__(f"{body} {remedy}".strip())

    def as_dict(self) -> dict[str, str]:
        """Return what `again` makes the same refusal of, in another process."""
        return {"reason": self.reason, "key": self.key, "remedy": self.remedy}

    @staticmethod
    def again(content: Mapping[str, str]) -> Refusal:
        """Return the refusal that another process met."""
        return Refusal(content["reason"], key=content["key"], remedy=content["remedy"])

    def __reduce__(self) -> tuple[object, ...]:
        return _made, (type(self), self.reason, self.key, self.remedy)


def _made(kind: type[Refusal], reason: str, key: str, remedy: str) -> Refusal:
    return kind(reason, key=key, remedy=remedy)


# What ends with exit status 2 where nothing has started: paths that a user gave, too.
REFUSALS = (Refusal, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)

"""What other machines are shown of this one's paths: those within the folder from there on, of others the last part."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from umbel.core.names import shown

_BEFORE = r"(?<![\w./\\~-])"  # where a path begins, and no part of one
_NAMES = ("group", "name")  # of an answer: these hold no path of the machine
_OTHERS = re.compile(_BEFORE + r"/(?:[^\s/'\"`:,;()<>]+/)+")


class Shortener:
    """Shortens paths in all texts of an answer. Folders elsewhere with spaces in their names are shortened in part.

    Args:
        root: The folder that is watched.
    """

    def __init__(self, root: Path) -> None:
        paths = {str(root), os.path.abspath(root), str(root.resolve())}  # noqa: PTH100 - as it is written
        texts = {text for path in paths if Path(path).name for text in (path, shown(path), repr(path)[1:-1])}
        ends = {text: "(?:/|(?![\\w.-]))" if "/" in text else "/" for text in texts}  # `results` alone may be a word
        known = "|".join(re.escape(text) + ends[text] for text in sorted(texts, key=len, reverse=True))
        self._own = re.compile(f"{_BEFORE}(?:{known})") if known else None

    def __call__(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer with short paths."""
        return {key: each if key in _NAMES else self._shortened(each) for key, each in content.items()}

    def _shortened(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return self(value)
        if isinstance(value, (list, tuple)):
            return [self._shortened(each) for each in value]
        return value

    def text(self, text: str) -> str:
        """Return a text with short paths."""
        if self._own is not None:
            text = self._own.sub(lambda found: "" if found[0].endswith("/") else ".", text)
        return _OTHERS.sub(".../", text)

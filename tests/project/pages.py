"""Pages of documentation taken apart: blocks, the files that they write, the commands that they name."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from tests.places import ROOT
from umbel.simulations.commands.main import main

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
EXECUTED = [
    DOCS / "tutorial.md",
    DOCS / "using.md",
    DOCS / "federation" / "own-data.md",
    *(page for page in sorted((DOCS / "own").glob("*.md")) if page.name != "README.md"),
]
SHELLS = ("console", "bash", "sh")
NOT_EXECUTED = "not executed"

_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^>]*) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.\w+)\n")


def called(page: Path) -> str:
    """Return what a test calls a page."""
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block: `file` is the name in its first line when it is a file to write."""

    kind: str
    text: str
    mark: str
    line: int

    @property
    def file(self) -> str | None:
        match = _FILE.match(self.text)
        return match.group(1) if match else None

    @property
    def lines(self) -> list[str]:
        """Its lines, those that a shell goes on with as one."""
        return self.text.replace("\\\n", " ").splitlines()


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["kind"], m["text"], m["mark"] or "", text.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(text)
    ]


def commands(page: Path) -> list[list[str]]:
    """All `umbel ...` commands of a page, in blocks and in running text, as words."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page) if block.kind in SHELLS for line in block.lines]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(umbel [^`]*)`", re.sub(r"\s+", " ", prose))
    lines = [line.strip() for line in lines if line.strip().startswith("umbel ")]
    return [[word for word in shlex.split(line, comments=True) if word != "&"] for line in lines]


def write_files(page: Path, folder: Path) -> None:
    """Write the files of a page, and the skeletons that it asks for, into a folder, which is the current one."""
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    for words in commands(page):
        if words[:2] == ["umbel", "new"] and len(words) > 3:
            assert CliRunner().invoke(main, words[1:]).exit_code == 0

"""What tests of pages share: an empty folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.project.pages import PAGES, blocks, commands


@pytest.fixture
def page_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder in which the modules that pages write are found, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = [Path(block.file) for page in PAGES for block in blocks(page) if block.file]
    skeletons = [words[3] for page in PAGES for words in commands(page) if words[1:2] == ["new"] and len(words) > 3]
    for module in {file.stem for file in files if file.suffix == ".py"} | {*skeletons}:
        # Set and deleted, so that the end of the test restores "not there" whatever has been imported meanwhile.
        monkeypatch.setitem(sys.modules, module, sys)
        monkeypatch.delitem(sys.modules, module)
    return tmp_path

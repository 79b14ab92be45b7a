"""The documentation is true: the tutorial runs, commands and links exist, the page of keys is up to date."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.places import ROOT
from umbel.conf import load
from umbel.simulations.commands.main import main

DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "CONTRIBUTING.md"]
TUTORIAL = DOCS / "tutorial.md"
SHELLS = ("console", "bash", "sh")

_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^>]*) -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.\w+)\n")


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


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["kind"], m["text"], m["mark"] or "", text.count("\n", 0, m.start()) + 1) for m in _BLOCK.finditer(text)
    ]


def commands(page: Path) -> list[list[str]]:
    """All `umbel ...` commands of a page, in blocks and in running text, as words."""
    text = page.read_text(encoding="utf-8")
    found = [line for block in blocks(page) if block.kind in SHELLS for line in block.text.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found += re.findall(r"`(umbel [^`]*)`", re.sub(r"\s+", " ", prose))
    lines = [line.strip() for line in found if line.strip().startswith("umbel ")]
    return [[word for word in shlex.split(line, comments=True) if word != "&"] for line in lines]


def write_files(folder: Path) -> None:
    for block in blocks(TUTORIAL):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder in which the tutorial's modules are found, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Set and deleted, so that the end of the test restores "not there" whatever has been imported meanwhile.
    monkeypatch.setitem(sys.modules, "my_strategy", sys)
    monkeypatch.delitem(sys.modules, "my_strategy")
    return tmp_path


@pytest.mark.slow  # a dozen small runs
def test_the_tutorial_in_this_process(folder: Path) -> None:
    """All but the slow blocks; `umbel` is called as a function, which saves the imports."""
    executed = 0
    for block in blocks(TUTORIAL):
        if block.mark:
            continue
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.kind == "python":
            (folder / "block.py").write_text(block.text, encoding="utf-8")
            runpy.run_path(str(folder / "block.py"))
        else:
            assert block.kind in SHELLS
            for line in block.text.splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] == ["export", "PYTHONPATH=$PWD"]:
                    continue  # the fixture has done it
                assert words[0] == "umbel"
                done = CliRunner().invoke(main, words[1:])
                assert done.exit_code == 0, f"tutorial.md, line {block.line}: {line}\n{done.output}"
        executed += 1
    assert executed > 10


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.processes
@pytest.mark.timeout(1800)
def test_the_whole_tutorial_in_real_shells(tmp_path: Path) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"],
        "UMBEL_HOME": str(tmp_path / "federation"),
    }
    work = tmp_path / "work"
    work.mkdir()

    def shell(text: str) -> subprocess.CompletedProcess[str]:
        script = ["bash", "-euo", "pipefail", "-c", text]
        return subprocess.run(
            script, cwd=work, env=environment, capture_output=True, text=True, timeout=600, check=False
        )

    try:
        for block in blocks(TUTORIAL):
            if block.mark == "not executed":
                continue
            if block.file:
                (work / block.file).write_text(block.text, encoding="utf-8")
                continue
            text = block.text
            if block.kind == "python":
                (work / "block.py").write_text(text, encoding="utf-8")
                text = "python block.py"
            done = shell(text)
            assert done.returncode == 0, f"tutorial.md, line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"
    finally:
        shell("umbel federate down")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path, folder: Path) -> None:
    write_files(folder)
    for words in commands(page):
        assert_parses(words)


def assert_parses(words: list[str]) -> None:
    """Check command, options, experiment and overrides without running anything."""
    command: click.Command = main
    rest = words[1:]
    context = click.Context(main, info_name="umbel")
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        assert found is not None, f"{shlex.join(words)}: there is no command {rest[0]!r}"
        context, command, rest = click.Context(found, context, rest[0]), found, rest[1:]
    if isinstance(command, click.Group) or "--help" in rest or not rest:
        return  # named in running text, such as `umbel run`
    try:
        parsed = command.make_context(str(command.name), list(rest), parent=context.parent)
    except click.UsageError as error:
        pytest.fail(f"{shlex.join(words)}: {error.format_message()}")
    if "experiment" in parsed.params:
        load(parsed.params["experiment"], parsed.params["overrides"])
    if "strategies" in parsed.params:
        from umbel.simulations.compare.prepare import prepare

        given = parsed.params
        prepare(given["experiment"], given["strategies"], given["seeds"], given["overrides"], given["output"])


def test_a_wrong_command_is_found() -> None:
    for wrong in (["umbel", "rum"], ["umbel", "run", "digits", "--fast"], ["umbel", "run", "digits", "run.round=1"]):
        with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
            assert_parses(wrong)


def test_the_page_of_keys_is_current() -> None:
    page = runpy.run_path(str(DOCS / "make_configuration.py"))["page"]
    assert page() == (DOCS / "configuration.md").read_text(encoding="utf-8"), "run python docs/make_configuration.py"


def test_the_page_of_names_is_current() -> None:
    page = runpy.run_path(str(DOCS / "make_api.py"))["page"]
    assert page() == (DOCS / "api.md").read_text(encoding="utf-8"), "run python docs/make_api.py"


def test_the_examples_on_the_page_of_models_run() -> None:
    found = [block.text for block in blocks(DOCS / "models.md") if block.kind == "python"]
    assert len(found) == 3
    for text in found:
        exec(compile(text, "models.md", "exec"), {})  # the page's own lines


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_page_of_models_is_current() -> None:
    page = runpy.run_path(str(DOCS / "make_models.py"))["page"]
    assert page() == (DOCS / "models.md").read_text(encoding="utf-8"), "run python docs/make_models.py"


def test_every_strategy_has_a_page_in_the_index() -> None:
    index = (DOCS / "strategies" / "README.md").read_text(encoding="utf-8")
    for page in (DOCS / "strategies").glob("[a-z]*.md"):
        assert f"({page.name})" in index

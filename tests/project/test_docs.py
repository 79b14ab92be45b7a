"""The documentation is true: commands and links exist, the pages that are made from the code are up to date."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from tests.project.pages import DOCS, PAGES, blocks, called, commands, write_files
from umbel.conf.load import asked, load
from umbel.data import MissingDataError
from umbel.simulations.commands.main import main


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_commands_parse(page: Path, page_folder: Path) -> None:
    write_files(page, page_folder)
    missing = []
    for words in commands(page):
        try:
            assert_parses(words)
        except MissingDataError as error:  # after the command's own words were checked
            missing.append(f"{shlex.join(words)}: {error}")
    if missing:
        pytest.skip("; ".join(missing))


def assert_parses(words: list[str]) -> None:
    """Check command, options, experiment and overrides without running anything."""
    command: click.Command = main
    rest = words[1:]
    context = click.Context(main, info_name="umbel")
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        below = command.get_command(context, rest[0])
        assert below is not None, f"{shlex.join(words)}: there is no command {rest[0]!r}"
        context, command, rest = click.Context(below, context, rest[0]), below, rest[1:]
    if isinstance(command, click.Group) or "--help" in rest or not rest:
        return  # named in running text, such as `umbel run`
    try:
        parsed = command.make_context(str(command.name), list(rest), parent=context.parent)
    except click.UsageError as error:
        pytest.fail(f"{shlex.join(words)}: {error.format_message()}")
    given = parsed.params
    if "arguments" in given:
        assert_can_be_tuned(given)
    elif "strategies" in given:
        from umbel.simulations.compare.settings import prepare_matrix, wanted

        said = [given[name] for name in ("overrides", "strategies", "seeds", "budget", "sweep")]
        prepare_matrix(given["experiment"], wanted(given["experiment"], *said), given["overrides"], given["output"])
    elif given.get("experiment"):
        load(given["experiment"], given["overrides"])


def assert_can_be_tuned(given: dict[str, Any]) -> None:
    """Check what `umbel tune` is to search, as far as that can be without Optuna."""
    from umbel.simulations.compare.prepare import compose, parse_strategies
    from umbel.simulations.tune.space import contenders, split

    overrides, space = split(given["arguments"])
    tune = load(given["experiment"], overrides).tune
    named = given["strategies"] or tune.strategies or asked(given["experiment"]).strategies
    for each in contenders(parse_strategies(named), {**tune.space, **space}):
        compose(given["experiment"], each.item, None, overrides)


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
    examples = [block.text for block in blocks(DOCS / "models.md") if block.kind == "python"]
    assert len(examples) == 3
    for text in examples:
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

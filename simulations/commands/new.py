"""The command `new`: a skeleton of one's own that works, with its test."""

from __future__ import annotations

import importlib.util
import keyword
from pathlib import Path

import click

from umbel.core.refusal import Refusal
from umbel.simulations.commands.supervision import guarded, say

TEMPLATES = Path(__file__).parent / "templates"
_PACKAGE = "umbel.simulations.commands.templates"
# kind -> the name of its class in the template, what `umbel run` is told beside the module's name
KINDS = {
    "strategy": ("NewStrategy", "strategy.name={name}:{kind}"),
    "model": ("NewModel", "model.name={name}:{kind}"),
    "data": ("", "data.name={name}:load"),
}


@click.command(short_help="Write the skeleton of a strategy, a model or data of your own.")
@click.argument("kind", type=click.Choice(tuple(KINDS)))
@click.argument("name")
@guarded
def new(kind: str, name: str) -> None:
    """Write NAME.py, a strategy, a model or data of your own that works, and test_NAME.py, into this folder.

    Nothing is overwritten. What to change stands in the files.

    \b
    Examples:
      umbel new strategy clipped
      umbel new model small_net
      umbel new data my_pictures
    """  # noqa: D301 - click reads the backspace as "keep these lines"
    check_name(name)
    texts = {Path(f"{name}.py"): f"{kind}.py", Path(f"test_{name}.py"): f"test_{kind}.py"}
    for path in texts:
        if path.exists():
            raise Refusal(f"{path} is there already.", key="NAME", remedy="Choose another name, or remove it.")
    for path, template in texts.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(filled((TEMPLATES / template).read_text(encoding="utf-8"), kind, name))
        click.echo(str(path))
    say('Next:\n  export PYTHONPATH="$PWD"')
    say(f"  python -m pytest test_{name}.py")
    say(f"  umbel run digits {KINDS[kind][1].format(name=name, kind=class_name(name))} run.rounds=1")


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a module of one's own."""
    if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name):
        raise Refusal(
            f"{name!r} cannot be the name of a Python module.",
            key="NAME",
            remedy="Use letters, digits and underscores, a letter first, and no word of Python's.",
        )
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve() != Path(f"{name}.py").resolve():
        raise Refusal(
            f"There is a module called {name!r} already ({spec.origin}), and Python would find one of the two.",
            key="NAME",
            remedy="Choose another name.",
        )


def class_name(name: str) -> str:
    """Return a module's name as that of a class: `small_net` as `SmallNet`."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def filled(template: str, kind: str, name: str) -> str:
    """Return a template's text under the name of somebody's own."""
    text = template.replace(f"{_PACKAGE}.{kind}", name)
    placeholder = KINDS[kind][0]
    return text.replace(placeholder, class_name(name)) if placeholder else text

"""The page: one HTML document with its style and script inside, and the policy that lets these run and nothing else."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from umbel.core.names import shown
from umbel.simulations.report.charts import COLOURS
from umbel.simulations.watch.detail import ACCURACIES, LOSSES

_FOLDER = Path(__file__).parent / "templates"
_SCRIPTS = ("words.js", "charts.js", "runs.js", "curves.js", "one.js", "watch.js")


class Page:
    """The page of a folder.

    Args:
        root: The folder.
        is_open: Whether other machines read it: it names the folder then, and not where it lies.

    Attributes:
        html: The document.
        policy: Its content security policy: the script and the style that it holds, by their hashes, and no others.
    """

    def __init__(self, root: Path, is_open: bool = False) -> None:
        style = (_FOLDER / "watch.css").read_text(encoding="utf-8") + _colours()
        parts = [(_FOLDER / name).read_text(encoding="utf-8") for name in _SCRIPTS]
        script = '"use strict";\n' + "\n".join(parts)
        environment = Environment(
            loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self.html = environment.get_template("watch.html.jinja").render(
            folder=shown(root.resolve().name if is_open else root.resolve()),
            facts={"colours": COLOURS, "accuracies": ACCURACIES, "losses": LOSSES},
            style=Markup(style),  # noqa: S704 - ours
            script=Markup(script),  # noqa: S704 - ours
        )
        self.policy = "; ".join(
            (
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                "img-src data:",
                "connect-src 'self'",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        )


def _colours() -> str:
    """Return rules for the reports' colours; what is black there is the text's colour, for the sake of a dark page."""
    shown_as = [colour if colour != "#000000" else "var(--text)" for colour in COLOURS]
    return "\n".join(f".c{number} {{ --c: {colour}; }}" for number, colour in enumerate(shown_as))


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

"""Figures as SVG within a page, drawn in the page's own colours, so that they are read in light and in dark.

What is black becomes the page's text colour, and each colour of `charts.COLOURS` a variable of the page's styles
(`--c0`, `--c1`, ...). Text stays text. A heat map (`heat`) is an image of one colour, which the page's styles make
lighter on dark; texts in its cells have two colours of the styles. A figure with any other image has its colours from a
scale that means something on white only: it stays a PNG, and so does one that would be too long as SVG.
"""

from __future__ import annotations

import hashlib
import re
from html import escape

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from umbel.simulations.plots import heat
from umbel.simulations.plots.runs import COLOURS, drawn

LONGEST = 400_000  # letters
_BLACK = "#000000"
_HEAD = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_OPENS = re.compile(r"<svg\b[^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.DOTALL)
_NAMES = re.compile(r"(\bid=\"|\bxlink:href=\"#|url\(#)")
_USES = re.compile(r"(?:\bxlink:href=\"|url\()#([^\")]*)")
_ID = re.compile(r" id=\"([^\"]*)\"")
_PATH = re.compile(r" d=\"[^\"]*\"")
_LONG = re.compile(r"-?\d+\.\d{3,}")
# Said of each text and group, and said by the page's styles or by nothing.
_SAID = re.compile(r"font-family: [^;\"]*;? ?| transform=\"rotate\(-0 [^\"]*\"|<g/>|(?<=>)\s+(?=<)")


def svg(figure: Figure, alternative: str) -> str | None:
    """Return a figure as an element for a page; None if it is better shown as PNG. Equal figures give equal elements.

    Args:
        figure: The figure.
        alternative: What it shows, for those who cannot see it.
    """
    if any(map(_needs_its_scale, figure.axes)):
        return None
    text = drawn(figure, "svg", transparent=True).decode()
    if len(text) > LONGEST:
        return None
    name = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}"  # before the names within it, which pages share
    text = _short(_HEAD.sub("", text))
    text = _NAMES.sub(lambda found: f"{found[1]}{name}-", text).replace("xlink:href", "href")
    said = escape(alternative)
    text = _OPENS.sub(
        lambda found: f'<svg class="plot" role="img" viewBox="{found[1]}" aria-label="{said}">', text, count=1
    )
    for number, colour in enumerate(COLOURS):
        if colour != _BLACK:
            text = text.replace(colour.lower(), f"var(--c{number})")
    text = text.replace(heat.ON_WEAK, "var(--on-weak)").replace(heat.ON_STRONG, "var(--on-strong)")
    return text.replace(_BLACK, "currentColor").strip()


def _short(text: str) -> str:
    """Return a drawing without what says nothing to a browser: half of its letters."""
    used = set(_USES.findall(text))
    text = _ID.sub(lambda found: found[0] if found[1] in used else "", text)
    text = _PATH.sub(lambda found: _LONG.sub(lambda number: f"{float(number[0]):.2f}", found[0]), text)
    return _SAID.sub("", text)


def _needs_its_scale(axes: Axes) -> bool:
    """Say whether axes have something whose colours stand for values, and are not those of heat maps."""
    images = [each for each in axes.get_children() if isinstance(each, AxesImage)]
    return not all(map(heat.is_heat, images)) or any(each.get_array() is not None for each in axes.collections)

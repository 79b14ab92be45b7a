"""Figures as a part of a page, in its colours."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from tests.helpers import small_run
from umbel.simulations.plots import heat, inline
from umbel.simulations.plots.heat import COLOUR, heat_map
from umbel.simulations.plots.runs import COLOURS, curves, new_figure, save
from umbel.simulations.report import page as pages
from umbel.simulations.report.page import report

NASTY = '<b onload="x">&amp; "q"'


def lines(number: int = 2, title: str = "title") -> Figure:
    return curves({f"line {n}": [{1: 0.1 * n, 2: 0.2}] for n in range(number)}, title, "accuracy")


def test_it_has_the_colours_of_the_page_and_none_of_its_own() -> None:
    drawn = inline.svg(lines(6), "six lines")
    assert drawn is not None and drawn.startswith("<svg ") and drawn.endswith("</svg>")
    for number in range(6):
        assert f"var(--c{number})" in drawn and COLOURS[number].lower() not in drawn
    assert "currentColor" in drawn and "#000000" not in drawn and "#ffffff" not in drawn
    assert "http" not in drawn and "<metadata" not in drawn and "<style" not in drawn


def test_names_within_it_are_nobody_elses_and_all_there() -> None:
    first, second = inline.svg(lines(2), "a"), inline.svg(lines(3), "a")
    assert first is not None and second is not None
    own, other = (set(re.findall(r"\bid=\"([^\"]*)", text)) for text in (first, second))
    assert own and not own & other
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]*)", first)) <= own
    assert inline.svg(lines(2), "a") == first


def test_texts_are_texts_and_harmless() -> None:
    drawn = inline.svg(curves({NASTY: [{1: 0.1}], "b": [{1: 0.2}]}, NASTY, "y"), NASTY)
    assert drawn is not None
    parsed = ElementTree.fromstring(drawn)
    assert parsed.get("aria-label") == NASTY and parsed.get("role") == "img"
    assert [text.text for text in parsed.iter("text")].count(NASTY) == 2
    assert not list(parsed.iter("b")) and {element.tag for element in parsed.iter()} <= {
        "svg", "g", "path", "defs", "use", "text", "clipPath", "rect"
    }  # fmt: skip


@pytest.mark.parametrize("log", [True, False])
def test_a_heat_map_is_an_image_of_one_colour_a_pixel_a_cell(log: bool) -> None:
    counts = np.array([[0, 1, 50], [100, 7, 0]])
    drawn = inline.svg(heat_map(counts, ["a", "b", "c"], "t", log), "a map")
    assert drawn is not None and not re.search("#ffffff|#00000[01]", drawn)
    assert "fill: var(--on-weak)" in drawn and "fill: var(--on-strong)" in drawn
    images = [base64.b64decode(each) for each in re.findall(r'href="data:image/png;base64,\s*([^"]+)"', drawn)]
    first, _ = (np.asarray(Image.open(io.BytesIO(each))) for each in images)  # the second is the legend's
    assert first.shape == (2, 3, 4) and np.unique(first[..., :3].reshape(-1, 3), axis=0).tolist() == [list(COLOUR)]
    alpha = first[..., 3].astype(int)
    assert alpha[0, 0] == alpha[1, 2] == 0 and 0 < alpha[0, 1] < alpha[1, 1] < alpha[0, 2] < alpha[1, 0] == 255


def luminance(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative luminance of sRGB colours [..., 3] in 0..1, as WCAG 2.2 defines it."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["file", "light", "dark"])
def test_a_cell_of_any_strength_has_text_of_enough_contrast(theme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1, on a file's white and on the page's card, whose styles make cells lighter on dark."""
    strengths = np.linspace(0, 1, 1001)[None, :]
    _, axes = new_figure(2, 2)
    heat.draw(axes, strengths)
    heat.write(axes, strengths, [["1"] * 1001])
    cells, ink = np.asarray(axes.images[0].get_array()) / 255, [str(text.get_color()) for text in axes.texts]
    card, lighter = "#ffffff", 1.0
    if theme != "file":
        styles = (Path(pages.__file__).parent / "templates" / "report.html.jinja").read_text(encoding="utf-8")
        said = dict(zip(("light", "dark"), re.findall(r":root \{(.*?)\}", styles, re.DOTALL), strict=True))
        own = dict(re.findall(r"--([\w-]+): (#\w+)", said[theme]))
        card, ink = own["card"], [own["on-weak" if each == heat.ON_WEAK else "on-strong"] for each in ink]
        (factor,) = re.findall(r"\.plot image \{ filter: brightness\(([\d.]+)\); \}", styles)
        lighter = float(factor) if theme == "dark" else 1.0
    alpha, colour = cells[0, :, 3:], np.minimum(lighter * cells[0, :, :3], 1)
    behind = luminance(np.round(255 * (alpha * colour + (1 - alpha) * np.array(to_rgb(card)))) / 255)
    text = luminance(np.array([to_rgb(each) for each in ink]))
    contrast = (np.maximum(behind, text) + 0.05) / (np.minimum(behind, text) + 0.05)
    assert len(set(ink)) == 2 and contrast.min() >= 4.5, strengths[0, contrast.argmin()]


def test_a_hundred_clients_with_a_hundred_classes_are_small() -> None:
    counts = np.random.default_rng(0).poisson(9, (100, 100))
    drawn = inline.svg(heat_map(counts, [f"class {number}" for number in range(100)], "t"), "a map")
    assert drawn is not None and len(drawn) < 50_000 and drawn.count("<") < 700


def test_what_needs_its_scale_and_what_is_too_long_stays_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    figure, axes = new_figure(2, 2)
    axes.imshow(np.ones((3, 2)))
    assert inline.svg(figure, "an image") is None
    monkeypatch.setattr(inline, "LONGEST", 100)
    assert inline.svg(lines(), "lines") is None


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF"), ("png", b"\x89PNG")])
def test_equal_figures_are_equal_files(tmp_path: Path, suffix: str, start: bytes) -> None:
    first, second = (save(lines(), tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second and first.startswith(start)


def test_all_pictures_of_a_report_are_files_when_asked_for(tmp_path: Path) -> None:
    folder = small_run(tmp_path).path
    page = report([folder], figures=tmp_path / "figures").read_text(encoding="utf-8")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    shown = page.count('<svg class="plot"') + page.count("<img ")
    assert len(names) == 2 * shown and names[0] == "01-accuracy-by-round.pdf" and names[1].endswith(".svg")
    assert 'class="plot"' in page and "data:image/png" in page  # curves, and who has which classes

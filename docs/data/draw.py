"""Draw the pictures of docs/data: sheets of examples, and bars of counts. Called by docs/make_data.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from umbel.core.rng import generator
from umbel.data.types import DataSet, Examples

CELL, GAP, TEXT, MOST_BYTES = 56, 4, 12, 150_000
COLUMNS, ROWS, CAPTIONED = 12, 12, (7, 4)
INK, GREY, BAR = "#222222", "#666666", "#4a7fb5"

Row = tuple[str, Sequence[Tensor]]


@cache
def font(size: int = TEXT) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib carries: the same everywhere, and Pillow's own has no accents."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def width(text: str, size: int = TEXT) -> int:
    """Return the width of a line in pixels."""
    return math.ceil(font(size).getlength(text))


def picture(image: Tensor, side: int = CELL) -> Image.Image:
    """Return an image, [C, H, W] uint8 or in [0, 1], as a colour picture; small ones keep their hard pixels."""
    if image.dtype != torch.uint8:
        image = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    resample = Image.Resampling.NEAREST if 2 * image.shape[-1] <= side else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((side, side), resample)


def wrapped(text: str, most: int, lines: int, size: int) -> list[str]:
    """Break a text into at most so many lines of at most `most` pixels; what is left out ends in dots."""
    found, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if width(longer, size) <= most or not line:
            line = longer
        else:
            found.append(line)
            line = word
    found.append(line)
    kept = found[:lines]
    if len(found) > lines:
        kept[-1] += " ..."
    for number, text_line in enumerate(kept):
        while width(text_line, size) > most and len(text_line) > 4:
            text_line = text_line.removesuffix("...").rstrip()[:-1] + "..."
        kept[number] = text_line
    return kept


def sheet(rows: Sequence[Row], heads: Sequence[str] = ()) -> Image.Image:
    """Draw rows of pictures with a label before each, and where there are some with a head over each column."""
    left = max(width(label) for label, _ in rows) + 3 * GAP
    top = GAP + (3 * (TEXT - 1) if heads else 0)
    columns = max(len(images) for _, images in rows)
    found = Image.new("RGB", (left + columns * (CELL + GAP), top + len(rows) * (CELL + GAP)), "white")
    pen = ImageDraw.Draw(found)
    for column, head in enumerate(heads):
        middle = left + column * (CELL + GAP) + CELL // 2
        for number, line in enumerate(wrapped(head, CELL + GAP - 2, 3, TEXT - 3)):
            pen.text((middle, number * (TEXT - 2)), line, INK, font(TEXT - 3), anchor="ma")
    for number, (label, images) in enumerate(rows):
        y = top + number * (CELL + GAP)
        pen.text((left - 2 * GAP, y + CELL // 2), label, INK, font(), anchor="rm")
        for column, image in enumerate(images):
            found.paste(picture(image), (left + column * (CELL + GAP), y))
    return found


def of_classes(data_set: DataSet) -> Image.Image:
    """Draw examples of the largest classes, a row each."""
    labels = data_set.train.labels
    largest = torch.bincount(labels, minlength=data_set.num_classes).argsort(descending=True, stable=True)[:ROWS]
    rows = []
    for label in sorted(largest.tolist()) if data_set.num_classes <= ROWS else largest.tolist():
        inside = _shuffled((labels == label).nonzero().flatten())
        rows.append((data_set.class_names[label], [data_set.train.images[n] for n in inside[:COLUMNS].tolist()]))
    return sheet(rows)


def of_domains(data_set: DataSet, without: Sequence[str] = ()) -> Image.Image:
    """Draw a row for each domain and a column for each class; the same concept, where the domains share them.

    Args:
        data_set: A set with domains.
        without: Domains that may not be shown.
    """
    train, names = data_set.train, data_set.domain_names
    domains = [number for number, name in enumerate(names) if name not in without]
    assert train.domains is not None
    each = max(1, COLUMNS // data_set.num_classes)
    heads: list[str] = []
    rows: list[list[Tensor]] = [[] for _ in domains]
    for label in range(data_set.num_classes)[:COLUMNS]:
        inside = _shuffled((train.labels == label).nonzero().flatten())
        for number in range(each):
            found = _one_a_domain(train, inside, domains, number)
            if found is not None:
                heads.append(data_set.class_names[label])
                for row, example in zip(rows, found, strict=True):
                    row.append(train.images[example])
    return sheet(list(zip([names[number] for number in domains], rows, strict=True)), heads)


def _one_a_domain(train: Examples, inside: Tensor, domains: Sequence[int], number: int) -> list[int] | None:
    """Return an example of each domain, of the concept of that number that all have, else of any concepts."""
    assert train.domains is not None
    of = train.domains[inside]
    if train.concepts is not None:
        seen: dict[tuple[int, str], dict[int, int]] = {}
        complete = []
        names = [""] * len(inside) if train.texts is None else list(train.texts.take(inside))
        concepts = zip(train.concepts[inside].tolist(), names, strict=True)  # look-alikes of a concept have other names
        for example, domain, concept in zip(inside.tolist(), of.tolist(), concepts, strict=True):
            have = seen.setdefault(concept, {})
            if domain in domains and domain not in have:
                have[domain] = example
                if have.keys() >= set(domains):
                    complete.append(concept)
        if number < len(complete):
            return [seen[complete[number]][domain] for domain in domains]
    found = [inside[of == domain][number : number + 1].tolist() for domain in domains]
    return [one[0] for one in found] if all(found) else None


def of_captions(data_set: DataSet) -> Image.Image:
    """Draw pictures with their captions, over as many classes as there is room for."""
    train = data_set.train
    assert train.texts is not None
    columns, lines = CAPTIONED
    order = _shuffled(torch.arange(len(train)))
    rank = torch.empty_like(order)
    for label in range(data_set.num_classes):
        place = (train.labels[order] == label).nonzero().flatten()
        rank[place] = torch.arange(len(place))
    chosen = order[rank.argsort(stable=True)][: columns * 3].tolist()  # one of each class, then another of each
    cell, small = 2 * CELL, TEXT - 2
    high = CELL * 3 // 2 + lines * (small + 2) + 3 * GAP
    found = Image.new("RGB", (columns * (cell + GAP) + GAP, math.ceil(len(chosen) / columns) * high), "white")
    pen = ImageDraw.Draw(found)
    for position, number in enumerate(chosen):
        x, y = GAP + position % columns * (cell + GAP), position // columns * high
        side = CELL * 3 // 2
        found.paste(picture(train.images[number], side), (x + (cell - side) // 2, y + GAP))
        for line_number, line in enumerate(wrapped(train.texts[number], cell, lines, small)):
            place_of = (x + cell // 2, y + side + 2 * GAP + line_number * (small + 2))
            pen.text(place_of, line, INK, font(small), anchor="ma")
    return found


def of_counts(names: Sequence[str], counts: Sequence[int], title: str) -> Image.Image:
    """Draw a bar for each class, with its number."""
    line = TEXT + 5
    left = max(map(width, names)) + 3 * GAP
    right = width(f"{max(counts):,}") + 3 * GAP
    room = 480
    found = Image.new("RGB", (left + room + right, (len(names) + 1) * line + 2 * GAP), "white")
    pen = ImageDraw.Draw(found)
    pen.text((left, GAP), title, GREY, font(), anchor="la")
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        y = GAP + (number + 1) * line
        long = max(1, round(room * count / max(counts)))
        pen.rectangle((left, y + 2, left + long, y + line - 3), fill=BAR)
        pen.text((left - 2 * GAP, y + line // 2), name, INK, font(), anchor="rm")
        pen.text((left + long + GAP, y + line // 2), f"{count:,}", GREY, font(TEXT - 1), anchor="lm")
    return found


def save(image: Image.Image, path: Path) -> int:
    """Write a PNG, with fewer colours where it would be too large, and return its bytes."""
    for colours in (0, 256, 128, 64):
        buffer = BytesIO()
        kept = image.quantize(colours, dither=Image.Dither.NONE) if colours else image
        kept.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MOST_BYTES:
            break
    path.write_bytes(buffer.getvalue())
    return buffer.tell()


def _shuffled(numbers: Tensor) -> Tensor:
    """Return numbers in an order that is always the same."""
    return numbers[torch.randperm(len(numbers), generator=generator(0, purpose="sheet"))]

"""`digits_domains`: the ten digits from three sources, one domain each, framed alike in 28 x 28 grey.

    mnist      handwriting of MNIST, see `umbel.data.sets.mnist`
    optdigits  handwriting of scikit-learn's 8 x 8 digits, enlarged
    rendered   digits that fonts draw, slanted, turned and stretched by chance

So that position and size tell no domain from another, all are framed as MNIST's are: the longer side of the ink has
20 pixels and its mass is in the middle. MNIST and optdigits keep their own test sets; of the fonts a fifth is the
test, drawn by a hash of their names, an oblique one with the upright one that it leans on, as it is one concept.
The fonts are those that matplotlib brings, so the pixels are the same everywhere; `fonts=system` or a folder takes
others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.core.rng import generator
from umbel.data import assemble
from umbel.data.config import DataConfig
from umbel.data.errors import DataError, MissingDataError
from umbel.data.sets import digits, mnist
from umbel.data.sources import glyphs, idx
from umbel.data.sources.cache import Entry, Maker, cached
from umbel.data.split import subset
from umbel.data.types import DataSet, Examples, channel_statistics

DESCRIPTION = "digits of MNIST, of scikit-learn and of fonts as domains, 28 x 28 grey, 10 classes"
# domain_train, domain_test: the most examples of one domain, 0 for all; variants: pictures of a digit to a font
OPTIONS: dict[str, Any] = {"fonts": "matplotlib", "variants": 25, "domain_train": 5000, "domain_test": 1000}

DOMAINS = ("mnist", "optdigits", "rendered")
LICENCE = (
    f"mnist: {mnist.PACKAGE.licence}; optdigits: CC BY 4.0; rendered: pictures of DejaVu, STIX and Computer Modern "
    "(each free), or of the fonts of this machine"
)
ATTRIBUTION = f"{mnist.PACKAGE.attribution}\nE. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (UCI)"

_FORMAT = 2
_SEED = 20_240_103
# Of matplotlib's: those with plain digits. Named, so that a font which it adds changes nothing.
_FONTS = (
    *(f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
    *(f"STIXGeneral{style}.ttf" for style in ("", "Bol", "BolIta", "Italic")),
    *(f"cm{style}10.ttf" for style in ("b", "r", "ss", "ti", "tt")),
)
SYSTEM = Path("/usr/share/fonts")
_SLANTED = re.compile(r"[-_ ]?(Oblique|Italic|Ita)$")


def check(config: DataConfig) -> None:
    """Raise for options that cannot be, and `MissingDataError` where MNIST or the fonts are not there."""
    options = _options(config)
    mnist.folder(config, "digits_domains")
    _fonts(options["fonts"])


def fetch(config: DataConfig, say: Callable[[str], None]) -> None:
    """Get MNIST, and draw the digits of the fonts into the cache."""
    mnist.fetch(config, say)
    entry = _made(_options(config))
    say(f"digits_domains: {len(entry['rendered_labels'])} digits of {len(entry.facts['fonts'])} fonts in the cache")


def load(config: DataConfig, _seed: int) -> DataSet:
    """Return the three domains.

    Args:
        config: `data.path` may name the folder of MNIST's files; and the options.
        _seed: Changes nothing here.

    Raises:
        MissingDataError: MNIST or the fonts are not there.
        DamagedDataError: A file of MNIST is not what its header says.
        DataError: The fonts leave nothing for a split.
    """
    options = _options(config)
    folder = mnist.folder(config, "digits_domains")
    assert folder is not None  # it raises instead, as this set has no option `hub`
    entry = _made(options)
    names = entry.facts["concepts"]
    held_out = _held_out(names)
    if not 0 < held_out.sum() < len(names):
        raise DataError(
            f"data.options.fonts={options['fonts']}: expected fonts of at least two names, some for training and some "
            f"for the test, found {', '.join(names)}.",
            key="data.options.fonts",
            remedy="Name a folder with more.",
        )
    in_test = held_out[entry["rendered_concepts"]]
    splits = {}
    first_concept = len(held_out)  # those of the fonts come first
    for split, limit in (("train", options["domain_train"]), ("test", options["domain_test"])):
        rows = np.flatnonzero(in_test == (split == "test"))
        written = idx.read_split(folder, split, len(mnist.CLASSES))
        parts = [
            _part(written.images, written.labels, limit, f"mnist {split}"),
            _part(_tensor(entry[f"{split}_images"]), _tensor(entry[f"{split}_labels"]), limit, f"optdigits {split}"),
            _part(_tensor(entry["rendered_images"][rows]), _tensor(entry["rendered_labels"][rows]), limit, split),
        ]
        kept = sum(len(part) for part, _ in parts[:2])
        fonts = _tensor(entry["rendered_concepts"][rows])[parts[2][1]]
        splits[split] = Examples(
            images=torch.cat([part.images for part, _ in parts]),
            labels=torch.cat([part.labels for part, _ in parts]),
            domains=torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part, _ in parts])),
            concepts=torch.cat([torch.arange(first_concept, first_concept + kept), fonts]),
        )
        first_concept += kept
    train = splits["train"]
    mean, std = channel_statistics(train.images)
    return DataSet(
        name="digits_domains",
        train=train,
        test=splits["test"],
        class_names=mnist.CLASSES,
        domain_names=DOMAINS,
        mean=mean,
        std=std,
        licence=LICENCE,
        natural_ids=train.domains,
        attribution=ATTRIBUTION,
    )


def _held_out(names: Sequence[str]) -> NDArray[np.bool_]:
    """Say which fonts are the test: a fifth of them, the first by a hash; a hash of each alone may well take none."""
    order = sorted(names, key=lambda name: hashlib.sha256(f"digits_domains/{name}".encode()).digest())
    chosen = set(order[: max(1, round(assemble.TEST_FRACTION * len(names)))]) if len(names) > 1 else set()
    return np.array([name in chosen for name in names], dtype=bool)


def _part(images: Tensor, labels: Tensor, limit: int, purpose: str) -> tuple[Examples, Tensor]:
    """Return at most `limit` examples, the same ones on every machine, and their numbers; 0 takes all."""
    kept = subset(len(labels), limit, _SEED, f"digits_domains {purpose}")
    return Examples(images[kept], labels[kept]), kept


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy: what the cache maps into memory is read-only


def _made(options: Mapping[str, Any]) -> Entry:
    fonts = _fonts(options["fonts"])
    key = {
        "format": _FORMAT,
        "variants": options["variants"],
        "fonts": [[font.name, hashlib.sha256(font.read_bytes()).hexdigest()] for font in fonts],
        # Whose 8 x 8 digits, and who enlarges them.
        "versions": {package: version(package) for package in ("scikit-learn", "pillow")},
    }
    return cached("sets", "digits_domains", key, lambda maker: _make(maker, fonts, options))


def _make(maker: Maker, fonts: list[Path], options: Mapping[str, Any]) -> None:
    source = digits.load(DataConfig(), 0)
    for split, examples in (("train", source.train), ("test", source.test)):
        maker.put(
            f"{split}_images", np.stack([glyphs.framed(picture) for picture in examples.images[:, 0].numpy()])[:, None]
        )
        maker.put(f"{split}_labels", examples.labels.numpy())
    drawn: list[NDArray[np.uint8]] = []
    labels: list[int] = []
    names: list[str] = []
    used = []
    for font in fonts:
        outlines = glyphs.outlines(font)
        if outlines is None:
            continue
        used.append(font.name)
        for digit, contours in enumerate(outlines):
            for slant, turn, width in _chances(f"{font.stem} {digit}", options["variants"]):
                drawn.append(glyphs.render(contours, slant, turn, width))
                labels.append(digit)
                names.append(_SLANTED.sub("", font.stem))
    if not drawn:
        raise MissingDataError(
            f"data.options.fonts={options['fonts']}: none of {len(fonts)} font files has digits.",
            key="data.options.fonts",
            remedy="Take matplotlib's with data.options.fonts=matplotlib, or name a folder with others.",
        )
    concepts = sorted(set(names))
    maker.put("rendered_images", np.stack(drawn)[:, None])
    maker.put("rendered_labels", np.array(labels, dtype=np.int64))
    maker.put("rendered_concepts", np.array([concepts.index(name) for name in names], dtype=np.int64))
    maker.note(licence=LICENCE, attribution=ATTRIBUTION, concepts=concepts, fonts=used)


def _chances(purpose: str, count: int) -> list[list[float]]:
    """Return how much each variant leans (widths to a height), is turned (degrees) and stretched."""
    random = torch.rand(count, 3, generator=generator(_SEED, purpose=purpose), dtype=torch.float64)
    chances: list[list[float]] = (random * torch.tensor([0.6, 24.0, 0.4]) + torch.tensor([-0.3, -12.0, 0.8])).tolist()
    return chances


def _fonts(choice: str) -> list[Path]:
    """Return font files in the order of their names.

    Raises:
        MissingDataError: There are none.
    """
    if choice == "matplotlib":
        import matplotlib

        folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
        fonts = [folder / name for name in _FONTS]
        lost = [file.name for file in fonts if not file.is_file()]
        if lost:
            raise MissingDataError(
                f"{folder}: expected {len(fonts)} fonts, {', '.join(lost)} are not there.",
                remedy="Install them again with\n    pip install --force-reinstall --no-deps matplotlib",
            )
        return fonts
    folder = SYSTEM if choice == "system" else Path(choice).expanduser()
    # One of each name: several packages bring the same fonts.
    by_name = {file.name: file for file in sorted(folder.rglob("*"), reverse=True) if file.suffix in (".ttf", ".otf")}
    if not by_name:
        raise MissingDataError(
            f"data.options.fonts={choice}: expected fonts (*.ttf, *.otf) below {folder}, found none.",
            key="data.options.fonts",
            remedy="Take matplotlib's with data.options.fonts=matplotlib, name another folder, or install some with\n"
            "    sudo apt-get install fonts-liberation fonts-freefont-ttf",
        )
    return [by_name[name] for name in sorted(by_name)]


def _options(config: DataConfig) -> dict[str, Any]:
    options = OPTIONS | config.options
    if not isinstance(options["fonts"], str) or not options["fonts"]:
        raise DataError(
            f"data.options.fonts must be matplotlib, system or a folder, found {options['fonts']!r}.",
            key="data.options.fonts",
        )
    assemble.at_least(options, "variants", 1)
    for name in ("domain_train", "domain_test"):
        assemble.at_least(options, name, 0)
    return options

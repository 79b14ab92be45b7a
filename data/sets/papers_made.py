"""Two sets of the papers that are made of others: Digits out of four, ImageNet-LT out of ImageNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from umbel.data.config import DataConfig
from umbel.data.errors import DamagedDataError, DataError, MissingDataError
from umbel.data.sets.papers import Paper
from umbel.data.sets.papers_folders import join
from umbel.data.sources import hub
from umbel.data.sources.hub_source import download
from umbel.data.types import DataSet, Examples

_DIGIT_NAMES = tuple(str(digit) for digit in range(10))
_IMAGE_LABEL = {"image_column": "image", "label_column": "label"}

_DIGITS: Mapping[str, Paper] = {
    "mnist": Paper("mnist", "handwritten digits", "ylecun/mnist", "MIT", columns=_IMAGE_LABEL),
    "svhn": Paper(
        "svhn",
        "house numbers",
        "ufldl-stanford/svhn",
        "non-commercial use",
        columns={**_IMAGE_LABEL, "subset": "cropped_digits"},
    ),
    "usps": Paper("usps", "digits of envelopes", "flwrlabs/usps", "unknown", columns=_IMAGE_LABEL),
    "mnist_m": Paper("mnist_m", "MNIST over photographs", "Mike0307/MNIST-M", "MIT", columns=_IMAGE_LABEL),
    "synth_digits": Paper("synth_digits", "rendered digits", "", "not stated", columns=_IMAGE_LABEL),
}


@dataclass(frozen=True)
class Digits:
    """GGEUR's Digits: sets of digits joined as domains, all at one size and in colour.

    With `data.path`, each domain is a subfolder of its name in the form of the downloaded set.
    """

    DESCRIPTION: str = "handwritten, printed and photographed digits in 4 domains, 10 classes (several sets of the hub)"

    @property
    def OPTIONS(self) -> dict[str, Any]:  # noqa: N802 - as modules of sets spell it
        """What `data.options` takes; `limit` is for each split of each domain."""
        return {"domains": "mnist,svhn,usps,mnist_m", "image_size": 32, "in_channels": 3, "cache_dir": "", "limit": 0}

    def check(self, config: DataConfig) -> None:
        """Raise `DataError` for domains that are not known, `MissingDataError` for folders that are not there."""
        hub.check_options(self.OPTIONS | config.options)
        for paper, one in self._parts(config).values():
            paper.check(one)

    def load(self, config: DataConfig, seed: int) -> DataSet:
        """Read all domains and join them.

        Raises:
            DataError: A set has other classes than the ten digits.
        """
        parts = self._parts(config)
        found = {name: _as_digits(name, paper.load(one, seed)) for name, (paper, one) in parts.items()}
        licences = "; ".join(f"{name}: {paper.licence}" for name, (paper, _) in parts.items())
        return replace(join(found), name="digits4", licence=licences)

    def _parts(self, config: DataConfig) -> dict[str, tuple[Paper, DataConfig]]:
        options = self.OPTIONS | config.options
        names = [name.strip() for name in str(options.pop("domains")).split(",") if name.strip()]
        if not names or len(set(names)) < len(names) or not set(names) <= set(_DIGITS):
            raise DataError(
                f"data.options.domains must be some of {','.join(_DIGITS)}, each once, found "
                f"{','.join(names) or 'none'}."
            )
        folder = None if config.path is None else Path(config.path).expanduser()
        return {
            name: (
                _DIGITS[name],
                replace(config, name=name, path=None if folder is None else str(folder / name), options=options),
            )
            for name in names
        }


def _as_digits(name: str, found: DataSet) -> DataSet:
    """Return the set with the classes 0 to 9 in this order, whatever they are called, "0 - zero" say."""
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    value = {word: digit for digit, word in enumerate(words)} | {str(digit): digit for digit in range(10)} | {"10": 0}
    digits = [value.get(label.split("-")[0].strip().casefold(), -1) for label in found.class_names]
    if sorted(digits) != list(range(10)):
        raise DataError(f"{name}: expected the ten digits as classes, found {', '.join(found.class_names[:12])}.")
    new = torch.tensor(digits)

    def renamed(examples: Examples) -> Examples:
        return replace(examples, labels=new[examples.labels])

    return replace(found, class_names=_DIGIT_NAMES, train=renamed(found.train), test=renamed(found.test))


@dataclass(frozen=True)
class LongTailedImageNet(Paper):
    """ImageNet-LT (Liu et al., CVPR 2019): the images that its published lists name, out of ImageNet.

    The lists, `ImageNet_LT_train.txt` and `ImageNet_LT_test.txt`, have a line an image: a path and a number. Only
    the file's name is looked at; the class comes from the set. The test set is ImageNet's validation set, where a
    list of it is given only what it names.
    """

    @property
    def OPTIONS(self) -> dict[str, Any]:  # noqa: N802 - as modules of sets spell it
        """What `data.options` takes: name -> default."""
        return super().OPTIONS | {"lists": ""}

    def check(self, config: DataConfig) -> None:
        """Raise `MissingDataError` without the lists."""
        super().check(config)
        _lists(config)

    def load(self, config: DataConfig, _seed: int) -> DataSet:
        """Read the images of the lists; no other is decoded.

        Raises:
            DamagedDataError: The lists name images that the set does not have.
        """
        self.check(config)
        files = _lists(config)

        def choose(split: str, rows: Any) -> Sequence[int]:
            if split not in files:
                return range(len(rows))
            wanted = _names(files[split])
            kept = [row for row, name in enumerate(_file_names(rows)) if name in wanted]
            if len(kept) != len(wanted):
                raise DamagedDataError(
                    f"{files[split]} names {len(wanted):,} images and {len(kept):,} of them are in the set. Expected "
                    f"ImageNet of 2012 with the names of its files; check data.path or data.options.hub."
                )
            return kept

        return self._load(config, choose)


def _lists(config: DataConfig) -> dict[str, Path]:
    folder = Path(str(config.options.get("lists", ""))).expanduser()
    train, test = folder / "ImageNet_LT_train.txt", folder / "ImageNet_LT_test.txt"
    if not config.options.get("lists") or not train.is_file():
        raise MissingDataError(
            f"data.name=imagenet_lt: expected data.options.lists, a folder with {train.name} (and {test.name}) as "
            f"published with 'Large-Scale Long-Tailed Recognition in an Open World', found none. ImageNet itself is "
            f"gated: accept its terms on the hub, then\n"
            f"    hf auth login\n"
            f"    {download(IMAGENET_LT.hub)}\n"
            f"and set data.path=FOLDER data.options.lists=FOLDER_OF_LISTS."
        )
    return {"train": train} | ({"test": test} if test.is_file() else {})


def _names(path: Path) -> set[str]:
    """Return the file names of a list."""
    found = {_plain(line.split()[0]) for line in path.read_text().splitlines() if line.strip()}
    if not found:
        raise DamagedDataError(f"{path}: expected a line an image, found nothing. Fetch it again.")
    return found


def _plain(path: str) -> str:
    """Return `n01440764_190` of `train/n01440764/n01440764_190.JPEG` and of `n01440764_190_n01440764.JPEG`."""
    parts = Path(path).stem.split("_")
    return "_".join(parts[:3] if parts[0] == "ILSVRC2012" else parts[:2])


def _file_names(rows: Any) -> list[str]:
    """Return the plain name of each row's file without reading a picture."""
    import pyarrow.compute

    chunks = rows.data.column("image").chunks
    paths = [path for chunk in chunks for path in pyarrow.compute.struct_field(chunk, "path").to_pylist()]
    return [_plain(path or "") for path in paths]


DIGITS4 = Digits()
IMAGENET_LT = LongTailedImageNet(
    "imagenet_lt",
    "ImageNet-LT, 115,846 photographs, 1,000 classes of 1,280 to 5; needs the published lists",
    "ILSVRC/imagenet-1k",
    "ImageNet's terms of access: non-commercial research and education",
    "Liu et al.: Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019; Russakovsky et al., 2015",
    {**_IMAGE_LABEL, "test_split": "validation"},
    size=64,
    channels=3,
)

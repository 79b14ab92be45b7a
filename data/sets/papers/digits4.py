"""`digits4`: sets of digits joined as domains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.sets.papers.folders import join
from umbel.data.sets.papers.paper import IMAGE_LABEL, Paper
from umbel.data.sources import hub
from umbel.data.types import DataSet, Examples

_DIGIT_NAMES = tuple(str(digit) for digit in range(10))

_DIGITS: Mapping[str, Paper] = {
    "mnist": Paper("mnist", "handwritten digits", "ylecun/mnist", "MIT", columns=IMAGE_LABEL),
    "svhn": Paper(
        "svhn",
        "house numbers",
        "ufldl-stanford/svhn",
        "non-commercial use",
        columns={**IMAGE_LABEL, "subset": "cropped_digits"},
    ),
    "usps": Paper("usps", "digits of envelopes", "flwrlabs/usps", "unknown", columns=IMAGE_LABEL),
    "mnist_m": Paper("mnist_m", "MNIST over photographs", "Mike0307/MNIST-M", "MIT", columns=IMAGE_LABEL),
    "synth_digits": Paper("synth_digits", "rendered digits", "", "not stated", columns=IMAGE_LABEL),
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
        return {
            "domains": "mnist,svhn,usps,mnist_m",
            "image_size": 32,
            "in_channels": 3,
            "white": 0,
            "cache_dir": "",
            "limit": 0,
        }

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
        domains = {name: as_digits(name, paper.load(one, seed)) for name, (paper, one) in parts.items()}
        licences = "; ".join(f"{name}: {paper.licence}" for name, (paper, _) in parts.items())
        return replace(join(domains), name="digits4", licence=licences)

    def _parts(self, config: DataConfig) -> dict[str, tuple[Paper, DataConfig]]:
        options = self.OPTIONS | config.options
        names = [name.strip() for name in str(options.pop("domains")).split(",") if name.strip()]
        if not names or len(set(names)) < len(names) or not set(names) <= set(_DIGITS):
            raise DataError(
                f"data.options.domains must be some of {','.join(_DIGITS)}, each once, found "
                f"{','.join(names) or 'none'}.",
                key="data.options.domains",
            )
        folder = None if config.path is None else Path(config.path).expanduser()
        return {
            name: (
                _DIGITS[name],
                replace(config, name=name, path=None if folder is None else str(folder / name), options=options),
            )
            for name in names
        }


def as_digits(name: str, given: DataSet) -> DataSet:
    """Return a set with the classes 0 to 9 in this order, whatever they are called, "0 - zero" say.

    Args:
        name: What the message calls it.
        given: The set.

    Raises:
        DataError: Its classes are not the ten digits.
    """
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    value = {word: digit for digit, word in enumerate(words)} | {str(digit): digit for digit in range(10)} | {"10": 0}
    digits = [value.get(label.split("-")[0].strip().casefold(), -1) for label in given.class_names]
    if sorted(digits) != list(range(10)):
        raise DataError(
            f"{name}: expected the ten digits as classes, found {', '.join(given.class_names[:12])}.",
            key="data.options.domains",
        )
    new = torch.tensor(digits)

    def renamed(examples: Examples) -> Examples:
        return replace(examples, labels=new[examples.labels])

    return replace(given, class_names=_DIGIT_NAMES, train=renamed(given.train), test=renamed(given.test))


DIGITS4 = Digits()

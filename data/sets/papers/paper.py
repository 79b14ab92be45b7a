"""What a set of a paper is: one set of the hub, or a folder in its form, under a name of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from umbel.data.config import DataConfig
from umbel.data.errors import MissingDataError
from umbel.data.pictures import Form
from umbel.data.sets.papers.folders import is_pictures, read_domains
from umbel.data.sources import hub
from umbel.data.sources.hub import Choice
from umbel.data.sources.hub_source import download
from umbel.data.types import DataSet

# The columns of most sets of pictures.
IMAGE_LABEL: Mapping[str, Any] = {"image_column": "image", "label_column": "label"}

# What a user may set of any of these sets.
_COMMON_OPTIONS: Mapping[str, Any] = {"hub": "", "revision": "", "cache_dir": "", "limit": 0}


@dataclass(frozen=True)
class Paper:
    """A set of a paper, one on the hub.

    Attributes:
        name: Its name in `data.name`.
        about: One line.
        hub: Its id on the hub; "" where none is known and a folder is needed.
        licence: As stated by those who made it.
        attribution: Whom they ask to name.
        columns: Options of `umbel.data.sources.hub` that are the set's own: columns, splits, subset.
        size: Pixels on a side; 0 keeps those of the pictures, which must then be square.
        channels: 1 or 3; 0 keeps those of the first picture.
        revision: Commit on the hub; "" takes the newest.
        captions: Its texts are captions, of which one or all can be taken.
    """

    name: str
    about: str
    hub: str
    licence: str
    attribution: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    size: int = 0
    channels: int = 0
    revision: str = ""
    captions: bool = False

    @property
    def DESCRIPTION(self) -> str:  # noqa: N802 - as modules of sets spell it
        """One line."""
        return f"{self.about} ({'hub:' + self.hub if self.hub else 'needs data.path'})"

    @property
    def OPTIONS(self) -> dict[str, Any]:  # noqa: N802 - as modules of sets spell it
        """What `data.options` takes: name -> default."""
        options = dict(_COMMON_OPTIONS) | {"revision": self.revision}
        if not self.columns.get("text_column"):
            options |= {"image_size": self.size, "in_channels": self.channels, "white": 0}
        if self.captions:
            options["captions"] = "first"
        return options

    def check(self, config: DataConfig) -> None:
        """Raise without asking the network.

        Raises:
            MissingDataError: There is no such folder, or there has to be one.
            DataError: An option cannot be.
        """
        hub.check_options(self.OPTIONS | config.options)
        if config.path is None and not (config.options.get("hub") or self.hub):
            raise MissingDataError(
                f"data.name={self.name}: no copy on the hub is known.",
                key="data.path",
                remedy="Get the pictures from those who made the set, as <domain>/<class>/*, and set data.path to the "
                "folder above them; or name a copy by\n"
                f"    umbel data fetch {self.name} data.options.hub=OWNER/NAME",
            )
        if config.path is not None and not Path(config.path).expanduser().is_dir():
            first = f"Fetch the set with\n    {download(self.hub)}\nand set" if self.hub else "Set"
            raise MissingDataError(
                f"data.name={self.name}: there is no folder data.path={config.path}.",
                key="data.path",
                remedy=f"{first} data.path to a folder with its files.",
            )

    def load(self, config: DataConfig, _seed: int) -> DataSet:
        """Read the set, out of `data.path` or from the hub.

        Args:
            config: The folder and the options.
            _seed: Changes nothing here; splits that are not given are fixed.

        Raises:
            MissingDataError: There is no network; the message says how to get the set elsewhere.
            DataError: A column or a split is not there.
        """
        self.check(config)
        return self._load(config, None)

    def _load(self, config: DataConfig, choose: Choice | None) -> DataSet:
        options = self.OPTIONS | config.options
        folder = None if config.path is None else Path(config.path).expanduser()
        if folder is not None and self.columns.get("domain_column") and is_pictures(folder):
            sizes = {"image_size": options["image_size"] or 32, "in_channels": options["in_channels"] or 3}
            pictures = read_domains(folder, Form.of(options | sizes), int(options["limit"]))
            return replace(pictures, name=self.name, licence=self.licence, attribution=self.attribution)
        source = str(folder) if folder is not None else str(options["hub"] or self.hub)
        given = {key: value for key, value in options.items() if key in hub.OPTIONS}
        columns = dict(self.columns)
        if folder is not None:
            given["revision"] = ""  # a folder has none
            if not (folder / "README.md").is_file():
                columns.pop("subset", None)  # only the card of a downloaded set knows of subsets
        return hub.read(
            source,
            {**columns, **given},
            licence=self.licence,
            name=self.name,
            attribution=self.attribution,
            remedy="data.path=FOLDER",
            choose=choose,
        )

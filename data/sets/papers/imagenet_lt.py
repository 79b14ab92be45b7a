"""`imagenet_lt`: the part of ImageNet that published lists name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel.data.config import DataConfig
from umbel.data.errors import DamagedDataError, MissingDataError
from umbel.data.sets.papers.paper import IMAGE_LABEL, Paper
from umbel.data.sources.hub_source import download
from umbel.data.types import DataSet


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
                    f"ImageNet of 2012 with the names of its files.",
                    key="data.path",
                    remedy="Check data.path or data.options.hub.",
                )
            return kept

        return self._load(config, choose)


def _lists(config: DataConfig) -> dict[str, Path]:
    folder = Path(str(config.options.get("lists", ""))).expanduser()
    train, test = folder / "ImageNet_LT_train.txt", folder / "ImageNet_LT_test.txt"
    if not config.options.get("lists") or not train.is_file():
        raise MissingDataError(
            f"data.name=imagenet_lt: expected data.options.lists, a folder with {train.name} (and {test.name}) as "
            f"published with 'Large-Scale Long-Tailed Recognition in an Open World', found none.",
            key="data.options.lists",
            remedy="ImageNet itself is gated: accept its terms on the hub, then\n"
            f"    hf auth login\n"
            f"    {download(IMAGENET_LT.hub)}\n"
            f"and set data.path=FOLDER data.options.lists=FOLDER_OF_LISTS.",
        )
    return {"train": train} | ({"test": test} if test.is_file() else {})


def _names(path: Path) -> set[str]:
    """Return the file names of a list."""
    names = {_plain(line.split()[0]) for line in path.read_text().splitlines() if line.strip()}
    if not names:
        raise DamagedDataError(f"{path}: expected a line an image, found nothing.", remedy="Fetch it again.")
    return names


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


IMAGENET_LT = LongTailedImageNet(
    "imagenet_lt",
    "ImageNet-LT, 115,846 photographs, 1,000 classes of 1,280 to 5; needs the published lists",
    "ILSVRC/imagenet-1k",
    "ImageNet's terms of access: non-commercial research and education",
    "Liu et al.: Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019; Russakovsky et al., 2015",
    {**IMAGE_LABEL, "test_split": "validation"},
    size=64,
    channels=3,
)

"""The sets of the papers by name, through the hub: CIFAR, Tiny ImageNet, PACS, Office, Digits, COCO, Flickr30k, ...

Each takes `data.path=FOLDER` in place of the hub, a folder in the form of the downloaded set; where a set has domains,
a folder `<domain>/<class>/*` of pictures does as well. `data.options.hub=owner/name` takes another copy that has
the same columns.

What is known of the sets, read in their public descriptions (the hub itself was not asked; a column that has been
renamed since is answered with those that are there):

| name | hub id | columns | splits |
|---|---|---|---|
| cifar10 | uoft-cs/cifar10 | img, label | train 50,000, test 10,000 |
| cifar100 | uoft-cs/cifar100 | img, fine_label (and coarse_label) | the same |
| tiny_imagenet | zh-plus/tiny-imagenet | image, label | train 100,000, valid 10,000 |
| pacs | flwrlabs/pacs | image, domain, label | train 9,991 |
| office_home | flwrlabs/office-home | image, domain, label | train 15,588 |
| digits4 | ylecun/mnist, ufldl-stanford/svhn (cropped_digits), flwrlabs/usps, Mike0307/MNIST-M | image, label | both |
| coco_captions | jxie/coco_captions | image, cocoid, caption (a row a caption) | train, validation, test |
| flickr30k | lmms-lab/flickr30k | image, caption (a list of five) | test 31,783 |
| ag_news | fancyzhx/ag_news | text, label | train 120,000, test 7,600 |
| inaturalist | zguo0525/inat_2021 | found by type | train, test |
| imagenet_lt | ILSVRC/imagenet-1k (gated) | image, label | train, validation |

Not confirmed:

* inaturalist: the copy is of 2021, with some 100,000 to 1,000,000 images; its columns and its number of classes were
  not seen, nor whether it is the long-tailed part. FedLoGe's is another subset (of 2017, by users).
* office_caltech: no copy on the hub was found that has parquet files; it needs `data.path`.
* digits4: no copy of SynthDigits was found on the hub; MNIST-M stands in its place. Give
  `data.options.domains=mnist,svhn,usps,synth_digits` and a folder of that name under `data.path` where you have it.
* flickr30k: this copy has no Karpathy split; a fixed fifth of the images is the test set.
* Licences are those that the sets' pages state; "unknown" is what some of them say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from umbel.data.config import DataConfig
from umbel.data.errors import MissingDataError
from umbel.data.sets.papers_folders import is_pictures, read_domains
from umbel.data.sources import hub
from umbel.data.sources.hub import Choice
from umbel.data.sources.hub_source import download
from umbel.data.types import DataSet

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
        found = dict(_COMMON_OPTIONS) | {"revision": self.revision}
        if not self.columns.get("text_column"):
            found |= {"image_size": self.size, "in_channels": self.channels}
        if self.captions:
            found["captions"] = "first"
        return found

    def check(self, config: DataConfig) -> None:
        """Raise without asking the network.

        Raises:
            MissingDataError: There is no such folder, or there has to be one.
            DataError: An option cannot be.
        """
        hub.check_options(self.OPTIONS | config.options)
        if config.path is None and not (config.options.get("hub") or self.hub):
            raise MissingDataError(
                f"data.name={self.name}: no copy on the hub is known. Get the pictures from those who made the set, "
                f"as <domain>/<class>/*, and set data.path to the folder above them; or name a copy by\n"
                f"    umbel data fetch {self.name} data.options.hub=OWNER/NAME"
            )
        if config.path is not None and not Path(config.path).expanduser().is_dir():
            there = f" Fetch the set with\n    {download(self.hub)}\nand set" if self.hub else " Set"
            raise MissingDataError(
                f"data.name={self.name}: there is no folder data.path={config.path}.{there} data.path to a folder "
                f"with its files."
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
            size, channels, limit = (int(options[key]) for key in ("image_size", "in_channels", "limit"))
            found = read_domains(folder, size or 32, channels or 3, limit)
            return replace(found, name=self.name, licence=self.licence, attribution=self.attribution)
        source = str(folder) if folder is not None else str(options["hub"] or self.hub)
        given = {key: value for key, value in options.items() if key in hub.OPTIONS}
        columns = dict(self.columns)
        if folder is not None:
            given["revision"] = ""  # a folder has none
            if not (folder / "README.md").is_file():
                columns.pop("subset", None)  # only the card of a downloaded set knows of subsets
        return hub.fetch(
            source,
            {**columns, **given},
            licence=self.licence,
            name=self.name,
            attribution=self.attribution,
            remedy="data.path=FOLDER",
            choose=choose,
        )


_DOMAINS = {"domain_column": "domain", "label_column": "label", "image_column": "image", "test_split": ""}
_IMAGE_LABEL = {"image_column": "image", "label_column": "label"}

CIFAR10 = Paper(
    "cifar10",
    "60,000 photographs, 32 x 32 colour, 10 balanced classes; long-tailed by data.partition=long_tail",
    "uoft-cs/cifar10",
    "unknown, as its page states",
    "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
    {"image_column": "img", "label_column": "label"},
    size=32,
    channels=3,
)
CIFAR100 = Paper(
    "cifar100",
    "60,000 photographs, 32 x 32 colour, 100 balanced classes; long-tailed by data.partition=long_tail",
    "uoft-cs/cifar100",
    "unknown, as its page states",
    "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
    {"image_column": "img", "label_column": "fine_label"},
    size=32,
    channels=3,
)
TINY_IMAGENET = Paper(
    "tiny_imagenet",
    "110,000 photographs, 64 x 64 colour, 200 classes; its validation set is the test set",
    "zh-plus/tiny-imagenet",
    "ImageNet's terms of access: non-commercial research and education",
    "Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, 2015",
    {**_IMAGE_LABEL, "test_split": "valid"},
    size=64,
    channels=3,
)
PACS = Paper(
    "pacs",
    "9,991 pictures in 4 domains (photo, art painting, cartoon, sketch), 7 classes",
    "flwrlabs/pacs",
    "unknown, as its page states",
    "Li, Yang, Song, Hospedales: Deeper, Broader and Artier Domain Generalization, ICCV 2017",
    _DOMAINS,
    size=64,
    channels=3,
)
OFFICE_HOME = Paper(
    "office_home",
    "15,588 pictures in 4 domains (art, clipart, product, real world), 65 classes",
    "flwrlabs/office-home",
    "non-commercial research and education, as those who made it state",
    "Venkateswara et al.: Deep Hashing Network for Unsupervised Domain Adaptation, CVPR 2017",
    _DOMAINS,
    size=64,
    channels=3,
)
OFFICE_CALTECH = Paper(
    "office_caltech",
    "2,533 pictures in 4 domains (Amazon, Caltech, DSLR, webcam), 10 classes",
    "",
    "not stated by those who made it",
    "Gong, Shi, Sha, Grauman: Geodesic Flow Kernel for Unsupervised Domain Adaptation, CVPR 2012",
    _DOMAINS,
    size=64,
    channels=3,
)
COCO_CAPTIONS = Paper(
    "coco_captions",
    "123,287 photographs with five captions each, Karpathy's split; image-text pairs without classes",
    "jxie/coco_captions",
    "captions CC BY 4.0; photographs under the terms of Flickr",
    "Lin et al.: Microsoft COCO: Common Objects in Context, ECCV 2014",
    {"image_column": "image", "caption_column": "caption", "image_id_column": "cocoid"},
    size=64,
    channels=3,
    captions=True,
)
FLICKR30K = Paper(
    "flickr30k",
    "31,783 photographs with five captions each; image-text pairs without classes",
    "lmms-lab/flickr30k",
    "non-commercial research and education; photographs under the terms of Flickr",
    "Young, Lai, Hodosh, Hockenmaier: From Image Descriptions to Visual Denotations, TACL 2014",
    {"image_column": "image", "caption_column": "caption", "train_split": "test", "test_split": ""},
    size=64,
    channels=3,
    captions=True,
)
AG_NEWS = Paper(
    "ag_news",
    "127,600 news articles, 4 balanced classes; texts without images, needs data.encoder",
    "fancyzhx/ag_news",
    "non-commercial use, as those who made it state",
    "Zhang, Zhao, LeCun: Character-level Convolutional Networks for Text Classification, NeurIPS 2015",
    {"text_column": "text", "label_column": "label"},
)
INATURALIST = Paper(
    "inaturalist",
    "photographs of species, a part of iNaturalist 2021; columns found by their type",
    "zguo0525/inat_2021",
    "non-commercial research and education, each photograph under its photographer's licence",
    "Van Horn et al.: Benchmarking Representation Learning for Natural World Image Collections, CVPR 2021",
    size=64,
    channels=3,
)


def __getattr__(name: str) -> Any:
    """Return the two sets that are made of others; their module needs this one."""
    if name in ("DIGITS4", "IMAGENET_LT"):
        from umbel.data.sets import papers_made

        return getattr(papers_made, name)
    raise AttributeError(f"data.papers has no {name}")

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

from umbel.data.sets.papers.digits4 import DIGITS4
from umbel.data.sets.papers.imagenet_lt import IMAGENET_LT
from umbel.data.sets.papers.singles import (
    AG_NEWS,
    CIFAR10,
    CIFAR100,
    COCO_CAPTIONS,
    FLICKR30K,
    INATURALIST,
    OFFICE_CALTECH,
    OFFICE_HOME,
    PACS,
    TINY_IMAGENET,
)

__all__ = [
    "AG_NEWS",
    "CIFAR10",
    "CIFAR100",
    "COCO_CAPTIONS",
    "DIGITS4",
    "FLICKR30K",
    "IMAGENET_LT",
    "INATURALIST",
    "OFFICE_CALTECH",
    "OFFICE_HOME",
    "PACS",
    "TINY_IMAGENET",
]

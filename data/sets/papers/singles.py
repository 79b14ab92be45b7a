"""The sets of the papers that are one set of the hub each."""

from __future__ import annotations

from umbel.data.sets.papers.paper import IMAGE_LABEL, Paper

_DOMAINS = {"domain_column": "domain", "label_column": "label", "image_column": "image", "test_split": ""}

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
    {**IMAGE_LABEL, "test_split": "valid"},
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

"""A federation by what all have agreed on: at a site with its examples, at the server without them.

Shapes: N examples, K clients, C classes, S pixels on a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from umbel.core.refusal import Refusal
from umbel.data import partition as partitions
from umbel.data.config import DataConfig
from umbel.data.encoders import encode_images, num_features
from umbel.data.errors import DataError
from umbel.data.federation import Federation
from umbel.data.partition import Partition
from umbel.data.pictures import Form, mode_of
from umbel.data.shuffled import drawn_clients
from umbel.data.sites.agreement import INTERSECTION, Agreement, refuse_unknown
from umbel.data.sites.description import SPLITS, SiteData
from umbel.data.sites.errors import refusal_of
from umbel.data.sites.listing import ROLES, site_of
from umbel.data.types import Examples


def relabelled(held: Federation, classes: Sequence[str], config: DataConfig) -> Federation:
    """Return what a process holds of the classes that all agreed on, by their numbers.

    Args:
        held: What it holds, by its own classes.
        classes: [C] names, in the order of the labels.
        config: The section `data`.

    Raises:
        DataError: A site has a class that is not among those, and they are not the intersection.
    """
    if config.classes != INTERSECTION:
        refuse_unknown(classes, classes_of(held))
    place = {name: label for label, name in enumerate(classes)}
    label_of = torch.tensor([place.get(name, -1) for name in held.class_names], dtype=torch.int64)
    labels = label_of[held.pool.labels]
    part = held.partition
    kept = labels[part.indices] >= 0
    offsets = torch.zeros_like(part.offsets)
    torch.cumsum(torch.bincount(part.owners()[kept], minlength=part.num_clients), 0, out=offsets[1:])
    return replace(
        held,
        pool=replace(held.pool, labels=labels.clamp_min(0)),
        partition=Partition(part.indices[kept], offsets),
        meta={**held.meta, "class_names": list(classes)},
    )


def at_site(held: Federation, shared: Mapping[str, Any], config: DataConfig) -> Federation:
    """Return what a process holds as clients train on it: by what all agreed on (`Agreement.shared`).

    Raises:
        DataError: As `relabelled`.
    """
    made = relabelled(held, [str(name) for name in shared["classes"]], config)
    made = replace(made, meta={**made.meta, "mean": list(shared["mean"]), "std": list(shared["std"])})
    if config.encoder:
        made = replace(made, pool=replace(made.pool, images=_embedded(held, config)), test_pool=_no_test(config))
    return _by_tasks(made, config)


def at_server(agreement: Agreement, config: DataConfig, seed: int) -> Federation:
    """Return what the server has: of clients' examples labels and splits alone, the pictures are elsewhere.

    Args:
        agreement: What the sites said.
        config: The section `data`.
        seed: The seed of the data.

    Raises:
        DataError: The server's own pictures cannot be read, or are of other classes.
    """
    table = agreement.table()
    num_clients, num_splits, num_classes = table.shape
    flat = table.flatten()
    code = torch.arange(len(flat)).repeat_interleave(flat)
    labels, roles = code % num_classes, code // num_classes % num_splits
    offsets = torch.zeros(num_clients + 1, dtype=torch.int64)
    torch.cumsum(table.sum((1, 2)), 0, out=offsets[1:])
    shape = (len(labels), *_shape(config))
    form = Form(config.image_size, mode_of(config.channels), white_key="")
    test, notices = _test(config, agreement.classes, form, seed)
    nothing = torch.arange(0)
    meta = {
        "name": config.name,
        "class_names": list(agreement.classes),
        "domain_names": [],
        "mean": list(agreement.mean),
        "std": list(agreement.std),
        "picture_shape": [len(form.mode), form.size],
        "licence": "as stated by each site",
        "attribution": "",
        "notices": list(notices),
        "seed": seed,
        "partition": config.partition,
        "num_tasks": 1,
        "repeats": 1,
        "task_of_class": [0] * num_classes,
        "vocabulary": 0,
        "client_validation": config.client_validation,
        "client_test": config.client_test,
        "shuffled": drawn_clients(config.num_shuffled, config.num_clients, seed),
    }
    # On the device `meta` a tensor has a shape and no values: whoever would compute with them fails.
    dtype = torch.float32 if config.encoder else torch.uint8
    pool = Examples(torch.empty(shape, dtype=dtype, device="meta"), labels)
    codes = torch.tensor([ROLES[split] for split in SPLITS], dtype=torch.int8)[roles]
    bare = Federation(pool, test, Partition(torch.arange(len(labels)), offsets), nothing, nothing, meta, codes)
    return _by_tasks(bare, config)


def classes_of(held: Federation) -> dict[str, list[str]]:
    """Return the names of the classes that each site of a process has examples of."""
    counts = held.partition.counts(held.pool.labels, held.num_classes)
    return {
        site: [held.class_names[label] for label in (counts[own].sum(0) > 0).nonzero().flatten().tolist()]
        for site, own in zip(held.meta["sites"], held.meta["clients_of_sites"], strict=True)
    }


def _by_tasks(made: Federation, config: DataConfig) -> Federation:
    """Return a federation with the tasks of `data.partition`, if it makes a sequence of them."""
    apart = partitions.tasks(config.partition)
    if apart == "none":
        return made
    meta = {**made.meta, "num_tasks": config.num_tasks}
    if apart == "pixels":
        repeats = partitions.repeats(config)
        return replace(made, partition=replace(made.partition, repeats=repeats), meta={**meta, "repeats": repeats})
    task_of_class = partitions.class_tasks(made.num_classes, config.num_tasks)
    pool, test = (each.with_tasks(task_of_class[each.labels]) for each in (made.pool, made.test_pool))
    part = replace(made.partition, tasks=task_of_class[made.pool.labels[made.partition.indices]])
    return replace(
        made, pool=pool, test_pool=test, partition=part, meta={**meta, "task_of_class": task_of_class.tolist()}
    )


def _test(config: DataConfig, classes: Sequence[str], form: Form, seed: int) -> tuple[Examples, tuple[str, ...]]:
    """Return the server's own test examples, maybe none, and what was left out of them."""
    if not config.server:
        return _no_test(config), ()
    try:
        site = site_of(SiteData(source="image_folder", path=config.server, name="server"), form, seed)
        images = site.rows.read(site.kept, site.form).images
    except (Refusal, OSError) as error:
        said = refusal_of(error)
        raise DataError(f"data.server={config.server}: {said.reason}", key="data.server", remedy=said.remedy) from error
    place = {name: label for label, name in enumerate(classes)}
    if (strange := sorted(set(site.classes) - set(place))) and config.classes != INTERSECTION:
        raise DataError(
            f"data.server={config.server} has the class {strange[0]!r}, which the sites do not have.",
            key="data.server",
            remedy=f"Its folders are called as the classes: {', '.join(classes[:20])}.",
        )
    tested: Tensor = site.roles == ROLES["test"] if "test" in site.given else torch.ones(len(site.kept)) > 0
    labels = torch.tensor([place.get(name, -1) for name in site.classes], dtype=torch.int64)
    index = (tested & (labels >= 0)).nonzero().flatten()
    out = len(labels) - len(index)
    text = f"data.server: {out:,} of {len(labels):,} pictures are no test pictures of the classes, and left out."
    images = images[index]
    if config.encoder and len(images):
        images = encode_images(images, config.encoder, config.encoder_size, "server")
    return Examples(images, labels[index]), (*site.rows.notices, *((text,) if out else ()))


def _shape(config: DataConfig) -> tuple[int, ...]:
    """Return the shape of what the model is shown of an example: a picture, or the embedding of one."""
    channels, side = config.channels, config.image_size
    if config.encoder:
        return (num_features(config.encoder, config.encoder_size, channels, side),)
    return (channels, side, side)


def _no_test(config: DataConfig) -> Examples:
    dtype = torch.float32 if config.encoder else torch.uint8
    return Examples(torch.zeros(0, *_shape(config), dtype=dtype), torch.arange(0))


def _embedded(held: Federation, config: DataConfig) -> Tensor:
    """Return the embeddings of the pictures that a process holds, [N, D].

    Site by site, so that each picture is in the same batch whoever else is in the process.
    """
    features = torch.zeros(len(held.pool), *_shape(config))
    for name, clients in zip(held.meta["sites"], held.meta["clients_of_sites"], strict=True):
        rows = torch.cat([held.partition.client(client) for client in clients]).sort().values
        features[rows] = encode_images(held.pool.images[rows], config.encoder, config.encoder_size, name)
    return features

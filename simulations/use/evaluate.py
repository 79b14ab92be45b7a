"""A trained model measured on examples with labels: its run's test set, or other data.

Shapes: N examples, C classes of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from umbel.conf.load import as_yaml, load
from umbel.conf.schema import Experiment
from umbel.core import metrics
from umbel.core.refusal import Refusal
from umbel.data import check, encoders, partition
from umbel.data.config import DataConfig
from umbel.data.sets import registry
from umbel.data.split import subset
from umbel.data.types import DataSet, Examples
from umbel.server import reading
from umbel.simulations.use.inputs import embedder
from umbel.simulations.use.trained import Trained, load_model

SPLITS = ("test", "train", "all")
_KEYS = ("data.name", "data.path", "data.seed", "data.max_test")
_NO_DOMAIN = -1


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on some examples.

    Attributes:
        data: Name of the set.
        split: `test`, `train` or `all`.
        num_examples: N.
        metrics: `accuracy`, `balanced_accuracy`, `worst_class_accuracy`, `loss`, and of domains where there are some.
        by_class: Accuracy of each class that occurs, by its name.
        notices: What whoever reads them should know, a sentence each.
    """

    data: str
    split: str
    num_examples: int
    metrics: dict[str, float]
    by_class: dict[str, float]
    notices: tuple[str, ...]


def evaluate(where: str | Path, *overrides: str, split: str = "test", batch_size: int = 512) -> Evaluation:
    """Evaluate a trained model; without overrides on the test set of its run, as the run did.

    Classes are matched by their names. Where `data.name` changes, `data.path`, `data.options` and `data.max_test` are
    no longer the run's, and the size and channels of images are those that the model takes.

    Args:
        where: The folder of a run that has ended, or a model's file.
        overrides: `data.…=…` each.
        split: Which examples of the set: `test`, `train`, or `all`.
        batch_size: Examples at once.

    Raises:
        Refusal: The model cannot be used alone, or the data are not such as it knows.
    """
    if split not in SPLITS:
        raise Refusal(f"--split is one of {', '.join(SPLITS)}, found {split!r}.", key="--split")
    trained = load_model(where)
    experiment, notices = _experiment(trained, overrides)
    config = experiment.data
    check(config)
    data_set = registry.load(config, experiment.data_seed)
    examples = _relabelled(trained, data_set, _split(data_set, config, experiment.data_seed, split))
    counts = _count(trained, config, examples, batch_size)
    total = metrics.total(counts.values(), len(trained.classes))
    values = metrics.summarise(total)
    if _NO_DOMAIN not in counts:
        values |= metrics.by_domain({data_set.domain_names[domain]: each for domain, each in counts.items()})
    by_class = {trained.classes[label]: value for label, value in metrics.per_class(total).items()}
    if split == "test" and 0 < config.max_test < len(data_set.test):
        notices.append(f"{config.max_test:,} of {len(data_set.test):,} test examples, as data.max_test says.")
    remarks = (*trained.card.remarks, *notices, *data_set.notices)
    return Evaluation(data_set.name, split, len(examples), values, by_class, remarks)


def _experiment(trained: Trained, overrides: Sequence[str]) -> tuple[Experiment, list[str]]:
    """Return the experiment whose data are evaluated on, and what was taken from the model without being asked."""
    keys = [override.partition("=")[0] for override in overrides]
    for key in keys:
        if key not in _KEYS and not key.startswith("data.options"):
            raise Refusal(
                f"{key} says nothing about which data the model is evaluated on.",
                key=key,
                remedy=f"The overrides are {', '.join(_KEYS)} and data.options.*",
            )
    is_other = "data.name" in keys
    if trained.run is None and not is_other:
        raise Refusal(f"{trained.path} is in no run's folder.", key="data.name", remedy="Say data.name=...")
    own = Experiment() if trained.run is None else reading.experiment(trained.run)
    if not is_other and partition.tasks(own.data.partition) == "pixels":
        raise Refusal(
            f"{trained.run} has tasks whose pixels stand in an order of their own each, which only the run knows.",
            key="data.partition",
            remedy="Its accuracy on each task is in its summary.json; or say data.name=...",
        )
    if not is_other:
        return load("config", overrides, as_yaml(own)), []
    bare = Experiment(data=DataConfig(seed=own.data_seed))
    named = load("evaluation", [each for each in overrides if each.startswith("data.name=")], as_yaml(bare)).data.name
    card = trained.card
    shape: dict[str, float] = {"image_size": card.picture_size, "in_channels": card.picture_channels}
    if card.white:
        shape["white"] = card.white
    taken = {
        key: value
        for key, value in shape.items()
        if key in registry.options(named) and f"data.options.{key}" not in keys
    }
    bare = replace(bare, data=replace(bare.data, options=taken))
    notices = [f"As the model takes them: {key}={value:g}." for key, value in taken.items()]
    return load("evaluation", overrides, as_yaml(bare)), notices


def _split(data_set: DataSet, config: DataConfig, seed: int, split: str) -> Examples:
    """Return the examples of a split; of the test set alone at most `data.max_test`, as in a run."""
    parts = []
    if split in ("train", "all"):
        parts.append(data_set.train)
    if split in ("test", "all"):
        test = data_set.test
        cut = config.max_test and split == "test"
        parts.append(test.take(subset(len(test), config.max_test, seed, "max_test")) if cut else test)
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    if first.texts is not None:
        raise Refusal("Texts are evaluated a split at a time.", key="--split", remedy="Say --split test or train.")
    return Examples(
        torch.cat([first.images, second.images]),
        torch.cat([first.labels, second.labels]),
        None if first.domains is None or second.domains is None else torch.cat([first.domains, second.domains]),
    )


def _relabelled(trained: Trained, data_set: DataSet, examples: Examples) -> Examples:
    """Return the examples with the model's numbers of their classes.

    Raises:
        Refusal: The model knows no class of that name.
    """
    place = {name: number for number, name in enumerate(trained.classes)}
    present = torch.unique(examples.labels).tolist()
    unknown = [data_set.class_names[label] for label in present if data_set.class_names[label] not in place]
    if unknown:
        raise Refusal(
            f"{data_set.name} has {len(unknown)} classes that the model does not know, such as {unknown[0]!r}; it "
            f"knows {', '.join(trained.classes[:10])}{', ...' if len(trained.classes) > 10 else ''}.",
            key="data.name",
            remedy="Classes are matched by their names: call them as in training.",
        )
    numbers = torch.tensor([place.get(name, 0) for name in data_set.class_names])
    return replace(examples, labels=numbers[examples.labels])


def _count(trained: Trained, config: DataConfig, examples: Examples, batch_size: int) -> dict[int, metrics.ClassCounts]:
    """Return the counts of each domain that occurs."""
    card, num_classes = trained.card, len(trained.classes)
    inputs, ready = _inputs(trained, examples)
    heads = torch.tensor(card.tasks) if card.tasks else None
    tasks = None if heads is None else heads[examples.labels]

    def count(rows: Tensor) -> metrics.ClassCounts:
        by_task = metrics.classify_tasks(
            lambda batch: trained.logits(ready(batch)),
            inputs[rows],
            examples.labels[rows],
            None if tasks is None else tasks[rows],
            num_classes,
            batch_size,
            heads,
        )
        return metrics.total(by_task.values(), num_classes)

    if examples.domains is None:
        return {_NO_DOMAIN: count(torch.arange(len(examples)))}
    return {
        domain: count((examples.domains == domain).nonzero().flatten())
        for domain in torch.unique(examples.domains).tolist()
    }


def _inputs(trained: Trained, examples: Examples) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return inputs of the examples, and what makes of a batch of them what the model takes."""
    card = trained.card
    if examples.texts is not None and not card.picture_channels:
        embeddings = encoders.encode_texts(examples.texts, card.encoder)
        return embeddings, lambda batch: batch
    shape = (card.picture_channels, card.picture_size, card.picture_size)
    if tuple(examples.images.shape[1:]) != shape and examples.images.ndim == 4:
        raise Refusal(
            f"The model was trained on images {list(shape)}, and these are {list(examples.images.shape[1:])}.",
            key="data.options.image_size",
            remedy=f"Set data.options.image_size={card.picture_size} and data.options.in_channels="
            f"{card.picture_channels} where the set has them, or take another set.",
        )
    return examples.images, embedder(trained)

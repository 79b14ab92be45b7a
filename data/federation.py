"""Everything that a run needs of its data: what the server holds, and what each client holds.

Train, validation and test of every client and of the server are pairwise disjoint. The server's validation
is a stratified part of the training set, its test is the set's own test; the rest of the training set belongs
to the clients, each of which holds parts out. Where examples share concepts, whole concepts are held out, the same
ones by all clients, so that no concept is in two splits, be it with two clients.

Shapes: N examples of the pool, K clients.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.core.rng import generator
from umbel.data import encoders
from umbel.data import partition as partitions
from umbel.data import public as common
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.partition import Partition
from umbel.data.sets import registry
from umbel.data.split import stratified, stratified_concepts, subset
from umbel.data.texts import Texts
from umbel.data.transforms import permute_pixels
from umbel.data.types import DataSet, Examples

_COLUMNS = ("images", "labels", "domains", "tasks", "concepts", "tokens")
_TRAIN, _VALIDATION, _TEST = 0, 1, 2


@dataclass(frozen=True)
class ClientData:
    """What a client has, in three disjoint parts."""

    train: Examples
    validation: Examples
    test: Examples


@dataclass(frozen=True)
class ServerData:
    """What the server has: `validation` to select models with, `test` to report on."""

    validation: Examples
    test: Examples


@dataclass(frozen=True)
class Federation:
    """A data set cut into a server and K clients; no Python object exists for a client until it is asked for.

    Attributes:
        pool: The training examples; all index tensors point here.
        test_pool: The test examples.
        partition: The clients' example numbers.
        validation_index: The server's example numbers, ascending.
        public_index: Example numbers of the public set, ascending.
        meta: What is no array, fit for JSON.
    """

    pool: Examples
    test_pool: Examples
    partition: Partition
    validation_index: Tensor
    public_index: Tensor
    meta: Mapping[str, Any]

    @classmethod
    def build(cls, config: DataConfig, seed: int) -> Federation:
        """Load, hold out and cut, all by the seed.

        Args:
            config: What was asked for; `config.seed`, where it is set, goes before `seed`.
            seed: The run's seed.

        Raises:
            DataError: The data are missing or damaged, or cannot be cut as asked.
        """
        seed = seed if config.seed is None else config.seed
        check_fractions(config)
        partitions.check(config)
        common.check(config)
        data_set = registry.load(config, seed)
        if config.text_encoder and config.text_encoder != common.BPE:
            data_set = common.embed_texts(data_set, config.text_encoder)
        if config.encoder:
            data_set = encoders.encode(data_set, config.encoder, config.encoder_size)
        elif data_set.train.images.shape[1] == 0:
            raise DataError(f"{data_set.name} has texts and no images: set data.encoder to an encoder of texts.")
        return cls.cut(data_set, config, seed)

    @classmethod
    def cut(cls, data_set: DataSet, config: DataConfig, seed: int) -> Federation:
        """Hold out and cut a data set that is loaded already; `seed` is taken as it stands."""
        check_fractions(config)
        kept = subset(len(data_set.train), config.max_train, seed, "max_train")
        whole = len(kept) == len(data_set.train)
        pool = common.caption_concepts(data_set.train if whole else data_set.train.take(kept), config)
        natural_ids = data_set.natural_ids if data_set.natural_ids is None else data_set.natural_ids[kept]
        test = data_set.test
        if 0 < config.max_test < len(test):
            test = test.take(subset(len(test), config.max_test, seed, "max_test"))
        test = common.caption_concepts_of_test(test, pool)

        groups = pool.labels
        if pool.domains is not None:
            groups = groups + data_set.num_classes * pool.domains
        if pool.concepts is None:
            rest, held_out = stratified(groups, config.server_validation, seed, "server validation")
        else:
            rest, held_out = stratified_concepts(
                pool.concepts, pool.labels, config.server_validation, seed, "server validation"
            )
        rest, public = common.split_public(pool, rest, config.public, seed)
        vocabulary = 0
        if config.text_encoder == common.BPE:
            pool, test, vocabulary = common.tokenize(pool, test, public, config)
        found = partitions.build(
            config,
            pool.labels[rest],
            None if pool.domains is None else pool.domains[rest],
            None if natural_ids is None else natural_ids[rest],
            seed,
            data_set.num_classes,
        )
        task_of_class = torch.zeros(data_set.num_classes, dtype=torch.int64)
        if config.partition == "split_tasks":
            task_of_class = partitions.class_tasks(data_set.num_classes, config.num_tasks)
            pool, test = (
                pool.with_tasks(task_of_class[pool.labels]),
                test.with_tasks(task_of_class[test.labels]),
            )
        meta = {
            "name": data_set.name,
            "class_names": list(data_set.class_names),
            "domain_names": list(data_set.domain_names),
            "mean": list(data_set.mean),
            "std": list(data_set.std),
            "licence": data_set.licence,
            "attribution": data_set.attribution,
            "seed": seed,
            "partition": config.partition,
            "num_tasks": config.num_tasks if config.partition in ("split_tasks", "permuted_tasks") else 1,
            "repeats": found.repeats,
            "task_of_class": task_of_class.tolist(),
            "vocabulary": vocabulary,
            "client_validation": config.client_validation,
            "client_test": config.client_test,
            "shuffled": _drawn(config.num_shuffled, found.num_clients, seed),
        }
        mapped = Partition(rest[found.indices], found.offsets, found.tasks, found.repeats)
        made = cls(pool, test, mapped, held_out, public, meta)
        bare = ((made.num_train == 0) & (mapped.sizes > 0)).nonzero().flatten().tolist()
        if bare:
            raise DataError(
                f"{len(bare)} clients (the first is {bare[0]}) have nothing to train on: all their concepts are held "
                "out. Lower data.num_clients, data.client_test or data.client_validation, or raise data.min_examples."
            )
        return made

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all tensors as numpy arrays that share their memory, for an object store."""
        found = {"indices": self.partition.indices, "offsets": self.partition.offsets}
        found |= {"validation_index": self.validation_index, "public_index": self.public_index}
        for prefix, examples in (("pool", self.pool), ("test", self.test_pool)):
            for column in _COLUMNS:
                tensor = getattr(examples, column)
                if tensor is not None:
                    found[f"{prefix}_{column}"] = tensor
            if examples.texts is not None:
                found[f"{prefix}_texts"] = examples.texts.content
                found[f"{prefix}_text_offsets"] = examples.texts.offsets
        return {name: tensor.numpy() for name, tensor in found.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Federation:
        """Rebuild a federation over the arrays of `arrays()` without copying them.

        Arrays out of an object store are read-only; nothing here ever writes into them.
        """
        tensors = {name: _share(array) for name, array in arrays.items()}
        pool, test = (_examples(tensors, prefix) for prefix in ("pool", "test"))
        tasks = None if pool.tasks is None else pool.tasks[tensors["indices"]]
        partition = Partition(tensors["indices"], tensors["offsets"], tasks, int(meta["repeats"]))
        return cls(pool, test, partition, tensors["validation_index"], tensors["public_index"], dict(meta))

    @property
    def num_clients(self) -> int:
        """Number of clients K."""
        return self.partition.num_clients

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.meta["class_names"])

    @property
    def num_tasks(self) -> int:
        """Number of tasks of a sequence; 1 where there is none."""
        return int(self.meta["num_tasks"])

    @property
    def task_of_class(self) -> Tensor:
        """The task of each class under `split_tasks`, [C] int64; else 0."""
        return torch.tensor(self.meta["task_of_class"], dtype=torch.int64)

    @property
    def vocabulary(self) -> int:
        """Number of tokens that texts are made of; 0 where there are none, or embeddings in their place."""
        return int(self.meta["vocabulary"])

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels; 1 for embeddings."""
        return int(self.pool.images.shape[-1]) if self.pool.images.ndim == 4 else 1

    @property
    def in_channels(self) -> int:
        """Number of channels of an image; D for embeddings."""
        return int(self.pool.images.shape[1])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return tuple(self.meta["class_names"])

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Name of each domain; empty where there are none."""
        return tuple(self.meta["domain_names"])

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, in units of [0, 1] pixels."""
        return tuple(self.meta["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, in units of [0, 1] pixels."""
        return tuple(self.meta["std"])

    @property
    def shuffled_clients(self) -> tuple[int, ...]:
        """The clients whose training labels are shuffled, ascending."""
        return tuple(self.meta["shuffled"])

    @cached_property
    def num_train(self) -> Tensor:
        """Training examples of each client, [K] int64, over all its tasks."""
        sizes = self.partition.sizes
        if self._roles is not None:
            trained = self._roles[self.partition.indices] == _TRAIN
            owners = self.partition.owners()[trained]
            return torch.bincount(owners, minlength=self.num_clients) * self.partition.repeats
        validation, test = _held_out(sizes, self.meta["client_validation"], self.meta["client_test"])
        return (sizes - validation - test) * self.partition.repeats

    @cached_property
    def _roles(self) -> Tensor | None:
        """What each example of the pool is for if a client has it, [N] int8, decided by its concept."""
        if self.pool.concepts is None:
            return None
        random = generator(int(self.meta["seed"]), purpose="client split of concepts")
        distinct, member = torch.unique(self.pool.concepts, return_inverse=True)
        score = torch.rand(len(distinct), generator=random)[member]
        test, validation = self.meta["client_test"], self.meta["client_validation"]
        roles = torch.full((len(member),), _TRAIN, dtype=torch.int8)
        roles[score < test + validation] = _VALIDATION
        roles[score < test] = _TEST
        return roles

    def num_examples(self, client: int) -> int:
        """Return the number of training examples of a client, without touching an image."""
        return int(self.num_train[client])

    def client_indices(self, client: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a client's example numbers for training, validation and test, each [m] int64.

        Raises:
            IndexError: There is no such client.
        """
        numbers = self.partition.client(client)
        if self._roles is not None:
            roles = self._roles[numbers]
            found = [numbers[roles == role] for role in (_TRAIN, _VALIDATION, _TEST)]
            return found[0], found[1], found[2]
        size = torch.tensor([len(numbers)])
        validation, test = _held_out(size, self.meta["client_validation"], self.meta["client_test"])
        random = generator(int(self.meta["seed"]), client=client, purpose="client split")
        numbers = numbers[torch.randperm(len(numbers), generator=random)]
        lengths = [len(numbers) - int(validation) - int(test), int(validation), int(test)]
        train_part, validation_part, test_part = torch.split(numbers, lengths)
        return train_part, validation_part, test_part

    def client(self, client: int) -> ClientData:
        """Return a client's examples, copied out of the pool now.

        Raises:
            IndexError: There is no such client.
        """
        parts = [self._examples(self.pool.take(index)) for index in self.client_indices(client)]
        if client in self.shuffled_clients:
            source = generator(int(self.meta["seed"]), client=client, purpose="shuffled labels")
            parts[0] = replace(parts[0], labels=parts[0].labels[torch.randperm(len(parts[0]), generator=source)])
        return ClientData(*parts)

    @cached_property
    def server(self) -> ServerData:
        """The server's examples."""
        validation = self.pool.take(self.validation_index)
        return ServerData(self._examples(validation), self._examples(self.test_pool))

    @cached_property
    def public(self) -> Examples:
        """The examples that the server and all clients have in common, maybe none."""
        return self._examples(self.pool.take(self.public_index))

    def _examples(self, found: Examples) -> Examples:
        """Return examples as tasks show them: under `permuted_tasks` once in every task, task by task."""
        repeats = self.partition.repeats
        if self.meta["partition"] != "permuted_tasks":
            return found
        seed = int(self.meta["seed"])
        return replace(
            found,
            images=torch.cat([permute_pixels(found.images, task, seed) for task in range(repeats)]),
            labels=found.labels.repeat(repeats),
            domains=None if found.domains is None else found.domains.repeat(repeats),
            concepts=None if found.concepts is None else found.concepts.repeat(repeats),
            texts=None,
            tokens=None,
            tasks=torch.arange(repeats).repeat_interleave(len(found)),
        )


def check_fractions(config: DataConfig) -> None:
    """Raise `DataError` for fractions to hold out that leave nothing to train on."""
    for key in ("server_validation", "client_validation", "client_test"):
        value = getattr(config, key)
        if not 0 <= value < 1:
            raise DataError(f"data.{key} must be at least 0 and less than 1, found {value}.")
    both = config.client_validation + config.client_test
    if both >= 1:
        raise DataError(
            f"data.client_validation + data.client_test must be less than 1, found {both:g}; "
            f"a client must keep examples to train on."
        )
    for key in ("max_train", "max_test"):
        if getattr(config, key) < 0:
            raise DataError(f"data.{key} must be at least 0 (0 uses all), found {getattr(config, key)}.")


def _examples(tensors: Mapping[str, Tensor], prefix: str) -> Examples:
    found: dict[str, Any] = {column: tensors.get(f"{prefix}_{column}") for column in _COLUMNS}
    if f"{prefix}_texts" in tensors:
        found["texts"] = Texts(tensors[f"{prefix}_texts"], tensors[f"{prefix}_text_offsets"])
    return Examples(**found)


def _drawn(number: int, num_clients: int, seed: int) -> list[int]:
    """Return so many clients, ascending."""
    if not 0 <= number <= num_clients:
        raise DataError(f"data.num_shuffled must be from 0 to data.num_clients={num_clients}, found {number}.")
    source = generator(seed, purpose="shuffled clients")
    return sorted(torch.randperm(num_clients, generator=source)[:number].tolist())


def _held_out(sizes: Tensor, validation: float, test: float) -> tuple[Tensor, Tensor]:
    """Return how many examples clients of `sizes` hold out for validation and test, rounded, [K] each.

    One example always stays for training; where that binds, the test goes before the validation.
    """
    spare = (sizes - 1).clamp_min(0)
    num_test = torch.minimum((sizes * test + 0.5).long(), spare)
    num_validation = torch.minimum((sizes * validation + 0.5).long(), spare - num_test)
    return num_validation, num_test


def _share(array: NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        # torch warns that one could write into a read-only array through the tensor; nobody here does.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))

"""Everything that a run needs of its data: what the server holds, and what each client holds.

Train, validation and test of every client and of the server are pairwise disjoint. The server's validation
is a stratified part of the training set, its test is the set's own test; the rest of the training set belongs
to the clients, each of which holds parts out. Where examples share concepts, whole concepts are held out, the same
ones by all clients, so that no concept is in two splits, be it with two clients.

Shapes: N examples of the pool, K clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from umbel.core.ranges import check_ranges
from umbel.core.rng import generator
from umbel.data import encoders
from umbel.data import partition as partitions
from umbel.data import public as common
from umbel.data.arrays import columns_of, examples_of, shared
from umbel.data.config import DataConfig
from umbel.data.errors import DataError
from umbel.data.holdout import TEST, TRAIN, VALIDATION, check_fractions, held_out, roles_of, split_server
from umbel.data.partition import Partition
from umbel.data.sets import registry
from umbel.data.shuffled import drawn_clients, with_shuffled_labels
from umbel.data.split import subset
from umbel.data.transforms import permute_pixels
from umbel.data.types import DataSet, Examples


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
        roles: What each example of the pool is for, [N] int8 (`umbel.data.holdout`), where owners say so; else None.
    """

    pool: Examples
    test_pool: Examples
    partition: Partition
    validation_index: Tensor
    public_index: Tensor
    meta: Mapping[str, Any]
    roles: Tensor | None = None

    @classmethod
    def build(cls, config: DataConfig, seed: int) -> Federation:
        """Load, hold out and cut, all by the seed.

        Args:
            config: What was asked for; `config.seed`, where it is set, goes before `seed`.
            seed: The run's seed.

        Raises:
            Refusal: A value is out of its range.
            DataError: The data are missing or damaged, or cannot be cut as asked.
        """
        check_ranges(config, "data")
        seed = seed if config.seed is None else config.seed
        check_fractions(config)
        partitions.check(config)
        common.check(config)
        data_set = registry.load(config, seed)
        pictures = [data_set.in_channels, data_set.image_size]  # as they are before an encoder
        if config.text_encoder and config.text_encoder != common.BPE:
            data_set = common.embed_texts(data_set, config.text_encoder)
        if config.encoder:
            data_set = encoders.encode(data_set, config.encoder, config.encoder_size)
        elif data_set.train.images.shape[1] == 0:
            raise DataError(
                f"{data_set.name} has texts and no images.",
                key="data.encoder",
                remedy="Set data.encoder to an encoder of texts.",
            )
        made = cls.cut(data_set, config, seed)
        return replace(made, meta={**made.meta, "picture_shape": pictures})

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

        rest, validation = split_server(pool, data_set.num_classes, config.server_validation, seed)
        rest, public = common.split_public(pool, rest, config.public, seed)
        vocabulary = 0
        if config.text_encoder == common.BPE:
            pool, test, vocabulary = common.tokenize(pool, test, public, config)
        clients = partitions.build(
            config,
            pool.labels[rest],
            None if pool.domains is None else pool.domains[rest],
            None if natural_ids is None else natural_ids[rest],
            seed,
            data_set.num_classes,
        )
        task_of_class = torch.zeros(data_set.num_classes, dtype=torch.int64)
        apart = partitions.tasks(config.partition)
        if apart == "classes":
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
            "picture_shape": [data_set.in_channels, data_set.image_size],
            "licence": data_set.licence,
            "attribution": data_set.attribution,
            "notices": list(data_set.notices),
            "seed": seed,
            "partition": config.partition,
            "num_tasks": 1 if apart == "none" else config.num_tasks,
            "repeats": clients.repeats,
            "task_of_class": task_of_class.tolist(),
            "vocabulary": vocabulary,
            "client_validation": config.client_validation,
            "client_test": config.client_test,
            "shuffled": drawn_clients(config.num_shuffled, clients.num_clients, seed),
        }
        mapped = Partition(rest[clients.indices], clients.offsets, clients.tasks, clients.repeats)
        made = cls(pool, test, mapped, validation, public, meta)
        bare = ((made.num_train == 0) & (mapped.sizes > 0)).nonzero().flatten().tolist()
        if bare:
            raise DataError(
                f"{len(bare)} clients (the first is {bare[0]}) have nothing to train on: all their concepts are held "
                "out.",
                key="data.num_clients",
                remedy="Lower data.num_clients, data.client_test or data.client_validation, or raise "
                "data.min_examples.",
            )
        return made

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all tensors as numpy arrays that share their memory, for an object store."""
        tensors = {"indices": self.partition.indices, "offsets": self.partition.offsets}
        tensors |= {"validation_index": self.validation_index, "public_index": self.public_index}
        if self.roles is not None:
            tensors["roles"] = self.roles
        for prefix, examples in (("pool", self.pool), ("test", self.test_pool)):
            tensors |= {f"{prefix}_{name}": tensor for name, tensor in columns_of(examples).items()}
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> Federation:
        """Rebuild a federation over the arrays of `arrays()` without copying them.

        Arrays out of an object store are read-only; nothing here ever writes into them.
        """
        tensors = {name: shared(array) for name, array in arrays.items()}
        pool, test = (examples_of(tensors, f"{prefix}_") for prefix in ("pool", "test"))
        tasks = None if pool.tasks is None else pool.tasks[tensors["indices"]]
        partition = Partition(tensors["indices"], tensors["offsets"], tasks, int(meta["repeats"]))
        held = tensors["validation_index"], tensors["public_index"]
        return cls(pool, test, partition, *held, dict(meta), tensors.get("roles"))

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
        """The task of each class where tasks have classes of their own, [C] int64; else 0."""
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
    def picture_shape(self) -> tuple[int, int]:
        """Channels, and pixels on a side, of the images as they are before an encoder; no channel for texts."""
        channels, side = self.meta["picture_shape"]
        return int(channels), int(side)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return tuple(self.meta["class_names"])

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Name of each domain; empty where there are none."""
        return tuple(self.meta["domain_names"])

    @property
    def notices(self) -> tuple[str, ...]:
        """What whoever reads the result should know of the data, a sentence each."""
        return tuple(self.meta["notices"])

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
            trained = self._roles[self.partition.indices] == TRAIN
            owners = self.partition.owners()[trained]
            return torch.bincount(owners, minlength=self.num_clients) * self.partition.repeats
        validation, test = self._held_out
        return (sizes - validation - test) * self.partition.repeats

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor]:
        """How many examples each client holds out for validation and test, [K] each, where each decides by lot."""
        return held_out(self.partition.sizes, self.meta["client_validation"], self.meta["client_test"])

    @cached_property
    def num_train_per_class(self) -> Tensor:
        """Training examples of each class over all clients, [C] int64, each counted once whatever its tasks repeat."""
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        for client in range(self.num_clients):
            counts += torch.bincount(self.pool.labels[self.client_indices(client)[0]], minlength=self.num_classes)
        return counts

    @cached_property
    def num_held_out(self) -> Tensor:
        """Examples of each client that it does not train on, [K] int64, over all its tasks."""
        return self.partition.sizes * self.partition.repeats - self.num_train

    @cached_property
    def _roles(self) -> Tensor | None:
        """What each example of the pool is for if a client has it, [N] int8; None where each client decides by lot."""
        if self.roles is not None or self.pool.concepts is None:
            return self.roles
        validation, test = self.meta["client_validation"], self.meta["client_test"]
        return roles_of(self.pool.concepts, validation, test, int(self.meta["seed"]))

    def client_indices(self, client: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return a client's example numbers for training, validation and test, each [m] int64.

        Raises:
            IndexError: There is no such client.
        """
        numbers = self.partition.client(client)
        if self._roles is not None:
            roles = self._roles[numbers]
            return numbers[roles == TRAIN], numbers[roles == VALIDATION], numbers[roles == TEST]
        validation, test = (int(sizes[client]) for sizes in self._held_out)
        random = generator(int(self.meta["seed"]), client=client, purpose="client split")
        numbers = numbers[torch.randperm(len(numbers), generator=random)]
        lengths = [len(numbers) - validation - test, validation, test]
        train_part, validation_part, test_part = torch.split(numbers, lengths)
        return train_part, validation_part, test_part

    def client(self, client: int) -> ClientData:
        """Return a client's examples, copied out of the pool now.

        Raises:
            IndexError: There is no such client.
        """
        parts = [self._examples(self.pool.take(index)) for index in self.client_indices(client)]
        if client in self.shuffled_clients:
            parts[0] = with_shuffled_labels(parts[0], client, int(self.meta["seed"]))
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

    def _examples(self, examples: Examples) -> Examples:
        """Return examples as tasks show them: once in every task, task by task, where their pixels are permuted."""
        repeats = self.partition.repeats
        if partitions.tasks(self.meta["partition"]) != "pixels":
            return examples
        seed = int(self.meta["seed"])
        return replace(
            examples,
            images=torch.cat([permute_pixels(examples.images, task, seed) for task in range(repeats)]),
            labels=examples.labels.repeat(repeats),
            domains=None if examples.domains is None else examples.domains.repeat(repeats),
            concepts=None if examples.concepts is None else examples.concepts.repeat(repeats),
            texts=None,
            tokens=None,
            tasks=torch.arange(repeats).repeat_interleave(len(examples)),
        )

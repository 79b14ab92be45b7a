"""One process's model and data, handed to one client after the other."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from umbel.conf.federation import build_model, federation, local_names
from umbel.conf.schema import Experiment
from umbel.core import device as devices
from umbel.core import training
from umbel.core.kept import Kept
from umbel.core.memory import MemoryRecord, MemoryStore
from umbel.core.tree import Tree, TreeMismatchError
from umbel.data import transforms
from umbel.data.federation import ClientData
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.weights import load_state, shared_state
from umbel.strategies.base import ClientContext

NORM = "#norm"  # tree of a client's memory that holds its own batch norm (FedBN)
_PREPARED_BYTES = 512 << 20


class Host:
    """What all clients of a process share: the model, the device, the data.

    The model and its buffers stay on the device; a client's data are prepared (normalised, moved) once and kept
    while memory allows.

    Args:
        experiment: The experiment.
    """

    def __init__(self, experiment: Experiment) -> None:
        devices.set_threads(experiment.run.threads)
        self.experiment = experiment
        self.data = federation(experiment)
        self.device = devices.resolve(experiment.client.device)
        devices.make_repeatable(self.device)
        self.dtype = devices.parameter_dtype(experiment.client.precision)
        self.loaded = False  # whether the client whose turn it is has loaded the model
        self.prepare = Kept(self._prepare, lambda ready: ready[0].numel() * ready[0].element_size(), _PREPARED_BYTES)

    @cached_property
    def model(self) -> Model:
        """The experiment's model, built when a strategy first asks for it: where only representations travel, never."""
        model, local = build_model(self.experiment, self.data).to(self.device), self.experiment.client
        if local.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if local.compile:
            model.features = torch.compile(model.features)  # type: ignore[method-assign]
        return model

    @cached_property
    def local_names(self) -> frozenset[str]:
        """Names of the model's state that stay with each client."""
        return local_names(self.experiment, self.model)

    @cached_property
    def _initial(self) -> tuple[frozenset[str], dict[str, Tensor]]:
        """Names of the shared state, and the rest of the state as initialised; taken before anything is loaded."""
        shared = frozenset(shared_state(self.model, self.local_names))
        state = self.model.state_dict()
        return shared, {name: t.detach().clone() for name, t in state.items() if name not in shared}

    @property
    def task_heads(self) -> Tensor | None:
        """The task of each class, [C], where each task has a head of its own."""
        return self.data.task_of_class if self.experiment.data.heads == "per_task" else None

    def load(self, tree: Tree, memory: MemoryRecord | None) -> Model:
        """Give the model the state of `tree`, and the client's own parts from its memory."""
        shared_names, own_initial = self._initial
        if tree.keys() != shared_names:
            missing, extra = shared_names - tree.keys(), tree.keys() - shared_names
            raise TreeMismatchError(
                f"The model that came lacks {sorted(missing)[:5]} and has {sorted(extra)[:5]} too many; server and "
                "client built different models."
            )
        own = dict(own_initial)
        if memory is not None and NORM in memory.trees:
            own |= memory.trees[NORM]
        for parameter in self.model.parameters():
            parameter.grad = None
        load_state(self.model, tree, partial=True)
        if own:
            load_state(self.model, own, partial=True)
        self.loaded = True
        return self.model

    def weights(self, model: Model) -> dict[str, Tensor]:
        """Return the model's shared state on the CPU, owning its memory."""
        return {name: tensor.cpu() for name, tensor in shared_state(model, self.local_names).items()}

    def own_parts(self) -> dict[str, Tensor]:
        """Return the parts of the model that stay with the client; none unless it loaded the model in this phase."""
        if self.experiment.model.norm != "local" or not self.loaded:
            return {}  # what the model then holds is another client's, if there is a model at all
        state = self.model.state_dict()
        return {name: state[name].detach().cpu().clone() for name in sorted(self.local_names)}

    def _prepare(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return (images, labels) on the device, normalised, in the parameter dtype; `prepare` keeps the last ones."""
        images = transforms.normalize(examples.images.to(self.device), self.data.mean, self.data.std, self.dtype)
        if self.experiment.client.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, examples.labels.to(self.device)

    def augmentation(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """Return the augmentation of training batches, if there is one."""
        kind = self.experiment.data.augment
        if kind == "none":
            return None
        return lambda images, source: transforms.augment(images, kind, source)


class Clients:
    """Gives a `ClientContext` for each client of a process.

    Args:
        host: The process's model and data.
        memory: Where the clients' memory is.
        cache_size: How many clients' examples stay in memory.
    """

    def __init__(self, host: Host, memory: MemoryStore, cache_size: int = 1024) -> None:
        self.host = host
        self.memory = memory
        self._data: OrderedDict[int, ClientData] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], tuple[tuple[float, int], Examples]] = OrderedDict()
        self._kept_bytes = 0
        self._by_task: OrderedDict[int, tuple[int, Examples]] = OrderedDict()
        self._cache_size = cache_size

    def data(self, client: int) -> ClientData:
        """Return a client's examples; the last ones are kept, so that they stay on the device."""
        if client in self._data:
            self._data.move_to_end(client)
            return self._data[client]
        found = self._data[client] = self.host.data.client(client)
        while len(self._data) > self._cache_size:
            self._data.popitem(last=False)
        return found

    def context(
        self,
        client: int,
        round_: int,
        phase: str,
        record: MemoryRecord | None,
        remember: Callable[[MemoryRecord], None],
    ) -> ClientContext:
        """Return the client as its half of a strategy sees it; from now on it is this client's turn."""
        host, data = self.host, self.data(client)
        host.loaded = False

        def load_model(tree: Tree) -> Model:
            return host.load(tree, record)

        experiment = host.experiment
        task = experiment.schedule.task(round_)
        return ClientContext(
            id=client,
            seed=host.experiment.run.seed,
            round=round_,
            phase=phase,
            local=host.experiment.client,
            train_data=self._current(client, data, task),
            validation_data=data.validation,
            test_data=data.test,
            device=host.device,
            load_model=load_model,
            weights_of=host.weights,
            prepare=host.prepare,
            augment=host.augmentation(),
            num_classes=host.data.num_classes,
            memory=record,
            remember=remember,
            loss=self._loss(),
            task=task,
            keep=lambda name, version, make: self._keep((name, client), (version, task), make),
            public=host.data.public if len(host.data.public_index) else None,
            vocabulary=host.data.vocabulary,
        )

    def _keep(self, key: tuple[str, int], version: tuple[float, int], make: Callable[[], Examples]) -> Examples:
        """Return what a strategy made of a client's data; made anew in another version, or when it was dropped."""
        if key not in self._kept or self._kept[key][0] != version:
            made = make()
            if key in self._kept:
                self._kept_bytes -= self._kept.pop(key)[1].images.nbytes
            self._kept[key] = (version, made)
            self._kept_bytes += made.images.nbytes
            while self._kept_bytes > _PREPARED_BYTES and len(self._kept) > 1:
                _, (_, old) = self._kept.popitem(last=False)
                self._kept_bytes -= old.images.nbytes
        self._kept.move_to_end(key)
        return self._kept[key][1]

    def _current(self, client: int, data: ClientData, task: int) -> Examples:
        """Return the training examples of the current task; the last ones are kept, so that they stay on the device."""
        tasks = data.train.tasks
        if tasks is None or not self.host.experiment.schedule.is_sequence:
            return data.train
        known = self._by_task.get(client)
        if known is None or known[0] != task:
            known = self._by_task[client] = (task, data.train.take(tasks == task))
            while len(self._by_task) > self._cache_size:
                self._by_task.popitem(last=False)
        self._by_task.move_to_end(client)
        return known[1]

    def _loss(self) -> training.Loss:
        if self.host.experiment.data.heads != "per_task":
            return F.cross_entropy
        return partial(_own_task_loss, task_of_class=self.host.data.task_of_class.to(self.host.device))


def _own_task_loss(logits: Tensor, labels: Tensor, task_of_class: Tensor) -> Tensor:
    """Return the cross-entropy in which each example sees the outputs of its own task."""
    others = task_of_class[labels][:, None] != task_of_class[None, :]
    return F.cross_entropy(logits.masked_fill(others, -math.inf), labels)

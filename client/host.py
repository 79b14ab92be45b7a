"""One process's model and data, handed to one client after the other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from importlib import import_module

import torch
from torch import Tensor

from umbel.client.lending import LentData, tensors_of
from umbel.client.lent_model import LentModel
from umbel.conf.federation import build_model, federation, local_names
from umbel.conf.schema import Experiment
from umbel.core import device as devices
from umbel.core import training
from umbel.core.kept import Kept
from umbel.core.losses import CrossEntropy
from umbel.core.memory import MemoryRecord, MemoryStore
from umbel.core.training import compiled, modes
from umbel.core.tree import Tree, TreeMismatchError
from umbel.data import transforms
from umbel.data.federation import ClientData, Federation
from umbel.data.sources.cache import folder
from umbel.data.types import Examples
from umbel.models.base import Model, compile_features
from umbel.models.weights import names_of_shared, shared_state
from umbel.strategies.base import ClientContext

OWN = "#own"  # tree of a client's memory that holds the parts of the model that stay with it: batch norm, a head
_PREPARED_BYTES = 512 << 20


class Host:
    """What all clients of a process share: the model, the device, the data.

    The model and its buffers stay on the device; a client's data are prepared (normalised, moved) once and kept
    while memory allows.

    Args:
        experiment: The experiment.
        data: The data; None loads the experiment's.
    """

    def __init__(self, experiment: Experiment, data: Federation | None = None) -> None:
        devices.set_threads(experiment.run.threads)
        devices.keep_memory()
        self.experiment = experiment
        self.data = federation(experiment) if data is None else data
        self.device = devices.resolve(experiment.client.device)
        devices.make_repeatable(self.device)
        if experiment.client.compile != "none":
            compiled.keep_in(folder() / "compiled")
            import_module("torch._dynamo")  # seconds that are no client's
        self.dtype = devices.parameter_dtype(experiment.client.precision)
        self.loaded = False  # whether the client whose turn it is has loaded the model
        self.prepare = self._kept()

    def _kept(self) -> Kept[Examples, tuple[Tensor, Tensor]]:
        return Kept(self._prepare, lambda ready: ready[0].nbytes, _PREPARED_BYTES)

    @cached_property
    def model(self) -> Model:
        """The experiment's model, built when a strategy first asks for it: where only representations travel, never."""
        with torch.inference_mode(mode=False):  # whatever the client that asks first is about
            model, local = build_model(self.experiment, self.data).to(self.device), self.experiment.client
        if modes.uses_channels_last(local, model):
            model = model.to(memory_format=torch.channels_last)
        if local.compile == "model":
            compile_features(model)
        return model

    @cached_property
    def _channels_last(self) -> bool:
        local = self.experiment.client
        return modes.uses_channels_last(local, self.model) if local.channels_last == "auto" else local.channels_last

    @cached_property
    def _lent(self) -> LentModel:
        return LentModel(self.model, self.local_names)

    def take_back(self) -> None:
        """Have the model built anew unless it is as it was, but for the values that the next client loads."""
        if "model" in self.__dict__ and not ("_lent" in self.__dict__ and self._lent.take_back()):
            self.forget_model()

    def forget_model(self) -> None:
        """Have the model built anew when it is asked for next."""
        for name in ("model", "local_names", "_initial", "_lent"):
            self.__dict__.pop(name, None)

    @cached_property
    def local_names(self) -> frozenset[str]:
        """Names of the model's state that stay with each client."""
        return local_names(self.experiment, self.model)

    @cached_property
    def _initial(self) -> tuple[frozenset[str], dict[str, Tensor]]:
        """Names of the shared state, and the rest of the state as initialised; taken before anything is loaded."""
        shared = names_of_shared(self.model, self.local_names)
        state = self.model.state_dict()
        return shared, {name: t.detach().clone() for name, t in state.items() if name not in shared}

    @property
    def task_heads(self) -> Tensor | None:
        """The task of each class, [C], where each task has a head of its own."""
        return self.data.task_of_class if self.experiment.data.heads == "per_task" else None

    def load(self, tree: Tree, memory: MemoryRecord | None) -> Model:
        """Give the model the state of `tree`, and the client's own parts from its memory; it is in training mode."""
        lent = self._lent  # looked at before a client has it
        shared_names, own_initial = self._initial
        if tree.keys() != shared_names:
            missing, extra = shared_names - tree.keys(), tree.keys() - shared_names
            raise TreeMismatchError(
                f"The model that came lacks {sorted(missing)[:5]} and has {sorted(extra)[:5]} too many; server and "
                "client built different models."
            )
        own = dict(own_initial)
        if memory is not None and OWN in memory.trees:
            own |= memory.trees[OWN]
        lent.load(tree, own)
        self.loaded = True
        return self.model

    def weights(self, model: Model) -> dict[str, Tensor]:
        """Return the model's shared state on the CPU, owning its memory."""
        if model is self.__dict__.get("model") and "_lent" in self.__dict__:
            return self._lent.weights()
        return {name: tensor.cpu() for name, tensor in shared_state(model, self.local_names).items()}

    def forget_data(self) -> None:
        """Have what was prepared, and the public examples, made anew."""
        self.prepare = self._kept()
        self.data.__dict__.pop("public", None)

    def own_parts(self) -> dict[str, Tensor]:
        """Return the parts of the model that stay with the client; none unless it loaded the model in this phase."""
        if not self.loaded or not self.local_names:
            return {}  # what the model then holds is another client's, if there is a model at all
        state = self.model.state_dict()
        return {name: state[name].detach().cpu().clone() for name in sorted(self.local_names)}

    @torch.inference_mode(mode=False)
    def _prepare(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return (images, labels) on the device, normalised, in the parameter dtype; `prepare` keeps the last ones."""
        images = transforms.normalize(examples.images.to(self.device), self.data.mean, self.data.std, self.dtype)
        if images.dim() == 4 and self._channels_last:
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
        own = self._data[client] = self.host.data.client(client)
        while len(self._data) > self._cache_size:
            self._data.popitem(last=False)
        return own

    def forget(self, client: int) -> None:
        """Have everything made anew that a client may have changed: its data, what was made of them, its memory."""
        self._data.pop(client, None)
        self._by_task.pop(client, None)
        for key in [key for key in self._kept if key[1] == client]:
            self._kept_bytes -= self._kept.pop(key)[1].images.nbytes
        self.memory = MemoryStore(self.memory.folder)
        self.host.forget_model()
        self.host.forget_data()

    def context(
        self,
        client: int,
        round_: int,
        phase: str,
        record: MemoryRecord | None,
        remember: Callable[[MemoryRecord], None],
        lent: LentData | None = None,
        trainer: training.Trainer = training.train,
    ) -> ClientContext:
        """Return the client as its half of a strategy sees it; from now on it is this client's turn.

        Args:
            client: Its number.
            round_: Round.
            phase: Name of the phase.
            record: Its memory, if it has one.
            remember: Called with what it wants to remember.
            lent: Notes what it gets and should leave as it is.
            trainer: Stands in for `train`.
        """
        host, data, lent = self.host, self.data(client), lent or LentData()
        host.loaded = False

        def load_model(tree: Tree) -> Model:
            return host.load(tree, record)

        def prepare(examples: Examples) -> tuple[Tensor, Tensor]:
            ready = host.prepare(examples)
            lent.lend("its prepared examples", ready)
            return ready

        experiment = host.experiment
        task = experiment.schedule.task(round_)
        current = self._current(client, data, task)
        public = host.data.public if len(host.data.public_index) else None
        for examples in (current, data.train, data.validation, data.test):
            lent.lend("its examples", tensors_of(examples))
        lent.lend("the public examples", [] if public is None else tensors_of(public))
        memory = record
        if record is not None:
            lent.lend("its memory", (tensor for tree in record.trees.values() for tensor in tree.values()))
            memory = MemoryRecord({name: dict(tree) for name, tree in record.trees.items()}, dict(record.numbers))
        return ClientContext(
            id=client,
            seed=host.experiment.run.seed,
            round=round_,
            phase=phase,
            local=host.experiment.local,
            train_data=current,
            validation_data=data.validation,
            test_data=data.test,
            device=host.device,
            load_model=load_model,
            weights_of=host.weights,
            prepare=prepare,
            augment=host.augmentation(),
            num_classes=host.data.num_classes,
            memory=memory,
            remember=remember,
            loss=self._loss(),
            task=task,
            keep=lambda name, version, make: self._keep((name, client), (version, task), make),
            public=public,
            vocabulary=host.data.vocabulary,
            trainer=trainer,
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

    def _loss(self) -> CrossEntropy:
        local, heads = self.host.experiment.client, self.host.task_heads
        heads = None if heads is None else heads.to(self.host.device)
        return CrossEntropy(local.label_smoothing, local.class_weights, heads)

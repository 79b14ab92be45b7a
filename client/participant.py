"""One process's model and data, handed to one client after the other."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from conf.federation import build_model, federation, local_names
from conf.schema import Experiment
from core import device as devices
from core.memory import MemoryRecord, MemoryStore
from core.tree import Tree, TreeMismatchError
from data import transforms
from data.federation import ClientData
from data.types import Examples
from models.base import Model
from models.weights import load_state, shared_state
from strategies.base import ClientContext

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
        self.model: Model = build_model(experiment, self.data).to(self.device)
        self.local_names = local_names(experiment, self.model)
        whole = {name: t.detach().clone() for name, t in self.model.state_dict().items()}
        shared = shared_state(self.model, self.local_names)
        self.shared_names = frozenset(shared)
        self._own_initial = {name: t for name, t in whole.items() if name not in shared}
        self._prepared: OrderedDict[int, tuple[Examples, tuple[Tensor, Tensor]]] = OrderedDict()
        self._prepared_bytes = 0

    def load(self, tree: Tree, memory: MemoryRecord | None) -> Model:
        """Give the model the state of `tree`, and the client's own parts from its memory."""
        if tree.keys() != self.shared_names:
            missing, extra = self.shared_names - tree.keys(), tree.keys() - self.shared_names
            raise TreeMismatchError(
                f"The model that came lacks {sorted(missing)[:5]} and has {sorted(extra)[:5]} too many; server and "
                "client built different models."
            )
        own = dict(self._own_initial)
        if memory is not None and NORM in memory.trees:
            own |= memory.trees[NORM]
        for parameter in self.model.parameters():
            parameter.grad = None
        load_state(self.model, tree, partial=True)
        if own:
            load_state(self.model, own, partial=True)
        return self.model

    def weights(self, model: Model) -> dict[str, Tensor]:
        """Return the model's shared state on the CPU, owning its memory."""
        return {name: tensor.cpu() for name, tensor in shared_state(model, self.local_names).items()}

    def own_parts(self) -> dict[str, Tensor]:
        """Return the parts of the model that stay with the client."""
        state = self.model.state_dict()
        return {name: state[name].detach().cpu().clone() for name in sorted(self.local_names)}

    def prepare(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return (images, labels) on the device, normalised, in the parameter dtype; the last ones are kept."""
        key = id(examples)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key][1]
        moved = examples.images.to(self.device)
        images = transforms.normalize(moved, self.data.mean, self.data.std, self.dtype)
        ready = (images, examples.labels.to(self.device))
        size = images.numel() * images.element_size()
        # The examples are kept beside their tensors, so that their id cannot be given to others meanwhile.
        self._prepared[key] = (examples, ready)
        self._prepared_bytes += size
        while self._prepared_bytes > _PREPARED_BYTES and len(self._prepared) > 1:
            _, (_, (old, _)) = self._prepared.popitem(last=False)
            self._prepared_bytes -= old.numel() * old.element_size()
        return ready

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
        """Return the client as its half of a strategy sees it."""
        host, data = self.host, self.data(client)

        def load_model(tree: Tree) -> Model:
            return host.load(tree, record)

        return ClientContext(
            id=client,
            seed=host.experiment.run.seed,
            round=round_,
            phase=phase,
            local=host.experiment.client,
            train_data=data.train,
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
        )

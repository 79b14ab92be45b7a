"""A finished run opened again: its global model, and the model that each client would send next.

A run's folder has the models of no client: what a client sends is added to others' where it is. So a client's model is
made again: its half of the strategy's phase `train` runs from the last checkpoint, on the client's data and with its
memory, as it would in one round more. Without a checkpoint (`checkpoint.every=0`) a client trains the final model by
its plain local loss. The same run gives the same models, to the bit: those that a resume with one round more would add
up.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from umbel.client.host import Clients, Host
from umbel.conf.errors import ExperimentError
from umbel.conf.federation import at_sites
from umbel.core.files import DamagedError
from umbel.core.memory import MemoryRecord, MemoryStore, Version
from umbel.core.records import Payload
from umbel.models.base import Model
from umbel.models.weights import load_state
from umbel.server import agree, checkpoint, reading
from umbel.server.flower import strategies as flower
from umbel.server.session import Session
from umbel.strategies.base import ClientContext, Phase, by_name

_TRAIN = "train"  # the phase that is run again
State = dict[str, Tensor]  # a model's whole state dict, on the CPU


class FinishedRun:
    """A run that has ended.

    Args:
        folder: Its folder.

    Raises:
        ExperimentError: It is no run, has not ended, or shares no classifier of images.
        DamagedError: A file of it is not what was written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).expanduser().resolve()
        self.experiment = reading.experiment(self.path)
        self.summary = reading.summary(self.path)
        flower.check(self.experiment)
        self._agreement = agree.kept(self.path)
        self.session = Session(self.experiment, self._agreement)
        if self.session.strategy.own_model or not self.session.shared_names:
            raise ExperimentError(
                f"The clients of {self.path} share no classifier: under strategy.name={self.experiment.strategy.name} "
                "each has a model of its own. Choose a run of another strategy."
            )
        self.data = self.session.data
        self._id = reading.identity(self.path)["id"]
        self._checkpoint = self._last_checkpoint()

    @property
    def rounds(self) -> int:
        """The last round."""
        return int(self.summary["rounds"])

    @cached_property
    def state(self) -> State:
        """The global model's whole state after the last round, in the model's order: a file has its own."""
        tensors = reading.model(self.path)
        return {name: tensors[name] for name in self.session.build_model().state_dict()}

    def model(self, state: State) -> Model:
        """Return a model with this state, in evaluation mode on the run's device."""
        model = self.session.build_model().to(self.session.device)
        load_state(model, state)
        return model.eval()

    @cached_property
    def from_checkpoint(self) -> bool:
        """Whether clients run their half of the strategy; without a checkpoint they train by their local loss."""
        return self._checkpoint is not None

    def client(self, client: int) -> State:
        """Return the whole state of a client's model after one more local run.

        Raises:
            ExperimentError: The strategy has no phase in which clients train a model.
            umbel.core.memory.MissingMemoryError: The client's memory is on a node, and not in the run's folder.
        """
        context = self._context(client)
        if self._exchange is None:
            model = context.model({name: self.state[name] for name in self.session.shared_names})
            context.train(model)
            return _copy(model)
        phase, payload = self._exchange
        reply = phase.local(payload, context)
        state = _copy(self._host.model)
        base = payload.trees["model"]
        return state | {name: base[name].cpu() + change.cpu() for name, change in reply.trees.get("delta", {}).items()}

    def examples(self, client: int) -> tuple[Tensor, Tensor]:
        """Return the images and labels that a client trains on in that local run, as its model reads them.

        Raises:
            umbel.core.memory.MissingMemoryError: The client's memory is on a node, and not in the run's folder.
        """
        context = self._context(client)
        return context.prepare(context.train_data)

    def _context(self, client: int) -> ClientContext:
        versions = self._checkpoint.progress.memories if self._checkpoint else {}
        record = self._clients.memory.read(client, Version(*versions[str(client)])) if str(client) in versions else None
        remembered: list[MemoryRecord] = []  # nobody reads it
        return self._clients.context(client, self.rounds + 1, _TRAIN, record, remembered.append)

    def _last_checkpoint(self) -> checkpoint.Checkpoint | None:
        """Return the checkpoint of the last round; None where the run wrote none."""
        newest = checkpoint.latest(self.path / "checkpoints")
        if newest is not None and newest.passed_over:
            reasons, remedy = "\n".join(newest.passed_over), f"Make it again: umbel resume {self.path}"
            raise DamagedError(f"A checkpoint of {self.path} is damaged: {reasons}.", remedy=remedy)
        return newest if newest is not None and newest.progress.round == self.rounds else None

    @cached_property
    def _exchange(self) -> tuple[Phase[Any], Payload] | None:
        """The phase `train` of the next round and what it would send; None without a checkpoint."""
        if self._checkpoint is None:
            return None
        session = self.session
        state: Any = checkpoint.restore(self._checkpoint, session.strategy, lambda: session.context(0))
        phase = by_name(session.strategy.phases(state)).get(_TRAIN)
        if phase is None:
            raise ExperimentError(
                f"Clients of strategy.name={self.experiment.strategy.name} train no shared model in a phase 'train'."
            )
        return phase, phase.broadcast(state, session.context(self.rounds + 1))

    @cached_property
    def _host(self) -> Host:
        if self._agreement is None:
            return Host(self.experiment)
        if not self.experiment.data.sites:
            raise ExperimentError(
                f"The clients of {self.path} have their data at their sites, where alone they could train once more.",
                key="data.sites",
                remedy="Explain a run whose sites' data files are here, or the global model alone: --clients 0.",
            )
        return Host(self.experiment, at_sites(self.experiment, self._agreement.shared()))

    @cached_property
    def _clients(self) -> Clients:
        return Clients(self._host, MemoryStore(self.path / "memory" / self._id))


def _copy(model: Model) -> State:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

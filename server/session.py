"""What one run of the server works with: experiment, strategy, data, model, and who can take part."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from umbel.conf import initial
from umbel.conf.federation import at_server, build_model, federation, local_names
from umbel.conf.load import build_strategy, portable_hash
from umbel.conf.schema import Experiment
from umbel.core import device as devices
from umbel.core.kept import Kept
from umbel.core.training.config import LocalConfig
from umbel.core.virtual import devices as fleet
from umbel.data import transforms
from umbel.data.sites.agreement import Agreement
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.weights import load_state, names_of_shared
from umbel.server.cohorts import Cohorts
from umbel.server.flower import strategies as flower
from umbel.server.same_data import agreed_data, same_data
from umbel.strategies.base import Phase, ServerContext, Strategy, by_name
from umbel.strategies.whole_models import WholeModels


class Session:
    """The server's experiment, composed and loaded.

    Args:
        experiment: The experiment.
        agreement: What sites with data of their own agreed on; None loads the experiment's data.
    """

    def __init__(self, experiment: Experiment, agreement: Agreement | None = None) -> None:
        devices.set_threads(experiment.run.threads)
        self.experiment = experiment
        self.config_hash = portable_hash(experiment)
        self.strategy: Strategy[Any] = build_strategy(experiment)
        by_name(self.strategy.every_phase())  # refuses names that are not distinct, before anything starts
        if isinstance(self.strategy, WholeModels):
            flower.bind(self.strategy)
        self.data = federation(experiment) if agreement is None else at_server(experiment, agreement)
        self.agreed = {} if agreement is None else agreement.shared()
        self.check_data = same_data(self.data) if agreement is None else agreed_data(agreement)
        self.strategy.check_data(self.data)
        self.device = devices.resolve(experiment.client.device)
        devices.make_repeatable(self.device)
        self.dtype = devices.parameter_dtype(experiment.client.precision)
        self._start: dict[str, Tensor] = {}
        self.local_names = local_names(experiment, self._initial)
        self.shared_names = names_of_shared(self._initial, self.local_names)
        self.num_train: list[int] = self.data.num_train.tolist()
        simulated = experiment.simulation.devices
        num_clients, seed = experiment.data.num_clients, experiment.run.seed
        self.virtual = fleet.make(simulated, num_clients, seed) if simulated.is_set else None
        self.cohorts = Cohorts(experiment, self.data, self.virtual, self.device)
        self.prepare = Kept(self._prepare)

    @cached_property
    def _initial(self) -> Model:
        """The global model as it is before the first round."""
        return self.build_model()

    def forget_initial(self) -> None:
        """Let the model go that the global one was before the first round; it is built anew when it is asked for."""
        self.__dict__.pop("_initial", None)

    def start(self) -> str:
        """Give the global model the weights of `model.init`, if there is one; return what is to be said of it.

        A run that goes on from a checkpoint need not: all of them are in it.

        Raises:
            Refusal: They cannot be read, or do not fit.
        """
        if not self.experiment.model.init:
            return ""
        start = initial.start(self.experiment, self._initial, self.data)
        self._start = start.tensors
        load_state(self._initial, self._start, partial=True)
        return start.notice

    @property
    def trains(self) -> tuple[LocalConfig, Model, torch.device]:
        """How and what clients train, and where this process would: for `umbel.core.training.modes`."""
        return self.experiment.client, self._initial, self.device

    def build_model(self) -> Model:
        """Build the global model as it is before the first round."""
        model = build_model(self.experiment, self.data)
        load_state(model, self._start, partial=True)
        return model

    def full_state(self, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return all parameters and buffers of the generic model: the shared ones, the rest as initialised.

        A strategy whose model is not the experiment's alone (CreamFL's pair of encoders) gives all of it.
        """
        if self.strategy.own_model:
            return {name: tensor.detach().cpu() for name, tensor in shared.items()}
        state = self._initial.state_dict()
        own = {name: shared[name].cpu() if name in shared else tensor.clone() for name, tensor in state.items()}
        return own | {name: tensor.detach().cpu() for name, tensor in shared.items()}

    def _prepare(self, examples: Examples) -> tuple[Tensor, Tensor]:
        """Return (images, labels) on the device, normalised; `prepare` does so once for each set of examples."""
        images = transforms.normalize(examples.images.to(self.device), self.data.mean, self.data.std, self.dtype)
        return images, examples.labels.to(self.device)

    def context(self, round_: int) -> ServerContext:
        """Return the server as a strategy sees it in a round."""
        validation = self.data.server.validation
        return ServerContext(
            seed=self.experiment.run.seed,
            round=round_,
            num_rounds=self.experiment.run.rounds,
            num_clients=self.experiment.data.num_clients,
            local=self.experiment.local,
            build_model=self.build_model,
            shared_names=self.shared_names,
            validation=validation if len(validation) else None,
            device=self.device,
            prepare=self.prepare,
            num_sampled=self.experiment.num_sampled,
            num_examples=self._num_examples(round_),
            schedule=self.experiment.schedule,
            task_of_class=self.data.task_of_class if self.experiment.data.heads == "per_task" else None,
            public=self.data.public if len(self.data.public_index) else None,
            vocabulary=self.data.vocabulary,
            num_train=self.num_train,
            devices=self.virtual,
        )

    def _num_examples(self, round_: int) -> int:
        """Return the training examples of all clients, in a sequence those of the round's task (by its share)."""
        everything, schedule = int(self.data.num_train.sum()), self.experiment.schedule
        if not schedule.is_sequence:
            return everything
        tasks = self.data.partition.tasks
        share = 1 / schedule.num_tasks if tasks is None else float((tasks == schedule.task(round_)).double().mean())
        return round(everything * share)

    def phases(self, state: Any) -> tuple[Phase[Any], ...]:
        """Return the phases of the round that begins with a State.

        Raises:
            Refusal: Two have the same name, or one that of the evaluation.
        """
        return tuple(by_name(self.strategy.phases(state)).values())

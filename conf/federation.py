"""The data and the model of an experiment: built once in a process, shared by server and clients in it."""

from __future__ import annotations

import json
from dataclasses import asdict

from umbel.conf.schema import Experiment
from umbel.core.device import parameter_dtype
from umbel.core.rng import build_seeded
from umbel.data.federation import Federation
from umbel.models import norm
from umbel.models.assemble import assemble
from umbel.models.base import Model
from umbel.models.checkpointing import checkpoint_blocks

_cache: dict[str, Federation] = {}


def _key(experiment: Experiment) -> str:
    return json.dumps([asdict(experiment.data), experiment.data_seed], sort_keys=True)


def federation(experiment: Experiment) -> Federation:
    """Return the experiment's data set, cut into server and clients; the last one made is kept.

    Raises:
        DataError: The data are missing or damaged, or cannot be cut as asked.
    """
    key = _key(experiment)
    if key not in _cache:
        _cache.clear()
        _cache[key] = Federation.build(experiment.data, experiment.data_seed)
    return _cache[key]


def adopt(experiment: Experiment, made: Federation) -> None:
    """Use a federation that was made elsewhere, over shared memory."""
    _cache.clear()
    _cache[_key(experiment)] = made


def build_model(experiment: Experiment, data: Federation) -> Model:
    """Build the experiment's model, initialised from the run's seed, with its operators and its norm rule."""
    config = experiment.model

    def factory() -> Model:
        model = assemble(
            config.name,
            data.num_classes,
            data.image_size,
            data.in_channels,
            sizes=config.sizes,
            operators_=config.operators,
            norm_rule=config.norm,
        )
        return checkpoint_blocks(model) if config.checkpoint else model

    return build_seeded(factory, experiment.run.seed, parameter_dtype(experiment.client.precision))


def local_names(experiment: Experiment, model: Model) -> frozenset[str]:
    """Return the names of the model's state that stay with each client."""
    return norm.batch_norm_names(model) if experiment.model.norm == "local" else frozenset()

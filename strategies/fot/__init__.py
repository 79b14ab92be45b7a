"""FOT: `method` reads like the paper; `subspace` is its mathematics, `layers` takes it to the layers of a model."""

from umbel.models.inputs import layer_inputs
from umbel.strategies.fot.method import FOT, Config, State
from umbel.strategies.fot.subspace import expand_basis, project_update, residual_sketch

__all__ = ["FOT", "Config", "State", "expand_basis", "layer_inputs", "project_update", "residual_sketch"]

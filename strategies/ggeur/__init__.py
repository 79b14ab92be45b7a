"""GGEUR: `method` reads like the paper; `pooling`, `shapes`, `completion` and `noise` are its mathematics."""

from umbel.strategies.ggeur.completion import completion, sample
from umbel.strategies.ggeur.method import GGEUR, Config, State
from umbel.strategies.ggeur.pooling import ClassStatistics, class_statistics, pool_statistics
from umbel.strategies.ggeur.shapes import Geometry, geometry

__all__ = [
    "GGEUR",
    "ClassStatistics",
    "Config",
    "Geometry",
    "State",
    "class_statistics",
    "completion",
    "geometry",
    "pool_statistics",
    "sample",
]

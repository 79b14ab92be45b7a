"""The zoo: image models with `features(x)` and `head`, found by name."""

from models.base import Model
from models.registry import build, describe, names, options

__all__ = ["Model", "build", "describe", "names", "options"]

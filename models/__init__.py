"""The zoo: image models with `features(x)` and `head`, found by name."""

from umbel.models.base import Model
from umbel.models.registry import build, describe, names, options

__all__ = ["Model", "build", "describe", "names", "options"]

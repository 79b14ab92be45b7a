"""The zoo: image models with `features(x)` and `head`, found by name; `wrap` makes one of any classifier."""

from umbel.models.base import Model
from umbel.models.registry import build, describe, names, options
from umbel.models.wrap import wrap

__all__ = ["Model", "build", "describe", "names", "options", "wrap"]

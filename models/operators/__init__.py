"""Operators that go into any model: in the place of its convolutions, or around the whole of it."""

from umbel.models.operators.registry import apply, check, describe, documentation, is_watched, names, options, replace

__all__ = ["apply", "check", "describe", "documentation", "is_watched", "names", "options", "replace"]
